//! What happened: the engine's memory of it, for those who watch.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Its place in the order of events of this state directory; 0 before it is written down.
    pub sequence: i64,
    /// When.
    pub time: i64,
    /// What kind of thing it happened to.
    pub kind: EventKind,
    /// What happened, in Docker's words, such as `start` or `exec_create: ls`.
    pub action: String,
    /// Id of the thing: a container's id, an image's name, a volume's name, a network's id.
    pub actor: String,
    /// More of it: name, image, exit code, labels.
    pub attributes: BTreeMap<String, String>,
}

/// Kinds of things that events happen to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A container.
    Container,
    /// An image.
    Image,
    /// A volume.
    Volume,
    /// A network.
    Network,
}

impl EventKind {
    /// Docker's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
            Self::Volume => "volume",
            Self::Network => "network",
        }
    }
}
