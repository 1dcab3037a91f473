//! The jail: namespaces of its own but for the network's, an empty root, an unprivileged user, no capabilities, limits.
//!
//! The network namespace is the host's: what leaves a network leaves over plain sockets of the host's.

pub use bulkhead_jail::{JailError, close_others};
use bulkhead_jail::{Users, at, isolate, keep_capabilities, limit, prctl};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;
use nix::sys::resource::Resource;
use nix::unistd::{ForkResult, Gid, Uid, chdir, fork, pivot_root, setgroups, setresgid, setresuid};

/// Most open descriptors: one for each flow.
const MAX_FILES: u64 = 64 << 10;
/// Most private memory in bytes: 128 KiB for each TCP flow at the very most, and tables.
const MAX_MEMORY: u64 = 2 << 30;
/// Nobody, whom root becomes.
const NOBODY: u32 = 65_534;

/// Namespaces beside the users'.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS);

const LIMITS: [(Resource, u64); 5] = [
    (Resource::RLIMIT_CORE, 0),
    (Resource::RLIMIT_NOFILE, MAX_FILES),
    (Resource::RLIMIT_DATA, MAX_MEMORY),
    (Resource::RLIMIT_MEMLOCK, 0),
    (Resource::RLIMIT_NPROC, 0),
];

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
    let users = if root {
        Users::One { inside: NOBODY, user: NOBODY, group: NOBODY }
    } else {
        Users::myself_as(NOBODY)
    };
    isolate(NAMESPACES, users)?;
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
    keep_capabilities(&[])?;
    prctl(libc::PR_SET_DUMPABLE, 0).map_err(at("forbid dumps"))?;
    limit(&LIMITS)
}
