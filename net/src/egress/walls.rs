//! Addresses that no container reaches, whatever the rules say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::address::{Cidr, embedded};
use crate::reason::Reason;

/// Metadata services of clouds that are not link-local addresses: Amazon's and Google's by IPv6, Alibaba's, Oracle's, Azure's.
const METADATA_4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];
const METADATA_6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// The walls that are the same everywhere, as ranges: of an address that is in several, the first tells why. IPv4 addresses that hide
/// in IPv6 ones are not among them.
#[must_use]
pub fn fixed_walls() -> Vec<(Cidr, Reason)> {
    let four = |a, b, c, d, prefix, reason| (IpAddr::from([a, b, c, d]), prefix, reason);
    let six = |segments: [u16; 8], prefix, reason| (IpAddr::from(segments), prefix, reason);
    let mut walls = vec![
        four(0, 0, 0, 0, 8, Reason::Loopback),
        four(127, 0, 0, 0, 8, Reason::Loopback),
        four(169, 254, 169, 254, 32, Reason::Metadata),
        four(169, 254, 0, 0, 16, Reason::LinkLocal),
        four(224, 0, 0, 0, 4, Reason::Multicast),
        four(240, 0, 0, 0, 4, Reason::Reserved),
        six([0; 8], 127, Reason::Loopback),
        six([0; 8], 96, Reason::Reserved),
        six([0, 0, 0, 0, 0, 0xffff, 0, 0], 96, Reason::Reserved),
        six([0, 0, 0, 0, 0xffff, 0, 0, 0], 96, Reason::Reserved),
        six([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, Reason::Reserved),
        six([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, Reason::Reserved),
        six([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, Reason::LinkLocal),
        six([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, Reason::LinkLocal),
        six([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, Reason::Multicast),
    ];
    walls.extend(METADATA_4.map(|address| (address.into(), 32, Reason::Metadata)));
    walls.extend(METADATA_6.map(|address| (address.into(), 128, Reason::Metadata)));
    walls
        .into_iter()
        .filter_map(|(first, prefix, reason)| Some((Cidr::new(first, prefix)?, reason)))
        .collect()
}

/// What the rest of the world looks like from a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Every address of the host's.
    pub host: Vec<IpAddr>,
    /// The ranges of all networks of Bulkhead's.
    pub networks: Vec<Cidr>,
}

/// The wall that stands before an address; `None` if there is none.
#[must_use]
pub fn wall(address: IpAddr, around: &Surroundings) -> Option<Reason> {
    plain(address, around).or_else(|| match address {
        IpAddr::V6(v6) => embedded(v6).and_then(|v4| plain(IpAddr::V4(v4), around)),
        IpAddr::V4(_) => None,
    })
}

fn plain(address: IpAddr, around: &Surroundings) -> Option<Reason> {
    let fixed = match address {
        IpAddr::V4(v4) => wall_4(v4),
        IpAddr::V6(v6) => wall_6(v6),
    };
    fixed.or_else(|| around.host.contains(&address).then_some(Reason::Host)).or_else(|| {
        around.networks.iter().any(|range| range.contains(address)).then_some(Reason::OtherNetwork)
    })
}

fn wall_4(address: Ipv4Addr) -> Option<Reason> {
    match address.octets() {
        [0 | 127, ..] => Some(Reason::Loopback),
        [169, 254, 169, 254] => Some(Reason::Metadata),
        [169, 254, ..] => Some(Reason::LinkLocal),
        [224..=239, ..] => Some(Reason::Multicast),
        [240..=255, ..] => Some(Reason::Reserved),
        _ => METADATA_4.contains(&address).then_some(Reason::Metadata),
    }
}

fn wall_6(address: Ipv6Addr) -> Option<Reason> {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Some(Reason::Loopback),
        // No packet has a mapped address, nor one of the forms that nobody uses any more; and Teredo and the NAT64 prefix of
        // local use (RFC 8215) hide an address where only their router finds it.
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => Some(Reason::Reserved),
        [0x2001, 0, ..] | [0x64, 0xff9b, 1, ..] => Some(Reason::Reserved),
        [0xfe80..=0xfebf, ..] | [0xfec0..=0xfeff, ..] => Some(Reason::LinkLocal),
        [0xff00..=0xffff, ..] => Some(Reason::Multicast),
        _ => METADATA_6.contains(&address).then_some(Reason::Metadata),
    }
}
