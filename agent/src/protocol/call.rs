//! What the host asks of the guest.

use serde::{Deserialize, Serialize};

use super::network::{Interface, MAX_INTERFACES};
use super::spec::{Mount, Process, Resources, Spec};
use super::{ProcessId, Restored, bounded};

/// Longest path in bytes (the kernel's PATH_MAX without its NUL).
pub const MAX_PATH: usize = 4095;
/// Most shares, volumes, or files of one container.
pub const MAX_VOLUMES: usize = 256;
/// Longest content of one [`HostFile`] in bytes.
pub const MAX_HOST_FILE: usize = 64 * 1024;
/// Most instructions of a seccomp filter (the kernel's BPF_MAXINSNS).
pub const MAX_FILTER: usize = 4096;
/// Most names of supplementary groups.
pub const MAX_GROUPS: usize = 256;

/// From host to guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Returned in the [`Reply`](super::Message::Reply), and the name of the call's transfer if it has one.
    pub id: u64,
    /// What to do.
    pub call: Call,
}

/// What the host asks of the guest. Every call is answered once, by an [`Answer`](super::Answer) or a failure; calls that take time (a start,
/// a pause, a transfer) do not hold up those after them.
///
/// **Transfers.** [`ArchiveGet`](Self::ArchiveGet), [`ArchivePut`](Self::ArchivePut), [`Export`](Self::Export), [`Diff`](Self::Diff) and
/// [`Changes`](Self::Changes) have one stream connection, opened with [`StreamOpen::Transfer`](super::StreamOpen) and the request's id, before or after
/// the request. Bytes flow one way and end with a half-close. **Only the answer says that they are whole**: an archive from the guest
/// counts when its stream has ended and the answer is `Done`; a failed transfer's stream may end anywhere. The guest closes the
/// stream before it answers. They work while the container runs, is paused or has ended, and in a machine that was only prepared.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Call {
    /// Mount the container's root file system and set the clock. Once, first. Answer: `Done`.
    Prepare(Box<Prepare>),
    /// The machine goes on from a snapshot: it takes the host's randomness, reseeds its generator, sets its clock and tells containers the
    /// new generation, in this order. The first call on a connection that is not the machine's first: any other is refused until this one has succeeded, and
    /// ends of processes are told only then. What was asked on an earlier connection is not answered any more: its streams are closed, its helpers ended.
    /// Processes go on: the host opens their streams anew, after the hello, and gets what they wrote in the meantime. Answer: `Done`.
    ///
    /// A snapshot is taken of a container that is paused ([`Pause`](Self::Pause), before the machine is), and unpaused after this call: so that
    /// no process of it runs on the randomness and the time of the snapshot.
    Restored(Box<Restored>),
    /// Start the container: its first process. A machine has one at a time. Answered with `Done` when its program runs, and then told of
    /// once more by [`Exited`](super::Message::Exited); or answered with why it does not run, and then its name is free again.
    Start(Box<Start>),
    /// Start a further process in the running container, in all its namespaces, its cgroup and its seccomp filter. Answered as a start.
    Exec(Box<Exec>),
    /// Deliver a signal, 1 to [`MAX_SIGNAL`](super::MAX_SIGNAL). SIGKILL to the container's first process ends the container. Answer: `Done`.
    Signal {
        /// The process it is for.
        process: ProcessId,
        /// Linux signal number.
        signal: u8,
    },
    /// Set the size of a process's terminal. Answer: `Done`.
    Resize {
        /// The process whose terminal it is.
        process: ProcessId,
        /// The new size.
        size: TerminalSize,
    },
    /// List the container's processes. Answer: `Processes`.
    Processes,
    /// Read the container's accounts. Answer: `Stats`.
    Stats,
    /// Freeze the container's processes. Answered with `Done` once all are frozen.
    Pause,
    /// Let them go on; pauses that still wait fail. Answer: `Done`.
    Unpause,
    /// Change the running container's limits: zero and absent ones stay as they are, negative ones are lifted. Answer: `Done`.
    Update(Box<Resources>),
    /// Describe a path of the container, without following its last component if that is a symbolic link. Answer: `PathStat`.
    StatPath {
        /// Path in the container; `..` and links stay within its root.
        #[serde(deserialize_with = "bounded::text::<_, MAX_PATH>")]
        path: String,
    },
    /// Transfer to the host: a tar archive of a path, whose first entry has the path's last component as its name (`/` for the root, whose entries
    /// then begin with a slash; `.` for a path that ends in `/.`). Names and link rules are Docker's. Answer: `Done`.
    ArchiveGet {
        /// Path in the container.
        #[serde(deserialize_with = "bounded::text::<_, MAX_PATH>")]
        path: String,
    },
    /// Transfer to the guest: a tar archive that is unpacked in a directory of the container. Answer: `Done`.
    ArchivePut(ArchivePut),
    /// Transfer to the host: a tar archive of the whole root file system, without volumes. Answer: `Done`.
    Export,
    /// Transfer to the host: what the container changed, as an OCI layer (with whiteouts, opaque markers, extended attributes). Answer: `Done`.
    Diff,
    /// Transfer to the host: what the container changed, one JSON [`Change`](super::Change) a line. Answer: `Done`.
    Changes,
    /// Move a device of the machine into the running container's network and set it up. Answer: `Done`.
    NetworkAttach(Box<Interface>),
    /// Take an interface out of the running container's network; its device stays in the machine. Answer: `Done`.
    NetworkDetach {
        /// Its name in the container.
        #[serde(deserialize_with = "bounded::text::<_, 15>")]
        name: String,
    },
    /// Write everything to disk and end the machine. Not answered: the machine ends.
    Shutdown {
        /// How this kind of machine ends.
        method: ShutdownMethod,
    },
}

/// How a guest kernel ends its machine; it depends on the accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownMethod {
    /// Power off (`uml`).
    PowerOff,
    /// Reset the CPU (`kvm`: there is no power switch without ACPI).
    Reset,
}

/// What the container has whether it runs or not: its disks, volumes and files; and the time.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    /// Name under /dev of the read-only EROFS disk, such as `vda`.
    pub image: String,
    /// Name under /dev of the writable ext4 disk, such as `vdb`.
    pub writable: String,
    /// Host's wall clock in nanoseconds since 1970.
    pub wall_clock: u64,
    /// Shared folders to mount in the guest, for mounts of the kind `bind`.
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_VOLUMES>")]
    pub shares: Vec<Share>,
    /// Mounts of the kind `bind` that the container has at every start, and that archives show and write too. They are mounted
    /// together with those of the specification, outer ones first.
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_VOLUMES>")]
    pub volumes: Vec<Mount>,
    /// Volumes that get, before anything runs, what the image has in their place.
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_VOLUMES>")]
    pub fill: Vec<Fill>,
    /// Files that cover those of the image: the container may write them, but they are not part of its disk.
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_VOLUMES>")]
    pub files: Vec<HostFile>,
}

/// A shared folder (virtio-fs).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Tag of the device, and the share's name in [`Mount::source`]: 1 to 36 characters of `[A-Za-z0-9_.-]`.
    #[serde(deserialize_with = "bounded::text::<_, 36>")]
    pub tag: String,
    /// Refuse writes in the guest as well as on the host.
    pub read_only: bool,
}

/// A volume that gets what the image has in its place: content, owners, permissions, links, and its directory's own. Device nodes are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fill {
    /// Destination of one of [`Prepare::volumes`], which is a whole share that can be written to.
    #[serde(deserialize_with = "bounded::text::<_, MAX_PATH>")]
    pub destination: String,
    /// Fill it although it holds something: an earlier attempt was cut short. Else only an empty one is.
    pub resume: bool,
    /// As of [`ArchivePut::owner`]: for a share whose files can belong to one user only.
    pub owner: Option<String>,
}

/// A file that the host gives the container, such as /etc/hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostFile {
    /// Absolute path in the container; made if it is missing.
    #[serde(deserialize_with = "bounded::text::<_, MAX_PATH>")]
    pub path: String,
    /// Its content, at most [`MAX_HOST_FILE`] bytes.
    #[serde(deserialize_with = "bounded::text::<_, MAX_HOST_FILE>")]
    pub content: String,
}

/// The container's first process.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Its name, not that of a running process.
    pub process: ProcessId,
    /// The container, as an OCI runtime specification.
    pub spec: Spec,
    /// `user[:group]`, names or numbers, looked up in the container's own /etc/passwd and /etc/group. It wins over `spec.process.user`.
    pub user: String,
    /// Supplementary groups beyond the user's own, names or numbers.
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_GROUPS>")]
    pub groups: Vec<String>,
    /// A terminal instead of pipes.
    pub terminal: Option<TerminalSize>,
    /// Whether a stream for standard input will be opened; else it is /dev/null.
    pub stdin: bool,
    /// Keep a process of the agent as the container's PID 1, which reaps, forwards signals, and ends as the program ends.
    #[serde(default)]
    pub init: bool,
    /// The seccomp filter of all the container's processes; empty: none.
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_FILTER>")]
    pub seccomp: Vec<Instruction>,
    /// Network interfaces beside the loopback, which is always up in a network namespace of its own.
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_INTERFACES>")]
    pub network: Vec<Interface>,
}

/// A further process of the running container.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Its name, not that of a running process.
    pub process: ProcessId,
    /// What is executed. Absent capabilities and resource limits are the container's own; `noNewPrivileges` holds if the container has it.
    pub spec: Process,
    /// As of [`Start::user`].
    pub user: String,
    /// As of [`Start::groups`].
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_GROUPS>")]
    pub groups: Vec<String>,
    /// A terminal instead of pipes.
    pub terminal: Option<TerminalSize>,
    /// Whether a stream for standard input will be opened; else it is /dev/null.
    pub stdin: bool,
}

/// One instruction of a classic BPF program (`struct sock_filter`): code, jump if true, jump if false, operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction(pub u16, pub u8, pub u8, pub u32);

/// An archive to unpack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchivePut {
    /// An existing directory of the container; links are followed within its root.
    #[serde(deserialize_with = "bounded::text::<_, MAX_PATH>")]
    pub path: String,
    /// Fail rather than replace a directory by something else, or something else by a directory.
    pub no_overwrite_dir_non_dir: bool,
    /// `user[:group]` who owns everything that is unpacked; absent: the numbers in the archive.
    pub owner: Option<String>,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// First frame of a stream connection, from the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StreamOpen {
    /// A pipe of a process.
    Process {
        /// The process that the pipe belongs to.
        process: ProcessId,
        /// Which of its pipes.
        stream: Stream,
    },
    /// The bytes of a transfer; see [`Call`].
    Transfer {
        /// Id of the [`Request`].
        request: u64,
    },
}

/// A process's pipe. With a terminal, input goes to `Stdin` and all output comes from `Stdout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Bytes from the host.
    Stdin,
    /// Bytes to the host.
    Stdout,
    /// Bytes to the host.
    Stderr,
}
