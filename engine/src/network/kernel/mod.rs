//! Networks whose packets the host's kernel carries: a bridge, taps and rules in a network namespace of their own, the room. It takes
//! root, and is asked for; else a network is a switch, which takes nothing.
//!
//! A room has no name and is pinned by nothing: supervisors hold descriptors of it, and with the last of them the kernel takes everything
//! in it away. See docs/networks.md.

mod book;
mod counts;
mod frames;
mod host;
mod namespace;
mod netlink;
mod nft;
mod packets;
mod room;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;

pub(crate) use self::book::Port;
pub(crate) use self::counts::add as add_count;
pub(crate) use self::room::{Seat, Tap};
use crate::EngineError;
use crate::model::Network;
use crate::paths::Paths;

/// The driver option, or label, that says who carries a network's packets.
const OPTION: &str = "bulkhead.path";
/// What says it for networks that do not.
pub(crate) const VARIABLE: &str = "BULKHEAD_NETWORK_PATH";

/// Who carries a network's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    /// A process in user space.
    Switch,
    /// The host's kernel.
    Kernel,
}

impl Path {
    fn read(option: &str, text: &str) -> Result<Self, EngineError> {
        match text {
            "switch" => Ok(Self::Switch),
            "kernel" => Ok(Self::Kernel),
            other => Err(EngineError::Option {
                option: format!("{option}={}", other.chars().take(40).collect::<String>()),
                why: "a network's packets are carried by a switch of its own or by the host's kernel"
                    .to_owned(),
                next: format!("say {option}=switch or {option}=kernel"),
            }),
        }
    }

    /// What labels and driver options say; `None` if they do not.
    ///
    /// # Errors
    /// They say something else, or what this host cannot do.
    pub(crate) fn asked(values: &BTreeMap<String, String>) -> Result<Option<Self>, EngineError> {
        let path = values.get(OPTION).map(|text| Self::read(OPTION, text)).transpose()?;
        path.map_or(Ok(()), |path| path.possible(&format!("{OPTION}=kernel")))?;
        Ok(path)
    }

    /// That of a network: what it says itself; else that of those who are in it; else what holds for all.
    ///
    /// # Errors
    /// As of [`asked`](Self::asked).
    pub(crate) fn of(network: &Network, in_use: Option<Self>) -> Result<Self, EngineError> {
        let mut values = network.options.clone();
        values.extend(network.labels.clone());
        if let Some(path) = Self::asked(&values)?.or(in_use) {
            return Ok(path);
        }
        Self::of_environment()
    }

    /// What holds for networks that do not say: `BULKHEAD_NETWORK_PATH`.
    ///
    /// # Errors
    /// As of [`asked`](Self::asked).
    pub(crate) fn of_environment() -> Result<Self, EngineError> {
        Self::of_all(&std::env::var(VARIABLE).unwrap_or_default())
    }

    /// What a text says that is for all networks; nothing is the switch.
    ///
    /// # Errors
    /// As of [`asked`](Self::asked).
    pub(crate) fn of_all(text: &str) -> Result<Self, EngineError> {
        if text.is_empty() {
            return Ok(Self::Switch);
        }
        let path = Self::read(VARIABLE, text)?;
        path.possible(&format!("{VARIABLE}=kernel"))?;
        Ok(path)
    }

    /// Whether this host and user can do it.
    fn possible(self, option: &str) -> Result<(), EngineError> {
        let refuse = |why: &str, next: &str| {
            Err(EngineError::Option { option: option.to_owned(), why: why.to_owned(), next: next.to_owned() })
        };
        if self == Self::Switch {
            return Ok(());
        }
        if !nix::unistd::geteuid().is_root() {
            return refuse(
                "only root may make bridges and rules of the host's kernel",
                "leave it out, or run bulkhead as root",
            );
        }
        if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
            let why = format!("/dev/net/tun cannot be opened: {error}");
            return refuse(&why, "leave it out, or have the host load its module tun");
        }
        if nft::program().is_none() {
            return refuse("the program nft is not installed", "leave it out, or install nftables");
        }
        Ok(())
    }
}

/// Tries on a namespace of nobody's whether the host's kernel has what a room takes.
///
/// # Errors
/// What it has not.
pub(crate) fn try_out() -> Result<(), EngineError> {
    let tried = namespace::Namespace::make().and_then(|nowhere| {
        nowhere.links(|links| {
            links.add_bridge(packets::BRIDGE, bulkhead_net::switch::GATEWAY_MAC)?;
            nft::apply(&frames::script(&book::Book::default(), None))?;
            nft::apply("add table inet room")
        })
    });
    tried.map_err(|error| EngineError::Option {
        option: format!("{OPTION}=kernel"),
        why: format!("the host's kernel does not make a bridge with rules: {error}"),
        next: "leave it out: a switch carries the network's packets then".to_owned(),
    })
}

/// Has the host's rules forget the ports of containers whose supervisors were killed.
///
/// # Errors
/// The host refuses.
pub(crate) fn tidy(paths: &Paths) -> Result<(), EngineError> {
    room::tidy(&paths.networks()).map_err(EngineError::io("looking after the rooms of networks"))
}

/// A number made of some bytes (FNV-1a), the same everywhere.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
