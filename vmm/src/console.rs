//! The last bytes of a guest's console, kept for diagnosis.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::control::MAX_CONSOLE;

/// A ring buffer that several threads may write to; it keeps the last [`MAX_CONSOLE`] bytes.
#[derive(Debug, Clone, Default)]
pub struct ConsoleRing(Arc<Mutex<VecDeque<u8>>>);

impl ConsoleRing {
    /// Appends bytes as the guest wrote them.
    pub fn write(&self, bytes: &[u8]) {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = &bytes[bytes.len().saturating_sub(MAX_CONSOLE)..];
        let excess = (ring.len() + bytes.len()).saturating_sub(MAX_CONSOLE);
        ring.drain(..excess);
        ring.extend(bytes);
    }

    /// The text kept, fit for a terminal: no control characters but newlines, no invalid UTF-8.
    #[must_use]
    pub fn text(&self) -> String {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = ring.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        text.chars().filter(|c| *c == '\n' || !c.is_control()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_bytes_and_removes_control_characters() {
        let ring = ConsoleRing::default();
        ring.write(&vec![b'x'; MAX_CONSOLE]);
        ring.write(b"end\x1b[2J\r\n");
        let text = ring.text();
        assert_eq!(text.len(), MAX_CONSOLE - 2);
        assert!(text.ends_with("xend[2J\n"));
    }
}
