//! Ways out that a guest may try. Each must be counted for what it is, and nobody else may hear of it.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use bulkhead_fixtures::world::{FAR, FAR6, HOST, World};
use bulkhead_net::frame::{self, ARP, Frame, IPV4, Packet, TCP, checksum};
use bulkhead_net::reason::Reason;
use bulkhead_net::switch::GATEWAY_MAC;

use crate::site::{Guest, Switch, gateway};

const BROADCAST: [u8; 6] = [0xff; 6];

/// An ARP message.
fn arp(
    operation: u8,
    to: [u8; 6],
    from: [u8; 6],
    sender_mac: [u8; 6],
    sender: [u8; 4],
    target: [u8; 4],
) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    [&to[..], &from, &ARP.to_be_bytes(), &head, &sender_mac, &sender, &[0; 6], &target].concat()
}

/// The packet with IPv4 options behind its header.
fn with_options(packet: &[u8], options: &[u8]) -> Vec<u8> {
    let mut bytes = [&packet[..20], options, &packet[20..]].concat();
    bytes[0] = 0x45 + (options.len() / 4) as u8;
    let total = (bytes.len() as u16).to_be_bytes();
    bytes[2..4].copy_from_slice(&total);
    bytes[10..12].fill(0);
    let header = 20 + options.len();
    let own = checksum(0, &bytes[..header]);
    bytes[10..12].copy_from_slice(&own.to_be_bytes());
    bytes
}

/// The packet with another value at a place of its IPv4 header.
fn with(packet: &[u8], changes: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    for (at, value) in changes {
        bytes[*at] = *value;
    }
    bytes[10..12].fill(0);
    let own = checksum(0, &bytes[..20]);
    bytes[10..12].copy_from_slice(&own.to_be_bytes());
    bytes
}

/// The IPv6 packet with an extension header of this kind before its payload.
fn with_extension(packet: &[u8], kind: u8, body: &[u8; 8]) -> Vec<u8> {
    let mut bytes = [&packet[..40], body, &packet[40..]].concat();
    bytes[40] = packet[6];
    bytes[6] = kind;
    let length = ((bytes.len() - 40) as u16).to_be_bytes();
    bytes[4..6].copy_from_slice(&length);
    bytes
}

/// Tries one thing, and sees that it is counted, and counted right.
fn tried(guest: &mut Guest, what: &str, reason: Reason, frame: &[u8]) {
    let before = guest.refused(reason);
    guest.send(frame);
    let report = guest.report();
    let after = report.refused.iter().find(|(own, _)| *own == reason).map_or(0, |(_, count)| *count);
    assert_eq!(after, before + 1, "{what}: {report:?}");
}

#[test]
fn nobody_is_somebody_else_within_a_network() {
    let switch = Switch::start(1);
    let (mut evil, mut victim) = (switch.guest(66), switch.guest(5));
    let (mine, theirs) = (evil.ipv4.octets(), victim.ipv4.octets());
    let gate = gateway(1).octets();
    let good = evil.udp("10.1.0.5", 9, b"x");
    let to_victim = |packet: &[u8], evil: &Guest| frame::ethernet(victim.mac, evil.mac, packet);
    let as_victim = victim.udp("10.1.0.5", 9, b"x");
    let fake = |from: [u8; 4], to: &str| {
        frame::udp_packet(SocketAddr::from((from, 1)), SocketAddr::new(to.parse().unwrap(), 9), b"x").unwrap()
    };
    let mut redirect = vec![5, 1, 0, 0];
    redirect.extend_from_slice(&mine);
    redirect.extend_from_slice(&as_victim[..28]);
    let redirect = frame::ip_packet(evil.ipv4.into(), victim.ipv4.into(), frame::ICMP, &redirect, 2).unwrap();
    let advertisement =
        frame::neighbor_advertisement("fd00:1::1".parse().unwrap(), evil.mac, victim.ipv6, true).unwrap();
    let router = [134u8, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let router = frame::ip_packet(evil.ipv6.into(), victim.ipv6.into(), frame::ICMPV6, &router, 2).unwrap();
    let tagged = [&victim.mac[..], &evil.mac, &[0x81, 0, 0, 5, 8, 0], &good].concat();
    let attempts: Vec<(&str, Reason, Vec<u8>)> = vec![
        ("the victim's hardware address", Reason::ForeignMac, frame::ethernet(victim.mac, victim.mac, &good)),
        (
            "the gateway's hardware address",
            Reason::ForeignMac,
            frame::ethernet(victim.mac, GATEWAY_MAC, &good),
        ),
        ("the victim's IP address", Reason::ForeignAddress, to_victim(&as_victim, &evil)),
        ("the gateway's IP address", Reason::ForeignAddress, to_victim(&fake(gate, "10.1.0.5"), &evil)),
        (
            "an address of the world's",
            Reason::ForeignAddress,
            to_victim(&fake([198, 51, 100, 2], "10.1.0.5"), &evil),
        ),
        ("a loopback source", Reason::ForeignAddress, to_victim(&fake([127, 0, 0, 1], "10.1.0.5"), &evil)),
        (
            "source and destination are one",
            Reason::ForeignAddress,
            to_victim(&fake(theirs, "10.1.0.5"), &evil),
        ),
        (
            "an ARP reply that makes it the gateway",
            Reason::EtherType,
            arp(2, victim.mac, evil.mac, evil.mac, gate, theirs),
        ),
        (
            "ARP that announces the gateway's address",
            Reason::ForeignAddress,
            arp(1, BROADCAST, evil.mac, evil.mac, gate, gate),
        ),
        (
            "ARP that asks as the victim",
            Reason::ForeignAddress,
            arp(1, BROADCAST, evil.mac, evil.mac, theirs, gate),
        ),
        (
            "ARP with the victim's hardware address within",
            Reason::ForeignMac,
            arp(1, BROADCAST, evil.mac, victim.mac, mine, gate),
        ),
        ("a neighbor advertisement for the gateway", Reason::Multicast, to_victim(&advertisement, &evil)),
        ("a router advertisement", Reason::Multicast, to_victim(&router, &evil)),
        ("an ICMP redirect", Reason::Protocol, to_victim(&redirect, &evil)),
        ("a VLAN tag", Reason::EtherType, tagged),
        (
            "broadcast",
            Reason::Multicast,
            frame::ethernet(BROADCAST, evil.mac, &evil.udp("255.255.255.255", 67, b"x")),
        ),
        ("broadcast to one address", Reason::Multicast, frame::ethernet(BROADCAST, evil.mac, &good)),
        (
            "multicast",
            Reason::Multicast,
            frame::ethernet([1, 0, 0x5e, 0, 0, 0xfb], evil.mac, &evil.udp("224.0.0.251", 5353, b"x")),
        ),
        (
            "IPv6 multicast",
            Reason::Multicast,
            frame::ethernet([0x33, 0x33, 0, 0, 0, 1], evil.mac, &evil.udp("ff02::1", 9, b"x")),
        ),
        (
            "the victim's card, another's address",
            Reason::NoMember,
            to_victim(&evil.udp("10.1.0.99", 9, b"x"), &evil),
        ),
        (
            "the victim's card, the world's address",
            Reason::NoMember,
            to_victim(&evil.udp("198.51.100.2", 9, b"x"), &evil),
        ),
        ("a card that nobody has", Reason::NoMember, frame::ethernet([2, 9, 9, 9, 9, 9], evil.mac, &good)),
        (
            "a loose source route",
            Reason::Options,
            to_victim(&with_options(&good, &[131, 7, 4, 198, 51, 100, 2, 0]), &evil),
        ),
        (
            "a strict source route",
            Reason::Options,
            to_victim(&with_options(&good, &[137, 7, 4, 198, 51, 100, 2, 0]), &evil),
        ),
        (
            "spanning tree",
            Reason::EtherType,
            [&[1, 0x80, 0xc2, 0, 0, 0][..], &evil.mac, &[0, 38, 0x42, 0x42, 3, 0, 0, 0]].concat(),
        ),
        ("a frame without an end", Reason::Malformed, [&victim.mac[..], &evil.mac].concat()),
        ("a length beyond the frame", Reason::Malformed, to_victim(&with(&good, &[(2, 4)]), &evil)),
        (
            "a wrong checksum",
            Reason::Malformed,
            to_victim(
                &{
                    let mut p = good.clone();
                    p[10] ^= 1;
                    p
                },
                &evil,
            ),
        ),
        ("too long a frame", Reason::TooLong, to_victim(&evil.udp("10.1.0.5", 9, &[0; 1600]), &evil)),
    ];
    for (what, reason, frame) in &attempts {
        tried(&mut evil, what, *reason, frame);
    }
    assert!(attempts.len() >= 25);
    // After all that, an honest frame: it is the first that the victim hears.
    evil.send(&frame::ethernet(victim.mac, evil.mac, &good));
    let heard = victim.receive();
    assert_eq!(Frame::read(&heard).unwrap().payload, good);
    assert_eq!(victim.received(), Vec::<Vec<u8>>::new());
    // And the victim still finds the gateway where it is.
    victim.send(&arp(1, BROADCAST, victim.mac, victim.mac, theirs, gate));
    let answer = victim.receive();
    assert_eq!(&answer[6..12], GATEWAY_MAC);
    assert_eq!(&answer[22..28], GATEWAY_MAC);
}

#[test]
fn nothing_gets_behind_a_wall() {
    let Some(world) = World::enter() else { return };
    // What must not be reached is really there, and would answer.
    let mut heard = Vec::new();
    for address in [FAR, FAR6, "169.254.169.254", "100.100.100.200"] {
        heard.push((address, world.udp_echo(address, 9), world.tcp_echo(address, 9)));
    }
    for range in ["169.254.0.0/16", "100.100.0.0/16"] {
        assert!(
            std::process::Command::new("ip")
                .args(["route", "add", range, "via", FAR])
                .status()
                .unwrap()
                .success()
        );
    }
    let own: Vec<(TcpListener, UdpSocket)> = ["127.0.0.1", HOST]
        .map(|address| (TcpListener::bind((address, 9)).unwrap(), UdpSocket::bind((address, 9)).unwrap()))
        .into();
    for (listener, socket) in &own {
        listener.set_nonblocking(true).unwrap();
        socket.set_nonblocking(true).unwrap();
    }
    let (one, two) = (Switch::start(1), Switch::start(2));
    let (mut evil, victim) = (one.guest(66), two.guest(5));
    let good = evil.udp(FAR, 9, b"x");
    let out = |evil: &Guest, packet: &[u8]| frame::ethernet(GATEWAY_MAC, evil.mac, packet);

    let mut attempts: Vec<(String, Reason, Vec<u8>)> = Vec::new();
    for (address, reason) in [
        ("127.0.0.1", Reason::Loopback),
        ("127.255.0.9", Reason::Loopback),
        ("0.0.0.0", Reason::Loopback),
        (HOST, Reason::Host),
        ("198.51.100.255", Reason::Host),
        ("169.254.169.254", Reason::Metadata),
        ("169.254.0.1", Reason::LinkLocal),
        ("100.100.100.200", Reason::Metadata),
        ("10.2.0.5", Reason::OtherNetwork),
        ("10.3.0.1", Reason::OtherNetwork),
        ("10.1.0.77", Reason::NoMember),
        ("255.255.255.255", Reason::Reserved),
        ("224.0.0.1", Reason::Multicast),
        ("::1", Reason::Loopback),
        ("::", Reason::Loopback),
        ("2001:db8:1::1", Reason::Host),
        ("fe80::1", Reason::LinkLocal),
        ("fd00:ec2::254", Reason::Metadata),
        ("fd00:2::5", Reason::OtherNetwork),
        ("::ffff:127.0.0.1", Reason::Reserved),
        ("::ffff:169.254.169.254", Reason::Reserved),
        ("::127.0.0.1", Reason::Reserved),
        ("64:ff9b::7f00:1", Reason::Loopback),
        ("64:ff9b::a9fe:a9fe", Reason::Metadata),
        ("64:ff9b:1::7f00:1", Reason::Reserved),
        ("2002:7f00:1::1", Reason::Loopback),
        ("2002:a9fe:a9fe::1", Reason::Metadata),
        ("2002:a02:5::1", Reason::OtherNetwork),
        ("2001:0:7f00:1::1", Reason::Reserved),
        ("ff02::1", Reason::Multicast),
    ] {
        attempts.push((format!("UDP to {address}"), reason, out(&evil, &evil.udp(address, 9, b"x"))));
        attempts.push((format!("TCP to {address}"), reason, out(&evil, &evil.syn(address, 9))));
    }
    let six = evil.udp(FAR6, 9, b"x");
    attempts.extend([
        (
            "a loose source route".to_owned(),
            Reason::Options,
            out(&evil, &with_options(&good, &[131, 7, 4, 127, 0, 0, 1, 0])),
        ),
        (
            "a strict source route".to_owned(),
            Reason::Options,
            out(&evil, &with_options(&good, &[137, 7, 4, 127, 0, 0, 1, 0])),
        ),
        (
            "a record of the route".to_owned(),
            Reason::Options,
            out(&evil, &with_options(&good, &[7, 7, 4, 0, 0, 0, 0, 0])),
        ),
        ("a first fragment".to_owned(), Reason::Fragment, out(&evil, &with(&good, &[(6, 0x20)]))),
        ("a later fragment".to_owned(), Reason::Fragment, out(&evil, &with(&good, &[(7, 1)]))),
        (
            "a tiny fragment of a TCP header".to_owned(),
            Reason::Fragment,
            out(&evil, &with(&evil.syn(HOST, 9), &[(6, 0x20)])),
        ),
        (
            "an IPv6 fragment".to_owned(),
            Reason::Fragment,
            out(&evil, &with_extension(&six, 44, &[17, 0, 0, 1, 0, 0, 0, 1])),
        ),
        (
            "an IPv6 routing header".to_owned(),
            Reason::Options,
            out(&evil, &with_extension(&six, 43, &[17, 0, 0, 1, 0, 0, 0, 0])),
        ),
        (
            "hop-by-hop options".to_owned(),
            Reason::Options,
            out(&evil, &with_extension(&six, 0, &[17, 0, 1, 4, 0, 0, 0, 0])),
        ),
        (
            "destination options".to_owned(),
            Reason::Options,
            out(&evil, &with_extension(&six, 60, &[17, 0, 1, 4, 0, 0, 0, 0])),
        ),
        (
            "the other network's source".to_owned(),
            Reason::ForeignAddress,
            out(&evil, &victim.udp(FAR, 9, b"x")),
        ),
        (
            "the other network's card".to_owned(),
            Reason::NoMember,
            frame::ethernet(victim.mac, evil.mac, &evil.udp("10.2.0.5", 9, b"x")),
        ),
        (
            "a service that the gateway has not".to_owned(),
            Reason::Gateway,
            out(&evil, &evil.syn("10.1.0.1", 22)),
        ),
        (
            "another resolver of the gateway's".to_owned(),
            Reason::Malformed,
            out(&evil, &evil.udp("10.1.0.1", 53, b"\0\0\0\0")),
        ),
    ]);
    for protocol in [2u8, 4, 41, 47, 50, 89, 132, 255] {
        let bare = frame::ip_packet(evil.ipv4.into(), FAR.parse::<IpAddr>().unwrap(), protocol, &[0; 32], 16)
            .unwrap();
        attempts.push((format!("IP protocol {protocol}"), Reason::Protocol, out(&evil, &bare)));
    }
    for (what, reason, frame) in &attempts {
        tried(&mut evil, what, *reason, frame);
    }
    // Segments of connections that there are not: answered by the gateway itself.
    for flags in [0x10, 0x11, 0x12, 0x18, 0x01] {
        evil.send_out(&evil.segment("169.254.169.254", 9, flags));
        evil.send_out(&evil.segment(HOST, 9, flags));
    }
    let report = evil.report();
    assert_eq!(report.flows, 0, "{report:?}");
    // Every answer is the gateway's own: resets and errors, no word of anybody else's.
    for frame in evil.received() {
        let frame = Frame::read(&frame).unwrap();
        let packet = Packet::read(frame.kind, frame.payload).unwrap();
        let reset = packet.protocol == TCP && packet.payload[13] & 0x04 != 0;
        let error = packet.protocol != TCP
            && matches!((frame.kind == IPV4, packet.payload[0]), (true, 3) | (false, 1));
        assert!(reset || error, "{packet:?}");
    }
    for (listener, socket) in &own {
        assert!(listener.accept().is_err() && socket.recv(&mut [0; 9]).is_err(), "the host heard something");
    }
    assert_eq!(victim.received(), Vec::<Vec<u8>>::new());
    // An honest datagram comes through, and is the first that anybody in the world hears.
    evil.send_out(&good);
    evil.send_out(&six);
    for _ in 0..2 {
        let frame = evil.receive();
        let frame = Frame::read(&frame).unwrap();
        assert_eq!(Packet::read(frame.kind, frame.payload).unwrap().datagram(), Some(&b"x"[..]));
    }
    for (address, datagrams, connections) in &heard {
        let expected = usize::from([FAR, FAR6].contains(address));
        assert_eq!(datagrams.lock().unwrap().len(), expected, "{address}");
        assert_eq!(connections.lock().unwrap().len(), 0, "{address}");
    }
    assert!(one.log().contains("refused metadata: guest66 on net1 to 169.254.169.254"), "{}", one.log());
}

#[test]
fn a_guest_that_reads_nothing_stalls_nobody() {
    let switch = Switch::start(1);
    let (mut loud, deaf, mut other) = (switch.guest(2), switch.guest(3), switch.guest(4));
    let frame = frame::ethernet(deaf.mac, loud.mac, &loud.udp("10.1.0.3", 9, &[7; 1400]));
    for _ in 0..5000 {
        loud.send(&frame);
    }
    // Bounded: what does not fit is dropped and counted, and the third goes on undisturbed.
    assert!(loud.refused(Reason::Full) > 4000);
    assert!(deaf.received().len() < 1000);
    other.send(&arp(1, BROADCAST, other.mac, other.mac, other.ipv4.octets(), gateway(1).octets()));
    assert_eq!(&other.receive()[6..12], GATEWAY_MAC);
}

#[test]
fn a_place_is_given_once() {
    let switch = Switch::start(1);
    let first = switch.guest(2);
    let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| switch.guest(2)));
    assert!(again.is_err(), "an address was given twice");
    drop(first);
    // When its supervisor is gone, its place is free.
    let began = std::time::Instant::now();
    while std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| switch.guest(2))).is_err() {
        assert!(began.elapsed().as_secs() < 30);
    }
}
