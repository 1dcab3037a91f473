//! Where a process's output goes: its log, and everybody who is attached; and where its input comes from.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use agent::protocol::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, Notify, watch};

use super::log::Log;
use super::wire::Streams;

/// Bytes copied at a time.
const COPY: usize = 32 * 1024;
/// Bytes of the header of Docker's stream frames: kind, three zeroes, length.
const HEADER: usize = 8;

/// Somebody who is attached.
struct Attached {
    streams: Streams,
    writer: Mutex<Option<OwnedWriteHalf>>,
}

/// A process's standard input. It is there when the process is; `Closed` when it has ended.
pub(super) type Input = Rc<Mutex<Option<OwnedWriteHalf>>>;

/// Copies output to all who want it.
#[derive(Default)]
pub(super) struct Hub {
    attached: RefCell<Vec<Rc<Attached>>>,
    /// Wakes those who read the input of connections that have ended.
    closed: Notify,
}

impl Hub {
    /// Adds somebody. Their input is for the caller to read.
    pub(super) fn attach(&self, connection: UnixStream, streams: Streams) -> OwnedReadHalf {
        let (reader, writer) = connection.into_split();
        self.attached.borrow_mut().push(Rc::new(Attached { streams, writer: Mutex::new(Some(writer)) }));
        reader
    }

    /// Whether nobody is attached.
    pub(super) fn is_empty(&self) -> bool {
        self.attached.borrow().is_empty()
    }

    /// Ends all connections: the output is over.
    pub(super) fn close(&self) {
        self.attached.borrow_mut().clear();
        self.closed.notify_waiters();
    }

    /// Returns at the next [`Self::close`].
    pub(super) async fn closed(&self) {
        self.closed.notified().await;
    }

    /// Sends output to everybody who wants it. Who is slow holds it up, as a terminal would; who is gone is forgotten.
    async fn send(&self, stream: Stream, tty: bool, data: &[u8]) {
        let wants = |a: &Attached| match stream {
            Stream::Stdout => a.streams.stdout,
            Stream::Stderr => a.streams.stderr,
            Stream::Stdin => false,
        };
        let wanting: Vec<_> = self.attached.borrow().iter().filter(|a| wants(a)).map(Rc::clone).collect();
        for attached in wanting {
            let mut place = attached.writer.lock().await;
            let Some(writer) = place.as_mut() else { continue };
            if write(writer, stream, tty, data).await.is_err() {
                place.take();
                self.attached.borrow_mut().retain(|other| !Rc::ptr_eq(other, &attached));
            }
        }
    }

    /// Copies one stream of a process until it ends.
    pub(super) async fn pump(
        &self,
        stream: Stream,
        tty: bool,
        mut from: UnixStream,
        log: Option<Rc<RefCell<Log>>>,
    ) {
        let mut buffer = vec![0u8; COPY];
        // A machine that is gone ends its streams, too.
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            let data = &buffer[..n];
            if let Some(log) = &log {
                log.borrow_mut().write(stream == Stream::Stderr, data);
            }
            if !self.is_empty() {
                self.send(stream, tty, data).await;
            }
        }
        if let Some(log) = &log {
            log.borrow_mut().end(stream == Stream::Stderr);
        }
    }
}

/// Writes output as Docker frames it: raw with a terminal, else with a header that names the stream.
async fn write(writer: &mut OwnedWriteHalf, stream: Stream, tty: bool, data: &[u8]) -> io::Result<()> {
    if tty {
        return writer.write_all(data).await;
    }
    let mut frame = Vec::with_capacity(HEADER + data.len());
    frame.extend_from_slice(&[if stream == Stream::Stderr { 2 } else { 1 }, 0, 0, 0]);
    frame.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(data);
    writer.write_all(&frame).await
}

/// Copies what somebody who is attached types to the process, once it is there. At the end of it, `close` ends the process's input, too.
pub(super) async fn feed(
    mut from: OwnedReadHalf,
    mut input: watch::Receiver<Option<Input>>,
    wanted: bool,
    close: bool,
) {
    let mut buffer = vec![0u8; COPY];
    loop {
        let n = match from.read(&mut buffer).await {
            Ok(n) => n,
            Err(_) => return,
        };
        if !wanted {
            if n == 0 {
                return;
            }
            continue;
        }
        let place = match input.wait_for(Option::is_some).await {
            Ok(place) => place.clone(),
            Err(_) => return,
        };
        let Some(place) = place else { return };
        let mut writer = place.lock().await;
        if n == 0 {
            if close {
                writer.take();
            }
            return;
        }
        let gone = match writer.as_mut() {
            Some(to) => to.write_all(&buffer[..n]).await.is_err(),
            None => true,
        };
        if gone {
            // A process that reads no more; what else is typed is thrown away.
            writer.take();
        }
    }
}
