//! A file server for the tests of shared folders.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

/// A server that ends with the test, however that ends.
pub struct Server(pub Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves a folder; returns the VMM's end of the socket. `None` where the server has not been built.
pub fn serve(folder: &Path, read_only: bool) -> Option<(Server, OwnedFd)> {
    let program = Path::new(env!("CARGO_BIN_EXE_bulkhead-vmm")).with_file_name("bulkhead-fs");
    if !program.exists() {
        eprintln!("skipped: bulkhead-fs is not built (cargo build -p bulkhead-fs)");
        return None;
    }
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let folder = File::open(folder).unwrap();
    let mut command = Command::new(program);
    command.args(["--socket", "100", "--folder", "101"]).args(read_only.then_some("--read-only"));
    let from = [theirs.as_raw_fd(), folder.as_raw_fd()];
    // SAFETY: dup2 is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            for (from, to) in from.into_iter().zip([100, 101]) {
                if libc::dup2(from, to) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    Some((Server(command.spawn().unwrap()), ours))
}
