//! Limits in the specification's words.

use agent::protocol::spec::{Cpu, Memory, Pids, Resources, Rlimit};

use crate::EngineError;
use crate::model::{Limits, Ulimit};

/// Period of the CPU quota in microseconds, the kernel's default.
const CPU_PERIOD: u64 = 100_000;
/// The kernel's least quota in microseconds.
const MIN_QUOTA: i64 = 1000;
/// Open files of a process, soft and hard, when nobody says: what systemd gives, and so Docker.
const OPEN_FILES: (u64, u64) = (1024, 524_288);
/// Billionths of a CPU in one CPU.
const NANO: u64 = 1_000_000_000;

/// The limits of getrlimit(2) that Docker knows.
const RLIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// A container's limits. Absent ones are zero: as they are.
pub(crate) fn resources(limits: &Limits) -> Resources {
    let signed = |number: Option<u64>| number.map_or(0, |n| i64::try_from(n).unwrap_or(i64::MAX));
    let period = limits.cpu_period.filter(|period| *period > 0).unwrap_or(CPU_PERIOD);
    let quota = match limits.nano_cpus {
        Some(nano) if nano > 0 => {
            i64::try_from(nano.saturating_mul(period) / NANO).unwrap_or(i64::MAX).max(MIN_QUOTA)
        }
        _ => limits.cpu_quota.unwrap_or(0),
    };
    Resources {
        memory: Memory { limit: signed(limits.memory), reservation: signed(limits.memory_reservation) },
        cpu: Cpu {
            quota,
            period: if quota == 0 { 0 } else { period },
            shares: limits.cpu_shares.unwrap_or(0),
            cpus: limits.cpuset.clone().unwrap_or_default(),
        },
        pids: Pids { limit: limits.pids.unwrap_or(0) },
    }
}

/// Checks a resource limit; -1 is no limit.
///
/// # Errors
/// There is none of that name, or its soft value is above its hard one.
pub fn check_ulimit(limit: &Ulimit) -> Result<(), EngineError> {
    if !RLIMITS.contains(&limit.name.as_str()) {
        return Err(EngineError::Invalid(format!("invalid ulimit type: {}", limit.name)));
    }
    let above = limit.hard != -1 && (limit.soft > limit.hard || limit.soft == -1);
    if above || limit.soft < -1 || limit.hard < -1 {
        return Err(EngineError::Invalid(format!(
            "ulimit soft limit must be less than or equal to hard limit: {} > {}",
            limit.soft, limit.hard
        )));
    }
    Ok(())
}

/// Resource limits of processes.
///
/// # Errors
/// There is no limit of a name, or its soft value is above its hard one.
pub(crate) fn rlimits(ulimits: &[Ulimit]) -> Result<Vec<Rlimit>, EngineError> {
    let infinite = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
    let (soft, hard) = OPEN_FILES;
    let open_files = Rlimit { kind: "RLIMIT_NOFILE".to_owned(), soft, hard };
    let named = ulimits.iter().any(|limit| limit.name == "nofile");
    let given = ulimits.iter().map(|limit| {
        check_ulimit(limit)?;
        let (soft, hard) = (infinite(limit.soft), infinite(limit.hard));
        Ok(Rlimit { kind: format!("RLIMIT_{}", limit.name.to_ascii_uppercase()), soft, hard })
    });
    (!named).then_some(Ok(open_files)).into_iter().chain(given).collect()
}
