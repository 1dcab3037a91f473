//! The header before each frame on a cable (virtio 1.2 section 5.1.6): what whoever takes the frame has still to do to it.
//!
//! A guest leaves the checksum of TCP and UDP, and the cutting of TCP into segments, to the other end of its cable; between two guests on one
//! host neither is ever done. What a header asks for must be what the packet behind it is: anything else is dropped.

use super::{ETHERNET_BYTES, Mac, Packet, TCP, UDP, checksum, ethernet, kind_of};
use crate::reason::Reason;
use std::net::IpAddr;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 12;
/// Least bytes of data in a segment (Linux makes none smaller).
const MIN_SEGMENT: u16 = 48;

// virtio 1.2 section 5.1.6: flags and kinds.
const NEEDS_CHECKSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const WHOLE: u8 = 0;
const TCP_4: u8 = 1;
const TCP_6: u8 = 4;

/// What is still to be done to a frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rest {
    /// Where TCP's or UDP's header begins in the frame, and where in that the checksum goes, if it is to be made.
    checksum: Option<(u16, u16)>,
    /// How the frame is to be cut into segments, if it is.
    cut: Option<Cut>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    six: bool,
    /// Bytes of data in each segment.
    segment: u16,
    /// Bytes of all headers.
    headers: u16,
}

impl Rest {
    /// Splits what came from a cable into its header and the frame. Nothing but the header's own form is looked at.
    ///
    /// # Errors
    /// It is too short, or asks for something that no guest was offered.
    pub fn split(bytes: &[u8]) -> Result<(Self, &[u8]), Reason> {
        let (header, frame) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(Reason::Malformed)?;
        let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        if header[0] & !(NEEDS_CHECKSUM | DATA_VALID) != 0 {
            return Err(Reason::Malformed);
        }
        let checksum = (header[0] & NEEDS_CHECKSUM != 0).then(|| (word(6), word(8)));
        let cut = match header[1] {
            WHOLE => None,
            kind @ (TCP_4 | TCP_6) => Some(Cut { six: kind == TCP_6, segment: word(4), headers: word(2) }),
            _ => return Err(Reason::Malformed),
        };
        Ok((Self { checksum, cut }, frame))
    }

    /// The most bytes that an IP packet with this header may have.
    #[must_use]
    pub fn most(&self, mtu: u16) -> usize {
        if self.cut.is_some() { super::MAX_PACKET } else { usize::from(mtu) }
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.checksum.is_none() && self.cut.is_none()
    }

    /// Checks it against the packet in the frame.
    ///
    /// # Errors
    /// It is not what is left to do to such a packet, or the segments would not fit the MTU.
    pub fn check(self, packet: &Packet<'_>, mtu: u16) -> Result<Self, Reason> {
        let Some(given) = self.checksum else {
            return if self.cut.is_none() { Ok(self) } else { Err(Reason::Malformed) };
        };
        let (transport, at) = place_of_checksum(packet).ok_or(Reason::Malformed)?;
        if given != (transport, at) {
            return Err(Reason::Malformed);
        }
        let Some(cut) = self.cut else { return Ok(self) };
        let ip = packet.bytes.len() - packet.payload.len();
        let tcp = packet.payload.get(12).map_or(0, |byte| usize::from(byte >> 4) * 4);
        let fits = usize::from(cut.segment) + ip + tcp <= usize::from(mtu);
        let right = packet.protocol == TCP && cut.six == packet.source.is_ipv6();
        if !right || !fits || cut.segment < MIN_SEGMENT || !(20..=packet.payload.len()).contains(&tcp) {
            return Err(Reason::Malformed);
        }
        let headers = u16::try_from(ETHERNET_BYTES + ip + tcp).map_err(|_| Reason::Malformed)?;
        Ok(Self { cut: Some(Cut { headers, ..cut }), ..self })
    }

    /// The header.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut word = |at: usize, value: u16| bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        if let Some((start, at)) = self.checksum {
            word(6, start);
            word(8, at);
        }
        if let Some(Cut { segment, headers, .. }) = self.cut {
            word(2, headers);
            word(4, segment);
        }
        bytes[0] = if self.checksum.is_some() { NEEDS_CHECKSUM } else { 0 };
        bytes[1] = self.cut.map_or(WHOLE, |cut| if cut.six { TCP_6 } else { TCP_4 });
        bytes
    }
}

/// Where a packet's transport header begins in its frame, and where in that header its checksum is: of TCP and UDP.
fn place_of_checksum(packet: &Packet<'_>) -> Option<(u16, u16)> {
    let (at, least) = match packet.protocol {
        TCP => (16, 20),
        UDP => (6, 8),
        _ => return None,
    };
    let start = ETHERNET_BYTES + packet.bytes.len() - packet.payload.len();
    (!packet.fragment && packet.payload.len() >= least).then_some((u16::try_from(start).ok()?, at))
}

/// Makes the frame of a TCP packet of the gateway's, whose checksum is left to the guest, and its cutting into segments of at most so many
/// bytes if it is larger than the MTU. What is no TCP packet stays as it is.
#[must_use]
pub fn unfinished(to: Mac, from: Mac, packet: &[u8], mtu: u16, segment: u16) -> (Rest, Vec<u8>) {
    let mut frame = ethernet(to, from, packet);
    let kind = kind_of(packet);
    let Ok(read) = Packet::read(kind, packet) else { return (Rest::default(), frame) };
    let Some((start, at)) = place_of_checksum(&read).filter(|_| read.protocol == TCP) else {
        return (Rest::default(), frame);
    };
    let sum = pseudo_header(&read);
    let place = usize::from(start + at);
    if let Some(place) = frame.get_mut(place..place + 2) {
        place.copy_from_slice(&sum.to_be_bytes());
    }
    let cut = (packet.len() > usize::from(mtu)).then(|| {
        let tcp = read.payload.get(12).map_or(20, |byte| u16::from(byte >> 4) * 4);
        let headers = start + tcp;
        let most = mtu.saturating_add(14).saturating_sub(headers);
        Cut { six: kind == super::IPV6, segment: segment.min(most).max(MIN_SEGMENT), headers }
    });
    (Rest { checksum: Some((start, at)), cut }, frame)
}

/// The sum that a checksum begins with: addresses, protocol and length (RFC 9293 section 3.1, RFC 8200 section 8.1).
fn pseudo_header(packet: &Packet<'_>) -> u16 {
    let mut bytes = Vec::with_capacity(40);
    for address in [packet.source, packet.destination] {
        match address {
            IpAddr::V4(four) => bytes.extend(four.octets()),
            IpAddr::V6(six) => bytes.extend(six.octets()),
        }
    }
    bytes.extend(u32::try_from(packet.payload.len()).unwrap_or(0).to_be_bytes());
    bytes.extend([0, 0, 0, packet.protocol]);
    !checksum(0, &bytes)
}

/// Of the first segment of a connection: takes out how much data its sender wants in a segment, and puts the most in its place that a
/// packet can hold. `None` if it is no first segment or does not say.
pub fn exchange_segment_size(packet: &mut [u8]) -> Option<u16> {
    let read = Packet::read(kind_of(packet), packet).ok()?;
    if !read.tcp_flags()?.synchronizes() {
        return None;
    }
    let start = read.bytes.len() - read.payload.len();
    let end = start + usize::from(read.payload.get(12)? >> 4) * 4;
    let most = u16::try_from(super::MAX_PACKET - start - 20).ok()?;
    let options = packet.get_mut(start + 20..end)?;
    let mut at = 0;
    // RFC 9293 section 3.1: end of list, nothing, or kind and length.
    loop {
        match *options.get(at)? {
            0 => return None,
            1 => at += 1,
            2 if options.get(at + 1) == Some(&4) => {
                let size = options.get_mut(at + 2..at + 4)?;
                let told = u16::from_be_bytes([size[0], size[1]]);
                size.copy_from_slice(&most.to_be_bytes());
                return Some(told);
            }
            _ => at += usize::from(*options.get(at + 1)?).max(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::net::SocketAddr;

    use super::*;
    use crate::frame::{Frame, IPV4, IPV6, ip_packet, udp_packet};

    const MTU: u16 = 1500;

    fn tcp(six: bool, data: usize) -> Vec<u8> {
        let (from, to) = if six { ("fd00::2", "fd00::3") } else { ("10.0.0.2", "10.0.0.3") };
        let mut segment = vec![0; 20 + data];
        segment[12] = 0x50;
        ip_packet(from.parse().unwrap(), to.parse().unwrap(), TCP, &segment, 16).unwrap()
    }

    fn header(flags: u8, kind: u8, words: [u16; 4]) -> Vec<u8> {
        let mut bytes = vec![flags, kind];
        words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes.extend([0, 0]);
        bytes
    }

    fn checked(header: &[u8], packet: &[u8], mtu: u16) -> Result<Rest, Reason> {
        let bytes = [header, &ethernet([2; 6], [4; 6], packet)].concat();
        let (rest, frame) = Rest::split(&bytes)?;
        let frame = Frame::read(frame).ok_or(Reason::Malformed)?;
        rest.check(&Packet::read(frame.kind, frame.payload)?, mtu)
    }

    #[test]
    fn what_guests_leave_to_be_done_passes_as_it_is() {
        let (four, six) = (tcp(false, 4000), tcp(true, 4000));
        for (header, packet) in [
            (header(0, 0, [0; 4]), tcp(false, 9)),
            (header(1, 0, [0, 0, 34, 16]), tcp(false, 9)),
            (header(1, 1, [54, 1460, 34, 16]), four),
            (header(1, 4, [74, 1440, 54, 16]), six),
        ] {
            assert_eq!(checked(&header, &packet, MTU).unwrap().encode()[..], header[..]);
        }
        // A hint that is nobody's business, and a length of headers that is the guest's guess.
        assert_eq!(checked(&header(2, 0, [7, 7, 7, 7]), &tcp(false, 9), MTU), Ok(Rest::default()));
        let guessed = checked(&header(1, 1, [9, 1460, 34, 16]), &tcp(false, 4000), MTU).unwrap();
        assert_eq!(guessed.encode()[2], 54);
    }

    #[test]
    fn what_does_not_belong_to_the_packet_is_refused() {
        let udp = udp_packet(
            SocketAddr::new("10.0.0.2".parse().unwrap(), 1),
            SocketAddr::new("10.0.0.3".parse().unwrap(), 2),
            b"data",
        )
        .unwrap();
        let large = tcp(false, 4000);
        for (header, packet) in [
            (header(4, 0, [0; 4]), &large),                // a flag that there is not
            (header(0, 1, [54, 1460, 34, 16]), &large),    // segments without checksums
            (header(1, 3, [54, 1460, 34, 16]), &large),    // UDP fragmentation
            (header(1, 0x81, [54, 1460, 34, 16]), &large), // ECN
            (header(1, 4, [54, 1460, 34, 16]), &large),    // the other family
            (header(1, 1, [54, 1460, 34, 6]), &large),     // a checksum elsewhere
            (header(1, 1, [54, 1460, 14, 10]), &large),    // that of IP's header
            (header(1, 1, [54, 1460, 0xffff, 0xffff]), &large),
            (header(1, 1, [54, 47, 34, 16]), &large), // too many segments
            (header(1, 1, [54, 1461, 34, 16]), &large), // too large ones
            (header(1, 1, [54, 0, 34, 16]), &large),
            (header(1, 1, [42, 1460, 34, 6]), &udp),
        ] {
            assert_eq!(checked(&header, packet, MTU), Err(Reason::Malformed), "{header:?}");
        }
        let mut fragment = tcp(false, 100);
        fragment[6] = 0x20;
        fragment[10..12].fill(0);
        let sum = checksum(0, &fragment[..20]);
        fragment[10..12].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checked(&header(1, 0, [0, 0, 34, 16]), &fragment, MTU), Err(Reason::Malformed));
        assert_eq!(Rest::split(&[0; 11]).unwrap_err(), Reason::Malformed);
    }

    #[test]
    fn the_gateways_packets_are_what_a_guest_expects() {
        for (six, start) in [(false, 34), (true, 54)] {
            for data in [10, 1460, 30_000] {
                let packet = tcp(six, data);
                let (rest, frame) = unfinished([2; 6], [4; 6], &packet, MTU, 1460);
                let kind = if six { IPV6 } else { IPV4 };
                let read = Packet::read(kind, &frame[14..]).unwrap();
                assert_eq!(rest.check(&read, MTU), Ok(rest));
                assert_eq!(rest.cut.is_some(), packet.len() > 1500);
                // Finished as the guest would, the checksum is that of the whole packet.
                let sum = checksum(0, &frame[start..]);
                assert_eq!(sum.to_be_bytes(), packet[start - 14 + 16..start - 14 + 18]);
            }
        }
    }

    #[test]
    fn the_size_of_segments_is_exchanged_in_first_segments_only() {
        let mut segment = vec![0; 32];
        segment[12] = 0x80;
        segment[20..32].copy_from_slice(&[1, 1, 8, 2, 2, 4, 0x05, 0xb4, 0, 9, 9, 9]);
        let packet = |flags: u8, options: &[u8]| {
            let mut segment = segment.clone();
            segment[13] = flags;
            segment[20..20 + options.len()].copy_from_slice(options);
            ip_packet("10.0.0.2".parse().unwrap(), "10.0.0.3".parse().unwrap(), TCP, &segment, 16).unwrap()
        };
        let mut syn = packet(2, &[]);
        assert_eq!(exchange_segment_size(&mut syn), Some(1460));
        assert_eq!(exchange_segment_size(&mut syn), Some(65_495));
        assert_eq!(exchange_segment_size(&mut packet(0x10, &[])), None);
        // Lists that end, lead out, or go round.
        for options in
            [&[0][..], &[3, 0xff], &[3, 0], &[1; 12], &[2, 3, 4, 0], &[9, 0, 9, 0, 9, 0, 9, 0, 9, 0, 9, 0]]
        {
            let told = exchange_segment_size(&mut packet(2, options));
            assert!(told.is_none() || options.len() < 5, "{options:?} {told:?}");
        }
    }

    proptest! {
        #[test]
        fn headers_that_pass_are_those_that_leave(head in prop::array::uniform12(any::<u8>()), data in 0usize..3000, six in any::<bool>()) {
            if let Ok(rest) = checked(&head, &tcp(six, data), MTU) {
                let again = checked(&rest.encode(), &tcp(six, data), MTU).unwrap();
                prop_assert_eq!(again, rest);
            }
        }

        #[test]
        fn noise_is_exchanged_without_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..120), first in any::<bool>()) {
            if let Some(byte) = bytes.first_mut() {
                *byte = if first { 0x45 } else { 0x60 };
            }
            let length = bytes.len();
            let _ = exchange_segment_size(&mut bytes);
            prop_assert_eq!(bytes.len(), length);
        }
    }
}
