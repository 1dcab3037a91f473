//! What host and guest say to each other, over vsock.
//!
//! The guest connects to the host's [`CONTROL_PORT`] and says hello; that connection carries length-prefixed JSON frames
//! (`frame`): [`Request`]s to the guest, [`Message`]s back. A machine that was restored from a snapshot connects anew, and serves nothing
//! before it was told so ([`Call::Restored`]). Each pipe of a process, and the bytes of each transfer, is a connection of its own: the
//! host connects to the guest's [`STREAM_PORT`], sends one frame with a [`StreamOpen`], and from then on the connection is the
//! pipe: flow control is vsock's credit, end of file is a half-close.
//!
//! Both sides treat the other as hostile: every length has a bound here, every string is checked before use.

mod answer;
mod bounded;
mod call;
mod frame;
mod message;
mod network;
mod restored;
pub mod spec;

pub use answer::{
    Answer, Change, ChangeKind, CpuStats, IoStats, MAX_COMMAND, MAX_COUNTERS, MAX_DEVICES, MAX_LISTED,
    MemoryStats, NetworkStats, PathStat, PidsStats, ProcessInfo, ProcessList, Stats,
};
pub use call::{
    ArchivePut, Call, Exec, Fill, HostFile, Instruction, MAX_FILTER, MAX_GROUPS, MAX_HOST_FILE, MAX_PATH,
    MAX_VOLUMES, Prepare, Request, Share, ShutdownMethod, Start, Stream, StreamOpen, TerminalSize,
};
pub use frame::{Decoder, FrameError, MAX_FRAME, read_frame, write_frame};
pub use message::{ExitStatus, Failure, FailureKind, MAX_ERROR, Message};
pub use network::{
    Device, Interface, IpNetwork, MAX_ADDRESSES, MAX_INTERFACE_NAME, MAX_INTERFACES, MacAddress, Route,
};
pub use restored::{Bytes, ENTROPY_BYTES, GENERATION_BYTES, Restored};

use serde::{Deserialize, Serialize};

/// Version of this protocol; both sides must say the same.
pub const VERSION: u32 = 3;
/// Port of the control connection, on the host (CID 2).
pub const CONTROL_PORT: u32 = 1024;
/// Port on which the guest accepts stream connections.
pub const STREAM_PORT: u32 = 1025;
/// Longest process id in bytes.
pub const MAX_PROCESS_ID: usize = 64;
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
