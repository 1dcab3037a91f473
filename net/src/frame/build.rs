//! Packets that the switch makes itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{ARP, ArpRequest, Echo, ICMP, ICMPV6, MAX_PACKET, Mac, Packet, TCP, TcpFlags, UDP, kind_of};

/// Hop limit of what the switch makes: neighbor discovery asks for 255, and nothing goes further than one hop.
const HOPS: u8 = 255;
/// Most bytes of a packet that an error message quotes: the smallest MTU of IPv6 less the message's own headers, rounded down.
const MAX_QUOTE: usize = 1200;

/// The Internet checksum (RFC 1071), begun with what was summed up before.
#[must_use]
pub fn checksum(before: u32, bytes: &[u8]) -> u16 {
    let mut sum = u64::from(before);
    let (pairs, last) = bytes.as_chunks::<2>();
    for pair in pairs {
        sum += u64::from(u16::from_be_bytes(*pair));
    }
    if let [last] = last {
        sum += u64::from(*last) << 8;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

fn sum(bytes: &[u8]) -> u32 {
    u32::from(!checksum(0, bytes))
}

/// Puts an Ethernet header before an IP packet.
#[must_use]
pub fn ethernet(to: Mac, from: Mac, packet: &[u8]) -> Vec<u8> {
    let kind = kind_of(packet);
    let mut frame = Vec::with_capacity(14 + packet.len());
    frame.extend_from_slice(&to);
    frame.extend_from_slice(&from);
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(packet);
    frame
}

/// Puts an IP header before a payload, and the checksum at `checksum_at` of it. `None` if both addresses are not of one family, or it
/// is too long.
#[must_use]
pub fn ip_packet(
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    payload: &[u8],
    checksum_at: usize,
) -> Option<Vec<u8>> {
    let length = u16::try_from(payload.len()).ok()?;
    let mut packet = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = length.checked_add(20)?;
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, HOPS, protocol, 0, 0];
            header[2..4].copy_from_slice(&total.to_be_bytes());
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
            let own = checksum(0, &header);
            header[10..12].copy_from_slice(&own.to_be_bytes());
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol, HOPS];
            header[4..6].copy_from_slice(&length.to_be_bytes());
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
            header
        }
        _ => return None,
    };
    if packet.len() + payload.len() > MAX_PACKET {
        return None;
    }
    let start = packet.len();
    // The addresses are the end of both headers. ICMP of IPv4 alone is summed up without them.
    let before = if protocol == ICMP {
        0
    } else {
        let addresses = if from.is_ipv4() { 8 } else { 32 };
        sum(&packet[start - addresses..]) + u32::from(protocol) + u32::from(length)
    };
    packet.extend_from_slice(payload);
    let mut own = checksum(before, &packet[start..]);
    if own == 0 && protocol == UDP {
        // Zero would mean that there is none (RFC 768).
        own = 0xffff;
    }
    packet.get_mut(start + checksum_at..start + checksum_at + 2)?.copy_from_slice(&own.to_be_bytes());
    Some(packet)
}

/// A UDP datagram. `None` if it is too long, or its ends are of two families.
#[must_use]
pub fn udp_packet(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(data.len().checked_add(8)?).ok()?;
    let mut payload = Vec::with_capacity(usize::from(length));
    payload.extend_from_slice(&from.port().to_be_bytes());
    payload.extend_from_slice(&to.port().to_be_bytes());
    payload.extend_from_slice(&length.to_be_bytes());
    payload.extend_from_slice(&[0, 0]);
    payload.extend_from_slice(data);
    ip_packet(from.ip(), to.ip(), UDP, &payload, 6)
}

/// The reset that answers a TCP segment (RFC 9293 section 3.5.2); none answers a reset.
#[must_use]
pub fn tcp_reset(packet: &Packet<'_>) -> Option<Vec<u8>> {
    let header = packet.payload.first_chunk::<20>()?;
    let TcpFlags(flags) = packet.tcp_flags().filter(|flags| !flags.resets())?;
    let (from, to) = packet.ports()?;
    let (sequence, acknowledged, own_flags) = if flags & 0x10 != 0 {
        ([header[8], header[9], header[10], header[11]], [0; 4], 0x04)
    } else {
        let begin = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let data = packet.payload.len().saturating_sub(usize::from(header[12] >> 4) * 4);
        let flags_in_sequence = u32::from(flags & 1) + u32::from(flags >> 1 & 1);
        let next = begin.wrapping_add(u32::try_from(data).ok()?).wrapping_add(flags_in_sequence);
        ([0; 4], next.to_be_bytes(), 0x14)
    };
    let mut reset = Vec::with_capacity(20);
    reset.extend_from_slice(&to.to_be_bytes());
    reset.extend_from_slice(&from.to_be_bytes());
    reset.extend_from_slice(&sequence);
    reset.extend_from_slice(&acknowledged);
    reset.extend_from_slice(&[0x50, own_flags, 0, 0, 0, 0, 0, 0]);
    ip_packet(packet.destination, packet.source, TCP, &reset, 16)
}

/// Tells the sender of a packet that it cannot be delivered. `port`: because nobody has this port; else because it may not go there
/// (RFC 1812 section 5.2.7.1, code 13; RFC 4443 section 3.1, code 1).
#[must_use]
pub fn unreachable(gateway: IpAddr, packet: &Packet<'_>, port: bool) -> Option<Vec<u8>> {
    let quote = &packet.bytes[..packet.bytes.len().min(MAX_QUOTE)];
    let (protocol, kind, code) = match gateway {
        IpAddr::V4(_) => (ICMP, 3, if port { 3 } else { 13 }),
        IpAddr::V6(_) => (ICMPV6, 1, if port { 4 } else { 1 }),
    };
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(quote);
    ip_packet(gateway, packet.source, protocol, &message, 2)
}

/// The answer to an echo request.
#[must_use]
pub fn echo_reply(from: IpAddr, to: IpAddr, echo: &Echo<'_>) -> Option<Vec<u8>> {
    let (protocol, kind) = if from.is_ipv4() { (ICMP, 0) } else { (ICMPV6, 129) };
    let mut message = vec![kind, 0, 0, 0];
    message.extend_from_slice(&echo.identifier.to_be_bytes());
    message.extend_from_slice(&echo.sequence.to_be_bytes());
    message.extend_from_slice(echo.data);
    ip_packet(from, to, protocol, &message, 2)
}

/// The answer to an ARP request: `mac` has the address that was asked for.
#[must_use]
pub fn arp_reply(request: &ArpRequest, mac: Mac, to: Mac) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend_from_slice(&to);
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&ARP.to_be_bytes());
    frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&request.target.octets());
    frame.extend_from_slice(&to);
    frame.extend_from_slice(&Ipv4Addr::octets(&request.sender));
    frame
}

/// The answer to a neighbor solicitation (RFC 4861 section 4.4): `mac` has the address.
#[must_use]
pub fn neighbor_advertisement(target: Ipv6Addr, mac: Mac, to: Ipv6Addr, router: bool) -> Option<Vec<u8>> {
    // Solicited, and to be taken over what was known before.
    let flags = if router { 0xe0 } else { 0x60 };
    let mut message = vec![136, 0, 0, 0, flags, 0, 0, 0];
    message.extend_from_slice(&target.octets());
    message.extend_from_slice(&[2, 1]);
    message.extend_from_slice(&mac);
    ip_packet(target.into(), to.into(), ICMPV6, &message, 2)
}
