//! Holds: what keeps an image beside its names. A stopped container needs its image's files when it is started again,
//! whatever became of the image's names meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Store;
use super::manage::remove;
use crate::digest::Digest;
use crate::error::{Error, Result};

/// Bytes of a holder's name.
const NAME_MAX: usize = 128;

/// The file `holds/<holder>.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct HoldRecord {
    pub id: Digest,
}

impl Store {
    /// Keeps an image for `holder` (a container's id, for one): until [`Store::release`], removing it takes its names at
    /// most. A holder holds one image; holding another lets go of the first.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the store lacks the image; [`Error::Invalid`] for a holder that is not 1 to 128 letters,
    /// digits, `-`, `_`, `.`; [`Error::DiskFull`], [`Error::Io`].
    pub fn hold(&self, id: Digest, holder: &str) -> Result<()> {
        let _lock = self.lock_shared()?;
        let path = self.hold_path(holder)?;
        self.load(id)?.ok_or_else(|| Error::NotFound { what: id.to_string() })?;
        let dir = self.path("holds");
        fs::create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))?;
        self.write_record(&path, &HoldRecord { id })
    }

    /// Lets go of what `holder` holds; nothing happens if that is nothing. The image stays until it is removed or pruned.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Io`].
    pub fn release(&self, holder: &str) -> Result<()> {
        let _lock = self.lock_shared()?;
        remove(&self.hold_path(holder)?)
    }

    /// Who holds what, for whoever has to find holders that are gone.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn holds(&self) -> Result<BTreeMap<String, Digest>> {
        // Before the first hold there is no directory.
        if !self.path("holds").exists() {
            return Ok(BTreeMap::new());
        }
        let name = |path: &PathBuf| path.file_name()?.to_str()?.strip_suffix(".json").map(str::to_owned);
        let records = self.records::<HoldRecord>("holds")?;
        Ok(records.into_iter().filter_map(|(path, record)| Some((name(&path)?, record.id))).collect())
    }

    pub(super) fn held(&self) -> Result<BTreeSet<Digest>> {
        Ok(self.holds()?.into_values().collect())
    }

    fn hold_path(&self, holder: &str) -> Result<PathBuf> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if holder.is_empty()
            || holder.len() > NAME_MAX
            || holder.starts_with('.')
            || !holder.bytes().all(good)
        {
            return Err(Error::invalid("holder", holder, "1 to 128 letters, digits, `-`, `_`, `.`"));
        }
        Ok(self.path("holds").join(format!("{holder}.json")))
    }
}
