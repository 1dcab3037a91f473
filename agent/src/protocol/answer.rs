//! What the guest answers to calls that ask for something.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{MAX_PATH, bounded};

/// Most processes of one [`Answer::Processes`].
pub const MAX_LISTED: usize = 1024;
/// Longest command line of a listed process in bytes; a longer one is cut.
pub const MAX_COMMAND: usize = 4096;
/// Most counters of `memory.stat`.
pub const MAX_COUNTERS: usize = 128;
/// Most devices, and most network interfaces, of one [`Stats`].
pub const MAX_DEVICES: usize = 64;

/// Answer to a call that succeeded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// It is done; there is nothing to tell.
    Done,
    /// The container's processes.
    Processes(ProcessList),
    /// The container's accounts.
    Stats(Box<Stats>),
    /// A path of the container.
    PathStat(PathStat),
}

/// The container's processes, lowest number first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessList {
    /// At most [`MAX_LISTED`].
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_LISTED>")]
    pub processes: Vec<ProcessInfo>,
    /// There are more than were listed.
    pub truncated: bool,
}

/// One process of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessInfo {
    /// Its number in the machine.
    pub pid: u32,
    /// Its number in the container.
    pub inner_pid: u32,
    /// Its parent's number in the machine.
    pub ppid: u32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its state, a letter as of ps(1).
    pub state: char,
    /// Its terminal, such as `pts/0`; empty without one.
    #[serde(deserialize_with = "bounded::text::<_, 32>")]
    pub tty: String,
    /// When it was started, in milliseconds since 1970.
    pub started_ms: u64,
    /// CPU time that it has used, in milliseconds.
    pub cpu_ms: u64,
    /// Threads.
    pub threads: u32,
    /// Resident memory in bytes.
    pub resident: u64,
    /// Virtual memory in bytes.
    pub size: u64,
    /// The program's name.
    #[serde(deserialize_with = "bounded::text::<_, 64>")]
    pub name: String,
    /// Its arguments with spaces between them; a name in brackets if it has none.
    #[serde(deserialize_with = "bounded::text::<_, MAX_COMMAND>")]
    pub command: String,
}

/// The container's accounts, from its cgroup and its network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stats {
    /// The guest's wall clock in nanoseconds since 1970.
    pub wall_clock: u64,
    /// The guest's clock since its boot, in nanoseconds.
    pub monotonic: u64,
    /// Memory.
    pub memory: MemoryStats,
    /// CPU time.
    pub cpu: CpuStats,
    /// Processes.
    pub pids: PidsStats,
    /// Block devices, by number.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_DEVICES>")]
    pub io: Vec<IoStats>,
    /// Network interfaces of the container, loopback among them.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_DEVICES>")]
    pub networks: Vec<NetworkStats>,
}

/// Memory accounts in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryStats {
    /// In use, page cache included.
    pub current: u64,
    /// Most that was in use.
    pub peak: u64,
    /// The limit; absent: none but the machine's memory.
    pub limit: Option<u64>,
    /// Memory of the machine.
    pub machine: u64,
    /// The kernel's `memory.stat`, by its names.
    #[serde(deserialize_with = "bounded::numbers::<_, MAX_COUNTERS>")]
    pub stat: BTreeMap<String, u64>,
    /// The kernel's `memory.events`, by its names.
    #[serde(deserialize_with = "bounded::numbers::<_, MAX_COUNTERS>")]
    pub events: BTreeMap<String, u64>,
}

/// CPU time in microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuStats {
    /// Used by the container.
    pub usage: u64,
    /// Of it, in programs.
    pub user: u64,
    /// Of it, in the kernel.
    pub system: u64,
    /// Periods in which the quota counted.
    pub periods: u64,
    /// Periods in which the quota was used up.
    pub throttled_periods: u64,
    /// Time that was waited for the next period.
    pub throttled: u64,
    /// Used by the whole machine, idle time included, on all its CPUs.
    pub machine: u64,
    /// CPUs of the machine.
    pub online: u32,
}

/// Processes and threads.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PidsStats {
    /// Now.
    pub current: u64,
    /// At most; absent: no limit.
    pub limit: Option<u64>,
}

/// Input and output of a block device.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoStats {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
}

/// Traffic of a network interface.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkStats {
    /// Its name in the container.
    #[serde(deserialize_with = "bounded::text::<_, 15>")]
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets received with errors.
    pub rx_errors: u64,
    /// Packets received and dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets not sent because of errors.
    pub tx_errors: u64,
    /// Packets dropped before they were sent.
    pub tx_dropped: u64,
}

/// A path of the container, as of stat(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathStat {
    /// The path's last component, as the caller wrote it (`/` for the root, `.` for a path that ends in `/.`).
    #[serde(deserialize_with = "bounded::text::<_, MAX_PATH>")]
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Type and permissions: `st_mode`.
    pub mode: u32,
    /// When its content changed, in nanoseconds since 1970.
    pub modified: i64,
    /// Where a symbolic link leads, followed to its end within the container's root; empty for anything else.
    #[serde(deserialize_with = "bounded::text::<_, MAX_PATH>")]
    pub link_target: String,
}

/// One line of the transfer [`Call::Changes`](super::Call::Changes).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Absolute path in the container.
    pub path: String,
    /// What happened to it.
    pub kind: ChangeKind,
}

/// What happened to a path since the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Content or metadata differ (Docker's `C`, 0), or something below it does.
    Modified,
    /// It is new (`A`, 1).
    Added,
    /// It is gone (`D`, 2).
    Deleted,
}
