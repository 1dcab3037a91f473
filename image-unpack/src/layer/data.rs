//! The data blob of a layer: the content of its files, each beginning on a 4 KiB block, written once from start to
//! end in large writes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of an EROFS block.
pub(crate) const BLOCK: u64 = 4096;
const BUFFER: usize = 1 << 20;

/// Where layer data goes. A trait so that the pass can be fuzzed without files.
pub(crate) trait Sink {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
}

impl Sink for File {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }
}

/// Appends file content to a data blob.
pub(crate) struct DataWriter<S: Sink> {
    sink: S,
    buffer: Vec<u8>,
    /// Offset in the blob of the buffer's first byte; always block-aligned.
    base: u64,
}

impl<S: Sink> DataWriter<S> {
    pub(crate) fn new(sink: S) -> Self {
        Self { sink, buffer: Vec::with_capacity(BUFFER), base: 0 }
    }

    /// Bytes so far.
    pub(crate) fn position(&self) -> u64 {
        self.base + self.buffer.len() as u64
    }

    /// The block that the next byte falls in. The position must be aligned.
    pub(crate) fn block(&self) -> Option<u32> {
        u32::try_from(self.position() / BLOCK).ok().filter(|&block| block != u32::MAX)
    }

    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = BUFFER - self.buffer.len();
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = rest;
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Moves on by `length` bytes that read as zeros; long runs become holes of the blob.
    pub(crate) fn skip(&mut self, length: u64) -> io::Result<()> {
        let room = (BUFFER - self.buffer.len()) as u64;
        if length < room {
            let length = usize::try_from(length).map_err(io::Error::other)?;
            self.buffer.resize(self.buffer.len() + length, 0);
            return Ok(());
        }
        // The target lies at or after the buffer's (aligned) end, so its block holds nothing yet.
        let target = self.position() + length;
        self.flush()?;
        self.base = target / BLOCK * BLOCK;
        let within = usize::try_from(target % BLOCK).map_err(io::Error::other)?;
        self.buffer.resize(within, 0);
        Ok(())
    }

    /// Fills up to the next block boundary with zeros.
    pub(crate) fn align(&mut self) {
        // The buffer's base and capacity are aligned, so this never overruns.
        let length = self.buffer.len().next_multiple_of(4096);
        self.buffer.resize(length, 0);
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.write_at(&self.buffer, self.base)?;
        self.base += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes what is left; the blob's length, a multiple of 4096.
    pub(crate) fn finish(mut self) -> io::Result<(S, u64)> {
        self.align();
        self.flush()?;
        Ok((self.sink, self.base))
    }
}
