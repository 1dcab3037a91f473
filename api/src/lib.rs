//! Bulkhead's API: the requests that the command line and the daemon share.
