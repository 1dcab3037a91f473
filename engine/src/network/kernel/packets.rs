//! A room's rules for packets on their way out, and to the gateway: walls, then the rules of the network, then those of the
//! container, as the switch has them, in the words of nft(8), family inet.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use bulkhead_net::address::Cidr;
use bulkhead_net::egress::{Action, Policy, Protocol, Rule, Target, fixed_walls};
use bulkhead_net::protocol::Network;
use bulkhead_net::reason::Reason;

use super::book::{Book, Member};
use super::frames::fill;

/// The bridge's name, and that of the interface to the host.
pub(super) const BRIDGE: &str = "br";
pub(super) const WAY_OUT: &str = "up";
/// Most flows of a container that the kernel keeps at a time: as many as a switch, of both kinds.
const MAX_FLOWS: u32 = 2048;
const TABLE: &str = "inet room";
/// What packets are refused for, and counted by, beside [`WALLS`].
const REASONS: [Reason; 6] =
    [Reason::NoMember, Reason::Internal, Reason::Gateway, Reason::Protocol, Reason::Rule, Reason::Flows];
/// Walls, in the order that they are told in.
const WALLS: [Reason; 7] = [
    Reason::Loopback,
    Reason::Metadata,
    Reason::LinkLocal,
    Reason::Multicast,
    Reason::Reserved,
    Reason::Host,
    Reason::OtherNetwork,
];

/// The commands that make the table what it is to be: `host` are the host's own addresses. `book` is told what the rules know then.
///
/// # Errors
/// The rules are none.
pub(super) fn script(book: &mut Book, network: &Network, host: &[IpAddr]) -> io::Result<String> {
    let mut script = format!(
        "add table {TABLE}
add set {TABLE} flows {{ type mark; size 16384; flags dynamic; }}
add set {TABLE} n_flow {{ type mark; size 16384; flags dynamic; }}
add map {TABLE} rules {{ type mark : verdict; }}
add map {TABLE} way4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
add map {TABLE} way6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
add set {TABLE} asks4 {{ type mark . ipv4_addr; }}
add set {TABLE} asks6 {{ type mark . ipv6_addr; }}
"
    );
    for reason in REASONS.into_iter().chain(WALLS) {
        refusals(&mut script, reason);
    }
    let of_network = policy(&network.egress)?;
    let policies = book.members.iter().map(|member| Ok((member.number, policy(&member.egress)?)));
    let policies: Vec<(u32, Policy)> = policies.collect::<io::Result<_>>()?;
    let all = policies.iter().map(|(_, policy)| policy).chain([&of_network]);
    let names: BTreeSet<String> = all.flat_map(names_of).collect();
    for (name, four) in names.iter().flat_map(|name| [(name, true), (name, false)]) {
        let _ = writeln!(script, "{}", name_set(name, four));
    }
    for (name, hook) in [
        ("forward", "type filter hook forward priority 0; policy drop;"),
        ("input", "type filter hook input priority 0; policy drop;"),
        ("before", "type nat hook prerouting priority dstnat;"),
        ("after", "type nat hook postrouting priority srcnat;"),
    ] {
        let _ = writeln!(script, "add chain {TABLE} {name} {{ {hook} }}\nflush chain {TABLE} {name}");
    }
    // What refers to chains and sets goes before they do.
    let rules: Vec<String> =
        policies.iter().map(|(number, _)| format!("{number} : jump {}", chain_of(*number))).collect();
    let _ = writeln!(
        script,
        "flush map {TABLE} rules\nadd chain {TABLE} of_network\nflush chain {TABLE} of_network"
    );
    // Whoever wrote them down may have been killed before the kernel knew of them: so they are added first.
    for number in book.declared.iter().chain(policies.iter().map(|(number, _)| number)) {
        let chain = chain_of(*number);
        let _ = writeln!(script, "add chain {TABLE} {chain}\nflush chain {TABLE} {chain}");
    }
    for number in book.declared.iter().filter(|number| !policies.iter().any(|(known, _)| known == *number)) {
        let _ = writeln!(script, "delete chain {TABLE} {}", chain_of(*number));
    }
    let gone = book.named.iter().filter(|name| !names.contains(*name));
    for (name, four) in gone.flat_map(|name| [(name, true), (name, false)]) {
        let _ = writeln!(script, "{}\ndelete set {TABLE} {}", name_set(name, four), named(name, four));
    }
    walls(&mut script, network, host);
    decisions(&mut script, "of_network", &of_network);
    for (number, policy) in &policies {
        decisions(&mut script, &chain_of(*number), policy);
    }
    fill(&mut script, TABLE, "map", "rules", &rules);
    forward(&mut script, network);
    input(&mut script, network);
    translate(&mut script, book);
    book.declared = policies.iter().map(|(number, _)| *number).collect();
    book.named = names.into_iter().collect();
    Ok(script)
}

fn policy(text: &str) -> io::Result<Policy> {
    text.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{error}")))
}

fn chain_of(number: u32) -> String {
    format!("of_{number}")
}

fn rule(script: &mut String, chain: &str, text: &str) {
    let _ = writeln!(script, "add rule {TABLE} {chain} {text}");
}

/// A chain that counts, and tells the container so.
fn refusals(script: &mut String, reason: Reason) {
    let word = reason.word();
    let chain = format!("no_{word}");
    let _ = writeln!(
        script,
        "add set {TABLE} n_{word} {{ type mark; size 16384; flags dynamic; }}
add chain {TABLE} {chain}
flush chain {TABLE} {chain}"
    );
    rule(script, &chain, &format!("update @n_{word} {{ meta mark counter }}"));
    rule(script, &chain, "meta l4proto tcp reject with tcp reset");
    let icmp = if reason == Reason::Gateway { "port-unreachable" } else { "host-unreachable" };
    rule(script, &chain, &format!("reject with icmpx type {icmp}"));
}

/// The sets of all walls.
fn walls(script: &mut String, network: &Network, host: &[IpAddr]) {
    let mut all = fixed_walls();
    let whole = |address: &IpAddr| Cidr::new(*address, if address.is_ipv4() { 32 } else { 128 });
    all.extend(host.iter().filter_map(whole).map(|range| (range, Reason::Host)));
    all.extend(network.networks.iter().map(|range| (*range, Reason::OtherNetwork)));
    for reason in WALLS {
        let word = reason.word();
        let ranges: Vec<Cidr> =
            all.iter().filter(|(_, why)| *why == reason).map(|(range, _)| *range).collect();
        let hidden: Vec<Cidr> = ranges.iter().flat_map(|range| hidden_ranges(*range)).collect();
        for (set, kind, four) in [("w4", "ipv4_addr", true), ("w6", "ipv6_addr", false)] {
            let _ = writeln!(
                script,
                "add set {TABLE} {set}_{word} {{ type {kind}; flags interval; auto-merge; }}"
            );
            let of_family = ranges.iter().chain(&hidden).filter(|range| range.first().is_ipv4() == four);
            let elements: Vec<String> = of_family.map(ToString::to_string).collect();
            fill(script, TABLE, "set", &format!("{set}_{word}"), &elements);
        }
        let chain = format!("wall_{word}");
        let _ = writeln!(script, "add chain {TABLE} {chain}\nflush chain {TABLE} {chain}");
        rule(script, &chain, &format!("ip daddr @w4_{word} goto no_{word}"));
        rule(script, &chain, &format!("ip6 daddr @w6_{word} goto no_{word}"));
        for text in ranges.iter().filter_map(|range| hidden_mask(*range)) {
            rule(script, &chain, &format!("{text} goto no_{word}"));
        }
    }
}

/// The IPv6 ranges that an IPv4 range hides in and that are not walls by themselves: 6to4 (RFC 3056) and NAT64 (RFC 6052).
fn hidden_ranges(range: Cidr) -> Vec<Cidr> {
    let IpAddr::V4(first) = range.first() else { return Vec::new() };
    let bits = u128::from(first.to_bits());
    let six_to_four = Ipv6Addr::from_bits(0x2002 << 112 | bits << 80);
    let nat64 = Ipv6Addr::from_bits(0x0064_ff9b << 96 | bits);
    let of = |address: Ipv6Addr, before: u8| Cidr::new(address.into(), before + range.prefix());
    [of(six_to_four, 16), of(nat64, 96)].into_iter().flatten().collect()
}

/// The same for ISATAP (RFC 5214), whose addresses have anything in front.
fn hidden_mask(range: Cidr) -> Option<String> {
    let IpAddr::V4(first) = range.first() else { return None };
    let mask = u128::from(u32::MAX.checked_shl(32 - u32::from(range.prefix())).unwrap_or(0));
    let mask = Ipv6Addr::from_bits(0xfdff_ffff << 32 | mask);
    let value = Ipv6Addr::from_bits(0x0000_5efe << 32 | u128::from(first.to_bits()));
    Some(format!("ip6 daddr & {mask} == {value}"))
}

/// The chain of a policy: it returns if the policy lets a flow through.
fn decisions(script: &mut String, chain: &str, policy: &Policy) {
    for each in policy.rules() {
        let verdict = if each.action == Action::Allow { "return" } else { "goto no_rule" };
        for target in targets(each) {
            rule(script, chain, &format!("{}{target}{verdict}", of_ports(each)));
        }
    }
    if policy.otherwise() == Action::Deny {
        rule(script, chain, "goto no_rule");
    }
}

fn of_ports(rule: &Rule) -> String {
    let ports = rule.ports.as_ref().map(|ports| format!("th dport {}-{} ", ports.start(), ports.end()));
    let protocol = match (rule.protocol, &ports) {
        (Some(Protocol::Tcp), _) => "meta l4proto tcp ",
        (Some(Protocol::Udp), _) => "meta l4proto udp ",
        (Some(Protocol::Icmp), _) => "meta l4proto { icmp, icmpv6 } ",
        (None, Some(_)) => "meta l4proto { tcp, udp } ",
        (None, None) => "",
    };
    format!("{protocol}{}", ports.unwrap_or_default())
}

/// What is denied is denied in every disguise; what is allowed, only as itself.
fn targets(rule: &Rule) -> Vec<String> {
    match &rule.target {
        Target::Any => vec![String::new()],
        Target::Name(pattern) => {
            let name = pattern.to_string();
            vec![
                format!("meta mark . ip daddr @{} ", named(&name, true)),
                format!("meta mark . ip6 daddr @{} ", named(&name, false)),
            ]
        }
        Target::Range(range) => {
            let word = |range: &Cidr| if range.first().is_ipv4() { "ip" } else { "ip6" };
            let mut targets = vec![format!("{} daddr {range} ", word(range))];
            if rule.action == Action::Deny {
                targets.extend(hidden_ranges(*range).iter().map(|range| format!("ip6 daddr {range} ")));
                targets.extend(hidden_mask(*range).map(|text| format!("{text} ")));
            }
            targets
        }
    }
}

/// The names that a policy knows.
fn names_of(policy: &Policy) -> Vec<String> {
    let name = |rule: &Rule| match &rule.target {
        Target::Name(pattern) => Some(pattern.to_string()),
        _ => None,
    };
    policy.rules().iter().filter_map(name).collect()
}

/// The set of what a name was answered with: its own name is a number made of the name's, since a set's name is short.
fn named(name: &str, four: bool) -> String {
    let family = if four { 4 } else { 6 };
    format!("name_{:016x}_{family}", super::hash(name.as_bytes()))
}

fn name_set(name: &str, four: bool) -> String {
    let kind = if four { "ipv4_addr" } else { "ipv6_addr" };
    format!("add set {TABLE} {} {{ type mark . {kind}; size 65535; flags timeout; }}", named(name, four))
}

fn forward(script: &mut String, network: &Network) {
    let mut add = |text: &str| rule(script, "forward", text);
    add(&format!("iifname \"{BRIDGE}\" meta l4proto != {{ tcp, udp, icmp, icmpv6 }} goto no_protocol"));
    // A segment of a flow that is no more.
    add("ct state invalid meta l4proto tcp reject with tcp reset");
    add("ct state invalid drop");
    add("ct state established,related accept");
    // What comes in, comes to a published port.
    add(&format!("iifname \"{WAY_OUT}\" ct status dnat accept"));
    add(&format!("iifname != \"{BRIDGE}\" drop"));
    add(&format!("ip daddr {} goto no_no_member", network.ipv4.0));
    if let Some((range, _)) = network.ipv6 {
        add(&format!("ip6 daddr {range} goto no_no_member"));
    }
    if network.internal {
        add("goto no_internal");
    }
    add("meta l4proto icmp icmp type != echo-request goto no_protocol");
    add("meta l4proto icmpv6 icmpv6 type != echo-request goto no_protocol");
    for reason in WALLS {
        add(&format!("jump wall_{}", reason.word()));
    }
    add("jump of_network");
    add("meta mark vmap @rules");
    add(&format!("ct state new add @flows {{ meta mark ct count over {MAX_FLOWS} }} goto no_flows"));
    add("update @n_flow { meta mark counter }");
    add("accept");
}

fn input(script: &mut String, network: &Network) {
    let mut add = |text: &str| rule(script, "input", text);
    add("iifname \"lo\" accept");
    add("ct state established,related accept");
    add("icmpv6 type nd-neighbor-solicit ip6 hoplimit 255 accept");
    add(&format!("iifname \"{WAY_OUT}\" icmpv6 type nd-neighbor-advert ip6 hoplimit 255 accept"));
    add(&format!("iifname != \"{BRIDGE}\" drop"));
    let gateways = [Some(IpAddr::V4(network.ipv4.1)), network.ipv6.map(|(_, gateway)| IpAddr::V6(gateway))];
    for gateway in gateways.into_iter().flatten() {
        let (word, echo) = if gateway.is_ipv4() { ("ip", "icmp") } else { ("ip6", "icmpv6") };
        add(&format!("{word} daddr {gateway} {echo} type echo-request accept"));
        add(&format!("{word} daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 accept"));
        add(&format!("{word} daddr {gateway} goto no_gateway"));
    }
    add("goto no_host");
}

/// Addresses that are replaced: of published ports, of questions to other gateways, and of what leaves.
fn translate(script: &mut String, book: &Book) {
    let (mut four, mut six) = (Vec::new(), Vec::new());
    for (member, port) in book.passed() {
        let key = format!("{} . {}", port.protocol, port.host.port());
        match (port.host, member.ipv6) {
            (SocketAddr::V4(_), _) => four.push(format!("{key} : {} . {}", member.ipv4, port.port)),
            (SocketAddr::V6(_), Some(own)) => six.push(format!("{key} : {own} . {}", port.port)),
            (SocketAddr::V6(_), None) => {}
        }
    }
    fill(script, TABLE, "map", "way4", &four);
    fill(script, TABLE, "map", "way6", &six);
    let asks = |four: bool| -> Vec<String> {
        let of = |member: &Member| {
            let number = member.number;
            let asked = member.asks_at.iter().filter(|address| address.is_ipv4() == four);
            asked.map(|address| format!("{number} . {address}")).collect::<BTreeSet<String>>()
        };
        book.members.iter().flat_map(of).collect()
    };
    fill(script, TABLE, "set", "asks4", &asks(true));
    fill(script, TABLE, "set", "asks6", &asks(false));
    let from = format!("iifname \"{WAY_OUT}\"");
    rule(script, "before", &format!("{from} dnat ip to meta l4proto . th dport map @way4"));
    rule(script, "before", &format!("{from} dnat ip6 to meta l4proto . th dport map @way6"));
    for (word, set) in [("ip", "asks4"), ("ip6", "asks6")] {
        let to = format!("iifname \"{BRIDGE}\" meta l4proto {{ tcp, udp }} th dport 53");
        rule(script, "before", &format!("{to} meta mark . {word} daddr @{set} redirect"));
    }
    rule(script, "after", &format!("oifname \"{WAY_OUT}\" masquerade"));
}

/// Opens addresses to a container that a resolver called by a name which its rules, or the network's, know: for so many seconds each.
/// `None`: no rule is about it.
pub(super) fn learned(
    member: &Member,
    network: &Network,
    name: &str,
    addresses: &[(IpAddr, u64)],
) -> Option<String> {
    let mut script = String::new();
    let mut patterns = BTreeSet::new();
    for policy in [&network.egress, &member.egress].iter().filter_map(|text| text.parse::<Policy>().ok()) {
        for rule in policy.rules() {
            if let Target::Name(pattern) = &rule.target
                && pattern.fits(name)
            {
                patterns.insert(pattern.to_string());
            }
        }
    }
    for pattern in patterns {
        for (address, seconds) in addresses {
            let element =
                format!("{TABLE} {} {{ {} . {address}", named(&pattern, address.is_ipv4()), member.number);
            // Added twice, so that it is there to be taken out, and has its new time.
            let _ = writeln!(script, "add element {element} }}\ndelete element {element} }}");
            let _ = writeln!(script, "add element {element} timeout {seconds}s }}");
        }
    }
    (!script.is_empty()).then_some(script)
}
