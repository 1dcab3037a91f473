//! The container's cgroup (v2): limits, freezing, the events of its memory, and its removal. Its accounts are read by
//! [`accounts`](super::super::accounts).

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use super::super::boot::CGROUPS;
use super::super::{AgentError, Context};
use crate::protocol::spec::Resources;
use crate::protocol::{Failure, FailureKind};

/// The kernel's default period of the CPU quota, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;
/// Range of CPU shares, as of cgroup v1.
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;
/// Most bytes that are read of a file of the cgroup.
const MAX_FILE: u64 = 64 * 1024;

/// Files of the cgroup and what is written to them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits(Vec<(&'static str, String)>);

impl Limits {
    /// Translates limits: zero and absent ones are left as they are, negative ones are lifted.
    ///
    /// # Errors
    /// A limit is out of its range.
    pub(crate) fn new(resources: &Resources) -> Result<Self, Failure> {
        let (memory, cpu, pids) = (&resources.memory, &resources.cpu, &resources.pids);
        let mut files = Vec::new();
        let mut limit = |file, value: i64| match value {
            0 => {}
            1.. => files.push((file, value.to_string())),
            _ => files.push((file, "max".to_owned())),
        };
        limit("memory.max", memory.limit);
        limit("pids.max", pids.limit);
        if memory.reservation != 0 {
            files.push(("memory.low", memory.reservation.max(0).to_string()));
        }
        if cpu.quota != 0 || cpu.period != 0 {
            let period = if cpu.period == 0 { DEFAULT_PERIOD } else { cpu.period };
            match cpu.quota {
                0 => {}
                1.. => files.push(("cpu.max", format!("{} {period}", cpu.quota))),
                _ => files.push(("cpu.max", format!("max {period}"))),
            }
        }
        if cpu.shares != 0 {
            if !SHARES.contains(&cpu.shares) {
                let text = format!("CPU shares of {} are not between 2 and 262144", cpu.shares);
                return Err(Failure::new(FailureKind::Unsupported, text));
            }
            // 2 to 262144 onto 1 to 10000, as runc does.
            let weight = 1 + (cpu.shares - SHARES.start()) * 9999 / (SHARES.end() - SHARES.start());
            files.push(("cpu.weight", weight.to_string()));
        }
        if !cpu.cpus.is_empty() {
            if !cpu.cpus.bytes().all(|b| b.is_ascii_digit() || b == b',' || b == b'-') {
                let text = format!("{:?} is not a list of CPUs", cpu.cpus);
                return Err(Failure::new(FailureKind::Unsupported, text));
            }
            files.push(("cpuset.cpus", cpu.cpus.clone()));
        }
        Ok(Self(files))
    }
}

/// One cgroup below the guest's root.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes the cgroup and sets its limits.
    pub(super) fn create(name: &str, limits: &Limits) -> Result<Self, Failure> {
        let path = Path::new(CGROUPS).join(name);
        fs::create_dir(&path).context(format!("create the cgroup {name}"))?;
        let cgroup = Self(path);
        cgroup.limit(limits).inspect_err(|_| cgroup.remove())?;
        Ok(cgroup)
    }

    /// Sets limits, of a running container too.
    ///
    /// # Errors
    /// The kernel refuses one; those before it hold then.
    pub(crate) fn limit(&self, limits: &Limits) -> Result<(), Failure> {
        for (file, value) in &limits.0 {
            match fs::write(self.0.join(file), value) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let text = format!("{file} cannot be set: the guest's kernel has no such limit");
                    return Err(Failure::new(FailureKind::Unsupported, text));
                }
                Err(e) => {
                    let text = format!("{file} cannot be set to {value}: {e}");
                    return Err(Failure::new(FailureKind::Other, text));
                }
            }
        }
        Ok(())
    }

    /// Moves the calling process in.
    pub(super) fn enter(&self) -> Result<(), AgentError> {
        // Zero stands for the writer, whatever its number in its own namespace.
        fs::write(self.0.join("cgroup.procs"), "0").context("enter the cgroup")
    }

    /// Begins to freeze its processes, or lets them go on.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), AgentError> {
        fs::write(self.0.join("cgroup.freeze"), if frozen { "1" } else { "0" })
            .context("freeze the container")
    }

    /// Reads one of its files; an absent one is empty.
    pub(crate) fn read(&self, file: &str) -> String {
        let mut text = String::new();
        if let Ok(file) = File::open(self.0.join(file)) {
            let _ = file.take(MAX_FILE).read_to_string(&mut text);
        }
        text
    }

    /// Opens one of its files of events.
    pub(crate) fn events(&self, file: &str) -> Result<Events, AgentError> {
        File::open(self.0.join(file)).map(Events).context(format!("open {file}"))
    }

    /// Removes it; all its processes must be gone.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// A file of `name number` lines that epoll reports (EPOLLPRI) whenever it has changed since it was read.
#[derive(Debug)]
pub(crate) struct Events(pub(crate) File);

impl Events {
    /// Reads one number anew; zero if it is not there.
    pub(crate) fn number(&mut self, name: &str) -> u64 {
        let mut text = String::new();
        let read = self.0.rewind().and_then(|()| (&mut self.0).take(MAX_FILE).read_to_string(&mut text));
        if read.is_err() {
            return 0;
        }
        numbers(&text).find(|(n, _)| *n == name).map_or(0, |(_, number)| number)
    }
}

/// The lines `name number` of a text; others are passed over.
pub(crate) fn numbers(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (name, number) = line.split_once(' ')?;
        Some((name, number.trim().parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::spec::{Cpu, Memory, Pids};

    fn limits(resources: &Resources) -> Vec<(&'static str, String)> {
        Limits::new(resources).unwrap().0
    }

    #[test]
    fn zero_leaves_a_limit_and_a_negative_number_lifts_it() {
        assert!(limits(&Resources::default()).is_empty());
        let all = Resources {
            memory: Memory { limit: 4096, reservation: 1024 },
            cpu: Cpu { quota: 50_000, period: 0, shares: 1024, cpus: "0".into() },
            pids: Pids { limit: 7 },
        };
        let text = |pair: &(&str, String)| format!("{}={}", pair.0, pair.1);
        assert_eq!(
            limits(&all).iter().map(text).collect::<Vec<_>>().join(" "),
            "memory.max=4096 pids.max=7 memory.low=1024 cpu.max=50000 100000 cpu.weight=39 cpuset.cpus=0"
        );
        let lifted = Resources {
            memory: Memory { limit: -1, reservation: -1 },
            cpu: Cpu { quota: -1, ..Cpu::default() },
            pids: Pids { limit: -1 },
        };
        assert_eq!(
            limits(&lifted).iter().map(text).collect::<Vec<_>>().join(" "),
            "memory.max=max pids.max=max memory.low=0 cpu.max=max 100000"
        );
    }

    #[test]
    fn shares_and_cpu_lists_are_checked() {
        let cpu = |cpu| Limits::new(&Resources { cpu, ..Resources::default() });
        assert!(cpu(Cpu { shares: 1, ..Cpu::default() }).is_err());
        assert!(cpu(Cpu { shares: 262_145, ..Cpu::default() }).is_err());
        assert!(cpu(Cpu { cpus: "0\n1".into(), ..Cpu::default() }).is_err());
        let weight =
            |shares| limits(&Resources { cpu: Cpu { shares, ..Cpu::default() }, ..Resources::default() });
        assert_eq!(weight(2), [("cpu.weight", "1".to_owned())]);
        assert_eq!(weight(262_144), [("cpu.weight", "10000".to_owned())]);
    }
}
