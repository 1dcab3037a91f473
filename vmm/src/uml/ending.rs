//! How a machine ended, from what is left of it.

use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use crate::control::ExitReason;

/// What the guest kernel prints when it panics.
const PANIC: &str = "Kernel panic - not syncing";
/// What it prints when it would start again, and finds no program to execute.
const REBOOT: &str = "Failed to exec kernel";

/// Tells how a guest kernel with this wait status and console ended. `connected` tells whether it got as far as its devices.
pub fn classify(status: i32, console: &str, connected: bool) -> (ExitReason, String) {
    let status = ExitStatus::from_raw(status);
    if let Some(line) = console.lines().find(|line| line.contains(PANIC)) {
        let what = line.split_once(PANIC).map_or(line, |(_, rest)| rest.trim_start_matches([':', ' ']));
        return (ExitReason::Panic, format!("the guest kernel panicked: {what}"));
    }
    if console.contains(REBOOT) {
        return (ExitReason::Reset, String::new());
    }
    if status.success() {
        return (ExitReason::Shutdown, String::new());
    }
    let how = match (status.code(), status.signal()) {
        (_, Some(libc::SIGSYS)) => {
            let why = "the guest kernel made a system call that its jail does not allow";
            return (ExitReason::JailViolation, why.to_owned());
        }
        (_, Some(libc::SIGBUS)) => {
            let why = "the host had no memory left for the guest's RAM";
            return (ExitReason::OutOfMemory, why.to_owned());
        }
        (_, Some(libc::SIGKILL)) => {
            return (ExitReason::Killed, "the guest kernel's process was killed from outside".to_owned());
        }
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => "no status".to_owned(),
    };
    if connected {
        (ExitReason::Internal, format!("the guest kernel's process ended with {how}"))
    } else {
        (ExitReason::BootFailed, format!("the guest kernel's process ended during its start with {how}"))
    }
}

/// Reads a pipe's four bytes of wait status; `None` if they are not there.
pub fn read_status(pipe: &impl AsRawFd) -> Option<i32> {
    let mut bytes = [0; 4];
    match crate::jail::sys::read(pipe.as_raw_fd(), &mut bytes) {
        Ok(4) => Some(i32::from_ne_bytes(bytes)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        let exited = |code: i32| code << 8;
        assert_eq!(classify(exited(0), "", true).0, ExitReason::Shutdown);
        assert_eq!(classify(exited(1), "Failed to exec kernel: No such file\n", true).0, ExitReason::Reset);
        let (reason, detail) =
            classify(6, "x\nKernel panic - not syncing: Attempted to kill init!\nmore", true);
        assert_eq!(
            (reason, detail.as_str()),
            (ExitReason::Panic, "the guest kernel panicked: Attempted to kill init!")
        );
        assert_eq!(classify(exited(1), "", false).0, ExitReason::BootFailed);
        for (signal, reason) in [
            (libc::SIGSYS, ExitReason::JailViolation),
            (libc::SIGBUS, ExitReason::OutOfMemory),
            (libc::SIGKILL, ExitReason::Killed),
            (libc::SIGSEGV, ExitReason::Internal),
        ] {
            assert_eq!(classify(signal, "", true).0, reason);
        }
    }
}
