//! Interrupts: a counter of eight bytes written to the descriptor that the front-end gave for a queue.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;

use crate::virtio::Interrupt;

/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG: request 2, version 1, no body.
const CONFIG_CHANGE: [u8; 12] = [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

/// The call descriptors of a device's queues, and the channel for what concerns all of it.
pub struct Calls {
    queues: Vec<Option<File>>,
    channel: Option<File>,
}

impl Calls {
    pub fn new(queues: usize) -> Self {
        Self { queues: (0..queues).map(|_| None).collect(), channel: None }
    }

    /// Replaces a queue's descriptor. The index is the caller's to check.
    pub fn set(&mut self, queue: usize, file: Option<File>) {
        self.queues[queue] = file;
    }

    /// Replaces the channel.
    pub fn set_channel(&mut self, file: File) {
        self.channel = Some(file);
    }
}

impl Interrupt for Calls {
    fn queue_used(&self, index: usize) {
        if let Some(Some(file)) = self.queues.get(index) {
            tell(file, &1u64.to_ne_bytes());
        }
    }

    fn config_changed(&self) {
        if let Some(file) = &self.channel {
            tell(file, &CONFIG_CHANGE);
        }
    }
}

fn tell(file: &File, bytes: &[u8]) {
    // A full pipe holds what the guest has not seen yet, and an error is its own doing.
    match write_without_waiting(file, bytes) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => write_if_ready(file, bytes),
        _ => {}
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
fn write_if_ready(mut file: &File, bytes: &[u8]) {
    let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
    let ready = poll(&mut polled, PollTimeout::ZERO).is_ok_and(|count| count == 1);
    if ready {
        let _ = io::Write::write(&mut file, bytes);
    }
}
