//! What a process may use: capabilities, resources, CPUs.

use libc::cpu_set_t;

use super::sys;
use super::{At, Step, StepError};

/// PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL (prctl(2)).
const CAP_AMBIENT: libc::c_int = 47;
const CAP_AMBIENT_CLEAR_ALL: libc::c_ulong = 4;

/// Resource limits of a jailed process.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest file, in bytes.
    pub file_size: u64,
    /// Most open descriptors.
    pub descriptors: u64,
    /// Most bytes of private writable memory.
    pub private_memory: u64,
    /// Most processes of the jail's user, where that can be counted for this jail alone.
    pub processes: Option<u64>,
}

/// CAP_KILL as a bit mask: signals to processes of other users.
pub const CAN_KILL: u32 = 1 << 5;

/// Gives up all capabilities for good but those in the bit mask, and the right to gain any by executing a program.
///
/// # Errors
/// The step and the host's error.
pub fn drop_privileges(kept: u32) -> Result<(), StepError> {
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).at(Step::Capabilities)?;
    // Up to the first that the kernel does not know. Without CAP_SETPCAP there is nothing in the set to be gained.
    for capability in 0..64 {
        if sys::prctl(libc::PR_CAPBSET_DROP, capability).is_err() {
            break;
        }
    }
    let _ = sys::prctl(CAP_AMBIENT, CAP_AMBIENT_CLEAR_ALL);
    sys::keep_capabilities(kept).at(Step::Capabilities)
}

/// Lowers resource limits. No core files: they would hold the guest's memory.
///
/// # Errors
/// The step and the host's error.
pub fn apply(limits: &Limits) -> Result<(), StepError> {
    let all = [
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_FSIZE, limits.file_size),
        (libc::RLIMIT_NOFILE, limits.descriptors),
        (libc::RLIMIT_DATA, limits.private_memory),
        (libc::RLIMIT_MEMLOCK, 0),
        (libc::RLIMIT_MSGQUEUE, 0),
        (libc::RLIMIT_RTPRIO, 0),
    ];
    for (resource, value) in all {
        sys::lower_limit(resource, value).at(Step::Limits)?;
    }
    if let Some(processes) = limits.processes {
        sys::lower_limit(libc::RLIMIT_NPROC, processes).at(Step::Limits)?;
    }
    Ok(())
}

/// Whether the host counts a user's processes for each user namespace apart (Linux 5.14), so that a limit on them
/// concerns one jail and not all of the same user.
#[must_use]
pub fn counts_processes_by_namespace() -> bool {
    let Ok(name) = nix::sys::utsname::uname() else { return false };
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (5, 14)
}

/// How a machine with one vCPU is laid over the host's CPUs.
#[derive(Debug, Clone, Copy)]
pub struct Placement {
    /// For the vCPU and everything that it switches to.
    pub vcpu: cpu_set_t,
    /// For the devices: the others, if there are any.
    pub devices: cpu_set_t,
}

/// Chooses a CPU for a vCPU among those that this process may use. Machines spread by `seed`, such as the process id.
#[must_use]
pub fn place(seed: u32) -> Option<Placement> {
    // SAFETY: an all-zero set is an empty one.
    let mut allowed: cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours, and the size is its own.
    if unsafe { libc::sched_getaffinity(0, size_of::<cpu_set_t>(), &raw mut allowed) } != 0 {
        return None;
    }
    let most = usize::try_from(libc::CPU_SETSIZE).ok()?;
    // SAFETY: the index is below the set's size.
    let cpus: Vec<usize> = (0..most).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &allowed) }).collect();
    let chosen = *cpus.get(usize::try_from(seed).ok()?.checked_rem(cpus.len())?)?;
    // SAFETY: an all-zero set is an empty one.
    let mut vcpu: cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the index came out of a set of the same size.
    unsafe { libc::CPU_SET(chosen, &mut vcpu) };
    let mut devices = allowed;
    if cpus.len() > 1 {
        // SAFETY: as above.
        unsafe { libc::CPU_CLR(chosen, &mut devices) };
    }
    Some(Placement { vcpu, devices })
}
