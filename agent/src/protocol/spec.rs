//! The part of the OCI runtime specification (version 1.2, config.md and config-linux.md) that the agent honours.
//!
//! The types accept that part and nothing else: a field that is not supported is refused by its name, never ignored.
//! They are our own because a full model of the specification is larger than the agent may be (2 MiB).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Spec {
    /// Version of the specification; read by people.
    pub oci_version: String,
    /// Host name inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// NIS domain name inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    /// The root file system. It is always the machine's disks; only `readonly` counts.
    pub root: Root,
    /// What is executed.
    pub process: Process,
    /// File systems to mount, in order.
    pub mounts: Vec<Mount>,
    /// The rest.
    pub linux: Linux,
}

/// The root file system.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Root {
    /// Not used.
    pub path: PathBuf,
    /// Refuse writes to it.
    pub readonly: bool,
}

/// What is executed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Process {
    /// Whether it has a terminal; [`super::Start::terminal`] decides.
    pub terminal: bool,
    /// Who it runs as, unless [`super::Start::user`] says it.
    pub user: User,
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Absolute path of the working directory; made if it is missing.
    pub cwd: PathBuf,
    /// Absent: none at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// Forbid setuid programs to raise privileges.
    pub no_new_privileges: bool,
    /// Added to the process's badness when memory runs out, -1000 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
}

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct User {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// File mode creation mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
}

/// The five sets of capabilities(7), by name, such as `CAP_CHOWN`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Capabilities {
    /// See capabilities(7).
    pub bounding: Vec<String>,
    /// See capabilities(7).
    pub effective: Vec<String>,
    /// See capabilities(7).
    pub permitted: Vec<String>,
    /// See capabilities(7).
    pub inheritable: Vec<String>,
    /// See capabilities(7).
    pub ambient: Vec<String>,
}

/// One resource limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rlimit {
    /// Such as `RLIMIT_NOFILE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What a process may not pass.
    pub soft: u64,
    /// What it may raise the soft limit to.
    pub hard: u64,
}

/// One file system.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Mount {
    /// Absolute path in the container.
    pub destination: PathBuf,
    /// proc, sysfs, tmpfs, devpts, mqueue, cgroup2, `bind` or `virtiofs`; or `generation`: a file that can only be read, with the generation of
    /// [`super::Restored`] (32 hexadecimal digits and a line feed; zeros as long as the machine was not restored). It changes in place, so that a
    /// program may map it into its memory; when it does, the kernel's randomness and the clock are new already.
    #[serde(rename = "type")]
    pub kind: String,
    /// For `bind`: the tag of a share that [`super::Prepare::shares`] mounted, and a path in it (`TAG`, `TAG/sub/path`; links stay within the
    /// share). For `virtiofs`: the tag of a device. Not used by the others.
    pub source: String,
    /// As of mount(8).
    pub options: Vec<String>,
}

/// What only Linux has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Linux {
    /// Namespaces of its own; pid and mount are required.
    pub namespaces: Vec<Namespace>,
    /// Limits of its cgroup.
    pub resources: Resources,
    /// Paths that are hidden.
    pub masked_paths: Vec<String>,
    /// Paths that are made read-only.
    pub readonly_paths: Vec<String>,
    /// Kernel parameters of its namespaces.
    pub sysctl: BTreeMap<String, String>,
}

/// One new namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// Which kind.
    #[serde(rename = "type")]
    pub kind: NamespaceKind,
}

/// Kinds of namespaces that a container may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceKind {
    /// Process numbers.
    Pid,
    /// Network interfaces.
    Network,
    /// Mounts.
    Mount,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host name.
    Uts,
    /// The view of the cgroup tree.
    Cgroup,
}

/// Limits of the container's cgroup. Absent, zero and negative ones are no limits; [`super::Call::Update`] tells zero and negative apart.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// Memory.
    pub memory: Memory,
    /// CPU time.
    pub cpu: Cpu,
    /// Number of processes.
    pub pids: Pids,
}

/// Memory limits.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Memory {
    /// Bytes, at most.
    pub limit: i64,
    /// Bytes that are spared when the machine is short of memory.
    pub reservation: i64,
}

/// CPU time limits.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Cpu {
    /// Microseconds in each period.
    pub quota: i64,
    /// Length of the period in microseconds; zero stands for 100,000.
    pub period: u64,
    /// Weight against other cgroups, 2 to 262,144, as of cgroup v1; zero stands for 1,024.
    pub shares: u64,
    /// The CPUs that may be used, such as `0-2,4`; empty: all.
    pub cpus: String,
}

/// Limits on the number of processes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Pids {
    /// Processes and threads.
    pub limit: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let refused = [
            (r#"{"hooks":{}}"#, "hooks"),
            (r#"{"linux":{"seccomp":{}}}"#, "seccomp"),
            (r#"{"linux":{"namespaces":[{"type":"user"}]}}"#, "user"),
            (r#"{"linux":{"namespaces":[{"type":"pid","path":"/x"}]}}"#, "path"),
            (r#"{"linux":{"resources":{"blockIO":{}}}}"#, "blockIO"),
            (r#"{"linux":{"resources":{"memory":{"swap":1}}}}"#, "swap"),
            (r#"{"process":{"apparmorProfile":"x"}}"#, "apparmorProfile"),
        ];
        for (json, name) in refused {
            let error = serde_json::from_str::<Spec>(json).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        assert_eq!(serde_json::from_str::<Spec>("{}").unwrap(), Spec::default());
    }
}
