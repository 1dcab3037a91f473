//! Stream connections from the host, from their first frame until a process claims them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::epoll::Epoll;
use nix::unistd::read;

use crate::protocol::{Decoder, ProcessId, Stream, StreamOpen};

/// Most connections that have not said what they are; the oldest gives way to a new one.
const MAX_GREETING: usize = 64;
/// Most connections that wait for their process or transfer; further ones are closed.
const MAX_OPENED: usize = 256;

/// A connection and what was read of it beyond the first frame.
pub(crate) type Opened = (OwnedFd, Vec<u8>);

/// All connections that no process has claimed yet.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    /// By token, so the first is the oldest.
    greeting: BTreeMap<u64, (OwnedFd, Decoder)>,
    opened: BTreeMap<StreamOpen, Opened>,
}

impl Streams {
    /// Takes a new connection. Closing one, as happens to the oldest if there are too many, takes it off any epoll.
    pub(crate) fn accept(&mut self, token: u64, connection: OwnedFd) -> &OwnedFd {
        if self.greeting.len() >= MAX_GREETING {
            self.greeting.pop_first();
        }
        &self.greeting.entry(token).or_insert((connection, Decoder::default())).0
    }

    /// Whether a token is a connection that has not said what it is.
    pub(crate) fn is_greeting(&self, token: u64) -> bool {
        self.greeting.contains_key(&token)
    }

    /// Reads the first frame. Once it is whole, or the connection is of no use, `epoll` forgets the connection; a process that claims it
    /// watches it anew. Tells whether a stream was opened.
    pub(crate) fn read_greeting(&mut self, token: u64, epoll: &Epoll) -> nix::Result<bool> {
        let Some((connection, decoder)) = self.greeting.get_mut(&token) else { return Ok(false) };
        // No more than the frame and what follows at once: bounded by one buffer beyond the largest greeting.
        let mut buffer = [0u8; 4096];
        let opened = match read(&*connection, &mut buffer) {
            Ok(n) if n > 0 => {
                decoder.feed(&buffer[..n]);
                match decoder.next_frame::<StreamOpen>() {
                    Ok(None) => return Ok(false),
                    opened => opened.ok().flatten(),
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
            _ => None,
        };
        epoll.delete(&*connection)?;
        let greeted = self.greeting.remove(&token);
        let (Some((connection, decoder)), Some(open)) = (greeted, opened) else { return Ok(false) };
        if self.opened.len() < MAX_OPENED {
            self.opened.entry(open).or_insert((connection, decoder.into_rest()));
        }
        Ok(true)
    }

    /// Whether all these streams of a process are open.
    pub(crate) fn all_open(&self, process: &ProcessId, wanted: &[Stream]) -> bool {
        wanted.iter().all(|stream| {
            self.opened.contains_key(&StreamOpen::Process { process: process.clone(), stream: *stream })
        })
    }

    /// Whether the stream of a transfer is open.
    pub(crate) fn is_transfer_open(&self, request: u64) -> bool {
        self.opened.contains_key(&StreamOpen::Transfer { request })
    }

    /// Hands a stream to its transfer.
    pub(crate) fn claim_transfer(&mut self, request: u64) -> io::Result<Opened> {
        self.take(&StreamOpen::Transfer { request })
    }

    /// Closes the streams that a process did not claim.
    pub(crate) fn forget(&mut self, gone: &ProcessId) {
        self.opened.retain(|open, _| !matches!(open, StreamOpen::Process { process, .. } if process == gone));
    }

    /// Hands a stream to its process.
    pub(crate) fn claim(&mut self, process: &ProcessId, stream: Stream) -> io::Result<Opened> {
        self.take(&StreamOpen::Process { process: process.clone(), stream })
    }

    fn take(&mut self, key: &StreamOpen) -> io::Result<Opened> {
        self.opened
            .remove(key)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the stream is not open"))
    }
}
