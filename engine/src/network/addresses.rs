//! Addresses: which a container gets in a network, and which range a network gets.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent::protocol::MacAddress;
use bulkhead_net::address::Cidr;

use crate::EngineError;
use crate::model::{Endpoint, Network, Place, Subnet};

/// Most addresses that are tried before a network is said to be full.
const MAX_TRIES: u128 = 1 << 20;

/// A network's ranges, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) range: Cidr,
    pub(crate) gateway: IpAddr,
    /// Where containers' addresses are taken from.
    pool: Cidr,
}

impl Range {
    /// Reads a range.
    ///
    /// # Errors
    /// Something in it is no address, or the parts do not go together.
    pub(crate) fn new(subnet: &Subnet) -> Result<Self, EngineError> {
        let wrong = |what: &str| EngineError::Invalid(format!("invalid network config: {what}"));
        let range: Cidr =
            subnet.subnet.parse().map_err(|_| wrong(&format!("invalid subnet {}", subnet.subnet)))?;
        let most = if range.first().is_ipv4() { 30 } else { 126 };
        if range.prefix() > most {
            return Err(wrong(&format!("subnet {range} has no room for a gateway and a container")));
        }
        let pool = match subnet.range.as_str() {
            "" => range,
            text => text.parse().map_err(|_| wrong(&format!("invalid ip-range {text}")))?,
        };
        if !range.contains(pool.first()) || !range.contains(pool.last()) {
            return Err(wrong(&format!("ip-range {pool} is not in subnet {range}")));
        }
        let gateway = match subnet.gateway.as_str() {
            "" => nth(range, 1),
            text => text.parse().ok(),
        };
        let gateway = gateway.ok_or_else(|| wrong(&format!("invalid gateway {}", subnet.gateway)))?;
        if !range.contains(gateway) || gateway == range.first() {
            return Err(wrong(&format!("no matching subnet for gateway {gateway}")));
        }
        Ok(Self { range, gateway, pool })
    }

    /// Those of a network, IPv4 and IPv6.
    ///
    /// # Errors
    /// As of [`new`](Self::new), or there is no IPv4 range.
    pub(crate) fn both(network: &Network) -> Result<(Self, Option<Self>), EngineError> {
        let mut ranges = (None, None);
        for subnet in &network.subnets {
            let range = Self::new(subnet)?;
            let slot = if range.range.first().is_ipv4() { &mut ranges.0 } else { &mut ranges.1 };
            if slot.replace(range).is_some() {
                return Err(EngineError::Option {
                    option: format!("--subnet {}", subnet.subnet),
                    why: "a network has one range of each family".to_owned(),
                    next: "make two networks".to_owned(),
                });
            }
        }
        let four =
            ranges.0.ok_or_else(|| EngineError::Invalid("a network needs an IPv4 subnet".to_owned()))?;
        Ok((four, ranges.1))
    }

    /// An address for a container: the wanted one, or the first that nobody has.
    fn choose(&self, wanted: &str, taken: &BTreeSet<IpAddr>, network: &str) -> Result<IpAddr, EngineError> {
        let usable = |address: IpAddr| {
            self.range.contains(address)
                && address != self.gateway
                && address != self.range.first()
                && (address.is_ipv6() || address != self.range.last())
        };
        if !wanted.is_empty() {
            let address: IpAddr =
                wanted.parse().map_err(|_| EngineError::Invalid(format!("invalid address: {wanted}")))?;
            if !usable(address) {
                return Err(EngineError::Invalid(format!(
                    "invalid endpoint settings: no configured subnet of network {network} contains IP address {wanted}"
                )));
            }
            if taken.contains(&address) {
                return Err(EngineError::Conflict(format!("Address already in use: {wanted}")));
            }
            return Ok(address);
        }
        let tries = (0..MAX_TRIES).map_while(|n| nth(self.pool, n));
        let free = tries.into_iter().find(|address| usable(*address) && !taken.contains(address));
        free.ok_or_else(|| {
            EngineError::Conflict(format!("no available IPv4 addresses on network {network}'s range"))
        })
    }
}

/// The address so far behind the first of a range, if it is in it.
fn nth(range: Cidr, n: u128) -> Option<IpAddr> {
    let address = match range.first() {
        IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits().checked_add(u32::try_from(n).ok()?)?)),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits().checked_add(n)?)),
    };
    range.contains(address).then_some(address)
}

/// Gives a container its place in a network. `others`: the places of all containers there.
///
/// # Errors
/// What is wanted is taken or not of the network, or nothing is left.
pub(crate) fn place<'a>(
    network: &Network,
    wanted: &Endpoint,
    others: impl Iterator<Item = &'a Place>,
    card: Option<MacAddress>,
) -> Result<Place, EngineError> {
    let (four, six) = Range::both(network)?;
    let (mut taken, mut macs) = (BTreeSet::new(), BTreeSet::new());
    for other in others.filter(|other| other.network == network.id) {
        taken.extend([&other.ipv4, &other.ipv6].into_iter().filter_map(|text| text.parse::<IpAddr>().ok()));
        macs.insert(other.mac.clone());
    }
    let ipv4 = four.choose(&wanted.ipv4, &taken, &network.name)?;
    let ipv6 = match six {
        Some(six) => Some(six.choose(&wanted.ipv6, &taken, &network.name)?),
        None if !wanted.ipv6.is_empty() => {
            return Err(EngineError::Invalid(format!("network {} has no IPv6 subnet", network.name)));
        }
        None => None,
    };
    let mac = match (card, wanted.mac.as_str()) {
        (Some(card), _) => card,
        (None, "") => mac_of(ipv4),
        (None, text) => {
            let mac = text.parse::<MacAddress>().ok().filter(|mac| mac.0[0] & 1 == 0 && mac.0 != [0; 6]);
            mac.ok_or_else(|| EngineError::Invalid(format!("invalid MAC address: {text}")))?
        }
    };
    if macs.contains(&mac.to_string()) || mac.0 == bulkhead_net::switch::GATEWAY_MAC {
        return Err(EngineError::Conflict(format!("MAC address already in use: {mac}")));
    }
    let text = |address: IpAddr| address.to_string();
    Ok(Place {
        network: network.id.clone(),
        interface: String::new(),
        ipv4: text(ipv4),
        ipv4_prefix: four.range.prefix(),
        gateway: text(four.gateway),
        ipv6: ipv6.map(text).unwrap_or_default(),
        ipv6_prefix: six.map_or(0, |six| six.range.prefix()),
        gateway6: six.map(|six| text(six.gateway)).unwrap_or_default(),
        mac: mac.to_string(),
        kernel: false,
        internal: network.internal,
    })
}

/// The hardware address that goes with an IPv4 address, as Docker makes it.
fn mac_of(address: IpAddr) -> MacAddress {
    let octets = match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => [0; 4],
    };
    let [a, b, c, d] = octets;
    MacAddress([0x02, 0x42, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(subnets: &[(&str, &str, &str)]) -> Network {
        let subnet = |(subnet, range, gateway): &(&str, &str, &str)| Subnet {
            subnet: (*subnet).into(),
            range: (*range).into(),
            gateway: (*gateway).into(),
        };
        Network {
            id: "n".into(),
            name: "net".into(),
            created: 0,
            driver: "bridge".into(),
            subnets: subnets.iter().map(subnet).collect(),
            internal: false,
            ipv6: false,
            attachable: false,
            labels: Default::default(),
            options: Default::default(),
        }
    }

    #[test]
    fn the_first_free_address_is_given() {
        let net = network(&[("10.1.0.0/16", "", ""), ("fd00::/64", "", "")]);
        let first = place(&net, &Endpoint::default(), [].iter(), None).unwrap();
        assert_eq!((first.ipv4.as_str(), first.ipv6.as_str()), ("10.1.0.2", "fd00::2"));
        assert_eq!((first.gateway.as_str(), first.gateway6.as_str()), ("10.1.0.1", "fd00::1"));
        assert_eq!(first.mac, "02:42:0a:01:00:02");
        let second = place(&net, &Endpoint::default(), [first.clone()].iter(), None).unwrap();
        assert_eq!((second.ipv4.as_str(), second.ipv6.as_str()), ("10.1.0.3", "fd00::3"));
        let same = Endpoint { ipv4: "10.1.0.2".into(), ..Endpoint::default() };
        assert!(place(&net, &same, [first].iter(), None).unwrap_err().to_string().contains("already in use"));
        for bad in ["10.2.0.1", "10.1.0.1", "10.1.0.0", "10.1.255.255", "x"] {
            let wanted = Endpoint { ipv4: bad.into(), ..Endpoint::default() };
            assert!(place(&net, &wanted, [].iter(), None).is_err(), "{bad}");
        }
        for bad in ["01:00:00:00:00:01", "00:00:00:00:00:00", "02:42:00:00:00:01", "x"] {
            let wanted = Endpoint { mac: bad.into(), ..Endpoint::default() };
            assert!(place(&net, &wanted, [].iter(), None).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_range_within_is_used_and_ends() {
        let net = network(&[("10.1.0.0/16", "10.1.5.0/30", "10.1.5.1")]);
        let mut all = Vec::new();
        for _ in 0..3 {
            all.push(place(&net, &Endpoint::default(), all.iter(), None).unwrap());
        }
        let given: Vec<&str> = all.iter().map(|place| place.ipv4.as_str()).collect();
        assert_eq!(given, ["10.1.5.0", "10.1.5.2", "10.1.5.3"]);
        assert!(place(&net, &Endpoint::default(), all.iter(), None).is_err());
    }

    #[test]
    fn networks_that_make_no_sense_are_refused() {
        for bad in [
            ("10.0.0.0/31", "", ""),
            ("10.0.0.0", "", ""),
            ("x", "", ""),
            ("10.0.0.0/24", "10.0.1.0/25", ""),
            ("10.0.0.0/24", "", "10.0.1.1"),
            ("10.0.0.0/24", "", "10.0.0.0"),
        ] {
            assert!(Range::both(&network(&[bad])).is_err(), "{bad:?}");
        }
        assert!(Range::both(&network(&[("10.0.0.0/24", "", ""), ("10.0.1.0/24", "", "")])).is_err());
    }
}
