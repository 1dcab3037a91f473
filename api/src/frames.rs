//! Docker's frames: output and errors of a container without a terminal share one stream, in frames of eight bytes of
//! header (stream number, three zeros, length as a big-endian number) and that many bytes.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of a header.
pub const HEADER: usize = 8;
/// Most bytes of one frame that a client of ours accepts.
pub const MAX_FRAME: usize = 16 << 20;

/// Whose bytes a frame has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Standard input; only ever told back.
    Stdin,
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The server's own words.
    System,
}

impl Channel {
    fn number(self) -> u8 {
        match self {
            Self::Stdin => 0,
            Self::Stdout => 1,
            Self::Stderr => 2,
            Self::System => 3,
        }
    }

    fn of_number(number: u8) -> Option<Self> {
        [Self::Stdin, Self::Stdout, Self::Stderr, Self::System].into_iter().find(|c| c.number() == number)
    }
}

/// Writes one frame; none for no bytes, several for very many.
#[must_use]
pub fn frame(channel: Channel, bytes: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER + bytes.len());
    for part in bytes.chunks(MAX_FRAME) {
        out.put_u8(channel.number());
        out.put_bytes(0, 3);
        // A chunk is at most MAX_FRAME.
        out.put_u32(u32::try_from(part.len()).unwrap_or(u32::MAX));
        out.put_slice(part);
    }
    out.freeze()
}

/// Reads frames.
#[derive(Debug)]
pub struct FrameReader<R> {
    reader: R,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames from a stream.
    pub fn new(reader: R) -> Self {
        Self { reader }
    }

    /// The next frame; `None` at the end of the stream.
    ///
    /// # Errors
    /// The stream failed or ended within a frame, or a header is not one.
    pub async fn next(&mut self) -> io::Result<Option<(Channel, Bytes)>> {
        let mut header = [0u8; HEADER];
        let first = self.reader.read(&mut header).await?;
        if first == 0 {
            return Ok(None);
        }
        self.reader.read_exact(header.get_mut(first..).unwrap_or_default()).await?;
        let bad = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let [number, 0, 0, 0, ..] = header else { return Err(bad(format!("no frame header: {header:?}"))) };
        let channel = Channel::of_number(number).ok_or_else(|| bad(format!("no stream {number}")))?;
        let length = (&header[4..]).get_u32() as usize;
        if length > MAX_FRAME {
            return Err(bad(format!("a frame of {length} bytes")));
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body).await?;
        Ok(Some((channel, body.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_are_read_as_they_were_written() {
        let wire = [
            frame(Channel::Stdout, b"out"),
            frame(Channel::Stderr, b"err"),
            frame(Channel::Stderr, b""),
            frame(Channel::System, b"!"),
        ]
        .concat();
        assert_eq!(&wire[..11], b"\x01\0\0\0\0\0\0\x03out");
        // Byte by byte, as a slow connection delivers.
        let (mut feed, reader) = tokio::io::duplex(1);
        let writer = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut feed, &wire).await.unwrap();
        });
        let mut frames = FrameReader::new(reader);
        assert_eq!(frames.next().await.unwrap(), Some((Channel::Stdout, Bytes::from_static(b"out"))));
        assert_eq!(frames.next().await.unwrap(), Some((Channel::Stderr, Bytes::from_static(b"err"))));
        assert_eq!(frames.next().await.unwrap(), Some((Channel::System, Bytes::from_static(b"!"))));
        assert_eq!(frames.next().await.unwrap(), None);
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_frame_is_an_error() {
        for wire in [
            &b"\x01\0\0\0\0\0\0\x05abc"[..],
            b"\x01\0\0",
            b"\x09\0\0\0\0\0\0\0",
            b"\x01\x01\0\0\0\0\0\0",
            b"\x01\0\0\0\xff\xff\xff\xff",
        ] {
            assert!(FrameReader::new(wire).next().await.is_err(), "{wire:?}");
        }
    }
}
