//! What a container's process needs, taken out of an OCI runtime specification. What is not supported is refused by name.

use std::path::PathBuf;

use nix::sched::CloneFlags;
use oci_spec::runtime::{Capabilities, LinuxNamespaceType, Mount, PosixRlimitType, Process, Spec};

use super::cgroup::Limits;
use crate::protocol::{Failure, FailureKind, Start};

/// Most mounts, arguments, variables, limits and paths of each kind; far beyond use, well within memory.
const MAX_ITEMS: usize = 4096;

/// Everything that the child needs, checked and in plain types.
pub(super) struct Plan {
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) cwd: PathBuf,
    pub(super) user: String,
    pub(super) namespaces: CloneFlags,
    pub(super) cgroup_namespace: bool,
    pub(super) hostname: Option<String>,
    pub(super) mounts: Vec<Mount>,
    pub(super) masked_paths: Vec<String>,
    pub(super) readonly_paths: Vec<String>,
    pub(super) readonly_root: bool,
    pub(super) sysctl: Vec<(String, String)>,
    pub(super) rlimits: Vec<(PosixRlimitType, u64, u64)>,
    pub(super) oom_score_adj: Option<i32>,
    pub(super) umask: Option<u32>,
    pub(super) no_new_privileges: bool,
    pub(super) capabilities: CapabilitySets,
    pub(super) limits: Limits,
}

/// The five sets of capabilities(7).
#[derive(Default)]
pub(super) struct CapabilitySets {
    pub(super) bounding: Capabilities,
    pub(super) effective: Capabilities,
    pub(super) permitted: Capabilities,
    pub(super) inheritable: Capabilities,
    pub(super) ambient: Capabilities,
}

impl Plan {
    pub(super) fn new(request: &Start) -> Result<Self, Failure> {
        let spec = &request.spec;
        refuse_unsupported(spec)?;
        let process = spec.process().as_ref().ok_or_else(|| malformed("it has no process"))?;
        let linux = spec.linux().as_ref().ok_or_else(|| malformed("it has no linux section"))?;
        let args = process.args().clone().unwrap_or_default();
        if args.first().is_none_or(String::is_empty) {
            return Err(Failure::new(FailureKind::NotFound, "no command was given, and the image names none"));
        }
        let plan = Self {
            args,
            env: process.env().clone().unwrap_or_default(),
            cwd: process.cwd().clone(),
            user: user(request, process),
            namespaces: namespaces(spec)?,
            cgroup_namespace: has_namespace(spec, LinuxNamespaceType::Cgroup),
            hostname: spec.hostname().clone(),
            mounts: spec.mounts().clone().unwrap_or_default(),
            masked_paths: linux.masked_paths().clone().unwrap_or_default(),
            readonly_paths: linux.readonly_paths().clone().unwrap_or_default(),
            readonly_root: spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false),
            sysctl: linux.sysctl().clone().unwrap_or_default().into_iter().collect(),
            rlimits: process.rlimits().iter().flatten().map(|r| (r.typ(), r.soft(), r.hard())).collect(),
            oom_score_adj: process.oom_score_adj(),
            umask: process.user().umask(),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            capabilities: capability_sets(process),
            limits: Limits::new(linux.resources().as_ref())?,
        };
        plan.check_bounds()?;
        Ok(plan)
    }

    fn check_bounds(&self) -> Result<(), Failure> {
        let counts = [
            self.args.len(),
            self.env.len(),
            self.mounts.len(),
            self.masked_paths.len(),
            self.readonly_paths.len(),
            self.sysctl.len(),
            self.rlimits.len(),
        ];
        if counts.iter().any(|&n| n > MAX_ITEMS) {
            return Err(malformed("one of its lists is longer than 4096"));
        }
        if self.args.iter().chain(&self.env).any(|s| s.contains('\0')) {
            return Err(malformed("an argument or variable holds a NUL byte"));
        }
        if !self.cwd.is_absolute() {
            return Err(malformed("its working directory is not an absolute path"));
        }
        for (key, _) in &self.sysctl {
            if !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b)) || key.contains("..") {
                return Err(malformed("the name of a sysctl holds other characters than letters, digits, . _ - /"));
            }
        }
        Ok(())
    }
}

fn malformed(why: &str) -> Failure {
    Failure::new(FailureKind::Other, format!("the container's specification is malformed: {why}"))
}

fn unsupported(what: &str) -> Failure {
    Failure::new(FailureKind::Unsupported, format!("{what} is not supported by the guest agent"))
}

fn refuse_unsupported(spec: &Spec) -> Result<(), Failure> {
    let linux = spec.linux().as_ref();
    let process = spec.process().as_ref();
    let asked = [
        (spec.hooks().is_some(), "hooks"),
        (spec.domainname().is_some(), "domainname"),
        (spec.uid_mappings().is_some(), "uidMappings"),
        (linux.is_some_and(|l| l.seccomp().is_some()), "linux.seccomp"),
        (linux.is_some_and(|l| l.devices().as_ref().is_some_and(|d| !d.is_empty())), "linux.devices"),
        (linux.is_some_and(|l| l.rootfs_propagation().is_some()), "linux.rootfsPropagation"),
        (linux.is_some_and(|l| l.mount_label().is_some()), "linux.mountLabel"),
        (linux.is_some_and(|l| l.intel_rdt().is_some()), "linux.intelRdt"),
        (linux.is_some_and(|l| l.personality().is_some()), "linux.personality"),
        (linux.is_some_and(|l| l.time_offsets().is_some()), "linux.timeOffsets"),
        (linux.is_some_and(|l| l.cgroups_path().is_some()), "linux.cgroupsPath"),
        (process.is_some_and(|p| p.apparmor_profile().is_some()), "process.apparmorProfile"),
        (process.is_some_and(|p| p.selinux_label().is_some()), "process.selinuxLabel"),
        (process.is_some_and(|p| p.scheduler().is_some()), "process.scheduler"),
        (process.is_some_and(|p| p.io_priority().is_some()), "process.ioPriority"),
    ];
    match asked.into_iter().find(|(is_asked, _)| *is_asked) {
        Some((_, name)) => Err(unsupported(name)),
        None => Ok(()),
    }
}

/// The request's user wins; a specification that was made elsewhere has numbers.
fn user(request: &Start, process: &Process) -> String {
    if request.user.is_empty() {
        format!("{}:{}", process.user().uid(), process.user().gid())
    } else {
        request.user.clone()
    }
}

fn has_namespace(spec: &Spec, wanted: LinuxNamespaceType) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
    namespaces.is_some_and(|n| n.iter().any(|n| n.typ() == wanted))
}

fn namespaces(spec: &Spec) -> Result<CloneFlags, Failure> {
    let mut flags = CloneFlags::empty();
    let namespaces = spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
    for namespace in namespaces.into_iter().flatten() {
        if namespace.path().is_some() {
            return Err(unsupported("joining a namespace by path"));
        }
        flags |= match namespace.typ() {
            LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
            LinuxNamespaceType::Pid => CloneFlags::CLONE_NEWPID,
            LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
            LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
            LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
            LinuxNamespaceType::Cgroup => CloneFlags::empty(),
            LinuxNamespaceType::User => return Err(unsupported("a user namespace")),
            LinuxNamespaceType::Time => return Err(unsupported("a time namespace")),
        };
    }
    if !flags.contains(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID) {
        return Err(malformed("a container has a mount and a pid namespace of its own"));
    }
    Ok(flags)
}

fn capability_sets(process: &Process) -> CapabilitySets {
    let Some(sets) = process.capabilities() else { return CapabilitySets::default() };
    CapabilitySets {
        bounding: sets.bounding().clone().unwrap_or_default(),
        effective: sets.effective().clone().unwrap_or_default(),
        permitted: sets.permitted().clone().unwrap_or_default(),
        inheritable: sets.inheritable().clone().unwrap_or_default(),
        ambient: sets.ambient().clone().unwrap_or_default(),
    }
}
