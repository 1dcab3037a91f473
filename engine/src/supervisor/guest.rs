//! The supervisor's end of the conversation with a machine's agent. Everything that comes back is the guest's word, and is checked.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;

use agent::protocol::{
    self, Answer, Call, Decoder, ExitStatus, Failure, Message, ProcessId, Request, STREAM_PORT, Stream,
    StreamOpen, write_frame,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, oneshot, watch};

use crate::EngineError;

/// Bytes read from the control connection at a time.
const READ: usize = 64 * 1024;
/// Longest line with which a stream connection is answered, in bytes.
const MAX_LINE: usize = 64;

/// How a process of the guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exit {
    pub(super) status: ExitStatus,
    pub(super) oom_killed: bool,
}

/// A machine's agent.
pub(super) struct Guest {
    writer: Mutex<OwnedWriteHalf>,
    next_id: Cell<u64>,
    replies: RefCell<HashMap<u64, oneshot::Sender<Result<Answer, Failure>>>>,
    exits: RefCell<HashMap<ProcessId, oneshot::Sender<Exit>>>,
    hello: RefCell<Option<oneshot::Sender<()>>>,
    /// Kills for lack of memory, as the guest counts them.
    pub(super) oom_kills: watch::Sender<u64>,
    /// Why the conversation is over, once it is.
    gone: RefCell<Option<String>>,
}

impl Guest {
    /// Takes the control connection and listens to it. The receiver gets the agent's first word.
    pub(super) fn new(control: UnixStream) -> (Rc<Self>, oneshot::Receiver<()>) {
        let (reader, writer) = control.into_split();
        let (hello, said) = oneshot::channel();
        let guest = Rc::new(Self {
            writer: Mutex::new(writer),
            next_id: Cell::new(0),
            replies: RefCell::default(),
            exits: RefCell::default(),
            hello: RefCell::new(Some(hello)),
            oom_kills: watch::channel(0).0,
            gone: RefCell::new(None),
        });
        let listening = Rc::clone(&guest);
        tokio::task::spawn_local(async move {
            let why = listening.listen(reader).await;
            *listening.gone.borrow_mut() = Some(why);
            // Whoever waits for a word learns that none will come.
            listening.replies.borrow_mut().clear();
            listening.exits.borrow_mut().clear();
            listening.hello.borrow_mut().take();
        });
        (guest, said)
    }

    /// Reads until the connection's end, and returns why it is over.
    async fn listen(&self, mut reader: OwnedReadHalf) -> String {
        let mut decoder = Decoder::default();
        let mut buffer = vec![0u8; READ];
        loop {
            match reader.read(&mut buffer).await {
                Ok(0) => return "the agent's connection is closed".to_owned(),
                Ok(n) => decoder.feed(&buffer[..n]),
                Err(e) => return e.to_string(),
            }
            loop {
                match decoder.next_frame::<Message>() {
                    Ok(Some(message)) => {
                        if let Err(why) = self.hear(message) {
                            return why.to_owned();
                        }
                    }
                    Ok(None) => break,
                    Err(e) => return e.to_string(),
                }
            }
        }
    }

    fn hear(&self, message: Message) -> Result<(), &'static str> {
        match message {
            Message::Hello { version } if version == protocol::VERSION => {
                let said = self.hello.borrow_mut().take().ok_or("it said hello twice")?;
                let _ = said.send(());
            }
            Message::Hello { .. } => return Err("it speaks another version of the protocol"),
            Message::Reply { id, result } => {
                if id == 0 || id > self.next_id.get() {
                    return Err("it answered what was never asked");
                }
                if let Some(waiting) = self.replies.borrow_mut().remove(&id) {
                    let _ = waiting.send(result);
                }
            }
            Message::Exited { process, status, oom_killed } => {
                // A process that was never started, or a second end: nobody waits for it.
                if let Some(waiting) = self.exits.borrow_mut().remove(&process) {
                    let _ = waiting.send(Exit { status, oom_killed });
                }
            }
            Message::Oom { kills } => {
                let _ = self.oom_kills.send_replace(kills);
            }
        }
        Ok(())
    }

    /// Why the conversation is over.
    pub(super) fn why_gone(&self) -> String {
        self.gone.borrow().clone().unwrap_or_else(|| "the agent is gone".to_owned())
    }

    /// Sends a call; its id, and the answer to come.
    pub(super) async fn send(
        &self,
        call: Call,
    ) -> Result<(u64, oneshot::Receiver<Result<Answer, Failure>>), EngineError> {
        let id = self.next_id.get() + 1;
        self.next_id.set(id);
        let mut frame = Vec::new();
        write_frame(&mut frame, &Request { id, call })?;
        let (sender, answer) = oneshot::channel();
        if self.gone.borrow().is_some() {
            return Err(self.broken());
        }
        self.replies.borrow_mut().insert(id, sender);
        let mut writer = self.writer.lock().await;
        if let Err(e) = writer.write_all(&frame).await {
            self.replies.borrow_mut().remove(&id);
            return Err(EngineError::Agent(e.into()));
        }
        Ok((id, answer))
    }

    /// Waits for an answer.
    pub(super) async fn answer(
        &self,
        answer: oneshot::Receiver<Result<Answer, Failure>>,
    ) -> Result<Result<Answer, Failure>, EngineError> {
        answer.await.map_err(|_| self.broken())
    }

    /// Makes a call and waits for its answer.
    pub(super) async fn call(&self, call: Call) -> Result<Answer, EngineError> {
        let (_, answer) = self.send(call).await?;
        self.answer(answer).await?.map_err(EngineError::Guest)
    }

    /// The end of a process that is about to be started.
    pub(super) fn exit_of(&self, process: &ProcessId) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        if self.gone.borrow().is_none() {
            self.exits.borrow_mut().insert(process.clone(), sender);
        }
        receiver
    }

    /// Forgets a process that was not started after all.
    pub(super) fn forget(&self, process: &ProcessId) {
        self.exits.borrow_mut().remove(process);
    }

    /// The error for a conversation that ended.
    pub(super) fn broken(&self) -> EngineError {
        EngineError::Agent(io::Error::new(io::ErrorKind::ConnectionAborted, self.why_gone()).into())
    }
}

/// A stream connection that has been asked for.
pub(super) struct Connecting(UnixStream);

impl Connecting {
    /// Asks the machine for a stream connection, over its vsock's socket.
    pub(super) fn request(socket: std::os::unix::net::UnixStream) -> io::Result<Self> {
        io::Write::write_all(&mut &socket, format!("CONNECT {STREAM_PORT}\n").as_bytes())?;
        socket.set_nonblocking(true)?;
        Ok(Self(UnixStream::from_std(socket)?))
    }

    /// Waits for the connection, and says what it is for.
    pub(super) async fn open(mut self, open: &StreamOpen) -> Result<UnixStream, EngineError> {
        let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, "the guest refused a stream");
        // Byte by byte: what follows the line belongs to the stream.
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            if line.len() == MAX_LINE {
                return Err(EngineError::Agent(refused().into()));
            }
            line.push(self.0.read_u8().await.map_err(|e| EngineError::Agent(e.into()))?);
        }
        if !line.starts_with(b"OK ") {
            return Err(EngineError::Agent(refused().into()));
        }
        let mut frame = Vec::new();
        write_frame(&mut frame, open)?;
        self.0.write_all(&frame).await.map_err(|e| EngineError::Agent(e.into()))?;
        Ok(self.0)
    }
}

/// The connections that a process needs, all asked for before the first is waited for.
pub(super) struct ProcessStreams(Vec<(Stream, Connecting)>);

impl ProcessStreams {
    /// Asks for them.
    pub(super) fn request(
        mut connect: impl FnMut() -> io::Result<std::os::unix::net::UnixStream>,
        tty: bool,
        stdin: bool,
    ) -> Result<Self, EngineError> {
        let mut wanted = vec![Stream::Stdout];
        if !tty {
            wanted.push(Stream::Stderr);
        }
        if stdin {
            wanted.push(Stream::Stdin);
        }
        let asked = wanted.into_iter().map(|stream| Ok((stream, Connecting::request(connect()?)?)));
        let asked = asked.collect::<io::Result<_>>();
        asked.map(Self).map_err(|e| EngineError::Agent(e.into()))
    }

    /// Waits for them.
    pub(super) async fn open(self, process: &ProcessId) -> Result<Vec<(Stream, UnixStream)>, EngineError> {
        let mut streams = Vec::new();
        for (stream, connecting) in self.0 {
            let open = StreamOpen::Process { process: process.clone(), stream };
            streams.push((stream, connecting.open(&open).await?));
        }
        Ok(streams)
    }
}
