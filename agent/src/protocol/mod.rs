//! What host and guest say to each other, over vsock.
//!
//! The guest connects to the host's [`CONTROL_PORT`] once; that connection carries length-prefixed JSON frames
//! ([`frame`]): [`Request`]s to the guest, [`Message`]s back. Each pipe of a process is a connection of its own: the host connects
//! to the guest's [`STREAM_PORT`], sends one frame with a [`StreamOpen`], and from then on the connection is the pipe:
//! flow control is vsock's credit, end of file is a half-close.
//!
//! Both sides treat the other as hostile: every length has a bound here, every string is checked before use.

mod frame;
pub mod spec;

pub use frame::{Decoder, FrameError, MAX_FRAME, read_frame, write_frame};

use serde::{Deserialize, Serialize};

/// Version of this protocol; both sides must say the same.
pub const VERSION: u32 = 1;
/// Port of the control connection, on the host (CID 2).
pub const CONTROL_PORT: u32 = 1024;
/// Port on which the guest accepts stream connections.
pub const STREAM_PORT: u32 = 1025;
/// Longest process id in bytes.
pub const MAX_PROCESS_ID: usize = 64;
/// Longest error text in bytes; a longer one is cut.
pub const MAX_ERROR: usize = 4096;
/// Highest signal number.
pub const MAX_SIGNAL: u8 = 64;

/// Name of a process within its machine: 1 to [`MAX_PROCESS_ID`] characters of `[A-Za-z0-9_.-]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProcessId(String);

impl ProcessId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ProcessId {
    type Error = &'static str;

    fn try_from(id: String) -> Result<Self, Self::Error> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if id.is_empty() || id.len() > MAX_PROCESS_ID || !id.bytes().all(plain) {
            return Err("a process id has 1 to 64 characters of [A-Za-z0-9_.-]");
        }
        Ok(Self(id))
    }
}

impl From<ProcessId> for String {
    fn from(id: ProcessId) -> Self {
        id.0
    }
}

/// From host to guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Returned in the [`Message::Reply`].
    pub id: u64,
    /// What to do.
    pub call: Call,
}

/// What the host asks of the guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Call {
    /// Mount the container's root file system and set the clock. Once, first.
    Prepare(Prepare),
    /// Start the container's process. Answered when its program runs, or with why it does not.
    Start(Box<Start>),
    /// Deliver a signal, 1 to [`MAX_SIGNAL`].
    Signal {
        /// The process it is for.
        process: ProcessId,
        /// Linux signal number.
        signal: u8,
    },
    /// Set the size of a process's terminal.
    Resize {
        /// The process whose terminal it is.
        process: ProcessId,
        /// The new size.
        size: TerminalSize,
    },
    /// Write everything to disk and end the machine.
    Shutdown {
        /// How this kind of machine ends.
        method: ShutdownMethod,
    },
}

/// How a guest kernel ends its machine; it depends on the accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownMethod {
    /// Power off (`uml`).
    PowerOff,
    /// Reset the CPU (`kvm`: there is no power switch without ACPI).
    Reset,
}

/// The disks that make up the root file system, and the time.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    /// Name under /dev of the read-only EROFS disk, such as `vda`.
    pub image: String,
    /// Name under /dev of the writable ext4 disk, such as `vdb`.
    pub writable: String,
    /// Host's wall clock in nanoseconds since 1970.
    pub wall_clock: u64,
}

/// A process to start.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Its name, not used before in this machine.
    pub process: ProcessId,
    /// The container, as an OCI runtime specification.
    pub spec: spec::Spec,
    /// `user[:group]`, names or numbers, looked up in the container's own /etc/passwd and /etc/group. It wins over `spec.process.user`.
    pub user: String,
    /// A terminal instead of pipes.
    pub terminal: Option<TerminalSize>,
    /// Whether a stream for standard input will be opened; else it is /dev/null.
    pub stdin: bool,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// First frame of a stream connection, from the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamOpen {
    /// The process that the pipe belongs to.
    pub process: ProcessId,
    /// Which of its pipes.
    pub stream: Stream,
}

/// A process's pipe. With a terminal, input goes to `Stdin` and all output comes from `Stdout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Bytes from the host.
    Stdin,
    /// Bytes to the host.
    Stdout,
    /// Bytes to the host.
    Stderr,
}

/// From guest to host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    /// The agent is ready. Its first word.
    Hello {
        /// [`VERSION`] of the agent.
        version: u32,
    },
    /// Answer to a [`Request`].
    Reply {
        /// Its id.
        id: u64,
        /// What became of it.
        result: Result<(), Failure>,
    },
    /// A process ended. Its streams end by themselves once all its output has been read.
    Exited {
        /// The process.
        process: ProcessId,
        /// How it ended.
        status: ExitStatus,
        /// The kernel killed a process of this container for lack of memory.
        oom_killed: bool,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It called exit with this code.
    Code(u8),
    /// A signal killed it.
    Signal(u8),
}

impl ExitStatus {
    /// The exit code that a shell, and Docker, reports: the code, or 128 plus the signal.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128u8.saturating_add(signal),
        }
    }
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{text}")]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// What kind of failure, for exit codes.
    pub kind: FailureKind,
    /// For people; at most [`MAX_ERROR`] bytes.
    pub text: String,
}

impl Failure {
    /// Makes a failure, cutting the text to [`MAX_ERROR`] bytes.
    #[must_use]
    pub fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        let mut text: String = text.into();
        if text.len() > MAX_ERROR {
            let end = (0..=MAX_ERROR).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
            text.truncate(end);
        }
        Self { kind, text }
    }
}

/// Kinds of failure, as far as the host treats them differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The program was not found (exit code 127).
    NotFound,
    /// The program was found but cannot be run (exit code 126).
    NotExecutable,
    /// The call asks for something that the agent does not support.
    Unsupported,
    /// Anything else.
    Other,
}
