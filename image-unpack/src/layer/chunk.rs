//! Buffers that travel between the threads of a layer's pipeline, and return to their pool.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a buffer. Larger ones leave the processor's cache, smaller ones wake threads more often.
pub(crate) const CHUNK: usize = 128 << 10;

/// Buffers not in use.
#[derive(Default)]
pub(crate) struct Pool(Mutex<Vec<Box<[u8]>>>);

/// A filled buffer; goes back to its pool when its last reader is done.
pub(crate) struct Chunk {
    bytes: Box<[u8]>,
    length: usize,
    pool: Arc<Pool>,
}

impl Chunk {
    /// An empty buffer of [`CHUNK`] bytes.
    pub(crate) fn take(pool: &Arc<Pool>) -> Self {
        let free = pool.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = free.unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice());
        Self { bytes, length: 0, pool: Arc::clone(pool) }
    }

    /// Reads until the buffer is full or the input ends; true if it ended.
    pub(crate) fn fill(&mut self, input: &mut dyn Read) -> io::Result<bool> {
        while self.length < self.bytes.len() {
            match input.read(&mut self.bytes[self.length..]) {
                Ok(0) => return Ok(true),
                Ok(n) => self.length += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.pool.0.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
}

/// What an earlier stage sends: content, then its end, or word that it failed (and tells why elsewhere).
pub(crate) type Message = Result<Arc<Chunk>, UpstreamFailed>;

/// The stage before this one failed.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("an earlier stage failed")]
pub(crate) struct UpstreamFailed;

/// A channel of chunks as a stream.
pub(crate) struct ChunkReader {
    input: Receiver<Message>,
    current: Option<Arc<Chunk>>,
    at: usize,
    /// Bytes of chunks before the current one.
    before: u64,
}

impl ChunkReader {
    pub(crate) fn new(input: Receiver<Message>) -> Self {
        Self { input, current: None, at: 0, before: 0 }
    }

    /// Bytes consumed.
    pub(crate) fn consumed(&self) -> u64 {
        self.before + self.at as u64
    }
}

impl BufRead for ChunkReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.as_ref().is_none_or(|chunk| self.at == chunk.length) {
            match self.input.recv() {
                Ok(Ok(chunk)) => {
                    self.before += self.at as u64;
                    self.at = 0;
                    self.current = Some(chunk);
                }
                Ok(Err(failed)) => return Err(io::Error::other(failed)),
                Err(_) => return Ok(&[]),
            }
        }
        Ok(self.current.as_ref().map_or(&[], |chunk| &chunk.bytes()[self.at..]))
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl Read for ChunkReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let n = bytes.len().min(out.len());
        out[..n].copy_from_slice(&bytes[..n]);
        self.consume(n);
        Ok(n)
    }
}
