//! The jail: namespaces of its own but for the network's, an empty root, an unprivileged user, no capabilities, limits.
//!
//! The network namespace is the host's: what leaves a network leaves over plain sockets of the host's.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use caps::{CapSet, CapsHashSet};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Uid, chdir, fork, getpid, pivot_root, setgroups, setresgid, setresuid};

/// Most open descriptors: one for each flow.
const MAX_FILES: u64 = 64 << 10;
/// Most private memory in bytes: 128 KiB for each TCP flow at the very most, and tables.
const MAX_MEMORY: u64 = 2 << 30;
/// Nobody, whom root becomes.
const NOBODY: u32 = 65_534;

/// Why there is no jail. The text is shown to people as it is.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}: {source}")]
pub struct JailError {
    step: &'static str,
    source: io::Error,
}

fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> JailError {
    move |source| JailError { step, source: source.into() }
}

/// Where [`enter`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// In the process that was called: it has nothing more to do.
    Outside,
    /// In the switch.
    Inside,
}

/// Enters the jail, in a child, which outlives the process that was called.
///
/// # Errors
/// The host refuses a step; user namespaces may be forbidden.
pub fn enter() -> Result<Side, JailError> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(at("give up new privileges"))?;
    let root = Uid::effective().is_root();
    isolate(root)?;
    // SAFETY: there is no other thread yet, so that the child may do what it likes.
    match unsafe { fork() }.map_err(at("make the switch's process"))? {
        ForkResult::Parent { .. } => Ok(Side::Outside),
        ForkResult::Child => inside(root).map(|()| Side::Inside),
    }
}

fn inside(root: bool) -> Result<(), JailError> {
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .map_err(at("make mounts private"))?;
    // Any directory will do to hang the empty root up: afterwards everything else is gone.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount(Some("none"), "/proc", Some("tmpfs"), flags, Some("size=4k,nr_inodes=2,mode=555"))
        .map_err(at("make an empty root"))?;
    chdir("/proc").map_err(at("enter the empty root"))?;
    pivot_root(".", ".").map_err(at("make the empty root the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(at("let go of the host's root"))?;
    chdir("/").map_err(at("enter the root"))?;
    if root {
        let step = "become nobody";
        setgroups(&[]).map_err(at(step))?;
        let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        setresgid(gid, gid, gid).map_err(at(step))?;
        setresuid(uid, uid, uid).map_err(at(step))?;
    }
    drop_capabilities()?;
    prctl(libc::PR_SET_DUMPABLE, 0).map_err(at("forbid dumps"))?;
    limit()
}

/// New namespaces of every kind but the network's, with one user in them.
fn isolate(root: bool) -> Result<(), JailError> {
    let step = "map users";
    let (mut go, go_writer) = io::pipe().map_err(at(step))?;
    let parent = getpid();
    // Whoever makes a user namespace has no right to map users into it: that takes somebody from outside.
    // SAFETY: as in `enter`.
    let helper = match unsafe { fork() }.map_err(at(step))? {
        ForkResult::Child => {
            drop(go_writer);
            let ready = go.read_exact(&mut [0]).is_ok();
            let mapped = ready && map_users(parent.as_raw(), root).is_ok();
            // SAFETY: always sound; nothing of the parent's is to be cleaned up.
            unsafe { libc::_exit(i32::from(!mapped)) }
        }
        ForkResult::Parent { child } => child,
    };
    drop(go);
    let all = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    let made = unshare(all);
    if made.is_ok() {
        (&go_writer).write_all(&[0]).map_err(at(step))?;
    }
    drop(go_writer);
    let mapped = waitpid(helper, None).map_err(at(step))?;
    made.map_err(at("make namespaces (are unprivileged user namespaces allowed?)"))?;
    match mapped {
        WaitStatus::Exited(_, 0) => Ok(()),
        _ => Err(at(step)(io::Error::from(io::ErrorKind::PermissionDenied))),
    }
}

fn map_users(pid: libc::pid_t, root: bool) -> io::Result<()> {
    let write = |file: &str, text: &str| {
        OpenOptions::new().write(true).open(format!("/proc/{pid}/{file}"))?.write_all(text.as_bytes())
    };
    if root {
        let nobody = format!("{NOBODY} {NOBODY} 1");
        write("uid_map", &nobody)?;
        return write("gid_map", &nobody);
    }
    // Else a user could leave a group that keeps it out of something (user_namespaces(7)).
    write("setgroups", "deny")?;
    write("uid_map", &format!("{NOBODY} {} 1", Uid::effective()))?;
    write("gid_map", &format!("{NOBODY} {} 1", Gid::effective()))
}

fn prctl(option: libc::c_int, argument: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the options used here take a number.
    let result = unsafe { libc::prctl(option, argument, 0, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Closes every descriptor but the standard ones and this.
pub fn close_others(kept: &OwnedFd) {
    let kept = libc::c_uint::try_from(kept.as_raw_fd()).unwrap_or(3);
    for (first, last) in [(3, kept.saturating_sub(1)), (kept.saturating_add(1), libc::c_uint::MAX)] {
        if first <= last {
            // SAFETY: this process has made no descriptor of its own yet that it would use again.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}

fn limit() -> Result<(), JailError> {
    let step = "set limits";
    for (resource, most) in [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NOFILE, MAX_FILES),
        (Resource::RLIMIT_DATA, MAX_MEMORY),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_NPROC, 0),
    ] {
        let (_, hard) = getrlimit(resource).map_err(at(step))?;
        let most = most.min(hard);
        setrlimit(resource, most, most).map_err(at(step))?;
    }
    Ok(())
}

fn drop_capabilities() -> Result<(), JailError> {
    let step = "give up capabilities";
    let failed = |error: caps::errors::CapsError| JailError { step, source: io::Error::other(error) };
    let none = CapsHashSet::new();
    for capability in caps::all() {
        // Only who still may can take them away for good; after the change of user, that is done.
        if caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false)
            && caps::has_cap(None, CapSet::Effective, caps::Capability::CAP_SETPCAP).unwrap_or(false)
        {
            caps::drop(None, CapSet::Bounding, capability).map_err(failed)?;
        }
    }
    caps::clear(None, CapSet::Ambient).map_err(failed)?;
    caps::set(None, CapSet::Effective, &none).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &none).map_err(failed)?;
    caps::clear(None, CapSet::Inheritable).map_err(failed)
}
