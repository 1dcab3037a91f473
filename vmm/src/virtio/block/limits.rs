//! How much a disk may be read and written: together, and each way.

use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;

use crate::config::{DiskConfig, RateLimit};
use crate::memory::GuestMemoryMmap;
use crate::virtio::chain::Request;
use crate::virtio::limiter::Throttle;
use crate::virtio::serve::Gate;
use crate::virtio::wake::Wake;

/// A disk's limits. A request that must wait holds up those behind it, whichever way they go: a disk has one queue.
#[derive(Debug)]
pub(super) struct Limits {
    both: Throttle,
    read: Throttle,
    write: Throttle,
    /// The request that was let through last is a read.
    reads: bool,
}

impl Limits {
    pub(super) fn new(disk: &DiskConfig) -> Self {
        let [both, read, write] = [&disk.limit, &disk.read, &disk.write].map(Throttle::new);
        Self { both, read, write, reads: true }
    }

    /// No limits.
    pub(super) fn none() -> Self {
        let [both, read, write] = [(); 3].map(|()| Throttle::new(&RateLimit::default()));
        Self { both, read, write, reads: true }
    }

    /// Changes what may pass in all.
    pub(super) fn update(&mut self, limit: &RateLimit, wake: &Wake) {
        self.both.update(limit, wake);
    }

    /// Changes what may pass each way.
    pub(super) fn update_ways(&mut self, read: &RateLimit, write: &RateLimit, wake: &Wake) {
        self.read.update(read, wake);
        self.write.update(write, wake);
    }

    /// How often a request had to wait.
    pub(super) fn throttled(&self) -> u64 {
        self.both.throttled() + self.read.throttled() + self.write.throttled()
    }

    fn way(&mut self) -> &mut Throttle {
        if self.reads { &mut self.read } else { &mut self.write }
    }
}

impl Gate for Limits {
    fn ready(&mut self, memory: &GuestMemoryMmap, request: &Request, wake: &mut Wake) -> bool {
        let mut kind = [0; 4];
        // A request without a header is refused when it is served; until then it is as good as any.
        self.reads = request.readable.read(memory, 0, &mut kind).is_ok()
            && u32::from_le_bytes(kind) == VIRTIO_BLK_T_IN;
        self.both.ready(wake) && self.way().ready(wake)
    }

    fn spend(&mut self, bytes: u64) {
        self.both.spend(bytes);
        self.way().spend(bytes);
    }
}
