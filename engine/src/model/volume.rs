//! A volume.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A named folder that outlives containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Unique among volumes.
    pub name: String,
    /// When it was created.
    pub created: i64,
    /// Nobody named it: it goes away with `rm -v` of its container.
    pub anonymous: bool,
    /// Free names and values of the caller.
    pub labels: BTreeMap<String, String>,
    /// Options of the driver, as they were given.
    pub options: BTreeMap<String, String>,
    /// Bytes of its disk, if it has one of its own: the most that it can hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}
