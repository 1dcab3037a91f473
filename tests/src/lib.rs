//! Bulkhead's end-to-end tests and benches: real machines, real images.
