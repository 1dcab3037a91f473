//! What may leave a network: walls that nothing opens, then the rules of the network, then those of the container.
//!
//! Pure decisions: nothing here asks the host anything or knows the time by itself.

mod answers;
mod rules;
#[cfg(test)]
mod tests;
mod walls;

pub use answers::{Answers, remembered};
pub use rules::{Action, MAX_RULES, MAX_TEXT, NamePattern, Policy, PolicyError, Rule, Target};
pub use walls::{Surroundings, fixed_walls, wall};

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::address::embedded;
use crate::reason::Reason;

/// What a flow speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo.
    Icmp,
}

/// Where a flow wants to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// What it speaks.
    pub protocol: Protocol,
    /// Whom it wants to speak with.
    pub address: IpAddr,
    /// At which port; 0 for ICMP.
    pub port: u16,
}

/// Decides on a flow. `names`: what our resolver's answers called the address, to this container, and not too long ago.
///
/// # Errors
/// Why it may not go there.
pub fn decide<'a>(
    policies: impl IntoIterator<Item = &'a Policy>,
    surroundings: &Surroundings,
    to: &Destination,
    names: &[&str],
) -> Result<(), Reason> {
    wall(to.address, surroundings).map_or(Ok(()), Err)?;
    let disguised = match to.address {
        IpAddr::V6(v6) => embedded(v6).map(IpAddr::V4),
        IpAddr::V4(_) => None,
    };
    for policy in policies {
        if policy.decide(to, disguised, names) == Action::Deny {
            return Err(Reason::Rule);
        }
    }
    Ok(())
}
