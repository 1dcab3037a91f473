//! What a caller hears while an image is made ready.

use crate::digest::Digest;

/// One step of making an image ready.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The source was resolved to one image.
    Resolved {
        /// The image's configuration digest, which is its id.
        id: Digest,
        /// How many layers it has.
        layers: usize,
    },
    /// The store already has this layer.
    LayerPresent {
        /// Position, from 0 (the lowest).
        layer: usize,
        /// Its digest in the source.
        digest: Digest,
    },
    /// A layer's bytes are being read; sent at start, about every MiB, and at the end.
    LayerBytes {
        /// Position, from 0 (the lowest).
        layer: usize,
        /// Its digest in the source.
        digest: Digest,
        /// Compressed bytes read so far.
        done: u64,
        /// Compressed bytes in all.
        total: u64,
    },
    /// A layer is verified and stored.
    LayerDone {
        /// Position, from 0 (the lowest).
        layer: usize,
        /// Its digest in the source.
        digest: Digest,
    },
    /// A broken download is being taken up again.
    Retry {
        /// What went wrong.
        reason: String,
        /// Attempt number, from 1.
        attempt: u32,
    },
    /// The rootfs disk is ready.
    Ready {
        /// The image's configuration digest, which is its id.
        id: Digest,
    },
}

/// Hears events, from several threads at once. Must return quickly: it is called from the threads that do the work.
pub trait Progress: Sync {
    /// Something happened.
    fn event(&self, event: Event);
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn event(&self, _event: Event) {}
}

impl<F: Fn(Event) + Sync> Progress for F {
    fn event(&self, event: Event) {
        self(event);
    }
}
