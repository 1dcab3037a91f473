//! The store's quota: every byte that is about to be written is asked for first.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Store;
use super::manage::usage;
use crate::error::{Error, Result};

/// After so many bytes the store is measured again: others may be writing too. What they exceed the quota by together is
/// at most this for each of them.
const MEASURE: u64 = 32 << 20;

/// What may still be written. Without a quota it is endless, and costs nothing.
pub(super) struct Budget<'a> {
    store: &'a Store,
    /// Bytes on disk when it was last measured.
    used: AtomicU64,
    /// Bytes asked for since.
    since: AtomicU64,
}

impl Store {
    pub(super) fn budget(&self) -> Budget<'_> {
        let used = if self.quota.is_some() { usage(&self.root) } else { 0 };
        Budget { store: self, used: AtomicU64::new(used), since: AtomicU64::new(0) }
    }
}

impl Budget<'_> {
    /// Asks for bytes on disk.
    ///
    /// # Errors
    /// [`Error::Quota`].
    pub(super) fn charge(&self, bytes: u64) -> Result<()> {
        self.check(bytes)?;
        if self.store.quota.is_some() {
            self.since.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether so many bytes could be had now, without taking them.
    pub(super) fn check(&self, bytes: u64) -> Result<()> {
        let Some(quota) = self.store.quota else { return Ok(()) };
        if self.since.load(Ordering::Relaxed) >= MEASURE {
            self.since.store(0, Ordering::Relaxed);
            self.used.store(usage(&self.store.root), Ordering::Relaxed);
        }
        let used = self.used.load(Ordering::Relaxed).saturating_add(self.since.load(Ordering::Relaxed));
        if used.saturating_add(bytes) > quota {
            return Err(Error::Quota { quota, used, wanted: bytes });
        }
        Ok(())
    }
}
