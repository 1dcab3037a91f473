//! `--init`: the agent's process stays as the container's PID 1, with the program as its child: it reaps what is orphaned, passes signals on, and
//! ends as the program ends.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork as fork_process, getpgrp, setpgid, tcsetpgrp};

use super::program::{Reported, reset_signals};
use crate::guest::sys;
use crate::protocol::{Failure, FailureKind};

/// Forks; returns in the child only. The parent serves until the child has ended, and ends with its code.
pub(super) fn fork(report: OwnedFd) -> Result<OwnedFd, Reported> {
    let failed = |report, action: &str, error: Errno| {
        Err(Reported(Failure::new(FailureKind::Other, format!("{action}: {error}")), report))
    };
    // Blocked, signals wait to be taken; unblocked, PID 1 of a namespace would lose those that it has no handler for.
    if let Err(e) = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None) {
        return failed(report, "block signals", e);
    }
    // SAFETY: the process has one thread, so the child's copy of every lock is free.
    match unsafe { fork_process() } {
        Err(e) => failed(report, "fork the container's program", e),
        Ok(ForkResult::Child) => {
            if let Err(e) = lead().and_then(|()| reset_signals()) {
                return failed(report, "set up the container's program", e);
            }
            Ok(report)
        }
        Ok(ForkResult::Parent { child }) => {
            // The child alone says whether the program runs; and no pipe or connection of the agent's stays open here.
            drop(report);
            sys::close_range(3, u32::MAX);
            let code = serve(child);
            sys::exit_at_once(code)
        }
    }
}

/// Its own process group, in the foreground of the terminal if there is one.
fn lead() -> nix::Result<()> {
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    // SAFETY: sets a disposition; no handler of ours is involved. A background group that takes the foreground would be stopped.
    unsafe { signal(Signal::SIGTTOU, SigHandler::SigIgn) }?;
    match tcsetpgrp(std::io::stdin(), getpgrp()) {
        Ok(()) | Err(Errno::ENOTTY | Errno::EBADF | Errno::ENXIO) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Takes signals until the child has ended; returns its exit code.
fn serve(child: Pid) -> i32 {
    let mut all: libc::sigset_t = *SigSet::all().as_ref();
    loop {
        let mut taken = 0;
        // SAFETY: both pointers are to values that live through the call. nix's enum has no names for real-time signals.
        if unsafe { libc::sigwait(&raw mut all, &raw mut taken) } != 0 {
            continue;
        }
        if taken != libc::SIGCHLD {
            let _ = sys::kill(child, taken);
            continue;
        }
        loop {
            match waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == child => return code,
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return 128 + signal as i32,
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return 255,
            }
        }
    }
}
