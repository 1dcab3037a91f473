//! What supervisor and VMM say to each other, version [`VERSION`]. All of it is JSON with unknown fields refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::{Fd, MachineConfig};
use crate::virtio::command::{Command, CommandError, Counter};

/// Version of this protocol. A VMM takes no other: both sides are installed together, and a mismatch is told by name.
pub const VERSION: u32 = 1;

/// The number of a refusal of a packet in which no number could be found. No request may bear it.
pub const UNNUMBERED: u64 = u64::MAX;

/// One request, with the number that its answer will bear.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// Chosen by the supervisor, below [`UNNUMBERED`]; the VMM only repeats it.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// What the supervisor asks of the VMM. The first is [`Request::Hello`], the second [`Request::Boot`] or
/// [`Request::Restore`]; both may be sent without waiting for an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Which protocol the supervisor speaks.
    Hello {
        /// Its [`VERSION`].
        version: u32,
    },
    /// Build this machine and run it. Sent once. Answered when the first guest instruction is about to run.
    Boot(Box<MachineConfig>),
    /// Build a machine and have it go on from a snapshot. Sent once, in place of a boot.
    Restore(Box<RestoreRequest>),
    /// Stop all vCPUs and devices. Answered when they have stopped; a machine that is paused already stays so.
    Pause,
    /// Go on after a pause.
    Resume,
    /// Write the state of a paused machine.
    Snapshot(SnapshotRequest),
    /// Write the list of the pages that were touched since the restore, for [`RestoreRequest::working_set`].
    WorkingSet {
        /// Receives it, from its start; must be empty.
        to: Fd,
    },
    /// Change a device: its rate limits, the size of the balloon, a cable.
    Device {
        /// The device's name, as in the statistics.
        name: String,
        /// The change.
        command: Command,
    },
    /// Tell counters.
    Statistics,
    /// Tell all that helps to find out what a machine is doing.
    Diagnose,
    /// End the machine now, without asking the guest.
    Kill,
}

/// A machine that goes on from a snapshot.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// The machine, as it was described when it was booted; its files are opened anew. Sizes and devices must be the same.
    pub machine: MachineConfig,
    /// The state, as [`SnapshotRequest::state`] received it.
    pub state: Fd,
    /// Its RAM: mapped privately, so that any number of machines may share it. Nobody may write to it meanwhile.
    pub memory: Fd,
    /// Pages that another machine of the same snapshot touched, as [`Request::WorkingSet`] wrote them: read ahead.
    pub working_set: Option<Fd>,
    /// Leave the machine paused, to be resumed later.
    pub paused: bool,
}

/// Where a snapshot goes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// Receives the state, from its start; must be empty.
    pub state: Fd,
    /// Receives RAM, of the same size as the machine's.
    pub memory: Fd,
    /// What of RAM is written.
    pub kind: SnapshotKind,
}

/// How much of RAM a snapshot writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotKind {
    /// All that is not zero, into an empty file.
    Full,
    /// What changed since the last snapshot, or since the restore, over that one's file or a copy of it.
    Diff,
}

/// What the VMM tells the supervisor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The answer to a request.
    Reply {
        /// The request's number.
        id: u64,
        /// The answer.
        answer: Answer,
    },
    /// Something happened by itself.
    Event(Event),
}

/// The answer to a request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// To [`Request::Hello`].
    Hello {
        /// The VMM's [`VERSION`].
        version: u32,
    },
    /// To [`Request::Snapshot`].
    Snapshot(SnapshotWritten),
    /// To [`Request::Statistics`].
    Statistics(Box<Statistics>),
    /// To [`Request::Diagnose`].
    Diagnosis(Box<Diagnosis>),
    /// It was not done; the machine goes on as if it had not been asked.
    Refused(Refusal),
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// Told apart for programs.
    pub kind: RefusalKind,
    /// One sentence for people.
    pub text: String,
}

/// Kinds of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The protocol's version is another.
    Version,
    /// The accelerator or device cannot do this at all.
    Unsupported,
    /// Not in the state that the machine is in, such as a snapshot of a running one.
    State,
    /// The request itself is wrong.
    Invalid,
    /// The host failed.
    Host,
}

impl Refusal {
    /// A refusal with its sentence.
    #[must_use]
    pub fn new(kind: RefusalKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// A device that is not there.
    #[must_use]
    pub fn no_device(name: &str) -> Self {
        Self::new(RefusalKind::Invalid, format!("the machine has no device {name:?}"))
    }

    /// What cannot be done at all.
    #[must_use]
    pub fn unsupported(text: impl Into<String>) -> Self {
        Self::new(RefusalKind::Unsupported, text)
    }
}

impl From<CommandError> for Refusal {
    fn from(error: CommandError) -> Self {
        let kind = match error {
            CommandError::Unsupported(_) => RefusalKind::Unsupported,
            CommandError::Bounds(_) => RefusalKind::Invalid,
        };
        Self::new(kind, error.to_string())
    }
}

/// What a snapshot came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotWritten {
    /// Bytes of state.
    pub state_bytes: u64,
    /// Bytes of RAM that were written, holes not counted.
    pub memory_bytes: u64,
    /// Microseconds that it took.
    pub micros: u64,
}

/// Counters of a machine.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Statistics {
    /// Microseconds since the machine was started.
    pub uptime_micros: u64,
    /// Whether it is paused.
    pub paused: bool,
    /// Guest RAM as configured, in bytes.
    pub memory_bytes: u64,
    /// Exits of each vCPU to the VMM; empty for `uml`.
    pub exits: Vec<u64>,
    /// Each device's counters, by name; what is counted depends on the device.
    pub devices: BTreeMap<String, BTreeMap<String, u64>>,
}

/// A device's counters as they are told.
#[must_use]
pub fn counters(counters: Vec<Counter>) -> BTreeMap<String, u64> {
    counters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What a machine is doing, for people and bug reports.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The counters.
    pub statistics: Statistics,
    /// One line for each vCPU: its registers.
    pub vcpus: Vec<String>,
    /// One line for each device.
    pub devices: Vec<String>,
    /// The console's last lines, at most [`super::MAX_CONSOLE`] bytes.
    pub console: String,
}

/// What happened by itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The first guest instruction is about to run.
    Started {
        /// Microseconds from the arrival of the configuration.
        micros: u64,
        /// How the accelerator runs the guest, for `inspect` and `doctor`: `hardware`, `software` or `user-space kernel`.
        boundary: String,
        /// What keeps the VMM in: see [`crate::jail::Strength`].
        jail: crate::jail::Strength,
    },
    /// The machine is gone. The last packet.
    Ended(ExitReport),
}

/// How and why a machine ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExitReport {
    /// What ended it.
    pub reason: ExitReason,
    /// One sentence of detail for people; empty for a clean end.
    pub detail: String,
    /// The last lines of the guest's console, at most [`super::MAX_CONSOLE`] bytes, control characters removed.
    pub console: String,
}

/// What ended a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered off.
    Shutdown,
    /// The guest reset itself, which ends its machine; under `kvm` the agent's normal end.
    Reset,
    /// The supervisor asked for it, or went away.
    Killed,
    /// The guest kernel panicked.
    Panic,
    /// The vCPU shut down by itself (triple fault).
    TripleFault,
    /// The host had no memory left for it, or its control group had not.
    OutOfMemory,
    /// One of its processes asked the host's kernel for something that its jail does not allow.
    JailViolation,
    /// The machine could not be built or started.
    BootFailed,
    /// A device, the accelerator or the VMM itself failed.
    Internal,
}

impl ExitReason {
    /// Whether the guest ended the machine in good order.
    #[must_use]
    pub fn is_clean(self) -> bool {
        matches!(self, Self::Shutdown | Self::Reset)
    }
}
