//! The system calls that devices make on guest memory, and why they are sound: the only `unsafe` of the devices.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::Bitmap;

/// Most slices that one call takes (Linux's UIO_MAXIOV).
pub const MAX_SLICES: usize = 1024;

/// Reads from a file into guest memory (`preadv`); at most [`MAX_SLICES`] slices. Returns the bytes read, 0 at the end of the file.
///
/// # Errors
/// The host's error.
pub fn read_at(file: &File, slices: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let guards: Vec<_> = slices.iter().take(MAX_SLICES).map(VolatileSlice::ptr_guard_mut).collect();
    let vectors: Vec<_> = guards
        .iter()
        .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
        .collect();
    let count = libc::c_int::try_from(vectors.len()).map_err(io::Error::other)?;
    let read = loop {
        // SAFETY: every vector lies in mapped guest memory, which the guards keep valid for writing during the call; no
        // Rust reference to that memory exists, so the kernel may write to it like another vCPU.
        let read = unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), count, offset) };
        match usize::try_from(read) {
            Ok(read) => break read,
            Err(_) => retry_if_interrupted()?,
        }
    };
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
    let guards: Vec<_> = slices.iter().take(MAX_SLICES).map(VolatileSlice::ptr_guard_mut).collect();
    let vectors: Vec<_> = guards
        .iter()
        .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
        .collect();
    let count = libc::c_int::try_from(vectors.len()).map_err(io::Error::other)?;
    loop {
        // SAFETY: every vector lies in mapped guest memory, which the guards keep valid during the call; the kernel only
        // reads it, and may see the guest change it meanwhile, as with a real device.
        let written = unsafe { libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), count, offset) };
        match usize::try_from(written) {
            Ok(written) => return Ok(written),
            Err(_) => retry_if_interrupted()?,
        }
    }
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
