//! Frames as guests send them, read in bounds, and frames that the switch makes itself.
//!
//! Nothing is trusted: a length that does not fit, an IP option or an extension header is a [`Reason`] to drop the frame.

mod build;
pub mod rest;
#[cfg(test)]
mod tests;

pub use build::{
    arp_reply, checksum, echo_reply, ethernet, ip_packet, neighbor_advertisement, tcp_reset, udp_packet,
    unreachable,
};
pub use rest::Rest;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::reason::Reason;

/// A hardware address.
pub type Mac = [u8; 6];

/// Bytes of an Ethernet header.
pub const ETHERNET_BYTES: usize = 14;
/// Largest IP packet in bytes.
pub const MAX_PACKET: usize = 65_535;
/// IPv4 (IEEE 802 numbers).
pub const IPV4: u16 = 0x0800;
/// ARP.
pub const ARP: u16 = 0x0806;
/// IPv6.
pub const IPV6: u16 = 0x86dd;
/// ICMP (IANA protocol numbers).
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMPv6.
pub const ICMPV6: u8 = 58;
/// The IPv6 fragment header.
const FRAGMENT: u8 = 44;

/// The kind of frame that carries an IP packet: by the packet's version.
#[must_use]
pub fn kind_of(packet: &[u8]) -> u16 {
    if packet.first().is_some_and(|first| first >> 4 == 6) { IPV6 } else { IPV4 }
}

/// An Ethernet frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Whom it is for.
    pub to: Mac,
    /// Who says that it sent it.
    pub from: Mac,
    /// What it carries.
    pub kind: u16,
    /// That.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads a frame.
    #[must_use]
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let (to, rest) = bytes.split_first_chunk::<6>()?;
        let (from, rest) = rest.split_first_chunk::<6>()?;
        let (kind, payload) = rest.split_first_chunk::<2>()?;
        Some(Self { to: *to, from: *from, kind: u16::from_be_bytes(*kind), payload })
    }

    /// Whether it is for a group: broadcast is one.
    #[must_use]
    pub fn is_for_group(&self) -> bool {
        self.to[0] & 1 == 1
    }
}

/// An IP packet without options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Who says that it sent it.
    pub source: IpAddr,
    /// Whom it is for.
    pub destination: IpAddr,
    /// What it carries.
    pub protocol: u8,
    /// It is part of a larger one.
    pub fragment: bool,
    /// All of it, without what the frame was padded with.
    pub bytes: &'a [u8],
    /// What it carries.
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads a packet of this kind ([`IPV4`] or [`IPV6`]).
    ///
    /// # Errors
    /// Why it is to be dropped.
    pub fn read(kind: u16, bytes: &'a [u8]) -> Result<Self, Reason> {
        match kind {
            IPV4 => Self::read_4(bytes),
            IPV6 => Self::read_6(bytes),
            _ => Err(Reason::EtherType),
        }
    }

    fn read_4(bytes: &'a [u8]) -> Result<Self, Reason> {
        let header = bytes.first_chunk::<20>().ok_or(Reason::Malformed)?;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        match header[0] {
            0x45 => {}
            // Source routes and records of routes have no place on a network of one hop.
            0x46..=0x4f => return Err(Reason::Options),
            _ => return Err(Reason::Malformed),
        }
        let bytes = bytes.get(..total).ok_or(Reason::Malformed)?;
        let payload = bytes.get(20..).ok_or(Reason::Malformed)?;
        if checksum(0, header) != 0 {
            return Err(Reason::Malformed);
        }
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        if fragment & 0x8000 != 0 {
            return Err(Reason::Malformed);
        }
        Ok(Self {
            source: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
            destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            protocol: header[9],
            fragment: fragment & 0x3fff != 0,
            bytes,
            payload,
        })
    }

    fn read_6(bytes: &'a [u8]) -> Result<Self, Reason> {
        let header = bytes.first_chunk::<40>().ok_or(Reason::Malformed)?;
        if header[0] >> 4 != 6 {
            return Err(Reason::Malformed);
        }
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let bytes = bytes.get(..40 + length).ok_or(Reason::Malformed)?;
        let mut payload = &bytes[40..];
        let mut protocol = header[6];
        let fragment = protocol == FRAGMENT;
        if fragment {
            protocol = *payload.first().ok_or(Reason::Malformed)?;
            payload = payload.get(8..).ok_or(Reason::Malformed)?;
        }
        // Hop-by-hop options, routing, a second fragment header, ESP, AH, destination options, mobility, HIP, shim6.
        if matches!(protocol, 0 | 43 | FRAGMENT | 50 | 51 | 60 | 135 | 139 | 140) {
            return Err(Reason::Options);
        }
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&header[at..at + 16]);
            Ipv6Addr::from(octets)
        };
        Ok(Self {
            source: address(8).into(),
            destination: address(24).into(),
            protocol,
            fragment,
            bytes,
            payload,
        })
    }

    /// The ports of TCP and UDP.
    #[must_use]
    pub fn ports(&self) -> Option<(u16, u16)> {
        let ports = self.payload.first_chunk::<4>()?;
        let (from, to) = (u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]]));
        (matches!(self.protocol, TCP | UDP) && !self.fragment).then_some((from, to))
    }

    /// Both ends, of TCP and UDP.
    #[must_use]
    pub fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let (from, to) = self.ports()?;
        Some((SocketAddr::new(self.source, from), SocketAddr::new(self.destination, to)))
    }

    /// The flags of TCP.
    #[must_use]
    pub fn tcp_flags(&self) -> Option<TcpFlags> {
        let header = self.payload.first_chunk::<20>()?;
        (self.protocol == TCP && !self.fragment).then_some(TcpFlags(header[13]))
    }

    /// The bytes of a UDP datagram.
    #[must_use]
    pub fn datagram(&self) -> Option<&'a [u8]> {
        let header = self.payload.first_chunk::<8>()?;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        if self.protocol != UDP || self.fragment {
            return None;
        }
        self.payload.get(8..length)
    }

    /// Identifier, sequence number and data of an echo request.
    #[must_use]
    pub fn echo(&self) -> Option<Echo<'a>> {
        let header = self.payload.first_chunk::<8>()?;
        let kind = match self.destination {
            IpAddr::V4(_) if self.protocol == ICMP => 8,
            IpAddr::V6(_) if self.protocol == ICMPV6 => 128,
            _ => return None,
        };
        (header[0] == kind && header[1] == 0 && !self.fragment).then(|| Echo {
            identifier: u16::from_be_bytes([header[4], header[5]]),
            sequence: u16::from_be_bytes([header[6], header[7]]),
            data: &self.payload[8..],
        })
    }

    /// Whom a neighbor solicitation (RFC 4861 section 4.3) asks for.
    #[must_use]
    pub fn solicited(&self) -> Option<Ipv6Addr> {
        let message = self.payload.first_chunk::<24>()?;
        // A hop limit of 255: it comes from this very link.
        if self.protocol != ICMPV6 || self.fragment || message[0] != 135 || self.bytes.get(7) != Some(&255) {
            return None;
        }
        let mut target = [0; 16];
        target.copy_from_slice(&message[8..24]);
        Some(target.into())
    }
}

/// An echo request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo<'a> {
    /// Whose it is.
    pub identifier: u16,
    /// Which one it is.
    pub sequence: u16,
    /// What is to come back.
    pub data: &'a [u8],
}

/// The flags of a TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpFlags(u8);

impl TcpFlags {
    /// It begins a connection.
    #[must_use]
    pub fn opens(self) -> bool {
        self.0 & 0x17 == 0x02
    }

    /// It is the first from its sender.
    #[must_use]
    pub fn synchronizes(self) -> bool {
        self.0 & 0x06 == 0x02
    }

    /// It resets a connection.
    #[must_use]
    pub fn resets(self) -> bool {
        self.0 & 0x04 != 0
    }
}

/// An ARP request for an IPv4 address (RFC 826).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArpRequest {
    /// Who says that it asks.
    pub sender_mac: Mac,
    /// Who says that it asks; unspecified in a probe.
    pub sender: Ipv4Addr,
    /// Whom it asks for.
    pub target: Ipv4Addr,
}

impl ArpRequest {
    /// Reads a request; replies and everything else are nothing that a guest has to say.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<28>()?;
        if bytes[..8] != [0, 1, 8, 0, 6, 4, 0, 1] {
            return None;
        }
        let mut sender_mac = [0; 6];
        sender_mac.copy_from_slice(&bytes[8..14]);
        let address = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
        Some(Self { sender_mac, sender: address(14), target: address(24) })
    }
}
