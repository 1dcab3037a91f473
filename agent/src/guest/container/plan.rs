//! What a container's process needs, taken out of an OCI runtime specification. What is not supported is refused by name.

use nix::sched::CloneFlags;

use super::cgroup::Limits;
use super::program::Program;
use super::rlimits;
use crate::guest::network::Netlink;
use crate::protocol::spec::{NamespaceKind, Process, Spec};
use crate::protocol::{Failure, FailureKind, Instruction, Interface, Start};

/// Most mounts, arguments, variables, limits and paths of each kind; far beyond use, well within memory.
const MAX_ITEMS: usize = 4096;

/// Kernel parameters that a namespace has of its own: whole names, and beginnings of names. Any other would be the whole machine's.
const SYSCTLS: [&str; 10] = [
    "kernel.domainname",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
    "kernel.hostname",
];
const SYSCTL_FAMILIES: [&str; 2] = ["fs.mqueue.", "net."];

/// What the child needs beyond the specification itself, checked.
pub(super) struct Plan<'a> {
    pub(super) spec: &'a Spec,
    /// The request's user wins; a specification that was made elsewhere has numbers.
    pub(super) user: String,
    pub(super) namespaces: CloneFlags,
    pub(super) cgroup_namespace: bool,
    pub(super) limits: Limits,
    pub(super) groups: &'a [String],
    pub(super) init: bool,
    pub(super) seccomp: &'a [Instruction],
    pub(super) interfaces: &'a [Interface],
    /// A socket in the agent's own network, where the machine's devices are; only if there are interfaces.
    pub(super) netlink: Option<&'a Netlink>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(request: &'a Start, netlink: Option<&'a Netlink>) -> Result<Self, Failure> {
        let spec = &request.spec;
        let process = &spec.process;
        check_process(process)?;
        check_bounds(spec)?;
        if !request.network.is_empty()
            && !spec.linux.namespaces.iter().any(|n| n.kind == NamespaceKind::Network)
        {
            return Err(malformed("it has network interfaces, but no network namespace of its own"));
        }
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
            limits: Limits::new(&spec.linux.resources)?,
            groups: &request.groups,
            init: request.init,
            seccomp: &request.seccomp,
            interfaces: &request.network,
            netlink,
        })
    }

    /// What is executed, and by whom.
    pub(super) fn program(&self) -> Program<'_> {
        Program {
            process: &self.spec.process,
            user: &self.user,
            groups: self.groups,
            seccomp: self.seccomp,
            init: self.init,
            first: true,
        }
    }
}

/// Checks what every process has, the first and the further ones.
pub(super) fn check_process(process: &Process) -> Result<(), Failure> {
    if process.args.first().is_none_or(String::is_empty) {
        return Err(Failure::new(FailureKind::NotFound, "no command was given, and the image names none"));
    }
    if [process.args.len(), process.env.len(), process.rlimits.len()].iter().any(|&n| n > MAX_ITEMS) {
        return Err(malformed("one of its lists is longer than 4096"));
    }
    if process.args.iter().chain(&process.env).any(|s| s.contains('\0')) {
        return Err(malformed("an argument or variable holds a NUL byte"));
    }
    if !process.cwd.is_absolute() {
        return Err(malformed("its working directory is not an absolute path"));
    }
    if let Some(limit) = process.rlimits.iter().find(|l| rlimits::resource(&l.kind).is_none()) {
        return Err(Failure::new(
            FailureKind::Unsupported,
            format!("there is no resource limit {:?}", limit.kind),
        ));
    }
    Ok(())
}

fn check_bounds(spec: &Spec) -> Result<(), Failure> {
    let linux = &spec.linux;
    let counts =
        [spec.mounts.len(), linux.masked_paths.len(), linux.readonly_paths.len(), linux.sysctl.len()];
    if counts.iter().any(|&n| n > MAX_ITEMS) {
        return Err(malformed("one of its lists is longer than 4096"));
    }
    if spec.mounts.iter().any(|m| !m.destination.is_absolute()) {
        return Err(malformed("a mount's destination is not an absolute path"));
    }
    let network = linux.namespaces.iter().any(|n| n.kind == NamespaceKind::Network);
    linux.sysctl.keys().try_for_each(|key| check_sysctl(key, network))
}

fn check_sysctl(key: &str, network: bool) -> Result<(), Failure> {
    let plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
    if !plain || key.split(['.', '/']).any(str::is_empty) {
        return Err(malformed("the name of a sysctl holds other characters than letters, digits, . _ - /"));
    }
    let dotted = key.replace('/', ".");
    let own = SYSCTLS.contains(&dotted.as_str())
        || SYSCTL_FAMILIES.iter().any(|f| dotted.starts_with(f) && (*f != "net." || network));
    if own {
        return Ok(());
    }
    let text = format!("sysctl {key:?} is not in a separate kernel namespace");
    Err(Failure::new(FailureKind::Unsupported, text))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sysctls_of_the_containers_own_namespaces_are_set() {
        for key in ["net.core.somaxconn", "net/ipv4/ip_forward", "kernel.shmmax", "fs.mqueue.msg_max"] {
            assert!(check_sysctl(key, true).is_ok(), "{key}");
        }
        let refused = [
            "kernel.panic",
            "vm.overcommit_memory",
            "fs.file-max",
            "net..x",
            "net./x",
            "kernel.core_pattern",
            "",
        ];
        for key in refused {
            assert!(check_sysctl(key, true).is_err(), "{key}");
        }
        assert!(check_sysctl("net.core.somaxconn", false).is_err());
    }
}
