//! The log of what was refused, bounded: a guest must not fill the host's disk with it.

use std::fmt;
use std::time::{Duration, Instant};

/// Most lines a second.
const RATE: u32 = 20;
/// Most bytes of one switch's life.
const MAX_BYTES: usize = 1 << 20;

/// The log, on standard error.
#[derive(Debug)]
pub struct Log {
    since: Instant,
    lines: u32,
    left: usize,
}

impl Log {
    pub fn new() -> Self {
        Self { since: Instant::now(), lines: 0, left: MAX_BYTES }
    }

    /// Writes a line, unless there were too many.
    pub fn line(&mut self, text: &dyn fmt::Display) {
        let now = Instant::now();
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            (self.since, self.lines) = (now, 0);
        }
        self.lines += 1;
        if self.lines > RATE || self.left == 0 {
            return;
        }
        let text = text.to_string();
        self.left = self.left.saturating_sub(text.len() + 1);
        eprintln!("{text}");
        if self.left == 0 {
            eprintln!("the log is full: what is refused from here on is only counted");
        }
    }
}
