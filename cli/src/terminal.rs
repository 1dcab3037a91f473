//! The caller's terminal: its size, and raw mode for as long as a container has it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// The size of the caller's terminal; `None` if neither output nor input is one.
pub fn size() -> Option<Size> {
    let ask = |fd: BorrowedFd<'_>| {
        let size = tcgetwinsize(fd).ok()?;
        (size.ws_row > 0 && size.ws_col > 0).then_some(Size { rows: size.ws_row, columns: size.ws_col })
    };
    ask(io::stdout().as_fd()).or_else(|| ask(io::stdin().as_fd()))
}

/// The size of the terminal that standard error is; `None` if it is none.
pub fn error_size() -> Option<Size> {
    let size = tcgetwinsize(io::stderr()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(Size { rows: size.ws_row, columns: size.ws_col })
}

/// Raw mode on standard input until dropped.
pub struct RawMode(Termios);

impl RawMode {
    /// Switches to raw mode, so that every key goes to the container.
    ///
    /// # Errors
    /// Standard input is no terminal.
    pub fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
