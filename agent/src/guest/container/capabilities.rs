//! Capabilities, from the specification's names to the process's five sets.

use std::str::FromStr;

use crate::protocol::spec::Capabilities;
use caps::{CapSet, Capability, CapsHashSet};

/// The sets in the kernel's terms.
pub(super) struct Sets {
    bounding: CapsHashSet,
    effective: CapsHashSet,
    permitted: CapsHashSet,
    inheritable: CapsHashSet,
    ambient: CapsHashSet,
}

impl Sets {
    /// Translates names. A capability that this kernel does not know cannot be granted and is left out, as runc does.
    pub(super) fn new(sets: &Capabilities) -> Self {
        let known = |names: &[String]| -> CapsHashSet {
            names.iter().filter_map(|name| Capability::from_str(name).ok()).collect()
        };
        Self {
            bounding: known(&sets.bounding),
            effective: known(&sets.effective),
            permitted: known(&sets.permitted),
            inheritable: known(&sets.inheritable),
            ambient: known(&sets.ambient),
        }
    }

    /// Narrows the bounding set; needs CAP_SETPCAP, so it comes before the change of user.
    pub(super) fn drop_bounding(&self) -> Result<(), caps::errors::CapsError> {
        for capability in caps::all() {
            if !self.bounding.contains(&capability) && caps::has_cap(None, CapSet::Bounding, capability)? {
                caps::drop(None, CapSet::Bounding, capability)?;
            }
        }
        Ok(())
    }

    /// Sets what the program starts with. Root keeps its sets; another user keeps only what is ambient after exec.
    pub(super) fn apply(&self) -> Result<(), caps::errors::CapsError> {
        caps::set(None, CapSet::Effective, &self.effective)?;
        caps::set(None, CapSet::Permitted, &self.permitted)?;
        caps::set(None, CapSet::Inheritable, &self.inheritable)?;
        if !self.ambient.is_empty() {
            caps::set(None, CapSet::Ambient, &self.ambient)?;
        }
        Ok(())
    }
}
