//! Seccomp: from a profile in Docker's JSON format to the filter that the agent installs in the container's processes.
//!
//! The host compiles, so that the agent needs neither a compiler nor a profile. [`profile`] reads a profile and decides which of its
//! rules hold for a container's capabilities; [`compile`] turns them into a BPF program.

mod compile;
mod profile;

use std::collections::HashMap;
use std::sync::OnceLock;

use agent::protocol::Instruction;
use serde::{Deserialize, Serialize};

/// Docker's defaults, in our own arrangement, for x86-64: the guest has no other system calls.
const DEFAULT: &str = include_str!("default.json");
/// Names and numbers.
const SYSCALLS: &str = include_str!("syscalls-x86_64.txt");
/// Longest profile in bytes.
pub const MAX_PROFILE: usize = 1 << 20;

/// Which filter a container's processes get.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seccomp {
    /// What Docker allows by default.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// A profile in Docker's JSON format, at most [`MAX_PROFILE`] bytes.
    Profile(String),
}

/// Why a profile is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeccompError {
    /// See the message.
    #[error("the seccomp profile is longer than 1 MiB")]
    TooLong,
    /// See the message.
    #[error("the seccomp profile is malformed: {0}")]
    Malformed(String),
    /// See the message.
    #[error("the seccomp profile asks for {0}, which a guest has no way to do")]
    Unsupported(String),
    /// See the message.
    #[error("the seccomp profile makes a filter of {0} instructions; the kernel takes 4096")]
    TooComplex(usize),
}

impl Seccomp {
    /// Compiles the filter for a container with these capabilities; empty for [`Unconfined`](Self::Unconfined).
    ///
    /// # Errors
    /// The profile is malformed, too large, or asks for what is not supported.
    pub fn compile(&self, capabilities: &[String]) -> Result<Vec<Instruction>, SeccompError> {
        let text = match self {
            Self::Unconfined => return Ok(Vec::new()),
            Self::Default => DEFAULT,
            Self::Profile(text) if text.len() > MAX_PROFILE => return Err(SeccompError::TooLong),
            Self::Profile(text) => text,
        };
        compile::compile(&profile::read(text, capabilities)?)
    }
}

/// The number of a system call of x86-64.
fn number(name: &str) -> Option<u32> {
    static NUMBERS: OnceLock<HashMap<&str, u32>> = OnceLock::new();
    let numbers = NUMBERS.get_or_init(|| {
        let pair = |line: &'static str| {
            let (number, name) = line.split_once(' ')?;
            Some((name, number.parse().ok()?))
        };
        SYSCALLS.lines().filter(|l| !l.starts_with('#')).filter_map(pair).collect()
    });
    numbers.get(name).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_calls_have_their_numbers() {
        for (name, wanted) in [("read", 0), ("mkdir", 83), ("clone3", 435), ("mseal", 462)] {
            assert_eq!(number(name), Some(wanted));
        }
        assert_eq!(number("no_such_call"), None);
        assert!(DEFAULT.len() < MAX_PROFILE && SYSCALLS.lines().count() > 370);
    }
}
