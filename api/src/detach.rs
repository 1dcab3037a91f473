//! The keys that leave an attached terminal without ending what runs in it.

use crate::error::ApiError;

/// Docker's default: Ctrl-P, Ctrl-Q.
const DEFAULT: [u8; 2] = [16, 17];
/// Most keys of a sequence.
const MAX_KEYS: usize = 32;

/// A sequence of keys, and how much of it was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys {
    keys: Vec<u8>,
    typed: usize,
}

/// What typed bytes come to.
#[derive(Debug, PartialEq, Eq)]
pub struct Typed {
    /// What is passed on.
    pub pass: Vec<u8>,
    /// The sequence was typed: the terminal is left.
    pub detached: bool,
}

impl DetachKeys {
    /// Reads a sequence such as `ctrl-p,ctrl-q` or `a,b`; `None`: the default.
    ///
    /// # Errors
    /// A key is not one.
    pub fn parse(text: Option<&str>) -> Result<Self, ApiError> {
        let Some(text) = text else { return Ok(Self { keys: DEFAULT.to_vec(), typed: 0 }) };
        let bad = |key: &str| {
            ApiError::bad(format!(
                "Invalid detach keys ({text}) provided: {key:?} is not a key (a, ctrl-a, ctrl-@ ...)"
            ))
        };
        let mut keys = Vec::new();
        for key in text.split(',') {
            keys.push(code(key).ok_or_else(|| bad(key))?);
            if keys.len() > MAX_KEYS {
                return Err(bad(key));
            }
        }
        Ok(Self { keys, typed: 0 })
    }

    /// Passes typed bytes on, but holds back those that may be the beginning of the sequence.
    pub fn typed(&mut self, bytes: &[u8]) -> Typed {
        let mut pass = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            if self.keys.get(self.typed) == Some(&byte) {
                self.typed += 1;
                if self.typed == self.keys.len() {
                    return Typed { pass, detached: true };
                }
                continue;
            }
            // It was not the sequence: what was held back goes on.
            let held = std::mem::take(&mut self.typed);
            pass.extend_from_slice(self.keys.get(..held).unwrap_or_default());
            if self.keys.first() == Some(&byte) {
                self.typed = 1;
            } else {
                pass.push(byte);
            }
        }
        Typed { pass, detached: false }
    }
}

/// The byte that a key sends.
fn code(key: &str) -> Option<u8> {
    if let &[byte] = key.as_bytes() {
        return byte.is_ascii_graphic().then_some(byte);
    }
    let control = key.strip_prefix("ctrl-")?;
    let &[byte] = control.as_bytes() else { return None };
    match byte {
        b'a'..=b'z' => Some(byte - b'a' + 1),
        b'@' => Some(0),
        b'[' => Some(27),
        b'\\' => Some(28),
        b']' => Some(29),
        b'^' => Some(30),
        b'_' => Some(31),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_read() {
        let keys = |text| DetachKeys::parse(Some(text)).map(|keys| keys.keys);
        assert_eq!(DetachKeys::parse(None).unwrap().keys, [16, 17]);
        assert_eq!(keys("ctrl-a,x,ctrl-@,ctrl-_").unwrap(), [1, b'x', 0, 31]);
        for bad in ["ctrl-1", "ctrl-", "xx", ",", "ctrl-A", "ctrl-ä", "ä", &"a,".repeat(40)] {
            assert_eq!(keys(bad).unwrap_err().status, 400, "{bad}");
        }
    }

    #[test]
    fn the_sequence_is_found_however_it_is_cut() {
        let typed = |parts: &[&[u8]]| {
            let mut keys = DetachKeys::parse(Some("ctrl-p,ctrl-p,ctrl-q")).unwrap();
            let mut pass = Vec::new();
            for part in parts {
                let typed = keys.typed(part);
                pass.extend(typed.pass);
                if typed.detached {
                    return (pass, true);
                }
            }
            (pass, false)
        };
        assert_eq!(typed(&[b"ab\x10\x10\x11cd"]), (b"ab".to_vec(), true));
        assert_eq!(typed(&[b"ab\x10", b"\x10", b"\x11"]), (b"ab".to_vec(), true));
        assert_eq!(typed(&[b"a\x10b"]), (b"a\x10b".to_vec(), false));
        assert_eq!(typed(&[b"\x10\x10x"]), (b"\x10\x10x".to_vec(), false));
    }
}
