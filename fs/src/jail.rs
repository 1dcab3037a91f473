//! The jail: namespaces of its own, a root in which there is nothing but the descriptors of this very process, and no right that
//! serving files does not need.
//!
//! The folder comes as a descriptor. It is made the working directory before the mount namespace is copied, which takes the
//! working directory along into the copy: so no path is ever looked up, and nobody can put another folder in its place. What is
//! served is a copy of its mount that hangs nowhere, so that nothing lies above it. Only where the host does not let a jail have a /proc
//! of its own is it the root itself; extended attributes, which need a path, are not to be had then.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use bulkhead_jail::{JailError, Users, at, close_others, isolate, keep_capabilities, limit, prctl};
use caps::Capability;
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;
use nix::sys::resource::Resource;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, chdir, fchdir, fork, pivot_root};

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

/// Namespaces beside the users'.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS);

const LIMITS: [(Resource, u64); 4] = [
    (Resource::RLIMIT_CORE, 0),
    (Resource::RLIMIT_NOFILE, MAX_FILES),
    (Resource::RLIMIT_DATA, MAX_MEMORY),
    (Resource::RLIMIT_MEMLOCK, 0),
];

/// SECBIT_NO_SETUID_FIXUP, locked: capabilities do not come and go with user ids.
const SECURE_BITS: libc::c_ulong = 1 << 2 | 1 << 3;

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
    isolate(NAMESPACES, if root { Users::All } else { Users::myself_as(0) })?;
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
    limit(&LIMITS)?;
    drop_capabilities(root)?;
    let folder =
        Folder::new(files, tree, Rules { squash: !root, xattrs }).map_err(at("prepare the folder"))?;
    filter::install().map_err(|error| JailError::new("install the filter", io::Error::other(error)))?;
    Ok(Side::Inside(Box::new(folder), socket))
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

fn die_with_parent() -> Result<(), JailError> {
    let signal = Signal::SIGKILL as libc::c_ulong;
    prctl(libc::PR_SET_PDEATHSIG, signal).map_err(at("follow the parent"))
}

fn drop_capabilities(root: bool) -> Result<(), JailError> {
    if !root {
        // Alone, one is root of nothing but one's own files, and needs no capability for them.
        return keep_capabilities(&[]);
    }
    // The guest's kernel has checked what its users may do, by all their groups, which are not known here. What is done as one of
    // them is done so that it belongs to them, not to be checked a second time.
    prctl(libc::PR_SET_SECUREBITS, SECURE_BITS).map_err(at("give up capabilities"))?;
    keep_capabilities(&KEPT)
}
