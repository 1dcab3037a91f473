//! A container: what it was created as, and where it is in its life.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::network::{Endpoint, Place};
use super::process::{Outcome, RunningMachine, Size};
use crate::options::{AcceleratorChoice, Isolation};
use crate::seccomp::Seccomp;

/// A container with all that is known of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name, unique among containers, without a slash.
    pub name: String,
    /// When it was created.
    pub created: i64,
    /// What it is.
    pub config: ContainerConfig,
    /// Where it is in its life.
    pub state: State,
}

/// What a container is. Before `create` the optional parts mean "as the image says"; a created
/// container has them filled in.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContainerConfig {
    /// The image as the caller named it.
    pub image: String,
    /// The image's id: `sha256:` and 64 hexadecimal digits. Filled in by `create`.
    pub image_id: String,
    /// Platform of the image, such as `linux/amd64`; empty: the host's.
    pub platform: String,
    /// What is run before the command's words.
    pub entrypoint: Option<Vec<String>>,
    /// The command and its arguments.
    pub cmd: Option<Vec<String>>,
    /// `NAME=value`; later ones win over earlier ones and over the image's.
    pub env: Vec<String>,
    /// Absolute path.
    pub workdir: Option<String>,
    /// `user[:group]`, names or numbers.
    pub user: Option<String>,
    /// Supplementary groups, names or numbers.
    pub groups: Vec<String>,
    /// Host name; the short id when empty.
    pub hostname: String,
    /// Domain name.
    pub domainname: String,
    /// Free names and values of the caller.
    pub labels: BTreeMap<String, String>,
    /// Such as `80/tcp`.
    pub exposed_ports: BTreeSet<String>,
    /// Paths that get an anonymous volume.
    pub volumes: BTreeSet<String>,
    /// Signal name or number that asks it to stop; the image's, else SIGTERM.
    pub stop_signal: Option<String>,
    /// Seconds from that signal to the end of its machine; 10 when absent. Negative: for ever.
    pub stop_timeout: Option<i64>,
    /// How its health is found out; the image's when absent.
    pub health_check: Option<HealthCheck>,
    /// It has a terminal.
    pub tty: bool,
    /// The size of that terminal at the start, if its owner's client knew it.
    pub console_size: Option<Size>,
    /// Its standard input is kept open for those who attach.
    pub open_stdin: bool,
    /// Its standard input ends when the first who attached to it goes away.
    pub stdin_once: bool,
    /// What a client said that it would attach to: input, output, errors. Only told back.
    pub attach: [bool; 3],
    /// A small process 1 that reaps and forwards signals.
    pub init: bool,
    /// The root file system refuses writes.
    pub read_only: bool,
    /// Capabilities beyond the default ones, such as `NET_ADMIN`, or `ALL`.
    pub cap_add: Vec<String>,
    /// Capabilities taken away, or `ALL`.
    pub cap_drop: Vec<String>,
    /// Setuid programs do not raise privileges.
    pub no_new_privileges: bool,
    /// Which system calls are allowed.
    pub seccomp: Seccomp,
    /// Paths that are hidden; Docker's when absent.
    pub masked_paths: Option<Vec<String>>,
    /// Paths that are read-only; Docker's when absent.
    pub readonly_paths: Option<Vec<String>>,
    /// Resource limits of its processes.
    pub ulimits: Vec<Ulimit>,
    /// Kernel parameters of its namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Temporary file systems: path and mount options.
    pub tmpfs: BTreeMap<String, String>,
    /// Size of /dev/shm in bytes; 64 MiB when absent.
    pub shm_size: Option<u64>,
    /// Volumes and folders of the host.
    pub mounts: Vec<Mount>,
    /// -1000 to 1000.
    pub oom_score_adj: i32,
    /// What it may use; changeable while it runs.
    pub limits: Limits,
    /// What follows its end; changeable while it runs.
    pub restart: RestartPolicy,
    /// Remove it when it ends.
    pub auto_remove: bool,
    /// What becomes of its output.
    pub log: LogConfig,
    /// `default`, `none`, or a network's name.
    pub network_mode: String,
    /// The networks it is attached to, by name.
    pub endpoints: BTreeMap<String, Endpoint>,
    /// Ports that the host passes on, by `80/tcp`.
    pub port_bindings: BTreeMap<String, Vec<PortBinding>>,
    /// Give every exposed port one of the host's.
    pub publish_all_ports: bool,
    /// Name servers.
    pub dns: Vec<String>,
    /// Resolver options.
    pub dns_options: Vec<String>,
    /// Search domains.
    pub dns_search: Vec<String>,
    /// `name:address` lines of /etc/hosts.
    pub extra_hosts: Vec<String>,
    /// Bytes of the writable disk; 64 GiB when absent, taken only as they are written.
    pub storage_size: Option<u64>,
    /// Free names and values for runtimes. Only told back.
    pub annotations: BTreeMap<String, String>,
    /// What executes its machine.
    pub accelerator: AcceleratorChoice,
    /// The weakest wall that its owner accepts.
    pub isolation: Isolation,
}

/// A resource limit of processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Such as `nofile`.
    pub name: String,
    /// What a process may not pass; -1: no limit.
    pub soft: i64,
    /// What it may raise it to; -1: no limit.
    pub hard: i64,
}

/// What a container may use. Absent: no limit but the machine's size.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of memory, at least [`crate::options::MIN_MEMORY_BYTES`].
    pub memory: Option<u64>,
    /// Bytes of memory that it should be pressed to when memory is short.
    pub memory_reservation: Option<u64>,
    /// Billionths of a CPU.
    pub nano_cpus: Option<u64>,
    /// Microseconds of CPU time in each period.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// Weight among containers of a machine: 2 to 262144, 1024 is normal.
    pub cpu_shares: Option<u64>,
    /// CPUs of the machine, such as `0-3`.
    pub cpuset: Option<String>,
    /// Processes and threads.
    pub pids: Option<i64>,
    /// Bytes per second from the writable disk.
    pub read_bps: Option<u64>,
    /// Bytes per second to the writable disk.
    pub write_bps: Option<u64>,
    /// Reads per second.
    pub read_iops: Option<u64>,
    /// Writes per second.
    pub write_iops: Option<u64>,
}

/// What follows a container's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// Nothing.
    #[default]
    No,
    /// It is started again, unless it was stopped; also when the daemon starts.
    Always,
    /// As `Always`, but not at the daemon's start if it had been stopped.
    UnlessStopped,
    /// It is started again if it failed.
    OnFailure {
        /// At most so often; 0: without bound.
        maximum: u32,
    },
}

/// What becomes of a container's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// How it is kept.
    pub driver: LogDriver,
    /// Bytes of one file before the next is begun; 0: without bound.
    pub max_size: u64,
    /// Number of files kept, at least 1.
    pub max_files: u32,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { driver: LogDriver::JsonFile, max_size: 0, max_files: 1 }
    }
}

/// How output is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogDriver {
    /// One JSON object a line.
    #[default]
    JsonFile,
    /// Not at all.
    None,
}

/// How a container's health is found out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthCheck {
    /// `CMD` and words, or `CMD-SHELL` and one word; `NONE` switches the image's off. Empty: the image's.
    pub test: Vec<String>,
    /// Nanoseconds between checks; 0 stands for 30 s.
    pub interval: i64,
    /// Nanoseconds that one may take; 0 stands for 30 s.
    pub timeout: i64,
    /// Nanoseconds after the start in which failures do not count.
    pub start_period: i64,
    /// Nanoseconds between checks in that time; 0 stands for 5 s.
    pub start_interval: i64,
    /// So many failures in a row are ill health; 0 stands for 3.
    pub retries: u32,
}

/// A volume or a folder in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// What is mounted.
    pub kind: MountKind,
    /// A volume's name, or an absolute path of the host.
    pub source: String,
    /// Absolute path in the container.
    pub target: String,
    /// It refuses writes.
    pub read_only: bool,
    /// A new volume is not filled with the image's content.
    pub no_copy: bool,
}

/// What is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    /// A folder of the host.
    Bind,
    /// A named or anonymous volume.
    Volume,
}

/// A port of the host that is passed on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortBinding {
    /// Address of the host; empty: all.
    pub host_ip: String,
    /// Port or range of ports; empty: any free one.
    pub host_port: String,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// The word for it.
    pub status: Status,
    /// Its machine, while it has one.
    pub machine: Option<RunningMachine>,
    /// How it ended last.
    pub outcome: Option<Outcome>,
    /// When it was started last.
    pub started: i64,
    /// When it ended last.
    pub finished: i64,
    /// How often its restart policy started it since a person did.
    pub restarts: u32,
    /// A person stopped it: its restart policy keeps still.
    pub stopped: bool,
    /// Its health, if it is checked.
    pub health: Option<Health>,
    /// Its places in networks while it runs, by the networks' names.
    pub places: BTreeMap<String, Place>,
    /// The ports of the host that are passed on while it runs, such as `80/tcp`.
    pub ports: BTreeMap<String, Vec<PortBinding>>,
}

/// The word for where a container is in its life, as Docker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Never started.
    #[default]
    Created,
    /// Its process runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// It waits to be started again.
    Restarting,
    /// It ended.
    Exited,
    /// It is being removed.
    Removing,
    /// It could not be removed.
    Dead,
}

impl Status {
    /// Whether it has a machine.
    #[must_use]
    pub fn is_running(self) -> bool {
        matches!(self, Self::Running | Self::Paused | Self::Restarting)
    }

    /// Docker's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Removing => "removing",
            Self::Dead => "dead",
        }
    }
}

/// A container's health.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Health {
    /// The word for it.
    pub status: HealthStatus,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The last five checks, oldest first.
    pub log: Vec<HealthResult>,
}

/// The word for a container's health, as Docker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// Not known yet.
    #[default]
    Starting,
    /// The last check succeeded.
    Healthy,
    /// Too many failed in a row.
    Unhealthy,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthResult {
    /// When it began.
    pub start: i64,
    /// When it ended.
    pub end: i64,
    /// 0: healthy; -1: it took too long or could not be run.
    pub exit_code: i32,
    /// What it wrote, at most 4 KiB.
    pub output: String,
}
