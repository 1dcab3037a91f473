//! Rooms with nobody's machines: frames are written to taps by the test itself. It has a host and an internet of its own, so that
//! nothing of the machine's own network is touched.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bulkhead_fixtures::world::{FAR, FAR6, HOST, World};
use bulkhead_net::frame::{self, ARP, Frame, Packet};
use bulkhead_net::protocol::{Attachment, Network};
use bulkhead_net::reason::Reason;
use bulkhead_net::switch::GATEWAY_MAC;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::TempDir;

use super::*;

const BROADCAST: [u8; 6] = [0xff; 6];
/// Bytes of the header before each frame of a tap's, until a VMM asks for more.
const HEADER: usize = 10;
/// How long an answer may take on a busy host.
const PATIENCE: Duration = Duration::from_secs(20);

/// An installation on a host of its own.
struct Site {
    paths: Paths,
    #[expect(dead_code, reason = "held for its drop")]
    directory: TempDir,
    world: World,
}

impl Site {
    fn new() -> Option<Self> {
        let path = Path::of_all("kernel").and_then(|_| try_out());
        if let Err(error) = path {
            eprintln!("skipped: {}", crate::truth::one_line(&error));
            return None;
        }
        let world = World::enter()?;
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::at(directory.path().to_owned(), directory.path().to_owned()).unwrap();
        Some(Self { paths, directory, world })
    }

    /// A guest with the address 10.`n`.0.`host` in the network `n`.
    fn guest(&self, n: u8, host: u8, change: impl FnOnce(&mut Attachment)) -> Guest {
        let six = |host: u16| Ipv6Addr::new(0xfd00, n.into(), 0, 0, 0, 0, 0, host);
        let range = |text: String| text.parse().unwrap();
        let (mac, ipv4, ipv6) = ([2, 0x42, 10, n, 0, host], Ipv4Addr::new(10, n, 0, host), six(host.into()));
        let mut place = Attachment {
            network: Network {
                name: format!("net{n}"),
                ipv4: (range(format!("10.{n}.0.0/16")), Ipv4Addr::new(10, n, 0, 1)),
                ipv6: Some((range(format!("fd00:{n:x}::/64")), six(1))),
                internal: false,
                names: true,
                egress: String::new(),
                networks: (1..4)
                    .flat_map(|n| [range(format!("10.{n}.0.0/16")), range(format!("fd00:{n}::/64"))])
                    .collect(),
                mtu: 1500,
            },
            container: format!("guest{host}"),
            mac,
            ipv4,
            ipv6: Some(ipv6),
            names: Vec::new(),
            egress: String::new(),
            room: None,
            resolvers: Vec::new(),
            elsewhere: false,
            asks_at: Vec::new(),
        };
        change(&mut place);
        let (tap, file) = Tap::make().unwrap();
        let seat = Seat::take(&self.paths, &format!("{n}"), place, Rc::new(tap), Vec::new()).unwrap();
        Guest { seat, cable: file.into(), mac, ipv4, ipv6 }
    }

    fn tables(&self) -> String {
        let output = std::process::Command::new(nft::program().unwrap()).args(["list", "tables"]).output();
        String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
    }
}

/// A guest: whatever it sends, it sends as raw frames.
struct Guest {
    seat: Seat,
    cable: File,
    mac: [u8; 6],
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
}

impl Guest {
    fn send(&mut self, frame: &[u8]) {
        self.cable.write_all(&[&[0; HEADER][..], frame].concat()).unwrap();
    }

    fn send_out(&mut self, packet: &[u8]) {
        self.send(&frame::ethernet(GATEWAY_MAC, self.mac, packet));
    }

    /// The next frame that `wanted` says something of; what else comes is passed over.
    fn receive<T>(&mut self, wanted: impl Fn(&[u8]) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            let frame = self.next(PATIENCE.saturating_sub(began.elapsed())).expect("no frame came");
            if let Some(found) = wanted(&frame) {
                return found;
            }
        }
    }

    fn next(&mut self, within: Duration) -> Option<Vec<u8>> {
        let timeout = PollTimeout::try_from(within).unwrap();
        let ready = poll(&mut [PollFd::new(self.cable.as_fd(), PollFlags::POLLIN)], timeout).unwrap();
        if ready == 0 {
            return None;
        }
        let mut buffer = vec![0; 1 << 16];
        let length = self.cable.read(&mut buffer).unwrap();
        Some(buffer[HEADER..length].to_vec())
    }

    /// What has come so far of packets for it.
    fn heard(&mut self) -> Vec<Vec<u8>> {
        let mac = self.mac;
        std::iter::from_fn(|| self.next(Duration::ZERO)).filter(|frame| frame[..6] == mac).collect()
    }

    fn refused(&self, reason: Reason) -> u64 {
        let report = self.seat.report().unwrap();
        report.refused.iter().find(|(own, _)| *own == reason).map_or(0, |(_, count)| *count)
    }

    /// Tries one thing, and sees that it is counted, and counted right.
    fn tries(&mut self, what: &str, reason: Reason, frame: &[u8]) {
        let before = self.refused(reason);
        self.send(frame);
        // Through a bridge and its host it goes in the same breath, but not for certain.
        let began = Instant::now();
        while self.refused(reason) != before + 1 {
            assert!(began.elapsed() < PATIENCE, "{what} ({reason}): {:?}", self.seat.report().unwrap());
        }
    }

    fn udp(&self, to: &str, port: u16, data: &[u8]) -> Vec<u8> {
        let to: IpAddr = to.parse().unwrap();
        let from: IpAddr = if to.is_ipv4() { self.ipv4.into() } else { self.ipv6.into() };
        frame::udp_packet(SocketAddr::new(from, 4000), SocketAddr::new(to, port), data).unwrap()
    }

    fn syn(&self, to: &str, port: u16) -> Vec<u8> {
        let to: IpAddr = to.parse().unwrap();
        let from: IpAddr = if to.is_ipv4() { self.ipv4.into() } else { self.ipv6.into() };
        let mut segment = vec![0x10, 0x00];
        segment.extend_from_slice(&port.to_be_bytes());
        segment.extend_from_slice(&[0, 0, 0, 9, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
        frame::ip_packet(from, to, frame::TCP, &segment, 16).unwrap()
    }
}

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

/// The packet with another value at places of its IPv4 header, and options behind it.
fn with(packet: &[u8], changes: &[(usize, u8)], options: &[u8]) -> Vec<u8> {
    let mut bytes = [&packet[..20], options, &packet[20..]].concat();
    bytes[0] = 0x45 + u8::try_from(options.len() / 4).unwrap();
    let total = u16::try_from(bytes.len()).unwrap().to_be_bytes();
    bytes[2..4].copy_from_slice(&total);
    for (at, value) in changes {
        bytes[*at] = *value;
    }
    bytes[10..12].fill(0);
    let own = frame::checksum(0, &bytes[..20 + options.len()]);
    bytes[10..12].copy_from_slice(&own.to_be_bytes());
    bytes
}

/// The IPv6 packet with an extension header of this kind before its payload.
fn with_extension(packet: &[u8], kind: u8, body: &[u8; 8]) -> Vec<u8> {
    let mut bytes = [&packet[..40], body, &packet[40..]].concat();
    bytes[40] = packet[6];
    bytes[6] = kind;
    let length = u16::try_from(bytes.len() - 40).unwrap().to_be_bytes();
    bytes[4..6].copy_from_slice(&length);
    bytes
}

/// Who has `target`? As a neighbor asks that says it has this card.
fn asks(from: Ipv6Addr, target: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    let mut ask = vec![135, 0, 0, 0, 0, 0, 0, 0];
    ask.extend_from_slice(&target.octets());
    ask.extend_from_slice(&[1, 1]);
    ask.extend_from_slice(&mac);
    let mut ask = frame::ip_packet(from.into(), target.into(), frame::ICMPV6, &ask, 2).unwrap();
    // Discovery says with its hop limit that it came from next door; the checksum does not cover it.
    ask[7] = 255;
    ask
}

/// The ICMPv6 packet with its checksum made anew.
fn sum(packet: &[u8]) -> Vec<u8> {
    let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
    let mut message = packet[40..].to_vec();
    message[2..4].fill(0);
    let mut packet =
        frame::ip_packet(address(8).into(), address(24).into(), frame::ICMPV6, &message, 2).unwrap();
    packet[7] = 255;
    packet
}

fn data_of(frame: &[u8]) -> Option<Vec<u8>> {
    let frame = Frame::read(frame)?;
    Packet::read(frame.kind, frame.payload).ok()?.datagram().map(<[u8]>::to_vec)
}

#[test]
fn nobody_is_somebody_else_in_a_room() {
    let Some(site) = Site::new() else { return };
    let (mut evil, mut victim) = (site.guest(1, 66, |_| {}), site.guest(1, 5, |_| {}));
    let (mine, theirs, gate) = (evil.ipv4.octets(), victim.ipv4.octets(), [10, 1, 0, 1]);
    let (me, them) = (evil.mac, victim.mac);
    let good = evil.udp("10.1.0.5", 9, b"honest");
    let good6 = evil.udp("fd00:1::5", 9, b"honest");
    let to_victim = |packet: &[u8]| frame::ethernet(them, me, packet);
    let as_victim = victim.udp("10.1.0.5", 9, b"x");
    let fake = |from: [u8; 4]| {
        let to = SocketAddr::from((theirs, 9));
        to_victim(&frame::udp_packet(SocketAddr::from((from, 1)), to, b"x").unwrap())
    };
    let mut redirect = vec![5, 1, 0, 0];
    redirect.extend_from_slice(&mine);
    redirect.extend_from_slice(&as_victim[..28]);
    let redirect = frame::ip_packet(evil.ipv4.into(), victim.ipv4.into(), frame::ICMP, &redirect, 2).unwrap();
    let advertisement =
        frame::neighbor_advertisement("fd00:1::1".parse().unwrap(), me, victim.ipv6, true).unwrap();
    let (evil6, victim6) = (evil.ipv6, victim.ipv6);
    let advertise = |target: Ipv6Addr, mac, router| {
        let mut told = frame::neighbor_advertisement(target, mac, victim6, router).unwrap();
        told[8..24].copy_from_slice(&evil6.octets());
        told
    };
    let router = [134u8, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let router = frame::ip_packet(evil.ipv6.into(), victim.ipv6.into(), frame::ICMPV6, &router, 2).unwrap();
    let tagged = |kind: u16, vid: u8| [&them[..], &me, &kind.to_be_bytes(), &[0, vid, 8, 0], &good].concat();
    let fragment = [frame::ICMPV6, 0, 0, 1, 0, 0, 0, 1];
    use Reason::{EtherType, ForeignAddress, ForeignMac, Multicast, NoMember, Options, Protocol};
    let attempts: Vec<(&str, Reason, Vec<u8>)> = vec![
        ("the victim's hardware address", ForeignMac, frame::ethernet(them, them, &good)),
        ("the gateway's hardware address", ForeignMac, frame::ethernet(them, GATEWAY_MAC, &good)),
        ("the victim's IP address", ForeignAddress, to_victim(&as_victim)),
        ("the gateway's IP address", ForeignAddress, fake(gate)),
        ("an address of the world's", ForeignAddress, fake([198, 51, 100, 2])),
        ("a loopback source", ForeignAddress, fake([127, 0, 0, 1])),
        ("no source at all", ForeignAddress, fake([0, 0, 0, 0])),
        ("the victim's IPv6 address", ForeignAddress, to_victim(&victim.udp("fd00:1::5", 9, b"x"))),
        ("a reply that makes it the gateway", EtherType, arp(2, them, me, me, gate, theirs)),
        ("an announcement of the gateway's address", ForeignAddress, arp(1, BROADCAST, me, me, gate, gate)),
        ("a question as the victim", ForeignAddress, arp(1, BROADCAST, me, me, theirs, gate)),
        ("a question as the victim, straight to it", ForeignAddress, arp(1, them, me, me, theirs, theirs)),
        ("the victim's card within", ForeignMac, arp(1, BROADCAST, me, them, mine, gate)),
        ("reverse ARP", EtherType, arp(3, BROADCAST, me, me, mine, gate)),
        ("a neighbor advertisement for the gateway", Multicast, to_victim(&advertisement)),
        ("one for itself with the victim's card", ForeignMac, to_victim(&advertise(evil.ipv6, them, false))),
        ("one for itself as a router", Multicast, to_victim(&advertise(evil.ipv6, me, true))),
        ("one for the victim", Multicast, to_victim(&advertise(victim.ipv6, me, false))),
        (
            "a neighbor's question with the victim's card",
            ForeignMac,
            to_victim(&asks(evil.ipv6, victim.ipv6, them)),
        ),
        (
            "a neighbor's question as the victim",
            ForeignAddress,
            to_victim(&asks(victim.ipv6, victim.ipv6, me)),
        ),
        ("a router advertisement", Multicast, to_victim(&router)),
        ("a router advertisement in a fragment", Options, to_victim(&with_extension(&router, 44, &fragment))),
        ("an ICMP redirect", Protocol, to_victim(&redirect)),
        ("a VLAN tag", EtherType, tagged(0x8100, 5)),
        ("a VLAN tag that says nothing", EtherType, tagged(0x8100, 0)),
        ("a VLAN tag of the bridge's own", EtherType, tagged(0x8100, 1)),
        ("a tag of a provider's", EtherType, tagged(0x88a8, 5)),
        ("a login to the port", EtherType, [&them[..], &me, &[0x88, 0x8e], &good].concat()),
        ("PPPoE", EtherType, [&them[..], &me, &[0x88, 0x63], &good].concat()),
        ("broadcast", Multicast, frame::ethernet(BROADCAST, me, &evil.udp("255.255.255.255", 67, b"x"))),
        ("broadcast to one address", Multicast, frame::ethernet(BROADCAST, me, &good)),
        (
            "multicast",
            Multicast,
            frame::ethernet([1, 0, 0x5e, 0, 0, 0xfb], me, &evil.udp("224.0.0.251", 5353, b"x")),
        ),
        (
            "IPv6 multicast",
            Multicast,
            frame::ethernet([0x33, 0x33, 0, 0, 0, 1], me, &evil.udp("ff02::1", 9, b"x")),
        ),
        ("IPv6 to a group's card", Multicast, frame::ethernet([0x33, 0x33, 0, 0, 0, 1], me, &good6)),
        ("the victim's card, another's address", NoMember, to_victim(&evil.udp("10.1.0.99", 9, b"x"))),
        ("the victim's card, the world's address", NoMember, to_victim(&evil.udp(FAR, 9, b"x"))),
        ("the victim's card, the gateway's address", NoMember, to_victim(&evil.udp("10.1.0.1", 9, b"x"))),
        ("the victim's card, an IPv6 address of the world's", NoMember, to_victim(&evil.udp(FAR6, 9, b"x"))),
        ("a card that nobody has", NoMember, frame::ethernet([2, 9, 9, 9, 9, 9], me, &good)),
        ("a loose source route", Options, to_victim(&with(&good, &[], &[131, 7, 4, 198, 51, 100, 2, 0]))),
        ("a strict source route", Options, to_victim(&with(&good, &[], &[137, 7, 4, 198, 51, 100, 2, 0]))),
        (
            "IPv4 that says that it is 6",
            Options,
            [&them[..], &me, &[8, 0], &with(&good, &[(0, 0x65)], &[])].concat(),
        ),
        ("a header that is too short", Options, to_victim(&with(&good, &[(0, 0x44)], &[]))),
        (
            "an IPv6 routing header",
            Options,
            to_victim(&with_extension(&good6, 43, &[17, 0, 0, 1, 0, 0, 0, 0])),
        ),
        ("hop-by-hop options", Options, to_victim(&with_extension(&good6, 0, &[17, 0, 1, 4, 0, 0, 0, 0]))),
        ("destination options", Options, to_victim(&with_extension(&good6, 60, &[17, 0, 1, 4, 0, 0, 0, 0]))),
    ];
    for (what, reason, frame) in &attempts {
        evil.tries(what, *reason, frame);
    }
    // What the bridge keeps to itself, or to nobody, whatever it is.
    evil.send(&frame::ethernet(them, BROADCAST, &good));
    for last in [0, 1, 2, 3, 0x0e] {
        let group = [1, 0x80, 0xc2, 0, 0, last];
        evil.send(&[&group[..], &me, &[0, 38, 0x42, 0x42, 3, 0, 0, 0]].concat());
        evil.send(&frame::ethernet(group, me, &evil.udp("10.1.0.1", 53, b"x")));
        evil.send(&frame::ethernet(group, me, &good));
        evil.send(&arp(1, group, me, me, mine, theirs));
    }
    // After all that, honest frames: they are the first that the victim hears.
    evil.send(&to_victim(&good));
    evil.send(&to_victim(&good6));
    for _ in 0..2 {
        let mac = victim.mac;
        let data = victim.receive(|frame| (frame[..6] == mac).then(|| data_of(frame)));
        assert_eq!(data.as_deref(), Some(&b"honest"[..]));
    }
    assert_eq!(victim.heard(), Vec::<Vec<u8>>::new());
    // And each still finds the gateway, and the other, where they are.
    for (target, mac) in [(gate, GATEWAY_MAC), (mine, me)] {
        victim.send(&arp(1, BROADCAST, them, them, theirs, target));
        let answer = victim
            .receive(|frame| (frame[12..14] == [8, 6] && frame[20..22] == [0, 2]).then(|| frame.to_vec()));
        assert_eq!((&answer[6..12], &answer[22..28], &answer[28..32]), (&mac[..], &mac[..], &target[..]));
    }
    let told = advertise(evil.ipv6, me, false);
    for (target, mac) in [("fd00:1::1", GATEWAY_MAC), ("fd00:1::42", me)] {
        let target: Ipv6Addr = target.parse().unwrap();
        let group = Ipv6Addr::from_bits(
            "ff02::1:ff00:0".parse::<Ipv6Addr>().unwrap().to_bits() | target.to_bits() & 0xff_ffff,
        );
        let mut ask = asks(victim.ipv6, target, them);
        ask[24..40].copy_from_slice(&group.octets());
        let [.., a, b, c, d] = group.octets();
        victim.send(&frame::ethernet([0x33, 0x33, a, b, c, d], them, &sum(&ask)));
        if mac == me {
            // The question comes to whom it is about, to its own card, and so does the answer.
            let asked = evil
                .receive(|frame| (frame[12..14] == [0x86, 0xdd] && frame[54] == 135).then(|| frame.to_vec()));
            assert_eq!((&asked[..6], &asked[62..78]), (&me[..], &target.octets()[..]));
            evil.send(&frame::ethernet(them, me, &sum(&told)));
        }
        let told = victim.receive(|frame| {
            (frame[12..14] == [0x86, 0xdd] && frame[54] == 136 && frame[62..78] == target.octets())
                .then(|| frame.to_vec())
        });
        assert_eq!(&told[80..86], mac, "{target}");
    }
    assert_eq!(evil.seat.report().unwrap().flows, 0);
}

#[test]
fn nothing_gets_behind_a_wall() {
    let Some(site) = Site::new() else { return };
    // What must not be reached is really there, and would answer.
    let heard: Vec<_> = [FAR, FAR6, "169.254.169.254", "100.100.100.200"]
        .map(|address| (address, site.world.udp_echo(address, 9), site.world.tcp_echo(address, 9)))
        .into();
    for range in ["169.254.0.0/16", "100.100.0.0/16"] {
        let added = std::process::Command::new("ip").args(["route", "add", range, "via", FAR]).status();
        assert!(added.unwrap().success());
    }
    let own: Vec<_> = ["127.0.0.1", HOST]
        .map(|address| {
            let listener = std::net::TcpListener::bind((address, 9)).unwrap();
            let socket = std::net::UdpSocket::bind((address, 9)).unwrap();
            listener.set_nonblocking(true).unwrap();
            socket.set_nonblocking(true).unwrap();
            (listener, socket)
        })
        .into();
    let (mut evil, mut victim) = (site.guest(1, 66, |_| {}), site.guest(2, 5, |_| {}));
    let me = evil.mac;
    let out = |packet: &[u8]| frame::ethernet(GATEWAY_MAC, me, packet);
    let mut attempts: Vec<(String, Reason, Vec<u8>)> = Vec::new();
    for (address, reason) in [
        (HOST, Reason::Host),
        ("198.51.100.255", Reason::Host),
        ("169.254.169.254", Reason::Metadata),
        ("169.254.0.1", Reason::LinkLocal),
        ("100.100.100.200", Reason::Metadata),
        ("10.2.0.5", Reason::OtherNetwork),
        ("10.2.0.1", Reason::OtherNetwork),
        ("10.3.0.1", Reason::OtherNetwork),
        ("10.1.0.77", Reason::NoMember),
        ("2001:db8:1::1", Reason::Host),
        ("fd00:ec2::254", Reason::Metadata),
        ("fd00:2::5", Reason::OtherNetwork),
        ("fd00:1::77", Reason::NoMember),
        ("64:ff9b::7f00:1", Reason::Loopback),
        ("64:ff9b::a9fe:a9fe", Reason::Metadata),
        ("64:ff9b:1::7f00:1", Reason::Reserved),
        ("64:ff9b::c633:6401", Reason::Host),
        ("2002:7f00:1::1", Reason::Loopback),
        ("2002:a9fe:a9fe::1", Reason::Metadata),
        ("2002:a02:5::1", Reason::OtherNetwork),
        ("2001:db8:9::5efe:a9fe:a9fe", Reason::Metadata),
        ("2001:db8:9:0:200:5efe:a02:5", Reason::OtherNetwork),
        ("2001:0:7f00:1::1", Reason::Reserved),
    ] {
        attempts.push((format!("UDP to {address}"), reason, out(&evil.udp(address, 9, b"x"))));
        attempts.push((format!("TCP to {address}"), reason, out(&evil.syn(address, 9))));
    }
    let (good, six) = (evil.udp(FAR, 9, b"honest"), evil.udp(FAR6, 9, b"honest"));
    attempts.extend([
        (
            "a loose source route".to_owned(),
            Reason::Options,
            out(&with(&good, &[], &[131, 7, 4, 127, 0, 0, 1, 0])),
        ),
        (
            "a record of the route".to_owned(),
            Reason::Options,
            out(&with(&good, &[], &[7, 7, 4, 0, 0, 0, 0, 0])),
        ),
        (
            "an IPv6 routing header".to_owned(),
            Reason::Options,
            out(&with_extension(&six, 43, &[17, 0, 0, 1, 0, 0, 0, 0])),
        ),
        ("the other network's source".to_owned(), Reason::ForeignAddress, out(&victim.udp(FAR, 9, b"x"))),
        (
            "the other network's card".to_owned(),
            Reason::NoMember,
            frame::ethernet(victim.mac, me, &evil.udp("10.2.0.5", 9, b"x")),
        ),
        ("a service that the gateway has not".to_owned(), Reason::Gateway, out(&evil.syn("10.1.0.1", 22))),
        ("the gateway of the way out".to_owned(), Reason::Host, out(&evil.udp("198.18.0.1", 53, b"x"))),
    ]);
    // Whichever transit range it is, both of its ends are out of bounds.
    let transit = book::Book::read(&site.paths.networks().join("1")).unwrap().transit.unwrap();
    attempts.pop();
    for end in [host::transit_4(transit).0, host::transit_4(transit).1] {
        attempts.push((format!("TCP to {end}"), Reason::Host, out(&evil.syn(&end.to_string(), 53))));
    }
    for protocol in [2u8, 4, 41, 47, 50, 89, 132, 255] {
        let bare = frame::ip_packet(evil.ipv4.into(), FAR.parse::<IpAddr>().unwrap(), protocol, &[0; 32], 16);
        attempts.push((format!("IP protocol {protocol}"), Reason::Protocol, out(&bare.unwrap())));
    }
    for (what, reason, frame) in &attempts {
        evil.tries(what, *reason, frame);
    }
    // Where the kernel has no way to, it says nothing and counts nothing; nobody hears it either.
    for address in [
        "127.0.0.1",
        "127.255.0.9",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
    ] {
        evil.send_out(&evil.udp(address, 9, b"x"));
        evil.send_out(&evil.syn(address, 9));
    }
    // In fragments, which the kernel puts together before it looks.
    evil.send_out(&with(&evil.udp(HOST, 9, b"x"), &[(6, 0x20)], &[]));
    evil.send_out(&with(&evil.syn("169.254.169.254", 9), &[(6, 0x20)], &[]));
    assert_eq!(evil.seat.report().unwrap().flows, 0);
    // An address that the host has only had since, and one that the host passes on to somebody else: the room's list has them not.
    for address in ["192.0.2.77", "192.0.2.78"] {
        let added = std::process::Command::new("ip").args(["addr", "add", address, "dev", "out"]).status();
        assert!(added.unwrap().success());
    }
    let passes =
        "add table ip other\nadd chain ip other before { type nat hook prerouting priority -110; }\n";
    nft::apply(&format!("{passes}add rule ip other before ip daddr 192.0.2.78 dnat to {FAR}")).unwrap();
    let late = std::net::TcpListener::bind("192.0.2.77:9").unwrap();
    late.set_nonblocking(true).unwrap();
    let _ = evil.heard();
    for address in ["192.0.2.77", "192.0.2.78"] {
        evil.send_out(&evil.syn(address, 9));
        let from: Ipv4Addr = address.parse().unwrap();
        let reset =
            |frame: &[u8]| (frame[12..14] == [8, 0] && frame[26..30] == from.octets()).then(|| frame[47] & 4);
        assert_eq!(evil.receive(reset), 4, "no reset from {address}");
        evil.send_out(&evil.udp(address, 9, b"x"));
    }
    assert!(late.accept().is_err(), "the host heard something");
    nft::apply("delete table ip other").unwrap();
    evil.send_out(&good);
    evil.send_out(&six);
    for _ in 0..2 {
        assert_eq!(evil.receive(data_of), b"honest");
    }
    for (listener, socket) in &own {
        assert!(listener.accept().is_err() && socket.recv(&mut [0; 9]).is_err(), "the host heard something");
    }
    assert_eq!(victim.heard(), Vec::<Vec<u8>>::new());
    for (address, datagrams, connections) in &heard {
        let expected = usize::from([FAR, FAR6].contains(address));
        assert_eq!(datagrams.lock().unwrap().len(), expected, "{address}");
        assert_eq!(connections.lock().unwrap().len(), 0, "{address}");
    }
    assert!(site.tables().contains("bulkhead_"), "{}", site.tables());
    // They leave, and nothing of them stays.
    drop((evil, victim));
    assert_eq!(site.tables(), "");
    let began = Instant::now();
    while std::fs::read_to_string("/proc/thread-self/net/dev").unwrap().contains("bhk") {
        assert!(began.elapsed() < PATIENCE, "a room stays");
    }
}

#[test]
fn what_holds_for_all_networks_is_told_to_supervisors() {
    let directory = tempfile::tempdir().unwrap();
    let paths = || Paths::at(directory.path().to_owned(), directory.path().to_owned()).unwrap();
    let told = |paths: &Paths| paths.variables().find(|(name, _)| *name == VARIABLE).map(|(_, value)| value);
    assert_eq!(told(&paths()), None);
    assert_eq!(told(&paths().with_network_path("switch").unwrap()), Some("switch".into()));
    let refused = paths().with_network_path("sideways").unwrap_err().to_string();
    assert_eq!(refused, "BULKHEAD_NETWORK_PATH=sideways cannot be done");
}
