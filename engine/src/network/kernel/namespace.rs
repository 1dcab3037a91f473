//! Network namespaces without a name: each is there as long as somebody holds a descriptor of it, a socket or an interface in it.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use super::netlink::Netlink;

/// Where the namespace of the thread that asks is.
const OWN: &str = "/proc/thread-self/ns/net";
const TUN: &str = "/dev/net/tun";
/// TUNSETIFF of linux/if_tun.h.
const SET_INTERFACE: libc::c_ulong = 0x4004_54ca;
/// Bytes of an interface's name, with the zero at its end.
const NAME: usize = 16;

/// A namespace.
#[derive(Debug)]
pub(super) struct Namespace(File);

impl Namespace {
    /// Makes one. There is nothing in it but a loopback interface, which is down.
    pub(super) fn make() -> io::Result<Self> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open(OWN)
        });
        join(made.join()).map(Self)
    }

    /// One that another process holds, by the number of its descriptor.
    pub(super) fn of_process(process: u32, descriptor: i32) -> io::Result<Self> {
        let path = format!("/proc/{process}/fd/{descriptor}");
        // A number may have become that of something else, which is not to be opened: some things act on that.
        let is_one = fs::read_link(&path)?.to_str().is_some_and(|target| target.starts_with("net:["));
        if !is_one {
            return Err(io::ErrorKind::NotFound.into());
        }
        File::open(path).map(Self)
    }

    /// The descriptor's number, which other processes find it by.
    pub(super) fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Does something in it, in a thread that ends afterwards: no other ever changes its namespace.
    pub(super) fn inside<T: Send>(&self, action: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET)?;
                action()
            });
            join(there.join())
        })
    }

    /// Does something with its interfaces.
    pub(super) fn links<T: Send>(
        &self,
        action: impl FnOnce(&Netlink) -> io::Result<T> + Send,
    ) -> io::Result<T> {
        self.inside(|| action(&Netlink::open()?))
    }

    /// Makes a tap device in it, whose frames have headers. It goes when its descriptor is closed.
    pub(super) fn add_tap(&self, name: &str) -> io::Result<File> {
        self.inside(|| tap(name))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn join<T>(result: thread::Result<io::Result<T>>) -> io::Result<T> {
    result.unwrap_or_else(|_| Err(io::Error::other("a thread ended before its time")))
}

fn tap(name: &str) -> io::Result<File> {
    let file = File::options().read(true).write(true).open(TUN)?;
    if name.len() >= NAME {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all-zero is a valid value of this structure of numbers and characters.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = libc::c_char::try_from(byte).unwrap_or(0);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the request takes an `ifreq`, which lives until the call returns.
    if unsafe { libc::ioctl(file.as_raw_fd(), SET_INTERFACE, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// Sets a value of the calling thread's network namespace, below /proc/sys/net; one that there is not on this host is left out.
pub(super) fn set(name: &str, value: &str) -> io::Result<()> {
    let path = Path::new("/proc/sys/net").join(name);
    match fs::write(&path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        Ok(()) => Ok(()),
    }
}
