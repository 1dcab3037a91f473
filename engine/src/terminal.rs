//! The caller's terminal: its size, and raw mode for as long as a container has it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use agent::protocol::TerminalSize;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

mod sys {
    nix::ioctl_read_bad!(
        /// Asks a terminal for its size.
        window_size,
        libc::TIOCGWINSZ,
        libc::winsize
    );
}

/// Size when there is no terminal to ask.
const DEFAULT_SIZE: TerminalSize = TerminalSize { rows: 24, columns: 80 };

/// The size of the caller's terminal, or 80 by 24.
#[must_use]
pub fn size() -> TerminalSize {
    let ask = |fd: BorrowedFd<'_>| {
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the pointer is to a winsize that lives through the call.
        let asked = unsafe { sys::window_size(fd.as_raw_fd(), &raw mut size) };
        asked.ok().filter(|_| size.ws_row > 0 && size.ws_col > 0)?;
        Some(TerminalSize { rows: size.ws_row, columns: size.ws_col })
    };
    ask(io::stdout().as_fd()).or_else(|| ask(io::stdin().as_fd())).unwrap_or(DEFAULT_SIZE)
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
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}
