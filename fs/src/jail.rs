//! The jail: namespaces of its own, a root in which there is nothing but the descriptors of this very process, and no right that
//! serving files does not need.
//!
//! The folder comes as a descriptor. It is made the working directory before the mount namespace is copied, which takes the
//! working directory along into the copy: so no path is ever looked up, and nobody can put another folder in its place. What is
//! served is a copy of its mount that hangs nowhere, so that nothing lies above it. Only where the host does not let a jail have a /proc
//! of its own is it the root itself; extended attributes, which need a path, are not to be had then.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
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
use crate::gate::Rules;
use crate::serve::Folder;
use crate::tree::{move_mount, open_tree, restrict};

/// Most open files and known inodes, each of which has a descriptor.
const MAX_FILES: u64 = 256 << 10;
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

/// SECBIT_NO_SETUID_FIXUP, locked: capabilities do not come and go with user ids.
const SECURE_BITS: libc::c_ulong = 1 << 2 | 1 << 3;

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

/// What is shared.
#[derive(Debug)]
pub struct Share {
    /// The folder.
    pub folder: OwnedFd,
    /// Of the folder only the file of this name, which is no path; the guest finds it as [`FILE`], alone in a folder.
    pub file: Option<CString>,
    /// Nothing may be written.
    pub read_only: bool,
}

/// What a shared file is called in the guest.
pub const FILE: &str = "file";

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
pub fn enter(share: Share, socket: OwnedFd) -> Result<Side, JailError> {
    die_with_parent()?;
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(at("give up new privileges"))?;
    let Share { folder, file, read_only } = share;
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
        ForkResult::Child => inside(socket, file.as_deref(), read_only, root),
    }
}

fn inside(socket: OwnedFd, file: Option<&CStr>, read_only: bool, root: bool) -> Result<Side, JailError> {
    die_with_parent()?;
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .map_err(at("make mounts private"))?;
    // The folder or file with what is mounted in it, detached; later changes outside do not come in.
    let tree = open_tree(file.unwrap_or(c".")).map_err(at("take the folder"))?;
    if file.is_some() && !is_plain_file(&tree) {
        return Err(at("take the file")(io::Error::other("it is not a plain file")));
    }
    restrict(&tree, read_only).map_err(at("restrict the folder"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Of the server's own process and of nothing else, if the host lets a jail have it.
    let proc = ["subset=pid", ""].into_iter().find_map(|options| {
        mount(Some("proc"), "/proc", Some("proc"), flags, Some(options)).ok()?;
        open_tree(c"/proc").ok()
    });
    // The file system keeps a descriptor of /proc/self/fd.
    let early = match &proc {
        Some(_) => None,
        None => Some(PassthroughFs::new(config("/folder".to_owned())).map_err(at("prepare the folder"))?),
    };
    // Any directory will do for what becomes the root: everything else will be gone.
    mount(Some("tmpfs"), "/proc", Some("tmpfs"), flags, Some("mode=755,size=64k,nr_inodes=8"))
        .map_err(at("make the root"))?;
    chdir("/proc").map_err(at("enter the root"))?;
    let tree = match file {
        None => tree,
        Some(_) => beside_nothing(&tree).map_err(at("hang up the file"))?,
    };
    let (hung, place) = match &proc {
        Some(proc) => (proc, c"proc"),
        None => (&tree, c"folder"),
    };
    directory(place).and_then(|()| move_mount(hung, place)).map_err(at("hang up the folder"))?;
    let close = flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(nothing, ".", nothing, close, nothing).map_err(at("close the root"))?;
    pivot_root(".", ".").map_err(at("make the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(at("let go of the host's root"))?;
    chdir("/").map_err(at("enter the root"))?;
    let xattrs = proc.is_some();
    drop(proc);
    let files = match early {
        Some(files) => files,
        // The dot makes it the folder itself, not the link that /proc shows.
        None => PassthroughFs::new(config(format!("/proc/self/fd/{}/.", tree.as_raw_fd())))
            .map_err(at("prepare the folder"))?,
    };
    files.import().map_err(at("open the folder"))?;
    limit()?;
    drop_capabilities(root)?;
    filter::install()
        .map_err(|error| JailError { step: "install the filter", source: io::Error::other(error) })?;
    Ok(Side::Inside(Box::new(Folder::new(files, tree, Rules { squash: !root, xattrs })), socket))
}

/// Puts a file into an empty folder, below the working directory, and takes that.
fn beside_nothing(tree: &OwnedFd) -> io::Result<OwnedFd> {
    directory(c"share")?;
    let path = Path::new("share").join(FILE);
    File::create(&path)?;
    move_mount(tree, &CString::new(path.into_os_string().into_encoded_bytes())?)?;
    open_tree(c"share")
}

fn directory(path: &CStr) -> io::Result<()> {
    DirBuilder::new().mode(0o755).create(OsStr::from_bytes(path.to_bytes()))
}

fn config(root_dir: String) -> Config {
    Config {
        root_dir,
        entry_timeout: VALID,
        attr_timeout: VALID,
        cache_policy: CachePolicy::Auto,
        xattr: true,
        killpriv_v2: true,
        ..Config::default()
    }
}

fn is_plain_file(tree: &OwnedFd) -> bool {
    tree.try_clone().map(File::from).and_then(|file| file.metadata()).is_ok_and(|metadata| metadata.is_file())
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
    if root {
        // The guest's kernel has checked what its users may do, by all their groups, which are not known here. What is done as one of
        // them is done so that it belongs to them, not to be checked a second time.
        prctl(libc::PR_SET_SECUREBITS, SECURE_BITS).map_err(at(step))?;
    }
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
