//! Length-prefixed JSON frames: four bytes of length, little-endian, then that many bytes.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most bytes in one frame's body: an OCI specification with a generous environment.
pub const MAX_FRAME: usize = 1 << 20;

/// Bytes of the length prefix.
const PREFIX: usize = 4;

/// Why a frame was refused. The connection is of no use afterwards.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// See the message.
    #[error("a frame of {0} bytes is larger than the bound of {MAX_FRAME}")]
    TooLarge(usize),
    /// See the message.
    #[error("a frame is not the JSON that was expected: {0}")]
    Json(#[from] serde_json::Error),
    /// See the message.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

/// Encodes one frame.
fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0u8; PREFIX];
    serde_json::to_writer(&mut bytes, value)?;
    let body = bytes.len() - PREFIX;
    let length = u32::try_from(body).ok().filter(|_| body <= MAX_FRAME).ok_or(FrameError::TooLarge(body))?;
    bytes[..PREFIX].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// Writes one frame with a single write call where the connection takes it.
///
/// # Errors
/// The value is too large, or the connection failed.
pub fn write_frame<T: Serialize>(mut writer: impl Write, value: &T) -> Result<(), FrameError> {
    writer.write_all(&encode(value)?)?;
    Ok(())
}

/// Reads one frame; `None` at a clean end of the connection.
///
/// # Errors
/// The frame is too large or not the expected JSON, or the connection ended within it.
pub fn read_frame<T: DeserializeOwned>(mut reader: impl Read) -> Result<Option<T>, FrameError> {
    let mut prefix = [0u8; PREFIX];
    let mut have = 0;
    while have < PREFIX {
        match reader.read(&mut prefix[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let length = u32::from_le_bytes(prefix) as usize;
    if length > MAX_FRAME {
        return Err(FrameError::TooLarge(length));
    }
    let mut body = vec![0u8; length];
    reader.read_exact(&mut body)?;
    Ok(Some(serde_json::from_slice(&body)?))
}

/// Collects bytes as they arrive and hands out whole frames; never holds more than one frame beyond what was fed.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// Adds bytes from the connection.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, if it has arrived.
    ///
    /// # Errors
    /// The frame is too large or not the expected JSON.
    pub fn next_frame<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some(prefix) = self.bytes.first_chunk::<PREFIX>() else { return Ok(None) };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > MAX_FRAME {
            return Err(FrameError::TooLarge(length));
        }
        let Some(body) = self.bytes.get(PREFIX..PREFIX + length) else { return Ok(None) };
        let value = serde_json::from_slice(body)?;
        self.bytes.drain(..PREFIX + length);
        Ok(Some(value))
    }

    /// What was fed beyond the frames handed out.
    #[must_use]
    pub fn into_rest(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{
        Answer, Call, Device, ExitStatus, Interface, MacAddress, Message, PathStat, ProcessId, Request,
        Stream, StreamOpen,
    };

    fn id(text: &str) -> ProcessId {
        ProcessId::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn frames_survive_any_split() {
        let request = Request { id: 7, call: Call::Signal { process: id("init"), signal: 15 } };
        let mut wire = encode(&request).unwrap();
        wire.extend(encode(&request).unwrap());
        for split in 0..wire.len() {
            let mut decoder = Decoder::default();
            let mut seen = 0;
            for part in [&wire[..split], &wire[split..]] {
                decoder.feed(part);
                while let Some(r) = decoder.next_frame::<Request>().unwrap() {
                    assert_eq!(r.id, 7);
                    seen += 1;
                }
            }
            assert_eq!(seen, 2);
            assert!(decoder.into_rest().is_empty());
        }
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_memory_is_taken() {
        let wire = u32::MAX.to_le_bytes();
        assert!(matches!(read_frame::<Message>(&wire[..]), Err(FrameError::TooLarge(_))));
        let mut decoder = Decoder::default();
        decoder.feed(&wire);
        assert!(matches!(decoder.next_frame::<Message>(), Err(FrameError::TooLarge(_))));
    }

    #[test]
    fn a_connection_that_ends_within_a_frame_is_an_error_and_one_that_ends_between_is_not() {
        let wire = encode(&Message::Hello { version: 1 }).unwrap();
        assert!(read_frame::<Message>(&wire[..0]).unwrap().is_none());
        for end in 1..wire.len() {
            assert!(matches!(read_frame::<Message>(&wire[..end]), Err(FrameError::Io(_))));
        }
    }

    #[test]
    fn hostile_ids_and_unknown_fields_are_refused() {
        for bad in [r#""""#, r#""../x""#, r#""a b""#, &format!("\"{}\"", "a".repeat(65))] {
            let json = format!(r#"{{"process":{{"process":{bad},"stream":"stdin"}}}}"#);
            assert!(serde_json::from_str::<StreamOpen>(&json).is_err(), "{json}");
        }
        let extra = r#"{"process":{"process":"a","stream":"stdin","more":1}}"#;
        assert!(serde_json::from_str::<StreamOpen>(extra).is_err());
        let good = StreamOpen::Process { process: id("a"), stream: Stream::Stdin };
        let json = r#"{"process":{"process":"a","stream":"stdin"}}"#;
        assert_eq!(serde_json::from_str::<StreamOpen>(json).unwrap(), good);
    }

    /// Every byte string is refused or decoded, never a panic: a deterministic walk over mutated frames.
    #[test]
    fn mutated_frames_never_panic() {
        let exited = Message::Exited { process: id("init"), status: ExitStatus::Signal(9), oom_killed: true };
        let stat =
            PathStat { name: "n".into(), size: 1, mode: 0o644, modified: -1, link_target: "/t".into() };
        let reply = Message::Reply { id: 7, result: Ok(Answer::PathStat(stat)) };
        let interface = Interface {
            device: Device::Mac(MacAddress([2, 0, 0, 0, 0, 1])),
            name: "eth0".into(),
            addresses: vec!["10.0.0.2/8".parse().unwrap(), "fd00::2/64".parse().unwrap()],
            mtu: Some(1500),
            routes: Vec::new(),
        };
        let call = Call::NetworkAttach(Box::new(interface));
        let wires =
            [encode(&exited).unwrap(), encode(&reply).unwrap(), encode(&Request { id: 9, call }).unwrap()];
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for wire in wires.iter().cycle().take(30_000) {
            let mut bytes = wire.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = usize::from(u16::from_le_bytes([state.to_le_bytes()[5], state.to_le_bytes()[6]]))
                    % bytes.len();
                bytes[at] = state.to_le_bytes()[3];
            }
            let _ = read_frame::<Message>(&bytes[..]);
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            let _ = decoder.next_frame::<Request>();
        }
    }
}
