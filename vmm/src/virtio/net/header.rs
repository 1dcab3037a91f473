//! The header before each frame (virtio 1.2 section 5.1.6): what is still to be done to it, by whoever takes it.
//!
//! It comes from the guest, or from whoever is at the other end of the cable, and says how a frame is to be cut up and where a
//! checksum goes. So it is checked against the frame and against what was agreed on before it is passed on.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

/// Bytes of the header: since virtio 1.0 always with the number of buffers.
pub const HEADER_BYTES: usize = 12;
/// Bytes of an Ethernet header without tags; a frame has at least these.
pub const ETHERNET_BYTES: usize = 14;
/// Bytes of a VLAN tag.
pub const TAG_BYTES: usize = 4;
/// Most bytes of a frame that is still to be cut up: what one IP packet can hold, with Ethernet header and tag.
pub const MAX_FRAME: usize = 65_535 + ETHERNET_BYTES + TAG_BYTES;
/// Least size of the segments that a frame is cut into, in bytes: Linux sends none smaller either, and a smaller one would
/// have the host make thousands of frames of one.
const MIN_SEGMENT: u16 = 48;

const NEEDS_CHECKSUM: u8 = narrow(VIRTIO_NET_HDR_F_NEEDS_CSUM);
const DATA_VALID: u8 = narrow(VIRTIO_NET_HDR_F_DATA_VALID);
const WHOLE: u8 = narrow(VIRTIO_NET_HDR_GSO_NONE);
const TCP4: u8 = narrow(VIRTIO_NET_HDR_GSO_TCPV4);
const TCP6: u8 = narrow(VIRTIO_NET_HDR_GSO_TCPV6);

const fn narrow(value: u32) -> u8 {
    assert!(value <= 0xff, "a field of one byte");
    value.to_le_bytes()[0]
}

/// What one direction may leave to the other side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// The checksum of TCP and UDP.
    pub checksum: bool,
    /// Cutting TCP over IPv4 into segments.
    pub tcp4: bool,
    /// Cutting TCP over IPv6 into segments.
    pub tcp6: bool,
}

/// A header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    flags: u8,
    kind: u8,
    header_length: u16,
    segment: u16,
    checksum_start: u16,
    checksum_offset: u16,
    /// Buffers that the frame fills.
    pub buffers: u16,
}

impl Header {
    /// Reads the bytes on the wire.
    #[must_use]
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            kind: bytes[1],
            header_length: word(2),
            segment: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
            buffers: word(10),
        }
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.flags;
        bytes[1] = self.kind;
        let words =
            [self.header_length, self.segment, self.checksum_start, self.checksum_offset, self.buffers];
        for (place, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The header to pass on for a frame of `length` bytes: with nothing in it but what was agreed on and fits the frame.
    /// `None` if the frame asks for something else, or is longer than `whole`, the most that a frame which is not to be cut up
    /// may have.
    #[must_use]
    pub fn checked(self, length: usize, whole: usize, agreed: Offloads) -> Option<Self> {
        let mut checked = Self::default();
        if self.flags & !(NEEDS_CHECKSUM | DATA_VALID) != 0 || length < ETHERNET_BYTES {
            return None;
        }
        if self.flags & NEEDS_CHECKSUM != 0 {
            let start = usize::from(self.checksum_start);
            let end = start + usize::from(self.checksum_offset) + 2;
            if !agreed.checksum || start < ETHERNET_BYTES || end > length {
                return None;
            }
            checked.flags = NEEDS_CHECKSUM;
            checked.checksum_start = self.checksum_start;
            checked.checksum_offset = self.checksum_offset;
        } else if agreed.checksum {
            // A hint that the sum was looked at; without the agreement it means nothing.
            checked.flags = self.flags & DATA_VALID;
        }
        match self.kind {
            WHOLE => return (length <= whole).then_some(checked),
            TCP4 if agreed.tcp4 => {}
            TCP6 if agreed.tcp6 => {}
            _ => return None,
        }
        let headers = usize::from(self.header_length);
        if checked.flags != NEEDS_CHECKSUM
            || self.segment < MIN_SEGMENT
            || headers > length
            || length > MAX_FRAME
        {
            return None;
        }
        checked.kind = self.kind;
        checked.segment = self.segment;
        checked.header_length = self.header_length;
        Some(checked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offloads = Offloads { checksum: true, tcp4: true, tcp6: true };
    const WHOLE_BYTES: usize = 1518;

    #[test]
    fn a_header_lies_as_the_specification_says() {
        let bytes = [1, 4, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12];
        let header = Header::decode(&bytes);
        assert_eq!(header.segment, 0x0605);
        assert_eq!(header.buffers, 0x0c0b);
        assert_eq!(header.encode(), bytes);
    }

    #[test]
    fn what_was_agreed_on_passes() {
        let plain = Header::default();
        assert_eq!(plain.checked(60, WHOLE_BYTES, Offloads::default()), Some(plain));
        let sum = Header { flags: 1, checksum_start: 34, checksum_offset: 16, ..plain };
        assert_eq!(sum.checked(60, WHOLE_BYTES, ALL), Some(sum));
        let large = Header { kind: 1, segment: 1448, header_length: 66, ..sum };
        assert_eq!(large.checked(65_000, WHOLE_BYTES, ALL), Some(large));
        let six = Header { kind: 4, ..large };
        assert_eq!(six.checked(MAX_FRAME, WHOLE_BYTES, ALL), Some(six));
        // The number of buffers is not theirs to say, and a mere hint is dropped.
        let hint = Header { flags: 2, buffers: 9, ..plain };
        assert_eq!(hint.checked(60, WHOLE_BYTES, Offloads::default()), Some(plain));
    }

    #[test]
    fn everything_else_is_refused() {
        let plain = Header::default();
        let sum = Header { flags: 1, checksum_start: 34, checksum_offset: 16, ..plain };
        let large = Header { kind: 1, segment: 1448, header_length: 66, ..sum };
        for (header, length, agreed) in [
            (plain, 13, ALL),
            (plain, WHOLE_BYTES + 1, ALL),
            (Header { flags: 4, ..plain }, 60, ALL),
            (Header { flags: 0x81, ..sum }, 60, ALL),
            (sum, 60, Offloads::default()),
            (sum, 51, ALL),
            (Header { checksum_start: 13, ..sum }, 60, ALL),
            (Header { checksum_start: u16::MAX, checksum_offset: u16::MAX, ..sum }, 60, ALL),
            (large, MAX_FRAME + 1, ALL),
            (large, 5000, Offloads { tcp4: false, ..ALL }),
            (Header { kind: 4, ..large }, 5000, Offloads { tcp6: false, ..ALL }),
            (Header { kind: 3, ..large }, 5000, ALL),
            (Header { kind: 5, ..large }, 5000, ALL),
            (Header { kind: 0x81, ..large }, 5000, ALL),
            (Header { segment: 0, ..large }, 5000, ALL),
            (Header { segment: 47, ..large }, 5000, ALL),
            (Header { header_length: 5001, ..large }, 5000, ALL),
            (Header { flags: 0, ..large }, 5000, ALL),
            (Header { flags: 2, ..large }, 5000, ALL),
        ] {
            assert_eq!(header.checked(length, WHOLE_BYTES, agreed), None, "{header:?} {length}");
        }
    }
}
