//! The jail: namespaces of its own, the folder as its root, and no right that serving files does not need.
//!
//! The folder comes as a descriptor. It is made the working directory before the mount namespace is copied, which takes the
//! working directory along into the copy: so no path is ever looked up, and nobody can put another folder in its place.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use caps::{CapSet, Capability, CapsHashSet};
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, chdir, fchdir, fork, getpid, pivot_root};

use crate::filter;
use crate::serve::Folder;

/// Most open files and known inodes, each of which has a descriptor.
const MAX_FILES: u64 = 64 << 10;
/// Most private memory, in bytes: a few hundred for each known inode, and buffers.
const MAX_MEMORY: u64 = 512 << 20;
/// How long a guest may take names and attributes for true: another program of the host may change them.
const VALID: Duration = Duration::from_secs(1);
/// What remains for root: files belong to many users. Making device nodes is not among it, nor anything of the host's: the user
/// namespace is not the host's.
const KEPT: [Capability; 7] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    // Without it a known file cannot be given a second name.
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
];

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
pub enum Side {
    /// In the process that was called: the server has ended, with this code.
    Outside(ExitCode),
    /// In the server: the folder, and the socket of its requests.
    Inside(Box<Folder>, OwnedFd),
}

/// Enters the jail, in a child. The process that was called waits for it, and the child ends with it.
///
/// # Errors
/// The host refuses a step; user namespaces may be forbidden.
pub fn enter(folder: OwnedFd, socket: OwnedFd, read_only: bool) -> Result<Side, JailError> {
    die_with_parent()?;
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(at("give up new privileges"))?;
    close_others(&[folder.as_raw_fd(), socket.as_raw_fd()]);
    fchdir(&folder).map_err(at("enter the folder"))?;
    drop(folder);
    let root = nix::unistd::geteuid().is_root();
    isolate(root)?;
    // SAFETY: there is no other thread yet, so that the child may do what it likes.
    match unsafe { fork() }.map_err(at("make the server's process"))? {
        ForkResult::Parent { child } => {
            drop(socket);
            loop {
                return match waitpid(child, None) {
                    Err(nix::Error::EINTR) => continue,
                    Ok(WaitStatus::Exited(_, 0)) => Ok(Side::Outside(ExitCode::SUCCESS)),
                    Ok(WaitStatus::Signaled(_, signal, _)) => {
                        eprintln!("bulkhead-fs: the server was ended by {signal}");
                        Ok(Side::Outside(ExitCode::FAILURE))
                    }
                    _ => Ok(Side::Outside(ExitCode::FAILURE)),
                };
            }
        }
        ForkResult::Child => inside(socket, read_only, root),
    }
}

fn inside(socket: OwnedFd, read_only: bool, root: bool) -> Result<Side, JailError> {
    die_with_parent()?;
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .map_err(at("make mounts private"))?;
    // The folder with what is mounted in it, detached; later changes outside do not come in.
    let tree = open_tree().map_err(at("take the folder"))?;
    restrict(&tree, read_only).map_err(at("restrict the folder"))?;
    // The file system keeps a descriptor of /proc/self/fd: if possible of one that knows nobody but the server.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let _ = mount(Some("proc"), "/proc", Some("proc"), flags, nothing);
    let files = PassthroughFs::new(config()).map_err(at("prepare the folder"))?;
    // Any directory will do to hang the folder up: afterwards it is the root, and everything else is gone.
    move_mount(&tree).map_err(at("hang up the folder"))?;
    drop(tree);
    chdir("/proc").map_err(at("enter the folder"))?;
    pivot_root(".", ".").map_err(at("make the folder the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(at("let go of the host's root"))?;
    chdir("/").map_err(at("enter the root"))?;
    files.import().map_err(at("open the folder"))?;
    limit()?;
    drop_capabilities(root)?;
    filter::install()
        .map_err(|error| JailError { step: "install the filter", source: io::Error::other(error) })?;
    Ok(Side::Inside(Box::new(Folder::new(files, !root)), socket))
}

fn config() -> Config {
    Config {
        root_dir: "/".to_owned(),
        entry_timeout: VALID,
        attr_timeout: VALID,
        cache_policy: CachePolicy::Auto,
        ..Config::default()
    }
}

/// New namespaces of every kind, whose users are all of this process's if it is root, else only itself, as root.
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
        | CloneFlags::CLONE_NEWNET
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
        for file in ["uid_map", "gid_map"] {
            // Every user that there is here keeps its number.
            let own = fs::read_to_string(format!("/proc/self/{file}"))?;
            let same = own.lines().filter_map(|line| {
                let mut fields = line.split_ascii_whitespace();
                let (first, count) = (fields.next()?, fields.nth(1)?);
                Some(format!("{first} {first} {count}\n"))
            });
            write(file, &same.collect::<String>())?;
        }
        return Ok(());
    }
    // Else a user could leave a group that keeps it out of something (user_namespaces(7)).
    write("setgroups", "deny")?;
    write("uid_map", &format!("0 {} 1", nix::unistd::geteuid()))?;
    write("gid_map", &format!("0 {} 1", nix::unistd::getegid()))
}

fn die_with_parent() -> Result<(), JailError> {
    let signal = Signal::SIGKILL as libc::c_ulong;
    prctl(libc::PR_SET_PDEATHSIG, signal).map_err(at("follow the parent"))
}

fn prctl(option: libc::c_int, argument: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the options used here take a number.
    let result = unsafe { libc::prctl(option, argument, 0, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Closes every descriptor but standard ones and these.
fn close_others(kept: &[libc::c_int]) {
    let mut kept: Vec<libc::c_uint> = kept.iter().filter_map(|fd| libc::c_uint::try_from(*fd).ok()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().chain([libc::c_uint::MAX]) {
        if first < fd {
            // SAFETY: this process has made no descriptor of its own yet that it would use again.
            unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
        }
        first = fd.saturating_add(1);
    }
}

fn open_tree() -> io::Result<OwnedFd> {
    const OPEN_TREE_CLONE: libc::c_int = 1;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC | libc::AT_RECURSIVE;
    // SAFETY: the path is a constant; the result is a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, c".".as_ptr(), flags) };
    match libc::c_int::try_from(fd) {
        // SAFETY: the kernel has just made it for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Nothing in the folder is a device, gains privileges or is executed here; and nothing is written if it is read-only.
fn restrict(tree: &OwnedFd, read_only: bool) -> io::Result<()> {
    let mut attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    if read_only {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    let attributes = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the structure is ours, and its size is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn move_mount(tree: &OwnedFd) -> io::Result<()> {
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_int = 4;
    // SAFETY: the paths are constants.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            c"/proc".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn limit() -> Result<(), JailError> {
    let step = "set limits";
    for (resource, most) in [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NOFILE, MAX_FILES),
        (Resource::RLIMIT_DATA, MAX_MEMORY),
        (Resource::RLIMIT_MEMLOCK, 0),
    ] {
        let (_, hard) = getrlimit(resource).map_err(at(step))?;
        let most = most.min(hard);
        setrlimit(resource, most, most).map_err(at(step))?;
    }
    Ok(())
}

fn drop_capabilities(root: bool) -> Result<(), JailError> {
    let step = "give up capabilities";
    let failed = |error: caps::errors::CapsError| JailError { step, source: io::Error::other(error) };
    // Alone, one is root of nothing but one's own files, and needs no capability for them.
    let kept: CapsHashSet = if root { KEPT.into_iter().collect() } else { CapsHashSet::new() };
    for capability in caps::all() {
        if caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) {
            caps::drop(None, CapSet::Bounding, capability).map_err(failed)?;
        }
    }
    caps::clear(None, CapSet::Ambient).map_err(failed)?;
    caps::set(None, CapSet::Effective, &kept).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed)?;
    caps::clear(None, CapSet::Inheritable).map_err(failed)
}
