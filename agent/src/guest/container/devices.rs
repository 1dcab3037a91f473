//! The device nodes and links that every container has (OCI runtime specification, "Default Devices").

use std::io;
use std::os::unix::fs::symlink;

use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};

/// Name, major and minor number.
const NODES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 6] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
    ("/proc/kcore", "/dev/core"),
];

/// Makes them in the tmpfs that is mounted on /dev.
pub(super) fn create() -> io::Result<()> {
    let before = umask(Mode::empty());
    let mode = Mode::from_bits_retain(0o666);
    let nodes = NODES.iter().try_for_each(|(name, major, minor)| {
        mknod(format!("/dev/{name}").as_str(), SFlag::S_IFCHR, mode, makedev(*major, *minor))
    });
    umask(before);
    nodes?;
    LINKS.iter().try_for_each(|(target, link)| symlink(target, link))
}
