//! A network, and a container's place in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Unique among networks.
    pub name: String,
    /// When it was created.
    pub created: i64,
    /// `bridge`, or `null` for the network that is none.
    pub driver: String,
    /// Its address ranges.
    pub subnets: Vec<Subnet>,
    /// It has no way out.
    pub internal: bool,
    /// It has IPv6 addresses.
    pub ipv6: bool,
    /// Containers may attach to it by hand.
    pub attachable: bool,
    /// Free names and values of the caller.
    pub labels: BTreeMap<String, String>,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
}

/// An address range of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    /// Such as `172.18.0.0/16`.
    pub subnet: String,
    /// Addresses given to containers; empty: any of the subnet.
    pub range: String,
    /// The gateway's address.
    pub gateway: String,
}

/// A container's place in a network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Endpoint {
    /// The network's id. Filled in by `create` and `connect`.
    pub network: String,
    /// Names beside the container's own.
    pub aliases: Vec<String>,
    /// Wanted or given IPv4 address; empty: any.
    pub ipv4: String,
    /// Wanted or given IPv6 address; empty: any.
    pub ipv6: String,
    /// Wanted or given hardware address; empty: any.
    pub mac: String,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
}

/// What a container has in a network while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Place {
    /// The network's id.
    pub network: String,
    /// The interface's name in the container.
    pub interface: String,
    /// Its IPv4 address.
    pub ipv4: String,
    /// Bits of the IPv4 range's prefix.
    pub ipv4_prefix: u8,
    /// The gateway's IPv4 address.
    pub gateway: String,
    /// Its IPv6 address; empty: none.
    pub ipv6: String,
    /// Bits of the IPv6 range's prefix.
    pub ipv6_prefix: u8,
    /// The gateway's IPv6 address; empty: none.
    pub gateway6: String,
    /// Its hardware address.
    pub mac: String,
    /// The host's kernel carries the network's packets, not a switch.
    pub kernel: bool,
    /// The network has no way out.
    pub internal: bool,
}
