//! A shared folder as the guest sees it, over vhost-user, with a real server behind it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

#[macro_use]
mod uml_support;

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use uml_support::{Machine, Setup, pattern};
use vmm::control::ExitReason;

/// A server that ends with the test, however that ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves a folder; returns the VMM's end of the socket. `None` where the server has not been built.
fn serve(folder: &Path, read_only: bool) -> Option<(Server, OwnedFd)> {
    let program = Path::new(env!("CARGO_BIN_EXE_bulkhead-vmm")).with_file_name("bulkhead-fs");
    if !program.exists() {
        eprintln!("skipped: bulkhead-fs is not built (cargo build -p bulkhead-fs)");
        return None;
    }
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let folder = fs::File::open(folder).unwrap();
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

fn boot(kernel: &Path, folder: &Path, read_only: bool) -> Option<(Server, Machine)> {
    let (server, socket) = serve(folder, read_only)?;
    let mut setup = Setup::new(kernel, "share");
    setup.shares.push(("data", socket));
    Some((server, setup.boot()))
}

#[test]
fn a_guest_works_in_a_shared_folder() {
    let kernel = kernel_or_skip!();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("told"), "hello").unwrap();
    let Some((mut server, machine)) = boot(&kernel, folder.path(), false) else { return };
    assert_eq!(machine.line(), "hello written");
    assert_eq!(machine.line(), "4");
    assert_eq!(machine.ended().reason, ExitReason::Shutdown);
    assert!(fs::read(folder.path().join("large")).unwrap() == pattern(3 << 20));
    assert_eq!(fs::read_link(folder.path().join("link")).unwrap(), Path::new("/etc/hostname"));
    assert_eq!(fs::read_dir(folder.path().join("new")).unwrap().count(), 101);
    assert!(!folder.path().join("told").exists());
    // The machine's end is the socket's, and so the server's.
    assert!(server.0.wait().unwrap().success());
}

#[test]
fn a_guest_cannot_write_to_a_read_only_folder() {
    let kernel = kernel_or_skip!();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("told"), "hello").unwrap();
    let Some((_server, machine)) = boot(&kernel, folder.path(), true) else { return };
    assert_eq!(machine.line(), "hello Read-only file system (os error 30)");
    assert_eq!(machine.line(), "1");
    assert_eq!(machine.ended().reason, ExitReason::Shutdown);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
