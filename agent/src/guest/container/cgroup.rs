//! The container's cgroup (v2): limits before it starts, accounts while it runs, removal when it is gone.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use oci_spec::runtime::LinuxResources;

use super::super::boot::CGROUPS;
use super::super::{AgentError, Context};
use crate::protocol::{Failure, FailureKind};

/// Files of the cgroup and what is written to them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Limits(Vec<(&'static str, String)>);

impl Limits {
    /// Translates the limits that are supported; others are refused by name.
    pub(super) fn new(resources: Option<&LinuxResources>) -> Result<Self, Failure> {
        let Some(resources) = resources else { return Ok(Self::default()) };
        let refused = [
            (resources.block_io().is_some(), "linux.resources.blockIO"),
            (resources.hugepage_limits().is_some(), "linux.resources.hugepageLimits"),
            (resources.network().is_some(), "linux.resources.network"),
            (resources.rdma().is_some(), "linux.resources.rdma"),
            (resources.unified().is_some(), "linux.resources.unified"),
        ];
        if let Some((_, name)) = refused.into_iter().find(|(is_asked, _)| *is_asked) {
            return Err(Failure::new(FailureKind::Unsupported, format!("{name} is not supported by the guest agent")));
        }
        let mut files = Vec::new();
        if let Some(limit) = resources.memory().as_ref().and_then(oci_spec::runtime::LinuxMemory::limit) {
            files.push(("memory.max", maximum(limit)));
        }
        if let Some(pids) = resources.pids() {
            files.push(("pids.max", maximum(pids.limit())));
        }
        if let Some(cpu) = resources.cpu()
            && let Some(quota) = cpu.quota()
        {
            files.push(("cpu.max", format!("{} {}", maximum(quota), cpu.period().unwrap_or(100_000))));
        }
        Ok(Self(files))
    }
}

/// Zero and below mean no limit in the specification.
fn maximum(limit: i64) -> String {
    if limit > 0 { limit.to_string() } else { "max".to_owned() }
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
