//! Why a frame, a flow or a question was not let through, and how often.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// Why something was not let through.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word in reports and logs.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

reasons! {
    /// A length or a field makes no sense.
    Malformed = "malformed",
    /// It is longer than the network's frames are.
    TooLong = "too_long",
    /// Neither IP nor ARP.
    EtherType = "ether_type",
    /// Its sender's hardware address is not the container's.
    ForeignMac = "foreign_mac",
    /// Its sender's IP address is not the container's.
    ForeignAddress = "foreign_address",
    /// It has IP options, source routes among them, or extension headers.
    Options = "ip_options",
    /// It is a fragment on its way out.
    Fragment = "fragment",
    /// Broadcast or multicast.
    Multicast = "multicast",
    /// Nobody on the network has this address, or not at this hardware address.
    NoMember = "no_member",
    /// The receiver takes frames more slowly than they come.
    Full = "full",
    /// The network has no way out.
    Internal = "internal",
    /// The gateway has no such service.
    Gateway = "gateway",
    /// A protocol other than TCP, UDP and ICMP echo.
    Protocol = "protocol",
    /// The host's loopback, or "this host".
    Loopback = "loopback",
    /// An address of the host.
    Host = "host",
    /// Link-local addresses.
    LinkLocal = "link_local",
    /// The address of a cloud's metadata service.
    Metadata = "metadata",
    /// Another network of Bulkhead's.
    OtherNetwork = "other_network",
    /// An address that cannot be reached by one host alone, or that is reserved.
    Reserved = "reserved",
    /// A rule, or the want of one.
    Rule = "rule",
    /// A name that the rules do not let be asked for.
    Name = "name",
    /// An answer that points a name to an address that is out of bounds.
    Rebinding = "rebinding",
    /// It has as many flows as it may have.
    Flows = "flows",
    /// The host does not let it be done.
    Unable = "unable",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// How often each [`Reason`] was given.
#[derive(Debug, Clone)]
pub struct Counts([u64; Reason::ALL.len()]);

impl Default for Counts {
    fn default() -> Self {
        Self([0; Reason::ALL.len()])
    }
}

impl Counts {
    /// Counts one.
    pub fn add(&mut self, reason: Reason) {
        if let Some(count) = self.0.get_mut(reason as usize) {
            *count = count.saturating_add(1);
        }
    }

    /// How often.
    #[must_use]
    pub fn of(&self, reason: Reason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// Those that were given at all.
    pub fn given(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.iter().map(|reason| (*reason, self.of(*reason))).filter(|(_, count)| *count > 0)
    }
}
