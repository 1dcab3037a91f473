//! What went wrong, in words for people: what happened, why, what to do next.

use std::fmt;
use std::io;
use std::path::PathBuf;

use agent::protocol::{Failure, FailureKind, FrameError};
use serde::{Deserialize, Serialize};
use vmm::control::{ExitReason, ExitReport};

/// Exit code of `docker run`, and ours, when the container was never started.
pub const EXIT_ENGINE: u8 = 125;
/// Exit code when the program cannot be executed.
pub const EXIT_NOT_EXECUTABLE: u8 = 126;
/// Exit code when the program is not found.
pub const EXIT_NOT_FOUND: u8 = 127;

/// Most console lines that an error shows.
const CONSOLE_LINES: usize = 20;

/// Any failure of the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// An image could not be found, fetched or unpacked.
    #[error("the image {name} cannot be used")]
    Image {
        /// The image as it was named.
        name: String,
        /// What is wrong with it.
        source: Box<image_unpack::Error>,
    },
    /// A part of Bulkhead (kernel, initramfs, VMM) is not where it should be.
    #[error("the {part} is missing")]
    MissingPart {
        /// Which part.
        part: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// The command that makes it.
        make: &'static str,
    },
    /// An accelerator was asked for that this host cannot offer.
    #[error("the {name} accelerator cannot be used on this host")]
    Accelerator {
        /// Its name.
        name: &'static str,
        /// Why not.
        why: String,
        /// What to do instead.
        next: &'static str,
    },
    /// An option that is not supported is refused by name, before anything is created.
    #[error("{option} cannot be done")]
    Option {
        /// The option, with its value.
        option: String,
        /// Why not.
        why: String,
        /// What to use instead.
        next: String,
    },
    /// The machine ended before or while the container ran.
    #[error("the container's machine {}", ended(.0.reason))]
    Machine(Box<ExitReport>),
    /// The VMM process ended without a report.
    #[error("the container's machine ended without a report")]
    VmmDied {
        /// How the process ended.
        status: String,
        /// The last lines that it wrote to its standard error.
        log: String,
    },
    /// The agent said nothing in time.
    #[error("the guest did not answer within {seconds} s")]
    AgentSilent {
        /// How long it was waited for.
        seconds: u64,
        /// The machine's last words.
        report: Box<ExitReport>,
    },
    /// The agent broke the protocol.
    #[error("the guest broke the agent protocol")]
    Agent(#[from] FrameError),
    /// The container's process could not be started.
    #[error("the container's command could not be started")]
    Start(Failure),
    /// No container has this name.
    #[error("No such container: {0}")]
    NoContainer(String),
    /// Several containers have ids that begin so.
    #[error("Multiple containers found with provided prefix: {0}")]
    Ambiguous(String),
    /// The image is not in the store.
    #[error("No such image: {0}")]
    NoImage(String),
    /// No further process has this id.
    #[error("No such exec instance: {0}")]
    NoExec(String),
    /// No volume has this name.
    #[error("no such volume: {0}")]
    NoVolume(String),
    /// No network has this name.
    #[error("network {0} not found")]
    NoNetwork(String),
    /// Another container has the name.
    #[error("the container name \"/{name}\" is already in use by container \"{id}\"")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// The container does not run.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// The container runs, and must not.
    #[error("container {0} is running")]
    Running(String),
    /// The container is paused, and must not be.
    #[error("container {0} is paused")]
    Paused(String),
    /// The container is not paused.
    #[error("container {0} is not paused")]
    NotPaused(String),
    /// A container uses the volume.
    #[error("volume {name} is in use by container {container}")]
    VolumeInUse {
        /// The volume.
        name: String,
        /// Who uses it.
        container: String,
    },
    /// The network has containers, or is one of those that are always there.
    #[error("network {name} cannot be removed")]
    NetworkInUse {
        /// The network.
        name: String,
        /// Why not.
        why: String,
    },
    /// Neither image nor caller say what to run.
    #[error("no command specified")]
    NoCommand,
    /// A value is malformed.
    #[error("{0}")]
    Invalid(String),
    /// Something is not in the state that the command needs.
    #[error("{0}")]
    Conflict(String),
    /// The container's supervisor refused.
    #[error("{}", .0.what)]
    Supervisor(Box<Refusal>),
    /// The container's supervisor went away.
    #[error("the supervisor of container {0} went away")]
    SupervisorGone(String),
    /// The guest refused a call.
    #[error("{}", .0.text)]
    Guest(Failure),
    /// The state database cannot be used.
    #[error("the state database cannot be used")]
    Database(#[from] rusqlite::Error),
    /// The disk is full.
    #[error("there is no space left on the disk")]
    DiskFull {
        /// What was being done.
        action: String,
    },
    /// A folder of the host cannot be shared with a machine.
    #[error("{folder} cannot be shared with the container's machine")]
    Share {
        /// The folder.
        folder: String,
        /// Why not.
        why: String,
    },
    /// A system call failed.
    #[error("{action} failed")]
    Io {
        /// What was being done.
        action: String,
        /// The system's answer.
        source: io::Error,
    },
}

fn ended(reason: ExitReason) -> &'static str {
    match reason {
        ExitReason::Shutdown => "shut down by itself",
        ExitReason::Reset => "reset itself",
        ExitReason::Killed => "was killed",
        ExitReason::Panic => "ended in a kernel panic",
        ExitReason::TripleFault => "ended in a triple fault",
        ExitReason::OutOfMemory => "was ended because the host's memory, or its control group's, ran out",
        ExitReason::JailViolation => "was ended because it tried to leave its jail",
        ExitReason::BootFailed => "could not be started",
        ExitReason::Internal => "failed",
    }
}

/// The second and third line of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// Why it happened, in one line.
    pub why: String,
    /// What to do next, in one line.
    pub next: String,
}

/// Something that a person should know about a container that did run: the same three lines as an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// What happened, in one line.
    pub what: String,
    /// Why, and what to do.
    pub advice: Advice,
}

impl EngineError {
    /// Wraps a failed system call; a full disk is told apart.
    pub fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { action },
            _ => Self::Io { action, source },
        }
    }

    /// The exit code of a command that ends with this error, as Docker's.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Start(failure) => match failure.kind {
                FailureKind::NotFound => EXIT_NOT_FOUND,
                FailureKind::NotExecutable => EXIT_NOT_EXECUTABLE,
                _ => EXIT_ENGINE,
            },
            Self::Supervisor(refusal) => refusal.exit_code,
            _ => EXIT_ENGINE,
        }
    }

    /// Why it happened and what to do next.
    #[must_use]
    pub fn advice(&self) -> Advice {
        let advice =
            |why: &dyn fmt::Display, next: &str| Advice { why: one_line(why), next: next.to_owned() };
        match self {
            Self::Image { source, .. } => advice(source, &source.hint()),
            Self::MissingPart { path, make, .. } => {
                advice(&format!("{} does not exist", path.display()), make)
            }
            Self::Accelerator { why, next, .. } => advice(why, next),
            Self::Option { why, next, .. } => advice(why, next),
            Self::Machine(report) => advice(&detail(report), "bulkhead doctor"),
            Self::VmmDied { status, log } => advice(
                &format!(
                    "the VMM process ended with {status}{}{}",
                    if log.is_empty() { "" } else { ": " },
                    log
                ),
                "bulkhead doctor",
            ),
            Self::AgentSilent { .. } => advice(
                &"its kernel hangs, or the host is too slow for it",
                "try again with more --memory, or another --accel; bulkhead doctor tells which ones work",
            ),
            Self::Agent(e) => advice(e, "the image's guest is not to be trusted; its machine was ended"),
            Self::Start(failure) => advice(&failure.text, start_hint(failure.kind)),
            Self::NoContainer(_) => advice(&"there is none with this id or name", "bulkhead ps -a"),
            Self::Ambiguous(_) => advice(&"their ids begin so", "give more of the id, or the name"),
            Self::NoImage(name) => advice(&"it is not in the image store", &format!("bulkhead pull {name}")),
            Self::NoExec(_) => advice(&"it was never made, or its container has ended", "make it again"),
            Self::NoVolume(_) => advice(&"there is none with this name", "bulkhead volume ls"),
            Self::NoNetwork(_) => advice(&"there is none with this id or name", "bulkhead network ls"),
            Self::NameTaken { .. } => {
                advice(&"names are unique", "remove or rename that container, or give another name")
            }
            Self::NotRunning(name) => {
                advice(&"the command needs its running machine", &format!("bulkhead start {name}"))
            }
            Self::Running(name) => advice(
                &"the command would take away what its processes use",
                &format!("bulkhead stop {name}, or force it"),
            ),
            Self::Paused(name) => advice(&"its processes are frozen", &format!("bulkhead unpause {name}")),
            Self::NotPaused(_) => advice(&"its processes are not frozen", "bulkhead ps -a"),
            Self::VolumeInUse { container, .. } => advice(
                &"removing it would lose its data",
                &format!("bulkhead rm {container}, then try again"),
            ),
            Self::NetworkInUse { why, .. } => advice(why, "disconnect its containers first"),
            Self::NoCommand => {
                advice(&"neither the image nor the command line names a program", "name one after the image")
            }
            Self::Invalid(_) => {
                advice(&"the value is not understood", "correct it, then run the command again")
            }
            Self::Conflict(_) => {
                advice(&"something else was done before", "bulkhead ps -a shows where things are")
            }
            Self::Supervisor(refusal) => Advice { why: refusal.why.clone(), next: refusal.next.clone() },
            Self::SupervisorGone(_) => {
                advice(&"its process ended while it was asked", "bulkhead ps -a shows what became of it")
            }
            Self::Guest(failure) => advice(&failure.text, "correct the command, then run it again"),
            Self::Database(e) => {
                advice(e, "see that the state directory is writable and its disk is not full")
            }
            Self::DiskFull { action } => advice(
                &format!("{action} needs more than is free"),
                "free some space, then run the command again",
            ),
            Self::Share { why, .. } => {
                advice(why, "see that the folder may be read and that user namespaces are allowed")
            }
            Self::Io { source, .. } => advice(source, "mend the cause, then run the command again"),
        }
    }

    /// The guest's last console lines, if the error is about its machine.
    #[must_use]
    pub fn console(&self) -> Option<String> {
        if let Self::Supervisor(refusal) = self {
            return refusal.console.clone();
        }
        let (Self::Machine(report) | Self::AgentSilent { report, .. }) = self else { return None };
        let lines: Vec<&str> =
            report.console.lines().map(without_priority).filter(|l| !l.trim().is_empty()).collect();
        let tail = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
        (!tail.is_empty()).then(|| tail.join("\n"))
    }
}

/// A supervisor's error, as it travels to who asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What those who asked treat differently.
    pub kind: RefusalKind,
    /// What happened.
    pub what: String,
    /// Why, in one line.
    pub why: String,
    /// What to do next, in one line.
    pub next: String,
    /// The guest's last console lines.
    pub console: Option<String>,
    /// Exit code of a command that ends with it.
    pub exit_code: u8,
}

/// Kinds of refusals, as far as they are treated differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// [`EngineError::NotRunning`].
    NotRunning(String),
    /// [`EngineError::Running`].
    Running(String),
    /// [`EngineError::Paused`].
    Paused(String),
    /// [`EngineError::NotPaused`].
    NotPaused(String),
    /// [`EngineError::NoContainer`].
    NoContainer(String),
    /// [`EngineError::NoExec`].
    NoExec(String),
    /// [`EngineError::Invalid`].
    Invalid(String),
    /// [`EngineError::Conflict`].
    Conflict(String),
    /// [`EngineError::Start`].
    Start(Failure),
    /// [`EngineError::Guest`].
    Guest(Failure),
    /// Any other.
    Other,
}

impl From<&EngineError> for RefusalKind {
    fn from(error: &EngineError) -> Self {
        match error {
            EngineError::NotRunning(text) => Self::NotRunning(text.clone()),
            EngineError::Running(text) => Self::Running(text.clone()),
            EngineError::Paused(text) => Self::Paused(text.clone()),
            EngineError::NotPaused(text) => Self::NotPaused(text.clone()),
            EngineError::NoContainer(text) => Self::NoContainer(text.clone()),
            EngineError::NoExec(text) => Self::NoExec(text.clone()),
            EngineError::Invalid(text) => Self::Invalid(text.clone()),
            EngineError::Conflict(text) => Self::Conflict(text.clone()),
            EngineError::Start(failure) => Self::Start(failure.clone()),
            EngineError::Guest(failure) => Self::Guest(failure.clone()),
            _ => Self::Other,
        }
    }
}

impl From<Refusal> for EngineError {
    fn from(refusal: Refusal) -> Self {
        match refusal.kind {
            RefusalKind::NotRunning(text) => Self::NotRunning(text),
            RefusalKind::Running(text) => Self::Running(text),
            RefusalKind::Paused(text) => Self::Paused(text),
            RefusalKind::NotPaused(text) => Self::NotPaused(text),
            RefusalKind::NoContainer(text) => Self::NoContainer(text),
            RefusalKind::NoExec(text) => Self::NoExec(text),
            RefusalKind::Invalid(text) => Self::Invalid(text),
            RefusalKind::Conflict(text) => Self::Conflict(text),
            RefusalKind::Start(failure) => Self::Start(failure),
            RefusalKind::Guest(failure) => Self::Guest(failure),
            RefusalKind::Other => Self::Supervisor(Box::new(refusal)),
        }
    }
}

impl From<&EngineError> for Refusal {
    fn from(error: &EngineError) -> Self {
        if let EngineError::Supervisor(refusal) = error {
            return Self::clone(refusal);
        }
        let Advice { why, next } = error.advice();
        Self {
            kind: error.into(),
            what: error.to_string(),
            why,
            next,
            console: error.console(),
            exit_code: error.exit_code(),
        }
    }
}

fn one_line(text: &dyn fmt::Display) -> String {
    text.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A dump of the kernel's log has the priority in front of each line.
fn without_priority(line: &str) -> &str {
    match line.strip_prefix('<').and_then(|rest| rest.split_once('>')) {
        Some((priority, text)) if priority.bytes().all(|b| b.is_ascii_digit()) => text,
        _ => line,
    }
}

fn detail(report: &ExitReport) -> String {
    if report.detail.is_empty() { "the guest's kernel ended it".to_owned() } else { report.detail.clone() }
}

fn start_hint(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::NotFound => "check the command, or the image's PATH",
        FailureKind::NotExecutable => "check that it is a program for this CPU with its executable bit set",
        FailureKind::Unsupported => "run it without that option",
        _ => "check the command's options against the image",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_an_error_is_one_line() {
        let report = ExitReport {
            reason: ExitReason::Panic,
            detail: "Kernel panic\nnot syncing".into(),
            console: (0..50).map(|n| format!("<6>line {n}\n\n")).collect(),
        };
        let error = EngineError::Machine(Box::new(report));
        let advice = error.advice();
        for line in [error.to_string(), advice.why, advice.next] {
            assert!(!line.contains('\n') && !line.is_empty(), "{line}");
        }
        let console = error.console().unwrap();
        assert_eq!(console.lines().count(), CONSOLE_LINES);
        assert!(console.starts_with("line 30") && console.ends_with("line 49"));
    }

    #[test]
    fn exit_codes_are_dockers() {
        let code = |kind| EngineError::Start(Failure::new(kind, "x")).exit_code();
        assert_eq!(code(FailureKind::NotFound), 127);
        assert_eq!(code(FailureKind::NotExecutable), 126);
        assert_eq!(code(FailureKind::Other), 125);
        assert_eq!(EngineError::NoContainer("x".into()).exit_code(), 125);
        let full = EngineError::io("copying")(io::Error::from_raw_os_error(libc::ENOSPC));
        assert!(matches!(full, EngineError::DiskFull { .. }));
    }
}
