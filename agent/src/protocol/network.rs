//! The container's network interfaces, as the host wants them. Addresses are given, never asked for on the network.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::bounded;

/// Most interfaces of one container.
pub const MAX_INTERFACES: usize = 32;
/// Most addresses, and most routes, of one interface.
pub const MAX_ADDRESSES: usize = 64;
/// Longest name of an interface in bytes (the kernel's IFNAMSIZ without its NUL).
pub const MAX_INTERFACE_NAME: usize = 15;

/// One interface of a container: which device of the machine it is, and how it is set up in the container's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Which of the machine's devices.
    pub device: Device,
    /// Its name in the container, such as `eth0`: 1 to [`MAX_INTERFACE_NAME`] characters of `[A-Za-z0-9_.-]`.
    #[serde(deserialize_with = "bounded::text::<_, MAX_INTERFACE_NAME>")]
    pub name: String,
    /// Its addresses, IPv4 and IPv6, with the length of the network's prefix.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_ADDRESSES>")]
    pub addresses: Vec<IpNetwork>,
    /// Most bytes of a packet; the device's own when absent.
    pub mtu: Option<u32>,
    /// Routes by way of this interface, the default route among them.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_ADDRESSES>")]
    pub routes: Vec<Route>,
}

/// A network device of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Device {
    /// The one with this hardware address.
    Mac(MacAddress),
    /// The one that the kernel gave this name. `lo` is the container's own loopback, which gets addresses and routes but is never moved.
    Name(String),
}

/// A hardware address, written as `02:42:ac:11:00:02`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for MacAddress {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for MacAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = "a hardware address is six pairs of hexadecimal digits with colons between";
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2 && !p.starts_with('+')).ok_or(refused)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| refused)?;
        }
        if parts.next().is_some() { Err(refused) } else { Ok(Self(bytes)) }
    }
}

/// An address and the length of its network's prefix, written as `172.17.0.2/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IpNetwork {
    address: IpAddr,
    prefix: u8,
}

impl IpNetwork {
    /// Joins the two; `None` if the prefix is longer than the address.
    #[must_use]
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let most = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= most).then_some(Self { address, prefix })
    }

    /// The address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits of the network's prefix.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }
}

impl fmt::Display for IpNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl From<IpNetwork> for String {
    fn from(network: IpNetwork) -> Self {
        network.to_string()
    }
}

impl TryFrom<String> for IpNetwork {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for IpNetwork {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = "a network is an address, a slash, and the bits of its prefix";
        let (address, prefix) = text.split_once('/').filter(|(_, p)| !p.starts_with('+')).ok_or(refused)?;
        let (address, prefix) = (address.parse().map_err(|_| refused)?, prefix.parse().map_err(|_| refused)?);
        Self::new(address, prefix).ok_or(refused)
    }
}

/// A route by way of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Where to; `0.0.0.0/0` and `::/0` are the default routes.
    pub destination: IpNetwork,
    /// By way of this neighbour; absent: the destination is on the link.
    pub gateway: Option<IpAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["172.17.0.2/16", "fd00::2/64", "0.0.0.0/0", "::/0", "10.0.0.1/32"] {
            assert_eq!(text.parse::<IpNetwork>().unwrap().to_string(), text);
        }
        for text in ["", "10.0.0.1", "10.0.0.1/33", "::/129", "10.0.0.1/-1", "a/8", "10.0.0.1/8/8"] {
            assert!(text.parse::<IpNetwork>().is_err(), "{text}");
        }
        assert_eq!("02:42:AC:11:00:0f".parse::<MacAddress>().unwrap().to_string(), "02:42:ac:11:00:0f");
        for text in ["", "02:42:ac:11:00", "02:42:ac:11:00:02:03", "2:42:ac:11:00:02", "02:42:ac:11:00:+2"] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }
}
