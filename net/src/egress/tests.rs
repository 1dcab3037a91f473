//! What no rule may undo, for addresses and rules that nobody thought of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::address::Cidr;

fn to(address: &str, port: u16) -> Destination {
    Destination { protocol: Protocol::Tcp, address: address.parse().unwrap(), port }
}

fn around() -> Surroundings {
    Surroundings {
        host: vec!["198.51.100.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        networks: vec!["172.17.0.0/16".parse().unwrap(), "fd12::/64".parse().unwrap()],
    }
}

fn verdict(policy: &str, to: &Destination, names: &[&str]) -> Result<(), Reason> {
    decide([&policy.parse::<Policy>().unwrap()], &around(), to, names)
}

proptest! {
    #[test]
    fn walls_as_ranges_are_the_same_walls(four in any::<u32>(), six in any::<u128>(), range in any::<prop::sample::Index>(), bits in any::<u128>()) {
        let walls = fixed_walls();
        let told = |address: IpAddr| walls.iter().find(|(range, _)| range.contains(address)).map(|(_, why)| *why);
        // Addresses anywhere, and within and next to a wall.
        let (chosen, _) = walls[range.index(walls.len())];
        let near = match (chosen.first(), chosen.last()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                let at = first.to_bits().wrapping_add(four % (last.to_bits() - first.to_bits()).saturating_add(2));
                IpAddr::from(Ipv4Addr::from_bits(at))
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                let at = first.to_bits().wrapping_add(bits % (last.to_bits() - first.to_bits()).saturating_add(2));
                IpAddr::from(Ipv6Addr::from_bits(at))
            }
            _ => unreachable!("one family"),
        };
        for address in [Ipv4Addr::from_bits(four).into(), Ipv6Addr::from_bits(six).into(), near] {
            let hides = matches!(address, IpAddr::V6(six) if embedded(six).is_some());
            if !hides || told(address).is_some() {
                prop_assert_eq!(told(address), wall(address, &Surroundings::default()), "{}", address);
            }
        }
    }
}

#[test]
fn the_internet_is_open_and_the_walls_stand() {
    for open in
        ["192.0.2.1", "10.1.2.3", "192.168.1.1", "2001:db8::2", "64:ff9b::c000:201", "2002:c000:201::1"]
    {
        assert_eq!(verdict("", &to(open, 80), &[]), Ok(()), "{open}");
    }
    for (closed, why) in [
        ("127.0.0.1", Reason::Loopback),
        ("127.9.9.9", Reason::Loopback),
        ("0.0.0.0", Reason::Loopback),
        ("::1", Reason::Loopback),
        ("::", Reason::Loopback),
        ("169.254.169.254", Reason::Metadata),
        ("169.254.1.1", Reason::LinkLocal),
        ("fe80::1", Reason::LinkLocal),
        ("fd00:ec2::254", Reason::Metadata),
        ("100.100.100.200", Reason::Metadata),
        ("198.51.100.1", Reason::Host),
        ("2001:db8::1", Reason::Host),
        ("172.17.0.9", Reason::OtherNetwork),
        ("fd12::9", Reason::OtherNetwork),
        ("224.0.0.1", Reason::Multicast),
        ("ff02::1", Reason::Multicast),
        ("255.255.255.255", Reason::Reserved),
        ("::ffff:192.0.2.1", Reason::Reserved),
        ("::ffff:127.0.0.1", Reason::Reserved),
        ("64:ff9b::7f00:1", Reason::Loopback),
        ("64:ff9b::a9fe:a9fe", Reason::Metadata),
        ("64:ff9b::c633:6401", Reason::Host),
        ("2002:7f00:1::", Reason::Loopback),
        ("2002:ac11:2::", Reason::OtherNetwork),
        ("2001:0:1::1", Reason::Reserved),
    ] {
        assert_eq!(verdict("allow-all allow=*", &to(closed, 80), &["x"]), Err(why), "{closed}");
    }
}

#[test]
fn the_first_rule_that_fits_decides() {
    let policy = "deny=10.0.0.1,allow=10.0.0.0/8:1000-2000/tcp,allow=example.org:443,allow=*.example.net";
    let rule = Err(Reason::Rule);
    assert_eq!(verdict(policy, &to("10.0.0.1", 1500), &[]), rule);
    assert_eq!(verdict(policy, &to("10.0.0.2", 1500), &[]), Ok(()));
    assert_eq!(verdict(policy, &to("10.0.0.2", 999), &[]), rule);
    let udp = Destination { protocol: Protocol::Udp, ..to("10.0.0.2", 1500) };
    assert_eq!(verdict(policy, &udp, &[]), rule);
    assert_eq!(verdict(policy, &to("192.0.2.1", 443), &["example.org"]), Ok(()));
    assert_eq!(verdict(policy, &to("192.0.2.1", 80), &["example.org"]), rule);
    assert_eq!(verdict(policy, &to("192.0.2.1", 443), &["sub.example.org"]), rule);
    assert_eq!(verdict(policy, &to("192.0.2.1", 1), &["a.b.example.net"]), Ok(()));
    assert_eq!(verdict(policy, &to("192.0.2.1", 1), &["example.net"]), rule);
    assert_eq!(verdict(policy, &to("192.0.2.1", 1), &["badexample.net"]), rule);
    assert_eq!(verdict("deny-all", &to("192.0.2.1", 443), &["example.org"]), rule);
    assert_eq!(verdict("deny=192.0.2.0/24", &to("192.0.3.1", 1), &[]), Ok(()));
    // Denied in every disguise, allowed in none.
    assert_eq!(verdict("deny=192.0.2.0/24", &to("64:ff9b::c000:201", 1), &[]), rule);
    assert_eq!(verdict("allow=192.0.2.0/24", &to("64:ff9b::c000:201", 1), &[]), rule);
    assert_eq!(verdict("allow=[2001:db8::/32]:80", &to("2001:db8::9", 80), &[]), Ok(()));
    let echo = Destination { protocol: Protocol::Icmp, ..to("192.0.2.1", 0) };
    assert_eq!(verdict("allow=*/icmp", &echo, &[]), Ok(()));
    assert_eq!(verdict("allow=*:1-65535", &echo, &[]), rule);
    // Both the network's and the container's have a word.
    let (all, none): (Policy, Policy) = ("".parse().unwrap(), "deny-all".parse().unwrap());
    assert_eq!(decide([&all, &none], &around(), &to("192.0.2.1", 1), &[]), rule);
    assert_eq!(decide([&none, &all], &around(), &to("192.0.2.1", 1), &[]), rule);
}

#[test]
fn names_are_asked_for_only_if_the_answer_is_of_use() {
    let ask = |policy: &str, name: &str| policy.parse::<Policy>().unwrap().may_ask(name);
    assert!(ask("", "a.example") && ask("allow=10.0.0.0/8", "a.example"));
    assert!(
        !ask("deny-all", "a.example")
            && !ask("deny=a.example", "a.example")
            && ask("deny=a.example", "b.example")
    );
    assert!(ask("allow=a.example:443", "a.example") && !ask("allow=a.example:443", "secret.b.example"));
    assert!(ask("deny=a.example:80", "a.example"));
}

#[test]
fn rules_that_are_none_are_refused() {
    for bad in [
        "allow",
        "permit=x",
        "allow=",
        "allow=10.0.0.0/33",
        "allow=1.2.3",
        "allow=a..b",
        "allow=a:0",
        "allow=a:9-8",
        "allow=a:x",
        "allow=a/sctp",
        "allow=[::1",
        "allow=[::1]80",
        "allow=a:1/icmp",
        "deny=*.*.a",
        "allow=-a b",
        "deny-all=",
        "allow=ä.example",
    ] {
        assert!(bad.parse::<Policy>().is_err(), "{bad}");
    }
    assert_eq!("deny=a,".repeat(MAX_RULES + 1).parse::<Policy>(), Err(PolicyError::TooMany));
    assert!("deny=a,".repeat(MAX_RULES).parse::<Policy>().is_ok());
}

fn policies() -> impl Strategy<Value = String> {
    let whom = prop_oneof![
        Just("*".to_owned()),
        Just("example.org".to_owned()),
        Just("*.example.org:1-65535".to_owned()),
        (any::<u32>(), 0u8..=32).prop_map(|(bits, prefix)| format!("{}/{prefix}", Ipv4Addr::from_bits(bits))),
        (any::<u128>(), 0u8..=128)
            .prop_map(|(bits, prefix)| format!("[{}/{prefix}]", Ipv6Addr::from_bits(bits))),
    ];
    let word = prop_oneof![
        Just("allow-all".to_owned()),
        whom.clone().prop_map(|whom| format!("allow={whom}")),
        whom.prop_map(|whom| format!("deny={whom}")),
    ];
    prop::collection::vec(word, 0..6).prop_map(|words| words.join(","))
}

fn walled() -> impl Strategy<Value = Ipv4Addr> {
    let ranges = [
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.17.0.0/16",
        "198.51.100.1/32",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "0.0.0.0/8",
    ];
    (prop::sample::select(ranges.to_vec()), any::<u32>()).prop_map(|(range, bits)| {
        let range: Cidr = range.parse().unwrap();
        match (range.first(), range.last()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                Ipv4Addr::from_bits(first.to_bits() | bits & (last.to_bits() ^ first.to_bits()))
            }
            _ => unreachable!(),
        }
    })
}

fn disguises(v4: Ipv4Addr) -> Vec<IpAddr> {
    let bits = u128::from(v4.to_bits());
    let with = |prefix: u128| IpAddr::V6(Ipv6Addr::from_bits(prefix | bits));
    vec![
        IpAddr::V4(v4),
        with(0xffff << 32),
        with(0),
        with(0x0064_ff9b << 96),
        IpAddr::V6(Ipv6Addr::from_bits(0x2002 << 112 | bits << 80 | 1)),
        with(0x2001_0db8 << 96 | 0x5efe << 32),
    ]
}

proptest! {
    #[test]
    fn no_rule_opens_a_wall(text in policies(), v4 in walled(), port in any::<u16>(), udp in any::<bool>()) {
        let policy: Policy = text.parse().unwrap();
        for address in disguises(v4) {
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            let to = Destination { protocol, address, port };
            prop_assert!(decide([&policy], &around(), &to, &["example.org", "a.example.org"]).is_err(), "{address}");
        }
    }

    #[test]
    fn what_is_denied_first_stays_denied(text in policies(), bits in any::<u32>(), port in any::<u16>()) {
        let v4 = Ipv4Addr::from_bits(bits);
        let policy: Policy = format!("deny={v4},{text}").parse().unwrap();
        for address in disguises(v4) {
            let to = Destination { protocol: Protocol::Tcp, address, port };
            prop_assert!(decide([&policy], &Surroundings::default(), &to, &[]).is_err(), "{address}");
        }
    }

    #[test]
    fn nothing_said_is_nothing_thrown(text in "[a-z0-9.*:/=,\\[\\]-]{0,60}") {
        let _ = text.parse::<Policy>();
    }

    #[test]
    fn a_stricter_policy_never_lets_more_through(a in policies(), b in policies(), bits in any::<u32>(), port in any::<u16>()) {
        let (a, b): (Policy, Policy) = (a.parse().unwrap(), b.parse().unwrap());
        let to = Destination { protocol: Protocol::Tcp, address: Ipv4Addr::from_bits(bits).into(), port };
        let both = decide([&a, &b], &around(), &to, &[]).is_ok();
        let each = decide([&a], &around(), &to, &[]).is_ok() && decide([&b], &around(), &to, &[]).is_ok();
        prop_assert_eq!(both, each);
    }
}
