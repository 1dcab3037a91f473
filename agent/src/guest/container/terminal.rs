//! The container's terminal: a pair from its own devpts, so that `ttyname` and `/dev/console` work inside.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::mount::{MsFlags, mount};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::protocol::TerminalSize;

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, libc::winsize);
nix::ioctl_write_int_bad!(set_controlling_terminal, libc::TIOCSCTTY);
nix::ioctl_write_ptr_bad!(unlock_pty, libc::TIOCSPTLCK, libc::c_int);
nix::ioctl_read_bad!(pty_number, libc::TIOCGPTN, libc::c_uint);

/// Sets the size that programs see; the foreground process group gets SIGWINCH.
pub(crate) fn resize(master: impl AsFd, size: TerminalSize) -> io::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the pointer is to a winsize that lives through the call.
    unsafe { set_window_size(master.as_fd().as_raw_fd(), &raw const size) }?;
    Ok(())
}

/// Opens a terminal in the container's devpts, makes it the controlling terminal and the three standard streams.
/// With `console`, it is /dev/console as well. Returns the master side. The caller is a session leader in the container's root.
pub(super) fn open(size: TerminalSize, console: bool) -> io::Result<OwnedFd> {
    let flags = libc::O_NOCTTY | libc::O_CLOEXEC;
    let open = |path: &str| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    let master = open("/dev/pts/ptmx")?;
    let unlocked: libc::c_int = 0;
    let mut number: libc::c_uint = 0;
    // SAFETY: both pointers are to integers that live through the calls.
    unsafe {
        unlock_pty(master.as_raw_fd(), &raw const unlocked)?;
        pty_number(master.as_raw_fd(), &raw mut number)?;
    }
    let path = format!("/dev/pts/{number}");
    let slave = open(&path)?;
    resize(&master, size)?;
    // SAFETY: an integer argument only; the descriptor is open.
    unsafe { set_controlling_terminal(slave.as_raw_fd(), 0) }?;
    if console {
        File::create("/dev/console")?;
        mount(Some(path.as_str()), "/dev/console", None::<&CStr>, MsFlags::MS_BIND, None::<&CStr>)?;
    }
    dup2_stdin(&slave)?;
    dup2_stdout(&slave)?;
    dup2_stderr(&slave)?;
    Ok(master.into())
}
