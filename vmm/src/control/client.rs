//! The supervisor's end of the control socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::{Answer, ControlSocket, Envelope, Message, Request, VERSION};

/// Numbers requests and says hello. Answers and events are read from it in the order in which the VMM sent them.
#[derive(Debug)]
pub struct Client {
    socket: ControlSocket,
    next: u64,
}

impl Client {
    /// Greets the VMM on the other end; its answer comes with the first [`Self::receive`].
    ///
    /// # Errors
    /// The other end is gone.
    pub fn new(socket: ControlSocket) -> io::Result<Self> {
        let mut client = Self { socket, next: 0 };
        client.ask(Request::Hello { version: VERSION }, &[])?;
        Ok(client)
    }

    /// The other end has been greeted already.
    #[must_use]
    pub fn adopt(socket: ControlSocket) -> Self {
        Self { socket, next: 1 }
    }

    /// Sends a request; returns its number.
    ///
    /// # Errors
    /// As [`ControlSocket::send`].
    pub fn ask(&mut self, request: Request, descriptors: &[BorrowedFd<'_>]) -> io::Result<u64> {
        let id = self.next;
        self.socket.send(&Envelope { id, request }, descriptors)?;
        self.next += 1;
        Ok(id)
    }

    /// Waits for the next message; `None` when the VMM is gone.
    ///
    /// # Errors
    /// What came is no message.
    pub fn receive(&self) -> io::Result<Option<Message>> {
        Ok(self.socket.receive::<Message>()?.map(|(message, _)| message))
    }
}

impl Client {
    /// Sends a request and waits for its answer; events that come before are left out.
    ///
    /// # Errors
    /// As [`Self::ask`] and [`Self::receive`]; the VMM is gone.
    pub fn call(&mut self, request: Request, descriptors: &[BorrowedFd<'_>]) -> io::Result<Answer> {
        let asked = self.ask(request, descriptors)?;
        loop {
            match self.receive()? {
                Some(Message::Reply { id, answer }) if id == asked => return Ok(answer),
                Some(_) => {}
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
