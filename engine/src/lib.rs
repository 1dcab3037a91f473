//! Bulkhead's engine: containers, their state on disk, and the machines they run in.
