//! A room's rules for frames: what a switch looks at before it passes a frame on, in the words of nft(8), family bridge.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};

use bulkhead_net::reason::Reason;
use bulkhead_net::switch::GATEWAY_MAC;

use super::book::{Book, Member};

/// What frames are dropped for, and counted by.
const REASONS: [Reason; 7] = [
    Reason::EtherType,
    Reason::ForeignMac,
    Reason::ForeignAddress,
    Reason::Options,
    Reason::Multicast,
    Reason::NoMember,
    Reason::Protocol,
];
/// Extension headers of IPv6 other than the fragment header: hop-by-hop, routing, authentication, destination, mobility, HIP, shim6.
const HEADERS: &str = "0, 43, 51, 60, 135, 139, 140";

/// How an address is written in a script: hardware.
pub(super) fn mac(mac: [u8; 6]) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// Adds elements to a set or map, after all others were taken out of it.
pub(super) fn fill(script: &mut String, table: &str, what: &str, name: &str, elements: &[String]) {
    let _ = writeln!(script, "flush {what} {table} {name}");
    if !elements.is_empty() {
        let _ = writeln!(script, "add element {table} {name} {{ {} }}", elements.join(", "));
    }
}

/// The commands that make the table what it is to be; `gateway6` is the bridge's own. They may be given again and again; what was counted stays.
pub(super) fn script(book: &Book, gateway6: Option<Ipv6Addr>) -> String {
    let table = "bridge room";
    let gateway = mac(GATEWAY_MAC);
    let mut script = format!(
        "add table {table}
add map {table} numbers {{ type ifname : mark; }}
add set {table} own_mac {{ type mark . ether_addr; }}
add set {table} own4 {{ type mark . ipv4_addr; }}
add set {table} own6 {{ type mark . ipv6_addr; }}
add set {table} member4 {{ type ether_addr . ipv4_addr; }}
add set {table} member6 {{ type ether_addr . ipv6_addr; }}
add set {table} own_target {{ typeof meta mark . @th,64,128; }}
add set {table} own_option {{ typeof meta mark . @th,208,48; }}
add map {table} at_target {{ typeof @th,64,128 : ether daddr; }}
"
    );
    for reason in REASONS {
        let word = reason.word();
        let _ = writeln!(
            script,
            "add set {table} n_{word} {{ type mark; size 16384; flags dynamic; }}
add chain {table} drop_{word}
flush chain {table} drop_{word}
add rule {table} drop_{word} update @n_{word} {{ meta mark counter }}
add rule {table} drop_{word} drop"
        );
    }
    for chain in ["on_arp", "on_four", "on_six", "on_discovery", "on_question", "on_answer"] {
        let _ = writeln!(script, "add chain {table} {chain}\nflush chain {table} {chain}");
    }
    let chain = |script: &mut String, name: &str, rules: &[&str]| {
        for rule in rules {
            let _ = writeln!(script, "add rule {table} {name} {rule}");
        }
    };
    // Frames of a group may reach nobody but the bridge itself, which answers for all.
    let _ = writeln!(
        script,
        "add chain {table} enter {{ type filter hook prerouting priority -300; policy drop; }}
flush chain {table} enter"
    );
    chain(
        &mut script,
        "enter",
        &[
            "meta mark set 0",
            "meta mark set iifname map @numbers",
            "meta mark 0 drop",
            "ether type { 8021q, 8021ad } goto drop_ether_type",
            "meta mark . ether saddr != @own_mac goto drop_foreign_mac",
            "ether type arp goto on_arp",
            "ether type ip goto on_four",
            "ether type ip6 goto on_six",
            "goto drop_ether_type",
        ],
    );
    chain(
        &mut script,
        "on_arp",
        &[
            "arp htype != 1 goto drop_ether_type",
            "arp ptype != ip goto drop_ether_type",
            "arp hlen != 6 goto drop_ether_type",
            "arp plen != 4 goto drop_ether_type",
            "arp operation != request goto drop_ether_type",
            "meta mark . arp saddr ether != @own_mac goto drop_foreign_mac",
            "arp saddr ip != 0.0.0.0 meta mark . arp saddr ip != @own4 goto drop_foreign_address",
            // Does somebody else have its address? Nobody has.
            "meta mark . arp daddr ip @own4 drop",
            "accept",
        ],
    );
    let group = "ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 goto drop_multicast";
    let to_gateway = format!("ether daddr {gateway} accept");
    chain(
        &mut script,
        "on_four",
        &[
            group,
            "ip version != 4 goto drop_ip_options",
            "ip hdrlength != 5 goto drop_ip_options",
            "meta mark . ip saddr != @own4 goto drop_foreign_address",
            &to_gateway,
            "ether daddr . ip daddr != @member4 goto drop_no_member",
            "icmp type redirect goto drop_protocol",
            "accept",
        ],
    );
    let headers = format!("ip6 nexthdr {{ {HEADERS} }} goto drop_ip_options");
    // Discovery in fragments: no honest kernel sends it (RFC 6980).
    let behind = format!("ip6 nexthdr 44 frag nexthdr {{ 44, 58, {HEADERS} }} goto drop_ip_options");
    chain(
        &mut script,
        "on_six",
        &[
            "ip6 nexthdr icmpv6 icmpv6 type 133-137 goto on_discovery",
            group,
            &headers,
            &behind,
            "meta mark . ip6 saddr != @own6 goto drop_foreign_address",
            &to_gateway,
            "ether daddr . ip6 daddr != @member6 goto drop_no_member",
            "accept",
        ],
    );
    chain(
        &mut script,
        "on_discovery",
        &[
            "ip6 hoplimit != 255 goto drop_multicast",
            // With one option at most, or none: who asks, or who has it.
            "icmpv6 type nd-neighbor-solicit goto on_question",
            "icmpv6 type nd-neighbor-advert ip6 length { 24, 32 } goto on_answer",
            "goto drop_multicast",
        ],
    );
    // A bridge answers ARP for others, but not this: so a question goes to whom it is about, and to nobody else.
    chain(
        &mut script,
        "on_question",
        &[
            "ip6 saddr :: drop",
            "ip6 saddr != fe80::/10 meta mark . ip6 saddr != @own6 goto drop_foreign_address",
            "ip6 length != { 24, 32 } goto drop_multicast",
            "ip6 length 32 @th,192,16 != 0x0101 goto drop_multicast",
            "ip6 length 32 meta mark . @th,208,48 != @own_option goto drop_foreign_mac",
            &gateway6.map_or(String::from("drop"), |gateway| format!("@th,64,128 {} accept", hex(gateway))),
            "ip6 saddr fe80::/10 drop",
            "meta mark . @th,64,128 @own_target drop",
            "ether daddr set @th,64,128 map @at_target",
            "ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 drop",
            "accept",
        ],
    );
    // And an answer, to who asked, about nothing but its sender.
    chain(
        &mut script,
        "on_answer",
        &[
            "meta mark . @th,64,128 != @own_target goto drop_multicast",
            "@th,32,8 & 0x80 != 0 goto drop_multicast",
            "meta mark . ip6 saddr != @own6 goto drop_foreign_address",
            "ip6 length 32 @th,192,16 != 0x0201 goto drop_multicast",
            "ip6 length 32 meta mark . @th,208,48 != @own_option goto drop_foreign_mac",
            "ether daddr . ip6 daddr != @member6 goto drop_no_member",
            "accept",
        ],
    );
    let each = |what: &dyn Fn(&Member) -> Vec<String>| -> Vec<String> {
        book.members.iter().flat_map(what).collect()
    };
    let by_address = |member: &Member, four: bool, marked: bool| -> Vec<String> {
        let own = member.addresses().filter(|address| address.is_ipv4() == four);
        let before = if marked { member.number.to_string() } else { mac(member.mac) };
        own.map(|address: IpAddr| format!("{before} . {address}")).collect()
    };
    fill(&mut script, table, "map", "numbers", &each(&|m| vec![format!("{} : {}", m.tap(), m.number)]));
    fill(&mut script, table, "set", "own_mac", &each(&|m| vec![format!("{} . {}", m.number, mac(m.mac))]));
    fill(&mut script, table, "set", "own4", &each(&|m| by_address(m, true, true)));
    fill(&mut script, table, "set", "own6", &each(&|m| by_address(m, false, true)));
    fill(&mut script, table, "set", "member4", &each(&|m| by_address(m, true, false)));
    fill(&mut script, table, "set", "member6", &each(&|m| by_address(m, false, false)));
    let six = |member: &Member| member.ipv6.map(hex);
    let number = |mac: [u8; 6]| mac.iter().fold(String::from("0x"), |text, byte| format!("{text}{byte:02x}"));
    fill(
        &mut script,
        table,
        "set",
        "own_target",
        &each(&|m| six(m).map(|own| format!("{} . {own}", m.number)).into_iter().collect()),
    );
    fill(
        &mut script,
        table,
        "set",
        "own_option",
        &each(&|m| vec![format!("{} . {}", m.number, number(m.mac))]),
    );
    fill(
        &mut script,
        table,
        "map",
        "at_target",
        &each(&|m| six(m).map(|own| format!("{own} : {}", mac(m.mac))).into_iter().collect()),
    );
    script
}

/// An address as the number that nft compares bytes with which have no name.
fn hex(address: Ipv6Addr) -> String {
    format!("{:#034x}", address.to_bits())
}
