//! Random ids.

use std::fs::File;
use std::io::Read;

use crate::EngineError;

/// Hexadecimal digits of an id, as Docker's.
const DIGITS: usize = 64;

/// 64 random hexadecimal digits.
///
/// # Errors
/// The kernel has no random bytes.
pub(crate) fn random() -> Result<String, EngineError> {
    let mut bytes = [0u8; DIGITS / 2];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(EngineError::io("reading random bytes"))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}
