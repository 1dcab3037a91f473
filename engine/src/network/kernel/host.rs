//! What the host's own network namespace has of rooms: for each a veth pair with a transit range, and one table of rules for all.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::Path;

use super::book::Book;
use super::frames::fill;
use super::namespace::{Namespace, set};
use super::netlink::Netlink;
use super::packets::WAY_OUT;
use super::{hash, nft};

/// What the host's ends of the pairs are called, with the transit range's number behind it.
const NAME: &str = "bhk";
/// Transit ranges: /30s of the range that is set aside for tests of networks (RFC 2544), which is on no host and not on the internet.
const TRANSIT_4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const TRANSIT_4_ALL: &str = "198.18.0.0/15";
/// And /64s of a range of local addresses with a number drawn by lot (RFC 4193).
const TRANSIT_6: Ipv6Addr = Ipv6Addr::new(0xfdb1, 0x6c3e, 0x94d7, 0, 0, 0, 0, 0);
const TRANSIT_6_ALL: &str = "fdb1:6c3e:94d7::/48";
/// How many rooms may have a way out at a time.
const TRANSITS: u16 = 32_768;

/// The two ends' addresses in a transit range: the host's, the room's.
pub(super) fn transit_4(number: u16) -> (Ipv4Addr, Ipv4Addr) {
    let first = TRANSIT_4.to_bits() + 4 * u32::from(number);
    (Ipv4Addr::from_bits(first + 1), Ipv4Addr::from_bits(first + 2))
}

/// The same for IPv6.
pub(super) fn transit_6(number: u16) -> (Ipv6Addr, Ipv6Addr) {
    let first = TRANSIT_6.to_bits() | u128::from(number) << 64;
    (Ipv6Addr::from_bits(first | 1), Ipv6Addr::from_bits(first | 2))
}

/// Gives a room its way out, as far as the host's end. Returns the transit range's number: one that no other room on this host has,
/// whoever made it.
pub(super) fn connect(room: &Namespace, key: u64, six: bool) -> io::Result<u16> {
    let netlink = Netlink::open()?;
    // Where it begins to look is another place each time, so that it hardly ever looks twice.
    let start = u16::try_from(key % u64::from(TRANSITS)).unwrap_or(0);
    let all = (start..TRANSITS).chain(0..start);
    for number in all {
        let name = format!("{NAME}{number}");
        match netlink.add_pair(&name, WAY_OUT, room.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            other => other?,
        }
        let index = netlink.link(&name)?.index;
        netlink.add_address(index, transit_4(number).0.into(), 30)?;
        set("ipv4/ip_forward", "1")?;
        if six {
            netlink.add_address(index, transit_6(number).0.into(), 64)?;
            set("ipv6/conf/all/forwarding", "1")?;
        }
        netlink.bring_up(index)?;
        return Ok(number);
    }
    Err(io::Error::other("all transit ranges are taken"))
}

/// Has the host's table say what all books of an installation say; without a room there is none.
pub(super) fn declare(networks: &Path) -> io::Result<()> {
    let mut books = Vec::new();
    for entry in fs::read_dir(networks)?.flatten() {
        if entry.file_type()?.is_dir() {
            books.push(Book::read(&entry.path())?);
        }
    }
    books.retain(|book| book.transit.is_some() && !book.members.is_empty());
    // Several installations on one host have a table each.
    let table = format!("inet bulkhead_{:08x}", hash(networks.as_os_str().as_encoded_bytes()) & 0xffff_ffff);
    nft::apply(&script(&table, &books))
}

fn script(table: &str, books: &[Book]) -> String {
    if books.is_empty() {
        return format!("add table {table}\ndelete table {table}\n");
    }
    let mut script = format!(
        "add table {table}
add map {table} any4 {{ type inet_proto . inet_service : ipv4_addr; }}
add map {table} any6 {{ type inet_proto . inet_service : ipv6_addr; }}
add map {table} at4 {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr; }}
add map {table} at6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr; }}
"
    );
    for (name, hook) in [
        ("input", "type filter hook input priority -10; policy accept;"),
        ("forward", "type filter hook forward priority -10; policy accept;"),
        ("before", "type nat hook prerouting priority dstnat;"),
        ("after", "type nat hook postrouting priority srcnat;"),
    ] {
        let _ = writeln!(script, "add chain {table} {name} {{ {hook} }}\nflush chain {table} {name}");
    }
    let _ = writeln!(script, "add chain {table} refuse\nflush chain {table} refuse");
    let all = format!("\"{NAME}*\"");
    let rules = [
        ("refuse", "meta l4proto tcp reject with tcp reset".to_owned()),
        ("refuse", "reject with icmpx type host-unreachable".to_owned()),
        // The host itself is out of reach, at whatever address: only what it asked for comes to it.
        ("input", format!("iifname != {all} return")),
        ("input", "ct state established,related accept".to_owned()),
        (
            "input",
            "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept".to_owned(),
        ),
        ("input", "goto refuse".to_owned()),
        // No room has a way to another, and nobody into one but by a published port.
        ("forward", format!("iifname {all} oifname {all} goto refuse")),
        // An address of the host's is out of reach, too, if the host passes on what comes there.
        ("forward", format!("iifname {all} ct direction original ct status dnat goto refuse")),
        ("forward", format!("oifname != {all} return")),
        ("forward", "ct state established,related accept".to_owned()),
        ("forward", "ct status dnat accept".to_owned()),
        ("forward", "drop".to_owned()),
        ("before", format!("iifname {all} return")),
        ("before", "dnat ip to ip daddr . meta l4proto . th dport map @at4".to_owned()),
        ("before", "dnat ip6 to ip6 daddr . meta l4proto . th dport map @at6".to_owned()),
        (
            "before",
            "meta nfproto ipv4 fib daddr type local dnat ip to meta l4proto . th dport map @any4".to_owned(),
        ),
        (
            "before",
            "meta nfproto ipv6 fib daddr type local dnat ip6 to meta l4proto . th dport map @any6".to_owned(),
        ),
        ("after", format!("ip saddr {TRANSIT_4_ALL} oifname != {all} masquerade")),
        ("after", format!("ip6 saddr {TRANSIT_6_ALL} oifname != {all} masquerade")),
    ];
    for (chain, rule) in rules {
        let _ = writeln!(script, "add rule {table} {chain} {rule}");
    }
    let (mut any4, mut any6, mut at4, mut at6) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for book in books {
        let Some(number) = book.transit else { continue };
        for (_, port) in book.passed() {
            let key = format!("{} . {}", port.protocol, port.host.port());
            let (ip, whole) = (port.host.ip(), port.host.ip().is_unspecified());
            let room: IpAddr = match port.host {
                SocketAddr::V4(_) => transit_4(number).1.into(),
                SocketAddr::V6(_) => transit_6(number).1.into(),
            };
            match (whole, ip.is_ipv4()) {
                (true, true) => any4.push(format!("{key} : {room}")),
                (true, false) => any6.push(format!("{key} : {room}")),
                (false, true) => at4.push(format!("{ip} . {key} : {room}")),
                (false, false) => at6.push(format!("{ip} . {key} : {room}")),
            }
        }
    }
    for (name, elements) in [("any4", any4), ("any6", any6), ("at4", at4), ("at6", at6)] {
        fill(&mut script, table, "map", name, &elements);
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transit_ranges_are_their_own() {
        assert_eq!(transit_4(0), (Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 0, 2)));
        assert_eq!(transit_4(TRANSITS - 1).1, Ipv4Addr::new(198, 19, 255, 254));
        assert_eq!(transit_6(0x1ff).1, "fdb1:6c3e:94d7:1ff::2".parse::<Ipv6Addr>().unwrap());
    }
}
