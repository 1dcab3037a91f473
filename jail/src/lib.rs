//! What the jails of helper processes have in common (`bulkhead-fs`, `bulkhead-net`): namespaces with users of their own, limits, and
//! the giving up of rights. What is in the jail's root is each helper's own affair.
//!
//! Everything here is for a process that has one thread.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::RawFd;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, getegid, geteuid, getpid};

/// Why there is no jail. The text is shown to people as it is.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}: {source}")]
pub struct JailError {
    step: &'static str,
    source: io::Error,
}

impl JailError {
    /// A step that failed: "cannot STEP: WHY".
    pub fn new(step: &'static str, source: impl Into<io::Error>) -> Self {
        Self { step, source: source.into() }
    }
}

/// Turns the error of a step into a [`JailError`].
pub fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> JailError {
    move |source| JailError::new(step, source)
}

/// Who there is in a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Users {
    /// Every user and group that there is outside, by the same number. Only root may make this.
    All,
    /// One: `inside` is the number there of `outside`, which must be the process's own user and group unless it is root.
    One {
        /// The number in the namespace.
        inside: u32,
        /// The user's number here.
        user: u32,
        /// The group's number here.
        group: u32,
    },
}

impl Users {
    /// The process's own user and group, under this number.
    #[must_use]
    pub fn myself_as(inside: u32) -> Self {
        Self::One { inside, user: geteuid().as_raw(), group: getegid().as_raw() }
    }
}

/// Moves the process into a new user namespace with these users, and into new namespaces of these other kinds. A new process id
/// namespace is that of its next child.
///
/// # Errors
/// The host refuses; user namespaces may be forbidden.
pub fn isolate(kinds: CloneFlags, users: Users) -> Result<(), JailError> {
    let step = "map users";
    let (mut go, go_writer) = io::pipe().map_err(at(step))?;
    let parent = getpid();
    // Whoever makes a user namespace has no right to map users into it: that takes somebody from outside.
    // SAFETY: there is no other thread, so that the child may do what it likes.
    let helper = match unsafe { fork() }.map_err(at(step))? {
        ForkResult::Child => {
            drop(go_writer);
            let ready = go.read_exact(&mut [0]).is_ok();
            let mapped = ready && map_users(parent.as_raw(), users).is_ok();
            // SAFETY: always sound; nothing of the parent's is to be cleaned up.
            unsafe { libc::_exit(i32::from(!mapped)) }
        }
        ForkResult::Parent { child } => child,
    };
    drop(go);
    let made = unshare(CloneFlags::CLONE_NEWUSER | kinds);
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

fn map_users(pid: libc::pid_t, users: Users) -> io::Result<()> {
    let write = |file: &str, text: &str| {
        OpenOptions::new().write(true).open(format!("/proc/{pid}/{file}"))?.write_all(text.as_bytes())
    };
    match users {
        Users::All => {
            for file in ["uid_map", "gid_map"] {
                let own = fs::read_to_string(format!("/proc/self/{file}"))?;
                let same = own.lines().filter_map(|line| {
                    let mut fields = line.split_ascii_whitespace();
                    let (first, count) = (fields.next()?, fields.nth(1)?);
                    Some(format!("{first} {first} {count}\n"))
                });
                write(file, &same.collect::<String>())?;
            }
            Ok(())
        }
        Users::One { inside, user, group } => {
            if !geteuid().is_root() {
                // Else a user could leave a group that keeps it out of something (user_namespaces(7)).
                write("setgroups", "deny")?;
            }
            write("uid_map", &format!("{inside} {user} 1"))?;
            write("gid_map", &format!("{inside} {group} 1"))
        }
    }
}

/// prctl(2) with an option that takes one number.
///
/// # Errors
/// The kernel's.
pub fn prctl(option: libc::c_int, argument: libc::c_ulong) -> io::Result<()> {
    // SAFETY: callers give options that take a number.
    let result = unsafe { libc::prctl(option, argument, 0, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Closes every descriptor but the standard ones and these. For a process that has made none of its own yet that it would use again.
pub fn close_others(kept: &[RawFd]) {
    let mut kept: Vec<libc::c_uint> = kept.iter().filter_map(|fd| libc::c_uint::try_from(*fd).ok()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().chain([libc::c_uint::MAX]) {
        if first < fd {
            // SAFETY: numbers only; the caller promises that nothing in this process uses what is closed.
            unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
        }
        first = fd.saturating_add(1);
    }
}

/// Sets soft and hard limits, or what the process is allowed where that is less.
///
/// # Errors
/// The kernel's.
pub fn limit(limits: &[(Resource, u64)]) -> Result<(), JailError> {
    for (resource, most) in limits {
        let (_, hard) = getrlimit(*resource).map_err(at("set limits"))?;
        let most = (*most).min(hard);
        setrlimit(*resource, most, most).map_err(at("set limits"))?;
    }
    Ok(())
}

/// Gives up every capability but these, for good.
///
/// # Errors
/// The kernel's.
pub fn keep_capabilities(kept: &[Capability]) -> Result<(), JailError> {
    let step = "give up capabilities";
    let failed = |error: caps::errors::CapsError| JailError::new(step, io::Error::other(error));
    let kept: CapsHashSet = kept.iter().copied().collect();
    // Only who still may can take one away for good; after a change of user, that is done already.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(failed)? {
        for capability in caps::all() {
            if caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) {
                caps::drop(None, CapSet::Bounding, capability).map_err(failed)?;
            }
        }
    }
    caps::clear(None, CapSet::Ambient).map_err(failed)?;
    caps::set(None, CapSet::Effective, &kept).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed)?;
    caps::clear(None, CapSet::Inheritable).map_err(failed)
}
