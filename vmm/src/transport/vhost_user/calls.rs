//! Interrupts: a counter of eight bytes written to the descriptor that the front-end gave for a queue.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;

use crate::virtio::Interrupt;

/// The call descriptors of a device's queues.
pub struct Calls(Vec<Option<File>>);

impl Calls {
    pub fn new(queues: usize) -> Self {
        Self((0..queues).map(|_| None).collect())
    }

    /// Replaces a queue's descriptor. The index is the caller's to check.
    pub fn set(&mut self, queue: usize, file: Option<File>) {
        self.0[queue] = file;
    }
}

impl Interrupt for Calls {
    fn queue_used(&self, index: usize) {
        let Some(Some(file)) = self.0.get(index) else { return };
        // A full pipe holds interrupts that the guest has not seen yet, and an error is its own doing.
        match write_without_waiting(file, &1u64.to_ne_bytes()) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => write_if_ready(file),
            _ => {}
        }
    }

    fn config_changed(&self) {
        // Needs the back-end's own channel, which is not offered: no device changes its configuration yet.
    }
}

/// Writes, or fails at once: the descriptor may be a pipe that its owner fills and switches to blocking at will.
fn write_without_waiting(file: &File, bytes: &[u8]) -> io::Result<()> {
    let vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the vector describes `bytes`, which the kernel only reads.
    let written = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const vector, 1, -1, libc::RWF_NOWAIT) };
    if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// For kernels whose pipes do not know RWF_NOWAIT.
fn write_if_ready(mut file: &File) {
    let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
    let ready = poll(&mut polled, PollTimeout::ZERO).is_ok_and(|count| count == 1);
    if ready {
        let _ = io::Write::write(&mut file, &1u64.to_ne_bytes());
    }
}
