//! System calls that neither the standard library nor nix has a safe form of.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::Pid;

use crate::protocol::{Instruction, MAX_FILTER};

// linux/mount.h; libc has the numbers of the calls but not these.
const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const AT_RECURSIVE: libc::c_uint = 0x8000;

/// Attributes of a mount, as of mount_setattr(2).
pub(crate) mod mount_attribute {
    pub(crate) const READ_ONLY: u64 = 0x1;
    pub(crate) const NO_SUID: u64 = 0x2;
    pub(crate) const NO_DEVICES: u64 = 0x4;
    pub(crate) const NO_EXEC: u64 = 0x8;
}

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Takes a descriptor that a system call has just made.
fn own(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(Errno::result(fd)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for the caller; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A copy of the mounts below a file or directory that is open, attached nowhere.
pub(crate) fn clone_mounts(source: impl AsFd) -> io::Result<OwnedFd> {
    let close_on_exec = libc::c_uint::try_from(libc::O_CLOEXEC).map_err(io::Error::other)?;
    let empty_path = libc::c_uint::try_from(libc::AT_EMPTY_PATH).map_err(io::Error::other)?;
    let flags = OPEN_TREE_CLONE | close_on_exec | AT_RECURSIVE | empty_path;
    // SAFETY: the path is a string that lives through the call.
    own(unsafe { libc::syscall(libc::SYS_open_tree, source.as_fd().as_raw_fd(), c"".as_ptr(), flags) })
}

/// Sets attributes of a mount and all below it.
pub(crate) fn restrict_mounts(mount: impl AsFd, set: u64) -> io::Result<()> {
    let attributes = MountAttributes { set, clear: 0, propagation: 0, user_namespace: 0 };
    let flags = AT_RECURSIVE | libc::c_uint::try_from(libc::AT_EMPTY_PATH).map_err(io::Error::other)?;
    // SAFETY: both pointers are to values that live through the call, and the size is that of the structure.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    Errno::result(done)?;
    Ok(())
}

/// Attaches a mount at a path.
pub(crate) fn attach_mount(mount: impl AsFd, target: &Path) -> io::Result<()> {
    let target = CString::new(target.as_os_str().as_bytes())?;
    // SAFETY: both paths are strings that live through the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    Errno::result(done)?;
    Ok(())
}

/// A handle of a process.
pub(crate) fn open_process(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers.
    own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })
}

/// Sends a signal by its number: real-time signals have no name in nix's enum.
pub(crate) fn kill(pid: Pid, signal: i32) -> nix::Result<()> {
    // SAFETY: takes two integers.
    Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)
}

/// Ends this process at once, without exit handlers: for forked children, which share them with the agent.
pub(crate) fn exit_at_once(code: i32) -> ! {
    // SAFETY: takes an integer and does not come back.
    unsafe { libc::_exit(code) }
}

/// Closes all descriptors from one number to another, whoever owns them: for forked children that do not use them.
pub(crate) fn close_range(from: u32, to: u32) {
    // SAFETY: takes three integers; the caller does not use the descriptors again.
    unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
}

/// Sets the NIS domain name of this UTS namespace.
pub(crate) fn set_domain_name(name: &str) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of one string that lives through the call.
    Errno::result(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) })?;
    Ok(())
}

/// Brings an interface of this network namespace up, by its name.
pub(crate) fn bring_up(interface: &str) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: ifreq is plain data; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or_default();
    // SAFETY: the pointer is to an ifreq that lives through the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })?;
    Ok(())
}

// linux/vm_sockets.h.
const SO_VM_SOCKETS_CONNECT_TIMEOUT: libc::c_int = 6;

/// How many seconds connecting a vsock may take; without it two, which a busy host does not always keep.
pub(crate) fn set_connect_timeout(socket: impl AsFd, seconds: libc::time_t) -> io::Result<()> {
    let time = libc::timeval { tv_sec: seconds, tv_usec: 0 };
    let length = libc::socklen_t::try_from(size_of::<libc::timeval>()).map_err(io::Error::other)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the pointer is to a value of this length that lives through the call.
    let done = unsafe {
        libc::setsockopt(fd, libc::AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, (&raw const time).cast(), length)
    };
    Errno::result(done)?;
    Ok(())
}

// linux/random.h.
const RNDADDENTROPY: libc::c_ulong = nix::request_code_write!(b'R', 0x03, size_of::<[libc::c_int; 2]>());
const RNDRESEEDCRNG: libc::c_ulong = nix::request_code_none!(b'R', 0x07);

/// `struct rand_pool_info` of linux/random.h.
#[repr(C)]
struct Entropy<const N: usize> {
    bits: libc::c_int,
    bytes: libc::c_int,
    pool: [u8; N],
}

/// Mixes bytes into the kernel's random number generator, and has it rely on each of their bits.
pub(crate) fn add_entropy<const N: usize>(generator: impl AsFd, pool: &[u8; N]) -> io::Result<()> {
    let bytes = libc::c_int::try_from(N).map_err(io::Error::other)?;
    let entropy = Entropy { bits: bytes.saturating_mul(8), bytes, pool: *pool };
    let fd = generator.as_fd().as_raw_fd();
    // SAFETY: the pointer is to a structure that lives through the call, and holds as many bytes as it says.
    Errno::result(unsafe { libc::ioctl(fd, RNDADDENTROPY, &raw const entropy) })?;
    Ok(())
}

/// Has the kernel's random number generator make new keys of what was mixed in, now.
pub(crate) fn reseed(generator: impl AsFd) -> io::Result<()> {
    // SAFETY: takes no argument.
    Errno::result(unsafe { libc::ioctl(generator.as_fd().as_raw_fd(), RNDRESEEDCRNG) })?;
    Ok(())
}

/// Installs a seccomp filter for this process and all that come from it; an empty one is none. Needs CAP_SYS_ADMIN or no_new_privs.
pub(crate) fn install_filter(program: &[Instruction]) -> io::Result<()> {
    if program.is_empty() {
        return Ok(());
    }
    if program.len() > MAX_FILTER {
        return Err(Errno::E2BIG.into());
    }
    let mut filter: Vec<libc::sock_filter> = program
        .iter()
        .map(|Instruction(code, jt, jf, k)| libc::sock_filter { code: *code, jt: *jt, jf: *jf, k: *k })
        .collect();
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(io::Error::other)?,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program and the instructions that it points to live through the call; the kernel copies and checks them.
    let done =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    Errno::result(done)?;
    Ok(())
}

/// Most bytes of a file's list of attributes, and of one value: the kernel's own bounds.
const MAX_XATTR: usize = 64 * 1024;

/// Names of a file's extended attributes, a NUL byte after each; a link is not followed. Empty where there are none.
pub(crate) fn list_xattrs(path: &Path) -> io::Result<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut buffer = vec![0u8; MAX_XATTR];
    // SAFETY: the path is a string and the buffer has the size given; both live through the call.
    let length = unsafe { libc::llistxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    truncated(buffer, length).or_else(|e| if e == Errno::ENOTSUP { Ok(Vec::new()) } else { Err(e.into()) })
}

/// One extended attribute, if it is there; a link is not followed.
pub(crate) fn get_xattr(path: &Path, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let (path, name) = (CString::new(path.as_os_str().as_bytes())?, CString::new(name)?);
    let mut buffer = vec![0u8; MAX_XATTR];
    // SAFETY: path and name are strings and the buffer has the size given; all live through the call.
    let length =
        unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    match truncated(buffer, length) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::ENODATA | Errno::ENOTSUP) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Sets an extended attribute of an open file.
pub(crate) fn set_xattr(file: impl AsFd, name: &CStr, value: &[u8]) -> nix::Result<()> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the name is a string and the value has the length given; both live through the call.
    let done = unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(done).map(drop)
}

fn truncated(mut buffer: Vec<u8>, length: libc::ssize_t) -> nix::Result<Vec<u8>> {
    let length = Errno::result(length)?;
    buffer.truncate(usize::try_from(length).unwrap_or(0));
    Ok(buffer)
}
