//! Work that blocks, in a forked child: the agent's loop goes on, and what the child enters (a root, a namespace) is its own.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use nix::unistd::{ForkResult, Pid, fork as fork_process};

use super::sys;
use crate::protocol::{Answer, Failure, FailureKind};

/// Most bytes of a report: the longest path, escaped, and its fields.
const MAX_REPORT: usize = 64 * 1024;

/// A child at work.
pub(crate) struct Task {
    pid: Pid,
    /// Readable when the child has reported, or ended.
    pub(crate) report: OwnedFd,
}

/// Forks a child that does the work and reports. It keeps only these descriptors of the agent's.
///
/// # Errors
/// The guest is out of processes or descriptors.
pub(crate) fn fork(keep: &[RawFd], work: impl FnOnce() -> Result<Answer, Failure>) -> io::Result<Task> {
    let (report, child_report) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the process has one thread, so the child's copy of every lock is free.
    match unsafe { fork_process() }? {
        ForkResult::Parent { child } => Ok(Task { pid: child, report }),
        ForkResult::Child => {
            // Another's pipe or connection in this child would not end when the agent closes it.
            let mut kept = keep.to_vec();
            kept.extend([0, 1, 2, child_report.as_raw_fd()]);
            close_others(kept);
            let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
            let result = work();
            if let Ok(text) = serde_json::to_vec(&result) {
                let _ = send(child_report.as_raw_fd(), &text, MsgFlags::MSG_NOSIGNAL);
            }
            sys::exit_at_once(0)
        }
    }
}

/// Closes all descriptors but these.
fn close_others(mut kept: Vec<i32>) {
    kept.sort_unstable();
    kept.dedup();
    let mut from = 0;
    for fd in kept.into_iter().filter_map(|fd| u32::try_from(fd).ok()) {
        if fd > from {
            sys::close_range(from, fd - 1);
        }
        from = fd + 1;
    }
    sys::close_range(from, u32::MAX);
}

impl Task {
    /// What the child reported; a failure if it ended without a word.
    pub(crate) fn result(&self) -> Result<Answer, Failure> {
        let mut text = vec![0u8; MAX_REPORT];
        let read = self.report.as_fd().try_clone_to_owned().and_then(|fd| File::from(fd).read(&mut text));
        let text = text.get(..read.unwrap_or(0)).unwrap_or_default();
        serde_json::from_slice(text).unwrap_or_else(|_| {
            Err(Failure::new(FailureKind::Other, "the agent's helper ended before its work was done"))
        })
    }

    /// Ends the child.
    pub(crate) fn kill(&self) {
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_reports_or_its_end_is_told() {
        let done = fork(&[], || Ok(Answer::Done)).unwrap();
        assert_eq!(done.result(), Ok(Answer::Done));
        let failed = fork(&[], || Err(Failure::new(FailureKind::NoSuchPath, "x"))).unwrap();
        assert_eq!(failed.result().unwrap_err().kind, FailureKind::NoSuchPath);
        let dead = fork(&[], || sys::exit_at_once(9)).unwrap();
        assert!(dead.result().unwrap_err().text.contains("before its work was done"));
        for task in [done, failed, dead] {
            nix::sys::wait::waitpid(task.pid, None).unwrap();
        }
    }
}
