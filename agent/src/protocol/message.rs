//! What the guest says to the host. Every word of it is the guest's, and is checked: here its bounds, in the engine its sense.

use serde::{Deserialize, Serialize};

use super::{Answer, ProcessId, bounded};

/// Longest error text in bytes; a longer one is cut.
pub const MAX_ERROR: usize = 4096;

/// From guest to host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    /// The agent is ready. Its first word on every connection.
    Hello {
        /// [`VERSION`](super::VERSION) of the agent.
        version: u32,
    },
    /// Answer to a [`Request`](super::Request).
    Reply {
        /// Its id.
        id: u64,
        /// What became of it.
        result: Result<Answer, Failure>,
    },
    /// A process ended. Its streams end by themselves once all its output has been read. When the container's first process ends, all others
    /// end with it, and are told of before it.
    Exited {
        /// The process.
        process: ProcessId,
        /// How it ended.
        status: ExitStatus,
        /// The kernel has killed a process of this container for lack of memory.
        oom_killed: bool,
    },
    /// The kernel killed processes of the container for lack of memory.
    Oom {
        /// How many since the container was started.
        kills: u64,
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
    /// What kind of failure, for exit codes and statuses.
    pub kind: FailureKind,
    /// For people; at most [`MAX_ERROR`] bytes.
    #[serde(deserialize_with = "bounded::text::<_, MAX_ERROR>")]
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
    /// The container, or the process, is not running.
    NotRunning,
    /// The container is paused.
    Paused,
    /// The path of an archive call does not exist in the container.
    NoSuchPath,
    /// The path of an archive call is not a directory.
    NotADirectory,
    /// The path of an archive call is on a read-only file system.
    ReadOnly,
    /// Anything else.
    Other,
}
