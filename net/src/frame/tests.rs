//! Frames against what an independent reader makes of them, and against noise.

use proptest::prelude::*;
use smoltcp::wire::{Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

use super::*;

fn end(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn what_is_built_is_what_is_read() {
    for (from, to) in [("10.0.0.1:53", "10.0.0.2:4000"), ("[fd00::1]:53", "[fd00::2]:4000")] {
        let (from, to) = (end(from), end(to));
        let bytes = udp_packet(from, to, b"hello").unwrap();
        let frame = ethernet([2; 6], [4; 6], &bytes);
        let frame = Frame::read(&frame).unwrap();
        let packet = Packet::read(frame.kind, frame.payload).unwrap();
        assert_eq!(packet.ends(), Some((from, to)));
        assert_eq!(packet.datagram(), Some(&b"hello"[..]));
        let sound = match to {
            SocketAddr::V4(_) => {
                let ip = Ipv4Packet::new_checked(&bytes).unwrap();
                let (a, b) = (ip.src_addr().into(), ip.dst_addr().into());
                ip.verify_checksum() && UdpPacket::new_checked(ip.payload()).unwrap().verify_checksum(&a, &b)
            }
            SocketAddr::V6(_) => {
                let ip = Ipv6Packet::new_checked(&bytes).unwrap();
                let (a, b) = (ip.src_addr().into(), ip.dst_addr().into());
                UdpPacket::new_checked(ip.payload()).unwrap().verify_checksum(&a, &b)
            }
        };
        assert!(sound);
    }
    assert!(udp_packet(end("10.0.0.1:1"), end("[fd00::1]:1"), b"").is_none());
    assert!(udp_packet(end("10.0.0.1:1"), end("10.0.0.2:1"), &[0; 65_520]).is_none());
}

#[test]
fn a_reset_answers_a_segment() {
    let mut syn = [0u8; 20];
    syn[..8].copy_from_slice(&[0x10, 0, 0, 80, 0, 0, 0, 9]);
    syn[12..14].copy_from_slice(&[0x50, 0x02]);
    let (from, to): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    let packet = ip_packet(from, to, TCP, &syn, 16).unwrap();
    let packet = Packet::read(IPV4, &packet).unwrap();
    assert!(packet.tcp_flags().unwrap().opens());
    let reset = tcp_reset(&packet).unwrap();
    let read = Packet::read(IPV4, &reset).unwrap();
    assert_eq!((read.source, read.destination), (to, from));
    let ip = Ipv4Packet::new_checked(&reset).unwrap();
    let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
    assert!(tcp.rst() && tcp.ack() && tcp.ack_number().0 == 10 && tcp.src_port() == 80);
    assert!(tcp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
    assert!(tcp_reset(&read).is_none(), "a reset is not answered");
}

#[test]
fn options_and_broken_lengths_are_refused() {
    let good = udp_packet(end("10.0.0.1:1"), end("10.0.0.2:2"), b"x").unwrap();
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes[10..12].fill(0);
        let own = checksum(0, &bytes[..20]);
        bytes[10..12].copy_from_slice(&own.to_be_bytes());
        Packet::read(IPV4, &bytes).map(|packet| packet.fragment)
    };
    assert_eq!(with(0, 0x46), Err(Reason::Options));
    assert_eq!(with(0, 0x44), Err(Reason::Malformed));
    assert_eq!(with(2, 0xff), Err(Reason::Malformed));
    assert_eq!(with(3, 19), Err(Reason::Malformed));
    assert_eq!(with(6, 0x20), Ok(true));
    assert_eq!(with(7, 0x01), Ok(true));
    assert_eq!(with(6, 0x80), Err(Reason::Malformed));
    let six = udp_packet(end("[fd00::1]:1"), end("[fd00::2]:2"), &[0; 16]).unwrap();
    for header in [0, 43, 50, 51, 60, 135] {
        let mut bytes = six.clone();
        bytes[6] = header;
        assert_eq!(Packet::read(IPV6, &bytes), Err(Reason::Options), "{header}");
    }
    let mut bytes = six;
    bytes[6] = 44;
    bytes[40] = 43;
    assert_eq!(Packet::read(IPV6, &bytes), Err(Reason::Options), "routing behind a fragment header");
    bytes[40] = UDP;
    let packet = Packet::read(IPV6, &bytes).unwrap();
    assert!(packet.fragment && packet.ports().is_none() && packet.datagram().is_none());
}

proptest! {
    #[test]
    fn noise_is_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..200), first in any::<bool>()) {
        let mut bytes = bytes;
        if let Some(byte) = bytes.first_mut() {
            *byte = if first { 0x45 } else { 0x60 };
        }
        let _ = Frame::read(&bytes);
        let _ = ArpRequest::read(&bytes);
        for kind in [IPV4, IPV6] {
            if let Ok(packet) = Packet::read(kind, &bytes) {
                let _ = (packet.ends(), packet.datagram(), packet.echo(), packet.solicited(), packet.tcp_flags());
                let _ = (tcp_reset(&packet), unreachable(packet.source, &packet, true));
            }
        }
    }
}
