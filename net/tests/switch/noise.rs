//! A hundred thousand frames that make no sense, or nearly do.

use bulkhead_net::frame::rest::HEADER_BYTES;
use bulkhead_net::frame::{self, ARP, Frame, IPV4, IPV6, Packet};
use bulkhead_net::switch::GATEWAY_MAC;

use crate::site::{Guest, Switch, gateway};

/// Frames of the test.
const FRAMES: usize = 100_000;
/// Between two looks at what the victim heard: no more than fit its cable.
const ROUND: usize = 50;

/// xorshift64*: the same noise each time.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }
}

/// Frames that are right, to be spoilt.
fn seeds(evil: &Guest, victim: &Guest) -> Vec<Vec<u8>> {
    let to = |mac, packet: &[u8]| frame::ethernet(mac, evil.mac, packet);
    let question = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07guest66\x00\x00\x01\x00\x01";
    let echo = frame::Echo { identifier: 1, sequence: 2, data: b"ping" };
    let mut echo = frame::echo_reply(evil.ipv4.into(), gateway(1).into(), &echo).unwrap();
    echo[20] = 8;
    let arp = [
        &[0xff; 6][..],
        &evil.mac,
        &ARP.to_be_bytes(),
        &[0, 1, 8, 0, 6, 4, 0, 1],
        &evil.mac,
        &evil.ipv4.octets(),
        &[0; 6],
        &victim.ipv4.octets(),
    ]
    .concat();
    vec![
        to(victim.mac, &evil.udp("10.1.0.5", 9, b"datagram")),
        to(victim.mac, &evil.udp("fd00:1::5", 9, b"datagram")),
        to(GATEWAY_MAC, &evil.udp("10.1.0.1", 53, question)),
        to(GATEWAY_MAC, &evil.syn("10.1.0.1", 53)),
        to(GATEWAY_MAC, &evil.segment("10.1.0.1", 53, 0x10)),
        to(GATEWAY_MAC, &evil.syn("127.0.0.1", 9)),
        to(GATEWAY_MAC, &evil.udp("fd00:1::1", 53, question)),
        to(GATEWAY_MAC, &echo),
        arp,
    ]
}

#[test]
fn frames_that_make_no_sense_do_no_harm() {
    let switch = Switch::start(1);
    let change = |attachment: &mut bulkhead_net::protocol::Attachment| attachment.network.internal = true;
    let (mut evil, mut victim) = (switch.guest_with(66, "", change), switch.guest_with(5, "", change));
    let seeds = seeds(&evil, &victim);
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut through = 0;
    for round in 0..FRAMES / ROUND {
        for _ in 0..ROUND {
            let mut frame = seeds[noise.below(seeds.len())].clone();
            for _ in 0..noise.below(4) {
                let at = noise.below(frame.len());
                frame[at] = noise.next() as u8;
            }
            match noise.below(16) {
                0 => frame.truncate(1 + noise.below(frame.len())),
                1 => frame.extend((0..noise.below(64)).map(|n| n as u8)),
                2 => frame = (0..=noise.below(1600)).map(|_| noise.next() as u8).collect(),
                _ => {}
            }
            let mut header = [0; HEADER_BYTES];
            if noise.below(4) == 0 {
                // What is likely to be left to be done, and then anything.
                header = [1, noise.below(5) as u8, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0];
                header[noise.below(HEADER_BYTES)] = noise.next() as u8;
            }
            evil.send_unfinished(&header, &frame);
        }
        if round % 20 == 0 {
            evil.report();
        }
        evil.received();
        for heard in victim.received() {
            let frame = Frame::read(&heard).unwrap();
            assert_eq!((frame.to, frame.from), (victim.mac, evil.mac), "{heard:?}");
            assert!([IPV4, IPV6].contains(&frame.kind));
            let packet = Packet::read(frame.kind, frame.payload).unwrap();
            let (ours, theirs) = if frame.kind == IPV4 {
                (evil.ipv4.into(), victim.ipv4.into())
            } else {
                (std::net::IpAddr::from(evil.ipv6), std::net::IpAddr::from(victim.ipv6))
            };
            assert_eq!((packet.source, packet.destination), (ours, theirs));
            through += 1;
        }
    }
    let report = evil.report();
    assert!(report.sent >= FRAMES as u64 && through > 1000, "{report:?}, {through} came through");
    // It is the same switch, and it still answers.
    victim.received();
    victim.send(&frame::ethernet(GATEWAY_MAC, victim.mac, &{
        let question = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07guest66\x00\x00\x01\x00\x01";
        victim.udp("10.1.0.1", 53, question)
    }));
    let answer = victim.receive();
    assert!(answer.ends_with(&evil.ipv4.octets()), "{answer:?}");
}
