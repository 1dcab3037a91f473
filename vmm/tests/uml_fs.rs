//! A shared folder as the guest sees it, over vhost-user, with a real server behind it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

#[macro_use]
mod uml_support;
mod share;

use std::fs;
use std::path::Path;

use share::Server;
use uml_support::{Machine, Setup, pattern};
use vmm::control::ExitReason;

fn boot(kernel: &Path, folder: &Path, read_only: bool) -> Option<(Server, Machine)> {
    let (server, socket) = share::serve(folder, read_only)?;
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
