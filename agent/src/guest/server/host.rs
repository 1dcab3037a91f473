//! The control connection: made at boot, and made anew by a machine that was restored from a snapshot.
//!
//! A restored machine's connections are gone (the vsock device says so), and its host is another. On every connection but the first, nothing is
//! served before [`Call::Restored`]: what a twin must not share with the others is settled before anything is done with it.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::read;

use crate::guest::{AgentError, Context};
use crate::protocol::{
    self, Answer, Call, Decoder, Failure, FailureKind, FrameError, Message, Request, VERSION,
};

/// A request, by its connection and its id there. Only its own connection gets its answer: the same id on another names another request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    connection: u64,
    /// As the host chose it.
    pub(super) id: u64,
}

/// The host, at the other end of the present connection.
pub(super) struct Host {
    socket: OwnedFd,
    decoder: Decoder,
    connection: u64,
    /// The connection is of no use any more.
    lost: bool,
    /// The host may ask for anything: the machine was booted, or has been told that it was restored.
    settled: bool,
    /// What happened while nobody could be told: the ends of processes, each once, and the last count of kills.
    unsent: VecDeque<Message>,
}

impl Host {
    /// The host of a machine that was booted. Says hello.
    pub(super) fn new(socket: OwnedFd) -> Result<Self, AgentError> {
        let mut host = Self {
            socket,
            decoder: Decoder::default(),
            connection: 0,
            lost: false,
            settled: true,
            unsent: VecDeque::new(),
        };
        host.greet()?;
        Ok(host)
    }

    /// The host of a machine that was restored: its connection takes the place of the one that is lost. Says hello.
    pub(super) fn renew(&mut self, socket: OwnedFd) -> Result<(), AgentError> {
        self.socket = socket;
        self.decoder = Decoder::default();
        self.connection += 1;
        self.lost = false;
        self.settled = false;
        self.greet()
    }

    fn greet(&mut self) -> Result<(), AgentError> {
        self.write(&Message::Hello { version: VERSION }).map(drop)
    }

    /// Whether the connection is of no use any more.
    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether the host may ask for anything.
    pub(super) fn is_settled(&self) -> bool {
        self.settled
    }

    /// Counts the machine's hosts from 0.
    pub(super) fn number(&self) -> u64 {
        self.connection
    }

    /// Reads what has arrived.
    pub(super) fn read(&mut self) -> Result<(), AgentError> {
        let mut buffer = [0u8; 16 * 1024];
        match read(&self.socket, &mut buffer) {
            Ok(0) => self.lost = true,
            Ok(n) => self.decoder.feed(buffer.get(..n).unwrap_or_default()),
            Err(Errno::EINTR) => {}
            Err(error) if is_end(error) => self.lost = true,
            Err(error) => return Err(error).context("read from the host"),
        }
        Ok(())
    }

    /// The next request that is to be served; those that come too early are refused here.
    pub(super) fn next_request(&mut self) -> Result<Option<(Asked, Call)>, AgentError> {
        while !self.lost {
            let request = self.decoder.next_frame::<Request>();
            let Some(Request { id, call }) = request.map_err(io::Error::other).context("read a request")?
            else {
                break;
            };
            let asked = Asked { connection: self.connection, id };
            if self.settled || matches!(call, Call::Restored(_)) {
                return Ok(Some((asked, call)));
            }
            let text = "the machine was restored from a snapshot and has not been told so: the first call is `restored`";
            self.reply(asked, Err(Failure::new(FailureKind::Other, text)))?;
        }
        Ok(None)
    }

    /// Answers a request, if its connection is the present one.
    pub(super) fn reply(&mut self, asked: Asked, result: Result<Answer, Failure>) -> Result<(), AgentError> {
        if asked.connection == self.connection {
            self.write(&Message::Reply { id: asked.id, result })?;
        }
        Ok(())
    }

    /// Tells of an event, now or as soon as there is a host that may be told.
    pub(super) fn tell(&mut self, event: Message) -> Result<(), AgentError> {
        if !self.settled || !self.write(&event)? {
            if matches!(event, Message::Oom { .. }) {
                self.unsent.retain(|unsent| !matches!(unsent, Message::Oom { .. }));
            }
            self.unsent.push_back(event);
        }
        Ok(())
    }

    /// The machine has been told that it was restored, and is another now.
    pub(super) fn settle(&mut self) -> Result<(), AgentError> {
        self.settled = true;
        while let Some(event) = self.unsent.pop_front() {
            if !self.write(&event)? {
                self.unsent.push_front(event);
                break;
            }
        }
        Ok(())
    }

    /// Writes one message; false if the connection is of no use any more.
    fn write(&mut self, message: &Message) -> Result<bool, AgentError> {
        if self.lost {
            return Ok(false);
        }
        let writer = self.socket.try_clone().map(File::from).context("answer the host")?;
        match protocol::write_frame(writer, message) {
            Ok(()) => Ok(true),
            Err(FrameError::Io(error)) if error.raw_os_error().map(Errno::from_raw).is_some_and(is_end) => {
                self.lost = true;
                Ok(false)
            }
            Err(error) => Err(io::Error::other(error)).context("answer the host"),
        }
    }
}

impl AsFd for Host {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether an error is the end of a connection.
fn is_end(error: Errno) -> bool {
    matches!(error, Errno::ECONNRESET | Errno::ENOTCONN | Errno::EPIPE)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::protocol::{Bytes, ExitStatus, ProcessId, Restored, ShutdownMethod, read_frame, write_frame};

    fn pair() -> (UnixStream, OwnedFd) {
        let (host, guest) = UnixStream::pair().unwrap();
        host.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        (host, guest.into())
    }

    fn message(host: &UnixStream) -> Message {
        read_frame(host).unwrap().unwrap()
    }

    fn ask(host: &UnixStream, id: u64, call: Call) {
        write_frame(host, &Request { id, call }).unwrap();
    }

    fn restored() -> Call {
        let news = Restored { generation: Bytes([1; 16]), entropy: Bytes([2; 64]), wall_clock: 3 };
        Call::Restored(Box::new(news))
    }

    fn exited(name: &str) -> Message {
        let process = ProcessId::try_from(name.to_owned()).unwrap();
        Message::Exited { process, status: ExitStatus::Code(0), oom_killed: false }
    }

    #[test]
    fn a_host_that_does_not_say_that_the_machine_was_restored_gets_nothing_served() {
        let (first, socket) = pair();
        let mut host = Host::new(socket).unwrap();
        assert_eq!(message(&first), Message::Hello { version: VERSION });
        ask(&first, 1, Call::Processes);
        host.read().unwrap();
        assert!(
            matches!(host.next_request().unwrap(), Some((_, Call::Processes))),
            "a booted machine serves"
        );

        drop(first);
        host.read().unwrap();
        assert!(host.is_lost());
        let (second, socket) = pair();
        host.renew(socket).unwrap();
        assert_eq!(message(&second), Message::Hello { version: VERSION });
        let calls: [fn() -> Call; 6] = [
            || Call::Processes,
            || Call::Pause,
            || Call::Unpause,
            || Call::Export,
            || Call::Signal { process: ProcessId::try_from("init".to_owned()).unwrap(), signal: 9 },
            || Call::Shutdown { method: ShutdownMethod::Reset },
        ];
        for (id, call) in (0..).zip(calls) {
            ask(&second, id, call());
            host.read().unwrap();
            assert!(host.next_request().unwrap().is_none());
            let Message::Reply { id: answered, result: Err(failure) } = message(&second) else { panic!() };
            assert_eq!(answered, id);
            assert!(failure.text.contains("first call is `restored`"), "{failure}");
        }
        // Being asked for is not enough: it must have been done.
        for id in [20, 21] {
            ask(&second, id, restored());
            ask(&second, 30, Call::Processes);
            host.read().unwrap();
            assert!(matches!(host.next_request().unwrap(), Some((_, Call::Restored(_)))));
            assert!(host.next_request().unwrap().is_none());
            assert!(matches!(message(&second), Message::Reply { id: 30, result: Err(_) }));
        }
        host.settle().unwrap();
        ask(&second, 40, Call::Processes);
        host.read().unwrap();
        assert!(matches!(host.next_request().unwrap(), Some((_, Call::Processes))));
    }

    #[test]
    fn what_an_earlier_host_asked_is_not_answered_to_the_next() {
        let (first, socket) = pair();
        let mut host = Host::new(socket).unwrap();
        ask(&first, 7, Call::Processes);
        ask(&first, 8, Call::Stats);
        host.read().unwrap();
        let (asked, _) = host.next_request().unwrap().unwrap();
        drop(first);
        host.reply(asked, Ok(Answer::Done)).unwrap();
        assert!(host.is_lost(), "writing notices it too");
        assert!(host.next_request().unwrap().is_none(), "what has not been taken up never is");

        let (second, socket) = pair();
        host.renew(socket).unwrap();
        host.reply(asked, Ok(Answer::Done)).unwrap();
        ask(&second, 7, restored());
        host.read().unwrap();
        let (again, _) = host.next_request().unwrap().unwrap();
        assert_ne!(asked, again);
        host.reply(again, Ok(Answer::Done)).unwrap();
        assert_eq!(message(&second), Message::Hello { version: VERSION });
        assert_eq!(message(&second), Message::Reply { id: 7, result: Ok(Answer::Done) });
        second.set_nonblocking(true).unwrap();
        assert!(read_frame::<Message>(&second).is_err(), "and nothing else");
    }

    #[test]
    fn what_happens_meanwhile_is_told_to_the_next_host_when_it_may_be() {
        let (first, socket) = pair();
        let mut host = Host::new(socket).unwrap();
        drop(first);
        host.tell(exited("one")).unwrap();
        host.tell(Message::Oom { kills: 1 }).unwrap();
        assert!(host.is_lost());
        let (second, socket) = pair();
        host.renew(socket).unwrap();
        host.tell(Message::Oom { kills: 2 }).unwrap();
        host.tell(exited("two")).unwrap();
        ask(&second, 1, restored());
        host.read().unwrap();
        let (asked, _) = host.next_request().unwrap().unwrap();
        host.reply(asked, Ok(Answer::Done)).unwrap();
        host.settle().unwrap();
        host.tell(exited("three")).unwrap();
        let told: Vec<Message> = (0..6).map(|_| message(&second)).collect();
        assert_eq!(
            told,
            [
                Message::Hello { version: VERSION },
                Message::Reply { id: 1, result: Ok(Answer::Done) },
                exited("one"),
                Message::Oom { kills: 2 },
                exited("two"),
                exited("three"),
            ]
        );
    }
}
