//! The system calls that devices make on guest memory, and why they are sound: the only `unsafe` of the devices.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, Permissions};

use super::DeviceError;
use crate::memory::{GuestMemoryMmap, VolatileSlice};

/// Most slices that one call takes (Linux's UIO_MAXIOV).
pub const MAX_SLICES: usize = 1024;

/// Hands the vectors of some bytes of ours and then of guest memory to a system call, until it is not interrupted.
fn call(
    ours: &[u8],
    slices: &[VolatileSlice<'_>],
    mut call: impl FnMut(*const libc::iovec, libc::c_int) -> isize,
) -> io::Result<usize> {
    let guards: Vec<_> = slices.iter().take(MAX_SLICES).map(VolatileSlice::ptr_guard_mut).collect();
    let mut vectors = Vec::with_capacity(guards.len() + 1);
    if !ours.is_empty() {
        vectors.push(libc::iovec { iov_base: ours.as_ptr().cast_mut().cast(), iov_len: ours.len() });
    }
    vectors.extend(
        guards.iter().map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }),
    );
    vectors.truncate(MAX_SLICES);
    let count = libc::c_int::try_from(vectors.len()).map_err(io::Error::other)?;
    loop {
        match usize::try_from(call(vectors.as_ptr(), count)) {
            Ok(bytes) => return Ok(bytes),
            Err(_) => retry_if_interrupted()?,
        }
    }
}

/// Reads from a file into guest memory (`preadv`); at most [`MAX_SLICES`] slices. Returns the bytes read, 0 at the end of the file.
///
/// # Errors
/// The host's error.
pub fn read_at(file: &File, slices: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: every vector lies in mapped guest memory, which guards keep valid for writing during the call; no Rust
    // reference to that memory exists, so the kernel may write to it like another vCPU.
    let read = call(&[], slices, |vectors, count| unsafe {
        libc::preadv(file.as_raw_fd(), vectors, count, offset)
    })?;
    let mut left = read;
    for slice in slices {
        let dirty = left.min(slice.len());
        slice.bitmap().mark_dirty(0, dirty);
        left -= dirty;
    }
    Ok(read)
}

/// Writes guest memory to a file (`pwritev`); at most [`MAX_SLICES`] slices. Returns the bytes written.
///
/// # Errors
/// The host's error.
pub fn write_at(file: &File, slices: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: every vector lies in mapped guest memory, which guards keep valid during the call; the kernel only reads
    // it, and may see the guest change it meanwhile, as with a real device.
    call(&[], slices, |vectors, count| unsafe { libc::pwritev(file.as_raw_fd(), vectors, count, offset) })
}

/// Writes a frame to a tap device (`writev`): some bytes of ours, then guest memory. Never waits if the descriptor does not.
///
/// # Errors
/// The host's error.
pub fn write_frame(tap: BorrowedFd<'_>, ours: &[u8], slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    // SAFETY: as in `write_at`; the first vector is `ours`, which the kernel only reads.
    call(ours, slices, |vectors, count| unsafe { libc::writev(tap.as_raw_fd(), vectors, count) })
}

/// Sends a frame to a socket as one packet (`sendmsg`): some bytes of ours, then guest memory. Never waits.
///
/// # Errors
/// The host's error.
pub fn send_frame(socket: BorrowedFd<'_>, ours: &[u8], slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    call(ours, slices, |vectors, count| {
        // SAFETY: all-zero is a valid value: no name, no vectors, no ancillary data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = vectors.cast_mut();
        message.msg_iovlen = usize::try_from(count).unwrap_or(0);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: as in `write_frame`; the message names nothing but the vectors.
        unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) }
    })
}

/// Lets go of the host's memory behind some pages of the guest's, which read as zeroes from then on (or, where the memory is
/// a copy of a template's, as the template's content).
///
/// # Errors
/// The range is not in guest memory, or the host refused.
pub fn discard(memory: &GuestMemoryMmap, address: GuestAddress, length: u64) -> Result<(), DeviceError> {
    let length = usize::try_from(length).map_err(|_| DeviceError::Request("a range larger than memory"))?;
    // All of it must exist before any of it goes.
    if !GuestMemory::check_range(memory, address, length, Permissions::ReadWrite) {
        return Err(vm_memory::GuestMemoryError::InvalidGuestAddress(address).into());
    }
    let (mut at, mut left) = (address, length);
    while left > 0 {
        let (region, offset) =
            memory.to_region_addr(at).ok_or(vm_memory::GuestMemoryError::InvalidGuestAddress(at))?;
        let here = usize::try_from(region.len() - offset.0).unwrap_or(usize::MAX).min(left);
        // Where others map the same file, as a guest kernel does that is a process of its own, the pages must go from the file.
        let shared = region.flags() & libc::MAP_SHARED != 0;
        let advice = if shared { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
        let start = region.get_host_address(offset)?;
        // SAFETY: the range lies in one mapping of guest memory, to whose content no Rust reference exists; after the call
        // it is still mapped, with other content, as if the guest had written it.
        if unsafe { libc::madvise(start.cast(), here, advice) } != 0 {
            return Err(io::Error::last_os_error().into());
        }
        left -= here;
        at = GuestAddress(at.0.saturating_add(here as u64));
    }
    Ok(())
}

/// From linux/if_tun.h.
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;

/// Has a tap device put headers of so many bytes before its frames, and leave checksums and TCP's segments to us.
///
/// # Errors
/// It is no tap device, or was not opened with `IFF_NO_PI` and `IFF_VNET_HDR`.
pub fn prepare_tap(tap: &File, header: usize) -> io::Result<()> {
    let failed = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    let fd = tap.as_raw_fd();
    // SAFETY: all-zero is a valid value of this structure of numbers and characters.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the request takes an `ifreq`, which lives until the call returns.
    failed(unsafe { libc::ioctl(fd, TUNGETIFF, &raw mut request) })?;
    // SAFETY: what the request has just filled in is its flags.
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if flags & wanted != wanted {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a tap device with IFF_NO_PI and IFF_VNET_HDR",
        ));
    }
    let header = libc::c_int::try_from(header).map_err(io::Error::other)?;
    // SAFETY: the request takes a pointer to an integer, which lives until the call returns.
    failed(unsafe { libc::ioctl(fd, TUNSETVNETHDRSZ, &raw const header) })?;
    // SAFETY: the request takes flags by value.
    failed(unsafe { libc::ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) })
}

/// Fills a buffer from the host kernel's random number generator (`getrandom`).
///
/// # Errors
/// The host's error.
pub fn random(buffer: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = &mut buffer[done..];
        // SAFETY: the pointer and length describe `rest`, which is ours alone.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => done += got,
            Err(_) => retry_if_interrupted()?,
        }
    }
    Ok(())
}

fn retry_if_interrupted() -> io::Result<()> {
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}
