//! Address ranges, and the other forms that an IPv4 address has in IPv6.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A range of addresses, written as `10.0.0.0/8`; bits beyond the prefix are not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    first: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The range of an address and the bits of its prefix; `None` if the prefix is longer than the address.
    #[must_use]
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let first = match address {
            IpAddr::V4(v4) if prefix <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) if prefix <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
            _ => return None,
        };
        Some(Self { first, prefix })
    }

    /// The lowest address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Bits of the prefix.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The highest address.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        match self.first {
            IpAddr::V4(v4) => {
                let rest = u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() | rest))
            }
            IpAddr::V6(v6) => {
                let rest = u128::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() | rest))
            }
        }
    }

    /// Whether the address lies in the range. An address of the other family never does.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::new(address, self.prefix).is_some_and(|range| range == *self)
    }

    /// Whether the two have an address in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

impl From<Cidr> for String {
    fn from(range: Cidr) -> Self {
        range.to_string()
    }
}

impl TryFrom<String> for Cidr {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Cidr {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = "a range is an address, a slash, and the bits of its prefix";
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) if !prefix.starts_with('+') => {
                (address, Some(prefix.parse::<u8>().map_err(|_| refused)?))
            }
            Some(_) => return Err(refused),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| refused)?;
        let whole = if address.is_ipv4() { 32 } else { 128 };
        Self::new(address, prefix.unwrap_or(whole)).ok_or(refused)
    }
}

/// The IPv4 address that an IPv6 address stands for, if it is of a form that some host or router turns back into it:
/// mapped and compatible (RFC 4291 section 2.5.5), 6to4 (RFC 3056), NAT64 (RFC 6052) and ISATAP (RFC 5214).
#[must_use]
pub fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [.., a, b, c, d] = address.octets();
    let last = Ipv4Addr::new(a, b, c, d);
    match address.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => Some(last),
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(last),
        [0x2002, high, low, ..] => Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))),
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => Some(last),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_compared() {
        let range = |text: &str| text.parse::<Cidr>().unwrap();
        assert_eq!(range("10.1.2.3/8").to_string(), "10.0.0.0/8");
        assert_eq!(range("10.1.2.3").to_string(), "10.1.2.3/32");
        assert_eq!(range("fd00::1:2/64").to_string(), "fd00::/64");
        assert_eq!(range("172.17.0.0/16").last().to_string(), "172.17.255.255");
        assert_eq!(range("0.0.0.0/0").last().to_string(), "255.255.255.255");
        assert_eq!(range("fd00::/120").last().to_string(), "fd00::ff");
        assert!(range("0.0.0.0/0").contains("255.1.2.3".parse().unwrap()));
        assert!(!range("0.0.0.0/0").contains("::1".parse().unwrap()));
        assert!(range("10.0.0.0/8").overlaps(&range("10.2.0.0/16")));
        assert!(range("10.2.0.0/16").overlaps(&range("10.0.0.0/8")));
        assert!(!range("10.2.0.0/16").overlaps(&range("10.3.0.0/16")));
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/+8", "10.0.0.0/"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn disguises_are_seen_through() {
        for disguise in [
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::1",
            "fe80::5efe:127.0.0.1",
            "::ffff:0:127.0.0.1",
        ] {
            assert_eq!(embedded(disguise.parse().unwrap()), Some(Ipv4Addr::LOCALHOST), "{disguise}");
        }
        assert_eq!(embedded("2001:db8::7f00:1".parse().unwrap()), None);
    }
}
