//! What the engine and a supervisor say to each other, over the container's unix socket.
//!
//! One question a connection: the supervisor greets with one byte, so that who reached one that was just leaving may try
//! again; then a frame with an [`Ask`], and frames with answers ([`Reply`] or [`Refusal`]). Frames are length-prefixed JSON, as the agent's.
//! After [`Reply::Attached`] the connection carries input one way and output the other.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use agent::protocol::{Answer, Call};
use bulkhead_net::protocol::Report;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use crate::error::Refusal;
use crate::model::{Limits, Outcome, Size};

/// The supervisor's first byte.
pub(crate) const GREETING: u8 = b'S';
/// Most bytes of a frame: an agent's answer and what is around it.
const MAX_FRAME: u32 = 2 << 20;

/// A question, and for whom it is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Question<A> {
    /// Id of the request that it belongs to ([`crate::trace`]).
    pub(crate) request: Option<String>,
    /// The question.
    pub(crate) ask: A,
}

/// What the engine asks of a supervisor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Ask {
    /// Start the container. `Changed`.
    Start,
    /// Ask it to end, and end it after so many seconds (negative: never). `Changed`.
    Stop { signal: Option<u8>, timeout: Option<i64> },
    /// Stop, then start. `Done`.
    Restart { signal: Option<u8>, timeout: Option<i64> },
    /// Send its first process a signal. `Done`.
    Kill { signal: u8 },
    /// Freeze its processes. `Done`.
    Pause,
    /// Let them go on. `Done`.
    Unpause,
    /// Set the size of its terminal. `Done`.
    Resize { size: Size },
    /// Apply new limits to its running machine. `Done`.
    Update { limits: Limits },
    /// Connect the running container to a network that its configuration names by now. `Done`.
    Connect { network: String },
    /// Take the running container out of a network. `Done`.
    Disconnect { network: String },
    /// Tell what the switches of its networks counted. `Counted`.
    Count,
    /// `Waiting` at once, `Ended` when it has come to that.
    Wait { until: Until },
    /// `Attached`, then bytes.
    Attach { streams: Streams },
    /// Start a further process. `Attached`, then bytes.
    ExecStart { id: String, size: Option<Size> },
    /// Set the size of a further process's terminal. `Done`.
    ExecResize { id: String, size: Size },
    /// Pass a call that only looks on to the agent. `Answer`.
    Look { call: Box<Call> },
    /// Pass a transfer on. `Transfer` with the stream's descriptor; `Answer` when the agent has answered.
    Transfer { call: Box<Call> },
    /// Remove the container; a running one is ended first if `force` says so. `Done`.
    Remove { force: bool },
}

impl Ask {
    /// Its name in a log.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop { .. } => "stop",
            Self::Restart { .. } => "restart",
            Self::Kill { .. } => "kill",
            Self::Pause => "pause",
            Self::Unpause => "unpause",
            Self::Resize { .. } => "resize",
            Self::Update { .. } => "update",
            Self::Wait { .. } => "wait",
            Self::Attach { .. } => "attach",
            Self::ExecStart { .. } => "exec start",
            Self::ExecResize { .. } => "exec resize",
            Self::Look { .. } => "look",
            Self::Transfer { .. } => "transfer",
            Self::Connect { .. } => "connect",
            Self::Disconnect { .. } => "disconnect",
            Self::Count => "count",
            Self::Remove { .. } => "remove",
        }
    }
}

/// Until when to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// It does not run; at once if it does not run now.
    NotRunning,
    /// It ends the next time.
    NextExit,
    /// It has been removed.
    Removed,
}

/// Streams to attach to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Streams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output; with a terminal, all output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

/// What a supervisor answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// It is done.
    Done,
    /// Whether there was anything to do.
    Changed(bool),
    /// The wait has begun.
    Waiting,
    /// It ended so.
    Ended(Outcome),
    /// From here on the connection is the process's streams.
    Attached { tty: bool },
    /// What the switches counted, by network.
    Counted(BTreeMap<String, Report>),
    /// The agent's answer.
    Answer(Box<Answer>),
    /// A descriptor comes with the next byte.
    Transfer,
}

/// Writes a frame.
pub(crate) async fn write_frame(stream: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).ok().filter(|n| *n <= MAX_FRAME);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a frame is too large"))?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(&body);
    stream.write_all(&frame).await
}

/// Reads a frame.
pub(crate) async fn read_frame<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<T> {
    let length = stream.read_u32().await?;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too large"));
    }
    let mut body = vec![0; usize::try_from(length).unwrap_or(0)];
    stream.read_exact(&mut body).await?;
    Ok(serde_json::from_slice(&body)?)
}

/// Writes the answer to a question.
pub(crate) async fn answer(stream: &mut UnixStream, answer: &Result<Reply, Refusal>) -> io::Result<()> {
    write_frame(stream, answer).await
}

/// Sends a descriptor with one byte.
pub(crate) async fn send_descriptor(stream: &UnixStream, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let rights = [descriptor.as_raw_fd()];
    let send = || {
        let control = [ControlMessage::ScmRights(&rights)];
        let data = [io::IoSlice::new(&[0])];
        Ok(sendmsg::<()>(stream.as_raw_fd(), &data, &control, MsgFlags::MSG_NOSIGNAL, None)?)
    };
    stream.async_io(Interest::WRITABLE, send).await.map(drop)
}

/// Receives a descriptor with one byte.
pub(crate) async fn receive_descriptor(stream: &UnixStream) -> io::Result<OwnedFd> {
    stream
        .async_io(Interest::READABLE, || {
            let mut byte = [0u8];
            let mut data = [io::IoSliceMut::new(&mut byte)];
            let mut space = nix::cmsg_space!([RawFd; 1]);
            let message =
                recvmsg::<()>(stream.as_raw_fd(), &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
            let fds = message.cmsgs()?.find_map(|part| match part {
                ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                _ => None,
            });
            let fd = fds.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
            // SAFETY: the kernel has just installed this descriptor for us; nobody else owns it.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        })
        .await
}
