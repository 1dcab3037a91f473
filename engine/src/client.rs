//! The host's side of the conversation with an agent. Everything that comes back is the guest's word, and is checked.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use agent::protocol::{
    Call, Decoder, FrameError, Message, ProcessId, Request, Stream, StreamOpen, write_frame,
};

use crate::machine::PendingConnection;

/// Bytes read from the control connection at a time.
const READ: usize = 64 * 1024;

/// Requests out, messages in.
pub struct Client {
    socket: UnixStream,
    decoder: Decoder,
    next_id: u64,
}

impl Client {
    /// Takes (a duplicate of) the control connection.
    #[must_use]
    pub fn new(socket: UnixStream) -> Self {
        Self { socket, decoder: Decoder::default(), next_id: 0 }
    }

    /// Sends a request and returns its id; the answer comes among the messages.
    ///
    /// # Errors
    /// The request is larger than a frame may be, or the connection is gone.
    pub fn send(&mut self, call: Call) -> Result<u64, FrameError> {
        self.next_id += 1;
        write_frame(&self.socket, &Request { id: self.next_id, call })?;
        Ok(self.next_id)
    }

    /// Reads once, when the connection is readable, and returns the whole messages that have come.
    ///
    /// # Errors
    /// The agent broke the protocol, or the connection is at its end.
    pub fn read(&mut self) -> Result<Vec<Message>, FrameError> {
        let mut buffer = vec![0u8; READ];
        let n = match self.socket.read(&mut buffer) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        };
        self.decoder.feed(&buffer[..n]);
        let mut messages = Vec::new();
        while let Some(message) = self.decoder.next_frame()? {
            messages.push(message);
        }
        Ok(messages)
    }
}

/// Completes one stream connection and says what it is for.
///
/// # Errors
/// The guest refuses it, or is gone.
pub fn open_stream(pending: PendingConnection, open: &StreamOpen) -> Result<UnixStream, FrameError> {
    let stream = pending.accept()?;
    write_frame(&stream, open)?;
    Ok(stream)
}

/// Completes a process's stream connections, which were requested together.
///
/// # Errors
/// The guest refuses one, or is gone.
pub fn open_streams(
    process: &ProcessId,
    pending: Vec<(PendingConnection, Stream)>,
) -> Result<Vec<(Stream, UnixStream)>, FrameError> {
    pending
        .into_iter()
        .map(|(connection, stream)| {
            let open = StreamOpen::Process { process: process.clone(), stream };
            Ok((stream, open_stream(connection, &open)?))
        })
        .collect()
}
