//! Where the time of a `run` goes: printed to standard error when `BULKHEAD_TIMINGS` is set. The
//! command prints its own steps; a supervisor's are in its log.

use std::cell::Cell;
use std::env;
use std::time::Instant;

/// A stopwatch with named marks.
pub struct Timings {
    shown: bool,
    start: Instant,
    last: Cell<Instant>,
}

impl Default for Timings {
    fn default() -> Self {
        Self::new()
    }
}

impl Timings {
    /// Starts it.
    #[must_use]
    pub fn new() -> Self {
        let start = Instant::now();
        Self { shown: env::var_os("BULKHEAD_TIMINGS").is_some(), start, last: Cell::new(start) }
    }

    /// Tells how long it took to come here, from the last mark and in all.
    pub fn mark(&self, name: &str) {
        if self.shown {
            let now = Instant::now();
            let step = now - self.last.replace(now);
            eprintln!(
                "timing {name:<8} {:>8.2} ms {:>8.2} ms",
                step.as_secs_f64() * 1e3,
                (now - self.start).as_secs_f64() * 1e3
            );
        }
    }
}
