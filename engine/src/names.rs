//! Names of containers, volumes and networks.

use std::fs::File;
use std::io::Read;

use crate::EngineError;

/// Longest name in bytes.
const MAX_NAME: usize = 255;

const MANNERS: [&str; 40] = [
    "able", "amber", "austere", "brave", "brisk", "bold", "calm", "candid", "clever", "coastal", "deft",
    "eager", "even", "fair", "fleet", "frank", "gentle", "hardy", "hearty", "honest", "keen", "kind",
    "lively", "loyal", "merry", "mild", "neat", "noble", "patient", "plain", "proud", "quiet", "quick",
    "ready", "sober", "steady", "stout", "sturdy", "trim", "wary",
];
const THINGS: [&str; 40] = [
    "anchor", "ballast", "beacon", "bollard", "bow", "brig", "buoy", "capstan", "cleat", "clipper",
    "compass", "cutter", "davit", "dinghy", "fathom", "ferry", "galley", "gangway", "halyard", "harbor",
    "hawser", "hull", "keel", "ketch", "lantern", "mast", "mizzen", "mooring", "packet", "pilot", "porthole",
    "rudder", "schooner", "sextant", "sloop", "spar", "tiller", "trawler", "tug", "windlass",
];

/// Checks a container's name.
///
/// # Errors
/// It has other characters than Docker allows.
pub(crate) fn check(name: &str) -> Result<(), EngineError> {
    let plain = name.strip_prefix('/').unwrap_or(name);
    if is_plain(plain) && plain.len() > 1 {
        return Ok(());
    }
    Err(EngineError::Invalid(format!(
        "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
    )))
}

/// Checks a volume's or network's name.
///
/// # Errors
/// As of [`check`].
pub(crate) fn check_volume(name: &str) -> Result<(), EngineError> {
    if is_plain(name) {
        return Ok(());
    }
    Err(EngineError::Invalid(format!(
        "{name:?} includes invalid characters for a local name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed"
    )))
}

fn is_plain(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    first && rest && name.len() <= MAX_NAME
}

/// A name that people can remember.
pub(crate) fn made_up() -> Result<String, EngineError> {
    let mut bytes = [0u8; 2];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(EngineError::io("reading random bytes"))?;
    let word = |words: &[&'static str], byte: u8| words[usize::from(byte) % words.len()];
    Ok(format!("{}_{}", word(&MANNERS, bytes[0]), word(&THINGS, bytes[1])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dockers() {
        for name in ["web", "/web", "a.b-c_d", "0x"] {
            assert!(check(name).is_ok(), "{name}");
        }
        let long = "x".repeat(256);
        for name in ["", "/", "a", ".web", "a/b", "a b", "..", "é", &long] {
            assert!(check(name).is_err(), "{name}");
        }
        for name in ["..", "a/b", "", "a\0b", "."] {
            assert!(check_volume(name).is_err(), "{name:?}");
        }
        assert!(check(&made_up().unwrap()).is_ok());
    }
}
