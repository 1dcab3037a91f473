//! The container's cgroup (v2): limits before it starts, accounts while it runs, removal when it is gone.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::super::boot::CGROUPS;
use super::super::{AgentError, Context};
use crate::protocol::spec::Resources;

/// The kernel's default period of the CPU quota, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

/// Files of the cgroup and what is written to them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Limits(Vec<(&'static str, String)>);

impl Limits {
    /// Translates the limits that were asked for.
    pub(super) fn new(resources: &Resources) -> Self {
        let (memory, cpu, pids) = (resources.memory.limit, &resources.cpu, resources.pids.limit);
        let mut files = Vec::new();
        if memory > 0 {
            files.push(("memory.max", memory.to_string()));
        }
        if pids > 0 {
            files.push(("pids.max", pids.to_string()));
        }
        if cpu.quota > 0 {
            let period = if cpu.period == 0 { DEFAULT_PERIOD } else { cpu.period };
            files.push(("cpu.max", format!("{} {period}", cpu.quota)));
        }
        Self(files)
    }
}

/// One cgroup below the guest's root.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes the cgroup and sets its limits.
    pub(super) fn create(name: &str, limits: &Limits) -> Result<Self, AgentError> {
        let path = Path::new(CGROUPS).join(name);
        fs::create_dir(&path).context(format!("create the cgroup {name}"))?;
        let cgroup = Self(path);
        for (file, value) in &limits.0 {
            fs::write(cgroup.0.join(file), value).context(format!("set {file} to {value}"))?;
        }
        Ok(cgroup)
    }

    /// Moves the calling process in.
    pub(super) fn enter(&self) -> Result<(), AgentError> {
        fs::write(self.0.join("cgroup.procs"), Pid::this().to_string()).context("enter the cgroup")
    }

    /// Whether the kernel killed a process in it for lack of memory.
    pub(crate) fn oom_killed(&self) -> bool {
        let events = fs::read_to_string(self.0.join("memory.events")).unwrap_or_default();
        events.lines().filter_map(|l| l.strip_prefix("oom_kill ")).any(|n| n.trim() != "0")
    }

    /// Removes it; all its processes must be gone.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_dir(&self.0);
    }
}
