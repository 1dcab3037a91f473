//! The file that holds a machine's state: a header, then the state in the `postcard` format.
//!
//! ```text
//! offset  bytes
//!      0      8  "BLKHSNAP"
//!      8      4  version of the format, little endian
//!     12      4  zero
//!     16      8  bytes of the state, little endian
//!     24     32  SHA-256 of the state
//!     56      -  the state
//! ```
//!
//! A reader takes no more than [`MAX_STATE`] bytes whatever the file holds, looks at nothing before the checksum is right,
//! and relies on nothing because it is: a checksum keeps out damage, not intent.

use std::fs::File;
use std::os::unix::fs::FileExt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::SnapshotError;

/// The version that is written, and the only one that is read: a snapshot is a cache, made anew where it does not fit.
pub const VERSION: u32 = 2;
/// Most bytes of a state: 32 vCPUs of some 16 KiB and all devices, with room to spare.
pub const MAX_STATE: u64 = 4 << 20;

const MAGIC: &[u8; 8] = b"BLKHSNAP";
const HEADER: usize = 56;

/// Writes a state to the start of a file; returns the file's bytes.
///
/// # Errors
/// The file cannot be written.
pub fn write(file: &File, state: &impl Serialize) -> Result<u64, SnapshotError> {
    let body = postcard::to_allocvec(state).map_err(|error| SnapshotError::Malformed(error.to_string()))?;
    let length = body.len() as u64;
    if length > MAX_STATE {
        return Err(SnapshotError::Size { found: length, told: length });
    }
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(length.to_le_bytes());
    bytes.extend(Sha256::digest(&body));
    bytes.extend(body);
    file.write_all_at(&bytes, 0).map_err(SnapshotError::file("the state's file cannot be written"))?;
    Ok(bytes.len() as u64)
}

/// Reads a state from a file of which nothing is known.
///
/// # Errors
/// It is no state of this version, whole and undamaged.
pub fn read<T: DeserializeOwned>(file: &File) -> Result<T, SnapshotError> {
    let unreadable = "the state's file cannot be read";
    let size = file.metadata().map_err(SnapshotError::file(unreadable))?.len();
    if size < HEADER as u64 {
        return Err(SnapshotError::NotOne);
    }
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).map_err(SnapshotError::file(unreadable))?;
    let (magic, rest) = header.split_at(MAGIC.len());
    let (version, rest) = rest.split_at(4);
    let (_, rest) = rest.split_at(4);
    let (length, digest) = rest.split_at(8);
    if magic != MAGIC {
        return Err(SnapshotError::NotOne);
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    let found = u32::try_from(number(version)).unwrap_or(u32::MAX);
    if found != VERSION {
        return Err(SnapshotError::Version { found });
    }
    let told = number(length);
    let found = size - HEADER as u64;
    if told > MAX_STATE || told != found {
        return Err(SnapshotError::Size { found, told });
    }
    let mut body = vec![0; usize::try_from(told).unwrap_or(0)];
    file.read_exact_at(&mut body, HEADER as u64).map_err(SnapshotError::file(unreadable))?;
    if Sha256::digest(&body).as_slice() != digest {
        return Err(SnapshotError::Checksum);
    }
    decode(&body)
}

/// Decodes a state; all of the bytes must be used. For [`read`], and for fuzzing past the checksum.
///
/// # Errors
/// The bytes are no state.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, SnapshotError> {
    let malformed = |why: String| SnapshotError::Malformed(why);
    let (state, rest) = postcard::take_from_bytes(body).map_err(|error| malformed(error.to_string()))?;
    if rest.is_empty() { Ok(state) } else { Err(malformed(format!("{} bytes too many", rest.len()))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    type State = (u32, Vec<u64>, String);

    fn written() -> (File, Vec<u8>) {
        let file = tempfile::tempfile().unwrap();
        let state: State = (7, vec![1, 2, 3], "text".to_owned());
        let length = write(&file, &state).unwrap();
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        (file, bytes)
    }

    #[test]
    fn what_was_written_is_read() {
        let (file, _) = written();
        assert_eq!(read::<State>(&file).unwrap(), (7, vec![1, 2, 3], "text".to_owned()));
    }

    #[test]
    fn every_changed_byte_and_every_other_length_is_noticed() {
        let (_, bytes) = written();
        let file = tempfile::tempfile().unwrap();
        for at in (0..bytes.len()).filter(|at| !(12..16).contains(at)) {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            file.set_len(0).unwrap();
            file.write_all_at(&changed, 0).unwrap();
            assert!(read::<State>(&file).is_err(), "byte {at}");
        }
        for length in 0..bytes.len() {
            file.set_len(0).unwrap();
            file.write_all_at(&bytes[..length], 0).unwrap();
            assert!(read::<State>(&file).is_err(), "{length} bytes");
        }
        file.write_all_at(&[&bytes[..], b"x"].concat(), 0).unwrap();
        assert!(matches!(read::<State>(&file), Err(SnapshotError::Size { .. })));
    }

    #[test]
    fn a_file_that_tells_of_much_costs_little() {
        let file = tempfile::tempfile().unwrap();
        let (_, mut bytes) = written();
        bytes[16..24].copy_from_slice(&(1u64 << 40).to_le_bytes());
        file.write_all_at(&bytes, 0).unwrap();
        file.set_len((1 << 40) + HEADER as u64).unwrap();
        assert!(matches!(read::<State>(&file), Err(SnapshotError::Size { .. })));
        // A vector of 2^63 elements, of which none follows.
        let body = [7, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert!(matches!(decode::<State>(&body), Err(SnapshotError::Malformed(_))));
        let error = decode::<(u8,)>(&[1, 2]).unwrap_err().to_string();
        assert!(error.contains("1 bytes too many"), "{error}");
    }

    #[test]
    fn versions_are_told_by_name() {
        let (file, _) = written();
        file.write_all_at(&[9], 8).unwrap();
        let error = read::<State>(&file).unwrap_err().to_string();
        assert_eq!(error, "it has version 9 of the format, this VMM reads 2");
    }
}
