//! A child in namespaces of its own, with an empty root.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::{self, Write};

use libc::pid_t;

use super::sys;
use super::{At, Step, StepError};

/// User, mount, process id, network, IPC and host name: nothing of the host can be named from within.
pub const ALL: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS;

/// The jail's only user and group: nobody.
pub const NOBODY: u32 = 65534;

/// Gives a child's user namespace its only user and group, [`NOBODY`]. Outside it is nobody too if this process is root, else
/// this process's own user, which is all that one may map.
///
/// # Errors
/// The host refuses (unprivileged user namespaces may be forbidden), or the child is gone.
pub fn map_ids(child: pid_t) -> io::Result<()> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let root = uid.is_root();
    let (uid, gid) = if root { (NOBODY, NOBODY) } else { (uid.as_raw(), gid.as_raw()) };
    if !root {
        // Else a user could leave a group that keeps it out of something (user_namespaces(7)).
        write_proc(child, "setgroups", "deny")?;
    }
    write_proc(child, "uid_map", &format!("{NOBODY} {uid} 1"))?;
    write_proc(child, "gid_map", &format!("{NOBODY} {gid} 1"))
}

fn write_proc(child: pid_t, file: &str, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(format!("/proc/{child}/{file}"))?.write_all(text.as_bytes())
}

/// Mounts an empty file system over a directory that every host has, and stands in it. `options` are those of tmpfs, in
/// order of preference: the first that this host's kernel knows. `flags` are mount flags beside those of every jail.
///
/// # Errors
/// The step and the host's error.
pub fn mount_empty_root(options: &[CString], flags: libc::c_ulong) -> Result<(), StepError> {
    // Nothing that is mounted here shows outside.
    sys::mount(c"none", c"/", None, libc::MS_REC | libc::MS_PRIVATE, None).at(Step::MountRoot)?;
    let flags = flags | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOATIME;
    let mut outcome = Err(libc::EINVAL);
    for options in options {
        outcome = sys::mount(c"bulkhead", c"/proc", Some(c"tmpfs"), flags, Some(options));
        if outcome != Err(libc::EINVAL) {
            break;
        }
    }
    outcome.at(Step::MountRoot)?;
    sys::chdir(c"/proc").at(Step::MountRoot)
}

/// Makes the working directory the root, and lets go of everything else.
///
/// # Errors
/// The step and the host's error.
pub fn enter_root() -> Result<(), StepError> {
    sys::pivot_to_working_directory().at(Step::PivotRoot)
}
