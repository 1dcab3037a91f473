//! The little of FUSE's messages that the device looks at: lengths and ids.

/// Bytes of a request's header: length, operation, id, node, user, group, process, padding.
pub const REQUEST_BYTES: usize = 40;
/// Bytes of an answer's header: length, error, id.
pub const ANSWER_BYTES: usize = 16;
/// Most bytes of a request or an answer: 128 KiB of data, and room for headers and names.
pub const MAX_PACKET: usize = (128 << 10) + 4096;
/// The request by which a driver lets go of everything.
pub const DESTROY: u32 = 38;

fn word(bytes: &[u8]) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[..4]);
    u32::from_le_bytes(word)
}

/// The id of a request or an answer of at least [`ANSWER_BYTES`].
pub fn unique(bytes: &[u8]) -> u64 {
    let mut id = [0; 8];
    id.copy_from_slice(&bytes[8..16]);
    u64::from_le_bytes(id)
}

/// Replaces the id.
pub fn set_unique(bytes: &mut [u8], id: u64) {
    bytes[8..16].copy_from_slice(&id.to_le_bytes());
}

/// Whether a request of at least [`REQUEST_BYTES`] is as long as it says.
pub fn is_whole(bytes: &[u8]) -> bool {
    usize::try_from(word(bytes)) == Ok(bytes.len())
}

/// Whether bytes are an answer, as long as it says.
pub fn is_answer(bytes: &[u8]) -> bool {
    bytes.len() >= ANSWER_BYTES && is_whole(bytes)
}

/// Makes bytes a request without a body.
pub fn set_header(bytes: &mut [u8; REQUEST_BYTES], operation: u32, id: u64) {
    bytes.fill(0);
    bytes[0] = 40;
    bytes[4..8].copy_from_slice(&operation.to_le_bytes());
    set_unique(bytes, id);
}

/// An answer that is nothing but an error.
pub fn error(id: u64, errno: i32) -> [u8; ANSWER_BYTES] {
    let mut bytes = [0; ANSWER_BYTES];
    bytes[0] = 16;
    bytes[4..8].copy_from_slice(&(-errno).to_le_bytes());
    set_unique(&mut bytes, id);
    bytes
}
