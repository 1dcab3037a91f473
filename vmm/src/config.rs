//! The description of one machine, as the supervisor sends it over the control socket.
//!
//! The VMM opens no path: wherever a file or socket is needed, the configuration holds an [`Fd`], an index into
//! the descriptors that travelled with the message. All sizes are bounded here, before anything is created.

use serde::{Deserialize, Serialize};

/// Most bytes of one disk: 16 TiB, ext4's own limit with 4 KiB blocks.
pub const MAX_DISK_BYTES: u64 = 16 << 40;
/// Most extents of one disk: the metadata and 127 layers of an image, and room to spare.
pub const MAX_EXTENTS: usize = 1024;
/// Most block devices of one machine.
pub const MAX_DISKS: usize = 16;
/// Most vCPUs of one machine.
pub const MAX_VCPUS: u8 = 32;
/// Least guest memory in MiB: below it the guest kernel does not reach the agent.
pub const MIN_MEMORY_MIB: u32 = 32;
/// Most guest memory in MiB (1 TiB).
pub const MAX_MEMORY_MIB: u32 = 1 << 20;
/// Longest kernel command line that a configuration may append, in bytes.
pub const MAX_CMDLINE: usize = 1024;
/// Most control groups of version 1: more than there are controllers.
pub const MAX_CGROUPS: usize = 16;
/// Size of a disk sector in bytes (virtio 1.2 section 5.2: always 512, whatever the block size).
pub const SECTOR_SIZE: u64 = 512;

/// Most network interfaces of one machine.
pub const MAX_NETS: usize = 8;
/// Most shared folders of one machine.
pub const MAX_SHARES: usize = 12;
/// Longest tag of a shared folder in bytes.
pub const MAX_TAG: usize = 36;
/// Least and most MTU of a network interface in bytes: what IPv4 asks for, and what one packet can hold.
pub const MTU_BOUNDS: std::ops::RangeInclusive<u16> = 68..=65_535;
/// Largest rate and burst of a [`Bucket`]: 1 TiB, or as many operations.
pub const MAX_BUCKET: u64 = 1 << 40;

/// Index of a descriptor in the list that travelled with the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fd(pub u32);

/// What executes guest instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// /dev/kvm, with our devices over virtio-mmio.
    Kvm,
    /// User Mode Linux, with our devices over vhost-user.
    Uml,
}

impl Accelerator {
    /// The name on command lines and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Uml => "uml",
        }
    }
}

/// A machine: what to boot and which devices it has.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Executes the guest's instructions.
    pub accelerator: Accelerator,
    /// Guest RAM in MiB, [`MIN_MEMORY_MIB`] to [`MAX_MEMORY_MIB`].
    pub memory_mib: u32,
    /// Number of vCPUs, 1 to [`MAX_VCPUS`]; `uml` has exactly one.
    pub vcpus: u8,
    /// The guest kernel: an ELF vmlinux for `kvm`, the static ARCH=um program for `uml`; open for reading.
    pub kernel: Fd,
    /// Uncompressed cpio archive that holds the agent as `/init`; open for reading.
    pub initramfs: Fd,
    /// Appended to the command line that the accelerator builds, at most [`MAX_CMDLINE`] bytes of printable ASCII.
    pub cmdline: String,
    /// The /dev/kvm descriptor; required for `kvm`, refused for `uml`.
    pub kvm: Option<Fd>,
    /// Block devices, in the order in which the guest names them (vda, vdb, ...).
    pub disks: Vec<DiskConfig>,
    /// Network interfaces, in the order in which the guest names them (eth0, eth1, ...).
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// Shared folders.
    #[serde(default)]
    pub shares: Vec<ShareConfig>,
    /// The memory balloon.
    #[serde(default)]
    pub balloon: Option<BalloonConfig>,
    /// A virtio console, whose output is kept with that of the accelerator's own console.
    #[serde(default)]
    pub console: bool,
    /// The agent's channel.
    pub vsock: Option<VsockConfig>,
    /// What the host gives to the machine and asks of it.
    #[serde(default)]
    pub host: HostConfig,
}

/// The host's side of a machine.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostConfig {
    /// What to do where the host refuses namespaces.
    pub jail: JailPolicy,
    /// The host's control groups, which all of the machine's processes are put into.
    pub cgroup: Option<CgroupConfig>,
    /// Guest RAM in huge pages of 2 MiB, from the pool that the host's administrator reserved; `kvm` only.
    pub huge_pages: bool,
    /// Note what changes, so that diff snapshots can be taken; it slows down every first write to a page. `kvm` only.
    pub track_changes: bool,
    /// What the supervisor found /dev/kvm to be; without it the VMM finds out by itself, at every start.
    pub kvm_kind: Option<KvmKind>,
}

/// What to do where the host refuses the namespaces of the VMM's jail.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JailPolicy {
    /// Refuse the machine.
    #[default]
    Required,
    /// Go on without, which the report of the start tells. The guest kernel of `uml` is never run without.
    Optional,
}

/// What a /dev/kvm is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvmKind {
    /// Runs guest kernels at the hardware's speed.
    Hardware,
    /// Interprets them.
    Software,
}

/// Control groups, already made and limited by the supervisor.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CgroupConfig {
    /// The directory of a group of version 2.
    pub directory: Option<Fd>,
    /// `cgroup.procs` of groups of version 1, open for writing; at most [`MAX_CGROUPS`].
    pub processes: Vec<Fd>,
    /// `memory.events` (version 2) or `memory.oom_control` (version 1), open for reading.
    pub events: Option<Fd>,
}

/// One virtio shared folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareConfig {
    /// What the guest mounts it by: 1 to [`MAX_TAG`] printable ASCII characters, no two shares the same.
    pub tag: String,
    /// A connected SOCK_SEQPACKET socket with a `bulkhead-fs` at its other end. Whether the share is read-only is the server's
    /// to see to.
    pub socket: Fd,
}

/// The virtio memory balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// How much the guest shall give back at once, in MiB; at most its memory.
    pub target_mib: u32,
    /// The guest may take pages back when it runs short.
    pub deflate_on_oom: bool,
    /// The guest tells which memory it does not use at the moment, and the host takes it back.
    pub free_page_reporting: bool,
}

/// One virtio network interface.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// The interface's address: not all zero, and not a group's.
    pub mac: [u8; 6],
    /// Most bytes of an IP packet, within [`MTU_BOUNDS`].
    pub mtu: u16,
    /// What the interface is connected to.
    pub backend: NetBackend,
    /// Frames whose sender is not [`Self::mac`] are dropped: the guest cannot pass itself off as another.
    pub check_source: bool,
    /// How much the guest may receive.
    #[serde(default)]
    pub receive: RateLimit,
    /// How much the guest may send.
    #[serde(default)]
    pub send: RateLimit,
}

/// The other end of a network interface's cable.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NetBackend {
    /// A connected unix socket that keeps packets apart (`SOCK_SEQPACKET` or `SOCK_DGRAM`): each is one Ethernet frame, at most
    /// MTU + 18 bytes.
    Socket {
        /// The socket.
        socket: Fd,
        /// Each frame has a `virtio_net_hdr` of 12 bytes before it (virtio 1.2 section 5.1.6), both ways. Then checksums and TCP
        /// segmentation may be left to the other end, and frames be as large as 65553 bytes: worth it where that
        /// end is another guest or a tap.
        headers: bool,
    },
    /// A tap device, opened with `IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR`.
    Tap {
        /// Its descriptor.
        tap: Fd,
    },
}

impl NetBackend {
    /// The descriptor.
    #[must_use]
    pub fn descriptor(&self) -> Fd {
        match self {
            Self::Socket { socket: fd, .. } | Self::Tap { tap: fd } => *fd,
        }
    }
}

/// One virtio block device made of extents, in order, without gaps.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// The device refuses writes; the descriptors must have been opened O_RDONLY.
    pub read_only: bool,
    /// The disk's content: extents one after another, each a multiple of [`SECTOR_SIZE`].
    pub extents: Vec<ExtentConfig>,
    /// How much may be read and written, together.
    #[serde(default)]
    pub limit: RateLimit,
    /// How much may be read.
    #[serde(default)]
    pub read: RateLimit,
    /// How much may be written, discarded or zeroed.
    #[serde(default)]
    pub write: RateLimit,
}

/// How much may pass in a while; nothing set is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Bytes of data.
    pub bytes: Option<Bucket>,
    /// Requests or frames, whatever their size.
    pub operations: Option<Bucket>,
}

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Tokens that come in each second, 1 to [`MAX_BUCKET`].
    pub per_second: u64,
    /// Most tokens that are kept, 1 to [`MAX_BUCKET`].
    pub burst: u64,
}

/// A run of bytes of one file.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtentConfig {
    /// The file (raw content; no disk format is ever parsed).
    pub file: Fd,
    /// Byte offset in the file, a multiple of [`SECTOR_SIZE`].
    pub offset: u64,
    /// Length in bytes, a multiple of [`SECTOR_SIZE`]. What lies beyond the end of the file reads as zeroes.
    pub length: u64,
}

/// The virtio vsock device, bridged to unix sockets.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, at least 3.
    pub guest_cid: u32,
    /// A listening stream socket. Whoever connects writes `CONNECT <port>\n` and reads `OK <host port>\n`, as with Firecracker;
    /// from then on the connection is bridged to the guest's listener on that port.
    pub listener: Option<Fd>,
    /// Guest connections to the host (CID 2): each port is served once, by a stream socket that is already connected.
    pub ports: Vec<VsockPort>,
}

/// A host port that the guest may connect to, once.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockPort {
    /// The port number that the guest connects to.
    pub port: u32,
    /// The connected unix stream socket behind it.
    pub socket: Fd,
}

/// Why a configuration is refused. The text is shown to people as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// See the message.
    #[error("guest memory of {0} MiB is not between {MIN_MEMORY_MIB} and {MAX_MEMORY_MIB} MiB")]
    Memory(u32),
    /// See the message.
    #[error("{0} vCPUs: a machine has 1 to {MAX_VCPUS}")]
    Vcpus(u8),
    /// See the message.
    #[error("{0} vCPUs: the uml accelerator has exactly one")]
    UmlVcpus(u8),
    /// See the message.
    #[error("the kernel command line is longer than {MAX_CMDLINE} bytes or not printable ASCII")]
    Cmdline,
    /// See the message.
    #[error("{0} disks: a machine has at most {MAX_DISKS}")]
    Disks(usize),
    /// See the message.
    #[error("disk {disk}: {count} extents: a disk has 1 to {MAX_EXTENTS}")]
    Extents {
        /// Position of the disk.
        disk: usize,
        /// Number of extents it was given.
        count: usize,
    },
    /// See the message.
    #[error(
        "disk {disk}: extent {extent} is not a whole number of {SECTOR_SIZE}-byte sectors, or is too large"
    )]
    Extent {
        /// Position of the disk.
        disk: usize,
        /// Position of the extent.
        extent: usize,
    },
    /// See the message.
    #[error("a rate limit of {0} a second with a burst of {1}: both must be between 1 and {MAX_BUCKET}")]
    Bucket(u64, u64),
    /// See the message.
    #[error("{0} network interfaces: a machine has at most {MAX_NETS}")]
    Nets(usize),
    /// See the message.
    #[error("network interface {0}: the address is all zero or a group's")]
    Mac(usize),
    /// See the message.
    #[error(
        "network interface {net}: an MTU of {mtu} is not between {min} and {max}",
        min = MTU_BOUNDS.start(), max = MTU_BOUNDS.end()
    )]
    Mtu {
        /// Position of the interface.
        net: usize,
        /// The MTU it was given.
        mtu: u16,
    },
    /// See the message.
    #[error("{0} shared folders: a machine has at most {MAX_SHARES}")]
    Shares(usize),
    /// See the message.
    #[error("shared folder {0}: its tag is not 1 to {MAX_TAG} printable ASCII characters, or another's")]
    Tag(usize),
    /// See the message.
    #[error("a balloon of {0} MiB is larger than the guest's memory")]
    Balloon(u32),
    /// See the message.
    #[error("vsock context id {0} is reserved; the first free one is 3")]
    Cid(u32),
    /// See the message.
    #[error("huge pages: the uml accelerator takes what the host's settings for shared memory give")]
    UmlHugePages,
    /// See the message.
    #[error("{0} control groups: a machine has at most {MAX_CGROUPS}")]
    Cgroups(usize),
    /// See the message.
    #[error("descriptor {0} is named by the configuration, but did not come with it")]
    Descriptor(u32),
    /// See the message.
    #[error("the {0} accelerator and the configuration's /dev/kvm descriptor do not go together")]
    KvmDescriptor(&'static str),
}

impl MachineConfig {
    /// Checks every bound. `descriptors` is the number of descriptors that came with the configuration.
    ///
    /// # Errors
    /// The first bound that does not hold.
    pub fn validate(&self, descriptors: usize) -> Result<(), ConfigError> {
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(ConfigError::Memory(self.memory_mib));
        }
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            return Err(ConfigError::Vcpus(self.vcpus));
        }
        if self.accelerator == Accelerator::Uml && self.vcpus != 1 {
            return Err(ConfigError::UmlVcpus(self.vcpus));
        }
        if self.accelerator == Accelerator::Uml && self.host.huge_pages {
            return Err(ConfigError::UmlHugePages);
        }
        if let Some(cgroup) = &self.host.cgroup
            && cgroup.processes.len() > MAX_CGROUPS
        {
            return Err(ConfigError::Cgroups(cgroup.processes.len()));
        }
        if self.kvm.is_some() != (self.accelerator == Accelerator::Kvm) {
            return Err(ConfigError::KvmDescriptor(self.accelerator.name()));
        }
        if self.cmdline.len() > MAX_CMDLINE || !self.cmdline.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            return Err(ConfigError::Cmdline);
        }
        if self.disks.len() > MAX_DISKS {
            return Err(ConfigError::Disks(self.disks.len()));
        }
        for (index, disk) in self.disks.iter().enumerate() {
            disk.validate(index)?;
        }
        if self.nets.len() > MAX_NETS {
            return Err(ConfigError::Nets(self.nets.len()));
        }
        for (index, net) in self.nets.iter().enumerate() {
            net.validate(index)?;
        }
        if self.shares.len() > MAX_SHARES {
            return Err(ConfigError::Shares(self.shares.len()));
        }
        for (index, share) in self.shares.iter().enumerate() {
            let printable = share.tag.bytes().all(|byte| (b'!'..=b'~').contains(&byte));
            let taken = self.shares[..index].iter().any(|other| other.tag == share.tag);
            if !printable || taken || share.tag.is_empty() || share.tag.len() > MAX_TAG {
                return Err(ConfigError::Tag(index));
            }
        }
        if let Some(balloon) = &self.balloon
            && balloon.target_mib > self.memory_mib
        {
            return Err(ConfigError::Balloon(balloon.target_mib));
        }
        if let Some(vsock) = &self.vsock
            && (vsock.guest_cid < 3 || vsock.guest_cid == u32::MAX)
        {
            return Err(ConfigError::Cid(vsock.guest_cid));
        }
        match self.descriptors().find(|fd| fd.0 as usize >= descriptors) {
            Some(fd) => Err(ConfigError::Descriptor(fd.0)),
            None => Ok(()),
        }
    }

    fn descriptors(&self) -> impl Iterator<Item = Fd> + '_ {
        let files = self.disks.iter().flat_map(|disk| disk.extents.iter().map(|extent| extent.file));
        let vsock =
            self.vsock.iter().flat_map(|v| v.listener.into_iter().chain(v.ports.iter().map(|p| p.socket)));
        let nets = self.nets.iter().map(|net| net.backend.descriptor());
        let shares = self.shares.iter().map(|share| share.socket);
        let fixed = [self.kernel, self.initramfs].into_iter().chain(self.kvm);
        let host = self
            .host
            .cgroup
            .iter()
            .flat_map(|group| group.processes.iter().copied().chain(group.directory).chain(group.events));
        fixed.chain(files).chain(nets).chain(shares).chain(vsock).chain(host)
    }
}

impl DiskConfig {
    /// Size of the disk in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.extents.iter().fold(0, |sum, extent| sum.saturating_add(extent.length))
    }

    fn validate(&self, disk: usize) -> Result<(), ConfigError> {
        let count = self.extents.len();
        if count == 0 || count > MAX_EXTENTS {
            return Err(ConfigError::Extents { disk, count });
        }
        let mut size = 0u64;
        for (extent, e) in self.extents.iter().enumerate() {
            size = size.saturating_add(e.length);
            let aligned = e.length > 0 && e.length % SECTOR_SIZE == 0 && e.offset % SECTOR_SIZE == 0;
            if !aligned || size > MAX_DISK_BYTES || e.offset.checked_add(e.length).is_none() {
                return Err(ConfigError::Extent { disk, extent });
            }
        }
        [&self.limit, &self.read, &self.write].into_iter().try_for_each(RateLimit::validate)
    }
}

impl NetConfig {
    fn validate(&self, net: usize) -> Result<(), ConfigError> {
        if self.mac == [0; 6] || self.mac[0] & 1 != 0 {
            return Err(ConfigError::Mac(net));
        }
        if !MTU_BOUNDS.contains(&self.mtu) {
            return Err(ConfigError::Mtu { net, mtu: self.mtu });
        }
        self.receive.validate()?;
        self.send.validate()
    }
}

impl RateLimit {
    /// Checks both buckets.
    ///
    /// # Errors
    /// A number is out of bounds.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let bounds = 1..=MAX_BUCKET;
        match self
            .bytes
            .iter()
            .chain(&self.operations)
            .find(|bucket| !bounds.contains(&bucket.per_second) || !bounds.contains(&bucket.burst))
        {
            Some(bucket) => Err(ConfigError::Bucket(bucket.per_second, bucket.burst)),
            None => Ok(()),
        }
    }
}
