//! What a container's process needs, taken out of an OCI runtime specification. What is not supported is refused by name.

use nix::sched::CloneFlags;

use super::cgroup::Limits;
use super::rlimits;
use crate::protocol::spec::{Mount, NamespaceKind, Spec};
use crate::protocol::{Failure, FailureKind, Start};

/// Most mounts, arguments, variables, limits and paths of each kind; far beyond use, well within memory.
const MAX_ITEMS: usize = 4096;

/// What the child needs beyond the specification itself, checked.
pub(super) struct Plan<'a> {
    pub(super) spec: &'a Spec,
    /// The request's user wins; a specification that was made elsewhere has numbers.
    pub(super) user: String,
    pub(super) namespaces: CloneFlags,
    pub(super) cgroup_namespace: bool,
    pub(super) limits: Limits,
}

impl<'a> Plan<'a> {
    pub(super) fn new(request: &'a Start) -> Result<Self, Failure> {
        let spec = &request.spec;
        let process = &spec.process;
        if process.args.first().is_none_or(String::is_empty) {
            return Err(Failure::new(
                FailureKind::NotFound,
                "no command was given, and the image names none",
            ));
        }
        check_bounds(spec)?;
        let user = if request.user.is_empty() {
            format!("{}:{}", process.user.uid, process.user.gid)
        } else {
            request.user.clone()
        };
        Ok(Self {
            spec,
            user,
            namespaces: namespaces(spec)?,
            cgroup_namespace: spec.linux.namespaces.iter().any(|n| n.kind == NamespaceKind::Cgroup),
            limits: Limits::new(&spec.linux.resources),
        })
    }

    /// The file systems to mount.
    pub(super) fn mounts(&self) -> &[Mount] {
        &self.spec.mounts
    }
}

fn check_bounds(spec: &Spec) -> Result<(), Failure> {
    let (process, linux) = (&spec.process, &spec.linux);
    let counts = [
        process.args.len(),
        process.env.len(),
        process.rlimits.len(),
        spec.mounts.len(),
        linux.masked_paths.len(),
        linux.readonly_paths.len(),
        linux.sysctl.len(),
    ];
    if counts.iter().any(|&n| n > MAX_ITEMS) {
        return Err(malformed("one of its lists is longer than 4096"));
    }
    if process.args.iter().chain(&process.env).any(|s| s.contains('\0')) {
        return Err(malformed("an argument or variable holds a NUL byte"));
    }
    if !process.cwd.is_absolute() {
        return Err(malformed("its working directory is not an absolute path"));
    }
    for key in linux.sysctl.keys() {
        if !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b)) || key.contains("..") {
            return Err(malformed(
                "the name of a sysctl holds other characters than letters, digits, . _ - /",
            ));
        }
    }
    if let Some(limit) = process.rlimits.iter().find(|l| rlimits::resource(&l.kind).is_none()) {
        return Err(Failure::new(
            FailureKind::Unsupported,
            format!("there is no resource limit {:?}", limit.kind),
        ));
    }
    Ok(())
}

fn malformed(why: &str) -> Failure {
    Failure::new(FailureKind::Other, format!("the container's specification is malformed: {why}"))
}

fn namespaces(spec: &Spec) -> Result<CloneFlags, Failure> {
    let mut flags = CloneFlags::empty();
    for namespace in &spec.linux.namespaces {
        flags |= match namespace.kind {
            NamespaceKind::Mount => CloneFlags::CLONE_NEWNS,
            NamespaceKind::Pid => CloneFlags::CLONE_NEWPID,
            NamespaceKind::Network => CloneFlags::CLONE_NEWNET,
            NamespaceKind::Ipc => CloneFlags::CLONE_NEWIPC,
            NamespaceKind::Uts => CloneFlags::CLONE_NEWUTS,
            // Entered later, from within the container's own cgroup.
            NamespaceKind::Cgroup => CloneFlags::empty(),
        };
    }
    if !flags.contains(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID) {
        return Err(malformed("a container has a mount and a pid namespace of its own"));
    }
    Ok(flags)
}
