//! The header of every packet (virtio 1.2 section 5.10.6).

/// Size of a header on the wire, in bytes.
pub const HEADER_SIZE: usize = 44;
/// The host's context id (section 5.10.4).
pub const HOST_CID: u64 = 2;
/// The only socket type that this device offers (section 5.10.6).
pub const TYPE_STREAM: u16 = 1;

/// Operations (section 5.10.6).
pub mod op {
    /// Asks for a connection.
    pub const REQUEST: u16 = 1;
    /// Accepts a connection.
    pub const RESPONSE: u16 = 2;
    /// Refuses or ends a connection.
    pub const RST: u16 = 3;
    /// Announces that one or both directions have ended.
    pub const SHUTDOWN: u16 = 4;
    /// Carries data.
    pub const RW: u16 = 5;
    /// Tells the sender's buffer space.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for a credit update.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// SHUTDOWN: the sender will receive no more data (section 5.10.6.5).
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// SHUTDOWN: the sender will send no more data.
pub const SHUTDOWN_SEND: u32 = 2;
/// SHUTDOWN: both.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// A packet's header. On the wire the fields follow each other in this order, little-endian, without padding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of data after the header.
    pub len: u32,
    /// Socket type.
    pub kind: u16,
    /// Operation, one of [`op`].
    pub op: u16,
    /// Meaning depends on the operation.
    pub flags: u32,
    /// The sender's buffer space for this stream, in bytes.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of that buffer so far, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header.
    #[must_use]
    pub fn decode(bytes: &[u8; HEADER_SIZE]) -> Self {
        Self {
            src_cid: u64::from_le_bytes(part(bytes, 0)),
            dst_cid: u64::from_le_bytes(part(bytes, 8)),
            src_port: u32::from_le_bytes(part(bytes, 16)),
            dst_port: u32::from_le_bytes(part(bytes, 20)),
            len: u32::from_le_bytes(part(bytes, 24)),
            kind: u16::from_le_bytes(part(bytes, 28)),
            op: u16::from_le_bytes(part(bytes, 30)),
            flags: u32::from_le_bytes(part(bytes, 32)),
            buf_alloc: u32::from_le_bytes(part(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(part(bytes, 40)),
        }
    }

    /// Writes a header.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The reset that answers this packet when nobody else does.
    #[must_use]
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Self::default()
        }
    }
}

/// `N` bytes at an offset that the caller knows to be within the header.
fn part<const N: usize>(bytes: &[u8; HEADER_SIZE], offset: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[offset + index])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_wire_and_lies_as_the_specification_says() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: HOST_CID,
            src_port: 0x11,
            dst_port: 0x22,
            len: 0x33,
            kind: TYPE_STREAM,
            op: op::RW,
            flags: 0x44,
            buf_alloc: 0x55,
            fwd_cnt: 0x66,
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), header);
        assert_eq!(bytes[..9], [8, 7, 6, 5, 4, 3, 2, 1, 2]);
        assert_eq!((bytes[16], bytes[20], bytes[24], bytes[28]), (0x11, 0x22, 0x33, 1));
        assert_eq!((bytes[30], bytes[32], bytes[36], bytes[40]), (5, 0x44, 0x55, 0x66));
    }
}
