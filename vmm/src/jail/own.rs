//! The jail of the VMM itself.
//!
//! A process cannot move itself into a process id namespace, and nobody can tell how it was killed. So the VMM is two
//! processes: the one that the supervisor started takes the request, then copies itself into the namespaces. The copy
//! ([`Side::Inside`]) is the machine; the original ([`Side::Outside`]) handles no byte of the guest, waits, and reports
//! the violent deaths that the machine cannot report itself. Each dies with the other, however that dies.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use super::limits::{self, CAN_KILL, Limits};
use super::namespaces::{self, NOBODY};
use super::sys::{self, Forked};
use super::{At, Step, StepError, filter};
use crate::control::ExitReason;

/// What keeps the VMM in, beside no_new_privs, no capabilities, resource limits and system call filters, which it always has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strength {
    /// User, mount, process id, network, IPC and UTS namespaces of its own, an empty root, nobody's identity.
    Full,
    /// The same without a user namespace: the host refuses them, and root made the others itself.
    WithoutUserNamespace,
    /// No namespaces, the host's root: the host refuses them, and the configuration allows that.
    FilterOnly,
}

/// What is to be done.
#[derive(Debug)]
pub struct Plan {
    /// Go on without namespaces where the host refuses them.
    pub optional: bool,
    /// Directory of a control group of version 2.
    pub cgroup: Option<RawFd>,
    /// Resource limits of the machine's side.
    pub limits: Limits,
    /// Open the machine's own page map, which tells which pages of guest memory were touched.
    pub pagemap: bool,
}

/// Which of the two processes this is now.
#[derive(Debug)]
pub enum Side {
    /// The machine, in its jail; with its page map, if that was asked for and the host has it.
    Inside(Strength, Option<File>),
    /// The process that the supervisor knows.
    Outside(Warden),
}

/// Copies this process, which must have one thread, into its jail. In the copy an error is that of a step inside.
///
/// # Errors
/// The step, and the host's error.
pub fn enter(plan: &Plan) -> Result<Side, StepError> {
    let os =
        |error: io::Error| StepError { step: Step::Clone, errno: error.raw_os_error().unwrap_or(libc::EIO) };
    let (go, lifeline) = io::pipe().map_err(os)?;
    // Prepared here, so that the copy need not.
    let root = [c"mode=0,nr_inodes=1,size=4096".to_owned(), c"mode=0,nr_inodes=2".to_owned()];
    let mut tries = vec![(namespaces::ALL, Strength::Full)];
    if nix::unistd::geteuid().is_root() {
        tries.push((namespaces::ALL & !libc::CLONE_NEWUSER, Strength::WithoutUserNamespace));
    }
    if plan.optional {
        tries.push((0, Strength::FilterOnly));
    }
    let mut refused = StepError { step: Step::Clone, errno: libc::EPERM };
    for (flags, strength) in tries {
        // SAFETY: there is one thread, so the child is as good a process as this one.
        match unsafe { sys::clone_process(flags | libc::CLONE_PIDFD, plan.cgroup) } {
            Ok(Forked::Child) => {
                drop(lifeline);
                return inside(plan, &go, strength, &root);
            }
            Ok(Forked::Parent { pid, pidfd: Some(vmm) }) => {
                drop(go);
                let warden = Warden { vmm, lifeline };
                let mapped = if strength == Strength::Full { namespaces::map_ids(pid) } else { Ok(()) };
                let _ = sys::prctl(libc::PR_SET_DUMPABLE, 0);
                let told = mapped.and_then(|()| {
                    sys::write(warden.lifeline.as_raw_fd(), &[0]).map_err(io::Error::from_raw_os_error)
                });
                return match told {
                    Ok(_) => Ok(Side::Outside(warden)),
                    Err(error) => {
                        warden.kill();
                        Err(StepError { step: Step::MapIds, ..os(error) })
                    }
                };
            }
            Ok(Forked::Parent { pidfd: None, .. }) => {
                return Err(StepError { step: Step::Clone, errno: libc::ENOSYS });
            }
            // Forbidden, at their limit, or not built into this kernel.
            Err(errno) if matches!(errno, libc::EPERM | libc::ENOSPC | libc::EUSERS | libc::EINVAL) => {
                refused.errno = errno;
            }
            Err(errno) => return Err(StepError { step: Step::Clone, errno }),
        }
    }
    Err(refused)
}

fn die_with_warden(go: &PipeReader) -> Result<(), StepError> {
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong).at(Step::Clone)?;
    // It may have died before that call.
    if sys::is_hung_up(go.as_raw_fd()) {
        sys::exit(1);
    }
    Ok(())
}

fn inside(plan: &Plan, go: &PipeReader, strength: Strength, root: &[CString]) -> Result<Side, StepError> {
    die_with_warden(go)?;
    if sys::read(go.as_raw_fd(), &mut [0]).at(Step::Orphaned)? == 0 {
        sys::exit(1);
    }
    // The one file that is opened by its path, here where there still are paths: it is this process itself.
    let pagemap = if plan.pagemap { File::open("/proc/self/pagemap").ok() } else { None };
    let strength = match isolate(strength, root) {
        Ok(()) => strength,
        // Some hosts hand out namespaces and then forbid to use them.
        Err(_) if plan.optional => Strength::FilterOnly,
        Err(error) => return Err(error),
    };
    limits::drop_privileges(0)?;
    limits::apply(&plan.limits)?;
    // Nobody but root may look into this process, which maps the guest's memory.
    sys::prctl(libc::PR_SET_DUMPABLE, 0).at(Step::Capabilities)?;
    // A change of user forgets it.
    die_with_warden(go)?;
    Ok(Side::Inside(strength, pagemap))
}

fn isolate(strength: Strength, root: &[CString]) -> Result<(), StepError> {
    let become_nobody = || sys::become_user(NOBODY, NOBODY).at(Step::SetIds);
    let empty_root = || {
        namespaces::mount_empty_root(root, libc::MS_RDONLY | libc::MS_NOEXEC)?;
        namespaces::enter_root()
    };
    match strength {
        Strength::Full => become_nobody().and_then(|()| empty_root()),
        Strength::WithoutUserNamespace => empty_root().and_then(|()| become_nobody()),
        // Without privileges there is nobody else to become.
        Strength::FilterOnly => {
            let _ = become_nobody();
            Ok(())
        }
    }
}

/// The process outside.
#[derive(Debug)]
pub struct Warden {
    vmm: OwnedFd,
    /// At its end when this process is gone.
    lifeline: PipeWriter,
}

/// A guest kernel's jail, as the process outside sees it.
#[derive(Debug)]
pub struct GuestProcess {
    /// Its first process.
    pub init: OwnedFd,
    /// At its end when this process is gone.
    pub lifeline: PipeWriter,
}

impl GuestProcess {
    /// Ends everything in the jail, and waits until it is gone.
    pub fn kill(&self) {
        // Fails only if it is gone already.
        let _ = sys::signal(self.init.as_raw_fd(), libc::SIGKILL);
        let _ = sys::wait_for(self.init.as_raw_fd());
    }
}

/// How the machine's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// By itself, with this code; it has sent its own report.
    Exit(u8),
    /// By this signal.
    Signal(i32),
}

impl Warden {
    fn kill(&self) {
        let _ = sys::signal(self.vmm.as_raw_fd(), libc::SIGKILL);
        let _ = sys::wait_for(self.vmm.as_raw_fd());
    }

    /// Waits until the machine is gone, then ends the guest kernel's jail and waits until that is gone too. Everything that
    /// this process does not need for that is closed, but for the descriptors in `kept`.
    ///
    /// # Errors
    /// This process could not be shut in; then both are killed.
    pub fn watch(&self, guest: Option<&GuestProcess>, kept: &[RawFd]) -> Result<Death, StepError> {
        let vmm = self.vmm.as_raw_fd();
        let end_guest = || guest.iter().for_each(|guest| guest.kill());
        if let Err(error) = self.shut_in(guest, kept) {
            self.kill();
            end_guest();
            return Err(error);
        }
        // A guest kernel that ended is buried, so that it leaves no zombie; the machine sees its end by itself.
        if let Some(guest) = guest {
            let ends = loop {
                let ends = sys::wait_readable([guest.init.as_raw_fd(), vmm]);
                if ends.contains(&true) {
                    break ends;
                }
            };
            if ends[0] {
                let _ = sys::wait_for(guest.init.as_raw_fd());
            }
        }
        let status = sys::wait_for(vmm);
        end_guest();
        Ok(match status {
            Ok(code) if code >= 0 => Death::Exit(u8::try_from(code).unwrap_or(u8::MAX)),
            Ok(signal) => Death::Signal(-signal),
            Err(_) => Death::Exit(u8::MAX),
        })
    }

    fn shut_in(&self, guest: Option<&GuestProcess>, kept: &[RawFd]) -> Result<(), StepError> {
        let mut open = vec![2, self.vmm.as_raw_fd(), self.lifeline.as_raw_fd()];
        open.extend(guest.iter().flat_map(|guest| [guest.init.as_raw_fd(), guest.lifeline.as_raw_fd()]));
        open.extend(kept);
        open.sort_unstable();
        let mut below = -1;
        for fd in open {
            sys::close_between(below, fd).at(Step::Stdio)?;
            below = fd;
        }
        sys::close_from(below.unsigned_abs() + 1, false).at(Step::Stdio)?;
        // The machine's processes are another user's, if this one is root.
        let kept = if nix::unistd::geteuid().is_root() { CAN_KILL } else { 0 };
        limits::drop_privileges(kept)?;
        sys::prctl(libc::PR_SET_DUMPABLE, 0).at(Step::Capabilities)?;
        let program = filter::allow(&[filter::WARDEN, filter::WARDEN_RARE].concat())
            .map_err(|_| StepError { step: Step::Filter, errno: libc::EINVAL })?;
        sys::install_filter(&filter::instructions(&program)).at(Step::Filter)
    }
}

impl Death {
    /// What to report, if the machine cannot have reported it; `out_of_memory` tells whether its control group had none left.
    #[must_use]
    pub fn report(self, out_of_memory: bool) -> Option<(ExitReason, String)> {
        match self {
            Self::Exit(_) => None,
            Self::Signal(libc::SIGSYS) => Some((
                ExitReason::JailViolation,
                "the VMM made a system call that its filter does not allow".to_owned(),
            )),
            Self::Signal(libc::SIGKILL) if out_of_memory => {
                Some((ExitReason::OutOfMemory, "the VMM's control group ran out of memory".to_owned()))
            }
            Self::Signal(libc::SIGBUS) => {
                Some((ExitReason::OutOfMemory, "the host had no memory left for the guest's RAM".to_owned()))
            }
            Self::Signal(libc::SIGKILL) => {
                Some((ExitReason::Killed, "the VMM's process was killed from outside".to_owned()))
            }
            Self::Signal(signal) => {
                Some((ExitReason::Internal, format!("the VMM's process was ended by signal {signal}")))
            }
        }
    }

    /// The exit code of the process outside.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Exit(code) => code,
            Self::Signal(signal) => 128u8.saturating_add(u8::try_from(signal).unwrap_or(0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violent_deaths_are_told_apart() {
        let reason = |signal, oom| Death::Signal(signal).report(oom).unwrap().0;
        assert_eq!(reason(libc::SIGSYS, true), ExitReason::JailViolation);
        assert_eq!(reason(libc::SIGKILL, true), ExitReason::OutOfMemory);
        assert_eq!(reason(libc::SIGKILL, false), ExitReason::Killed);
        assert_eq!(reason(libc::SIGBUS, false), ExitReason::OutOfMemory);
        assert_eq!(reason(libc::SIGSEGV, false), ExitReason::Internal);
        assert_eq!(Death::Exit(0).report(true), None);
        assert_eq!((Death::Exit(3).code(), Death::Signal(31).code()), (3, 159));
    }
}
