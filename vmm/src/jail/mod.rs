//! The jail of a machine's processes: namespaces, an empty root, no identity, no capabilities, limits, and a system
//! call filter. The VMM's own is entered by [`enter`]; the guest kernel's, under `uml`, is built by the launcher.
//!
//! Most of it runs in a child between `clone` and `exec`, where a copy of a threaded process may do nothing but system
//! calls: so [`sys`] has them as functions that neither allocate nor lock, and everything that they need (paths,
//! filters, lists) is prepared before. The parts: [`namespaces`] (the child, its identity, its root), [`limits`]
//! (capabilities, resource limits, CPUs), [`cgroup`] (the host's control groups), [`filter`] (system calls).

pub mod calls;
pub mod cgroup;
pub mod filter;
pub mod limits;
pub mod namespaces;
mod own;
pub mod sys;

pub use self::own::{Death, GuestProcess, Plan, Side, Strength, Warden, enter};

/// A step of building the jail that failed, small enough to go through a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepError {
    /// What was tried.
    pub step: Step,
    /// The host's error number.
    pub errno: i32,
}

/// The steps of building a jail and starting a program in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Make a child in new namespaces.
    Clone = 1,
    /// Give the namespace its user and group.
    MapIds,
    /// Become that user and group.
    SetIds,
    /// Mount the empty root.
    MountRoot,
    /// Make the empty root the only one.
    PivotRoot,
    /// Copy the initramfs into it.
    CopyFile,
    /// Make a device's socket in it.
    Socket,
    /// Give up capabilities.
    Capabilities,
    /// Set resource limits.
    Limits,
    /// Set standard input, output and error.
    Stdio,
    /// Make a process.
    Fork,
    /// Install the system call filter.
    Filter,
    /// Start the program.
    Exec,
    /// The parent died.
    Orphaned,
    /// Enter the control group.
    Cgroup,
}

impl Step {
    const ALL: [Self; 15] = [
        Self::Clone,
        Self::MapIds,
        Self::SetIds,
        Self::MountRoot,
        Self::PivotRoot,
        Self::CopyFile,
        Self::Socket,
        Self::Capabilities,
        Self::Limits,
        Self::Stdio,
        Self::Fork,
        Self::Filter,
        Self::Exec,
        Self::Orphaned,
        Self::Cgroup,
    ];

    fn what(self) -> &'static str {
        match self {
            Self::Clone => "cannot make namespaces (are unprivileged user namespaces allowed?)",
            Self::MapIds => "cannot give the user namespace its user",
            Self::SetIds => "cannot become the jail's user",
            Self::MountRoot => "cannot mount the jail's root",
            Self::PivotRoot => "cannot enter the jail's root",
            Self::CopyFile => "cannot copy the initramfs into the jail",
            Self::Socket => "cannot make a device's socket in the jail",
            Self::Capabilities => "cannot give up capabilities",
            Self::Limits => "cannot set resource limits",
            Self::Stdio => "cannot set up standard output",
            Self::Fork => "cannot make a process in the jail",
            Self::Filter => "cannot install the system call filter",
            Self::Exec => "cannot start the guest kernel (is it a program of this host?)",
            Self::Orphaned => "the VMM died meanwhile",
            Self::Cgroup => "cannot enter the control group",
        }
    }
}

impl StepError {
    /// On the pipe: the step, then the error number.
    #[must_use]
    pub fn encode(self) -> [u8; 5] {
        let errno = self.errno.to_ne_bytes();
        [self.step as u8, errno[0], errno[1], errno[2], errno[3]]
    }

    /// From the pipe; `None` if it is not one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (step, errno) = bytes.split_first()?;
        let step = Step::ALL.into_iter().find(|known| *known as u8 == *step)?;
        Some(Self { step, errno: i32::from_ne_bytes(errno.try_into().ok()?) })
    }
}

impl std::fmt::Display for StepError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.step.what(), std::io::Error::from_raw_os_error(self.errno))
    }
}

impl std::error::Error for StepError {}

/// Names the step of a system call's error.
pub trait At<T> {
    /// The error, with the step at which it happened.
    ///
    /// # Errors
    /// The original one.
    fn at(self, step: Step) -> Result<T, StepError>;
}

impl<T> At<T> for Result<T, i32> {
    fn at(self, step: Step) -> Result<T, StepError> {
        self.map_err(|errno| StepError { step, errno })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_survives_the_pipe() {
        for step in Step::ALL {
            let error = StepError { step, errno: 13 };
            assert_eq!(StepError::decode(&error.encode()), Some(error));
        }
        assert_eq!(StepError::decode(&[99, 0, 0, 0, 0]), None);
        assert_eq!(StepError::decode(&[1, 0]), None);
        let text = StepError { step: Step::Exec, errno: libc::ENOEXEC }.to_string();
        assert!(text.starts_with("cannot start the guest kernel"), "{text}");
    }
}
