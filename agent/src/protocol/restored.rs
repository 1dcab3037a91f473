//! What a machine is told when it goes on from a snapshot: which of its twins it is, randomness that no other has, and the time.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes of a generation.
pub const GENERATION_BYTES: usize = 16;
/// Bytes of randomness: twice what the kernel's generator is keyed with.
pub const ENTROPY_BYTES: usize = 64;

/// What a machine must not share with others that were restored from the same snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restored {
    /// Names this life of the machine, at random: no other machine, and no other restore of this one, has it. What VMGenID is elsewhere.
    pub generation: Bytes<GENERATION_BYTES>,
    /// Randomness of the host's, for the guest kernel's generator. Used nowhere else.
    pub entropy: Bytes<ENTROPY_BYTES>,
    /// Host's wall clock in nanoseconds since 1970.
    pub wall_clock: u64,
}

/// So many bytes; in JSON, and as text, two lower-case hexadecimal digits for each. Debug output tells only how many: they may be secret.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes<const N: usize>(pub [u8; N]);

impl<const N: usize> fmt::Display for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<const N: usize> fmt::Debug for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({N} bytes)")
    }
}

impl<const N: usize> From<Bytes<N>> for String {
    fn from(bytes: Bytes<N>) -> Self {
        bytes.to_string()
    }
}

impl<const N: usize> TryFrom<String> for Bytes<N> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let digit = |b: u8| match b {
            b'0'..=b'9' => Some(b - b'0'),
            b'a'..=b'f' => Some(b - b'a' + 10),
            _ => None,
        };
        let refused = || format!("{N} bytes are {} lower-case hexadecimal digits", 2 * N);
        let mut bytes = [0; N];
        if text.len() != 2 * N {
            return Err(refused());
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let &[high, low] = pair else { return Err(refused()) };
            let (Some(high), Some(low)) = (digit(high), digit(low)) else { return Err(refused()) };
            *byte = high << 4 | low;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_digits_and_nothing_else_is() {
        let bytes = Bytes([0x00, 0x7f, 0xff]);
        let json = serde_json::to_string(&bytes).unwrap();
        assert_eq!(json, r#""007fff""#);
        assert_eq!(serde_json::from_str::<Bytes<3>>(&json).unwrap(), bytes);
        for bad in ["", "007ff", "007fff0", "007FFF", "00 fff", "+07fff", "é07ff"] {
            let error = serde_json::from_str::<Bytes<3>>(&format!("\"{bad}\"")).unwrap_err().to_string();
            assert!(error.contains("3 bytes are 6 lower-case hexadecimal digits"), "{bad}: {error}");
        }
    }

    #[test]
    fn randomness_is_not_shown() {
        let news = Restored { generation: Bytes([7; 16]), entropy: Bytes([0xab; 64]), wall_clock: 1 };
        assert!(!format!("{news:?}").contains("ab"), "{news:?}");
    }
}
