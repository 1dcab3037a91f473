//! The flags of a new container, with Docker's names.

use clap::Args;

use crate::complete;

/// Flags of `run` and `create`.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Container")]
pub struct ContainerFlags {
    /// Name of the container; one is made up if none is given
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Replace the image's entrypoint ("" clears it)
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Set an environment variable (NAME alone takes the caller's value)
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<String>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User, and optionally group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Further groups of the user
    #[arg(long, value_name = "GROUP")]
    pub group_add: Vec<String>,
    /// Host name of the container
    #[arg(short = 'h', long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Domain name of the container
    #[arg(long, value_name = "NAME")]
    pub domainname: Option<String>,
    /// Set a label
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub label: Vec<String>,
    /// Read labels from a file
    #[arg(long, value_name = "FILE")]
    pub label_file: Vec<String>,
    /// Set an annotation
    #[arg(long, value_name = "NAME=VALUE")]
    pub annotation: Vec<String>,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Allocate a pseudo terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Attach to stdin, stdout or stderr only
    #[arg(short, long, value_name = "STREAM")]
    pub attach: Vec<String>,
    /// Run an init program that reaps orphans and forwards signals
    #[arg(long)]
    pub init: bool,
    /// Write the container's id to a file
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<String>,
    /// When to pull the image: always, missing or never
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pub pull: String,
    /// Do not tell about pulling
    #[arg(short, long)]
    pub quiet: bool,
    /// Platform of the image, such as linux/amd64
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
    #[command(flatten)]
    pub end: EndFlags,
    #[command(flatten)]
    pub files: FileFlags,
    #[command(flatten)]
    pub network: NetworkFlags,
    #[command(flatten)]
    pub limits: LimitFlags,
    #[command(flatten)]
    pub security: SecurityFlags,
}

/// What follows a container's end, and how it is watched until then.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "End and health")]
pub struct EndFlags {
    /// Remove the container when it ends
    #[arg(long)]
    pub rm: bool,
    /// Start it again: no, always, unless-stopped or on-failure[:TIMES]
    #[arg(long, value_name = "POLICY")]
    pub restart: Option<String>,
    /// Signal that asks the container to end
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Seconds until a container that was asked to end is ended
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub stop_timeout: Option<i64>,
    /// Command that tells whether the container is well
    #[arg(long, value_name = "COMMAND")]
    pub health_cmd: Option<String>,
    /// Time between checks, such as 30s
    #[arg(long, value_name = "TIME")]
    pub health_interval: Option<String>,
    /// Time that a check may take
    #[arg(long, value_name = "TIME")]
    pub health_timeout: Option<String>,
    /// Failures in a row that make it unhealthy
    #[arg(long, value_name = "N")]
    pub health_retries: Option<u32>,
    /// Time at the beginning in which failures do not count
    #[arg(long, value_name = "TIME")]
    pub health_start_period: Option<String>,
    /// Time between checks at the beginning
    #[arg(long, value_name = "TIME")]
    pub health_start_interval: Option<String>,
    /// Do not check the container's health, whatever its image says
    #[arg(long)]
    pub no_healthcheck: bool,
    /// How logs are kept: json-file or none
    #[arg(long, value_name = "DRIVER")]
    pub log_driver: Option<String>,
    /// Option of the log driver, such as max-size=10m
    #[arg(long, value_name = "NAME=VALUE")]
    pub log_opt: Vec<String>,
}

/// Volumes, folders and the root.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Files")]
pub struct FileFlags {
    /// Mount a volume or a folder of the host
    #[arg(short, long, value_name = "SOURCE:TARGET[:OPTIONS]", add = complete::volumes())]
    pub volume: Vec<String>,
    /// Mount a volume, a folder or a tmpfs: type=...,source=...,target=...
    #[arg(long, value_name = "MOUNT")]
    pub mount: Vec<String>,
    /// Mount the volumes of another container
    #[arg(long, value_name = "CONTAINER", add = complete::containers())]
    pub volumes_from: Vec<String>,
    /// Mount a temporary file system
    #[arg(long, value_name = "TARGET[:OPTIONS]")]
    pub tmpfs: Vec<String>,
    /// Make the root file system read-only
    #[arg(long)]
    pub read_only: bool,
    /// Size of /dev/shm
    #[arg(long, value_name = "SIZE")]
    pub shm_size: Option<String>,
    /// Option of the writable disk: size=SIZE
    #[arg(long, value_name = "NAME=VALUE")]
    pub storage_opt: Vec<String>,
}

/// Networks and ports.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Network")]
pub struct NetworkFlags {
    /// Attach it to a network: a name, none, or name=...,alias=...,ip=...
    #[arg(long, visible_alias = "net", value_name = "NETWORK", add = complete::networks())]
    pub network: Vec<String>,
    /// Further name in the network
    #[arg(long, visible_alias = "net-alias", value_name = "NAME")]
    pub network_alias: Vec<String>,
    /// IPv4 address in the network
    #[arg(long, value_name = "ADDRESS")]
    pub ip: Option<String>,
    /// IPv6 address in the network
    #[arg(long, value_name = "ADDRESS")]
    pub ip6: Option<String>,
    /// Hardware address in the network
    #[arg(long, value_name = "ADDRESS")]
    pub mac_address: Option<String>,
    /// Publish a port of the container
    #[arg(short, long, value_name = "[[ADDRESS:]PORT:]PORT[/PROTOCOL]")]
    pub publish: Vec<String>,
    /// Publish all exposed ports
    #[arg(short = 'P', long)]
    pub publish_all: bool,
    /// Expose a port, or a range of them
    #[arg(long, value_name = "PORT[/PROTOCOL]")]
    pub expose: Vec<String>,
    /// Name server
    #[arg(long, value_name = "ADDRESS")]
    pub dns: Vec<String>,
    /// Option of the resolver
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    pub dns_option: Vec<String>,
    /// Domain in which names are looked for
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,
    /// Rule for what may leave: deny-all, allow=NAME:443, deny=10.0.0.0/8
    #[arg(long, value_name = "RULE")]
    pub egress: Vec<String>,
    /// Further line of /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub add_host: Vec<String>,
}

/// What the container may use.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitFlags {
    /// Memory limit, such as 512m
    #[arg(short, long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Memory that it may keep when the host has little
    #[arg(long, value_name = "SIZE")]
    pub memory_reservation: Option<String>,
    /// Memory and swap together; a machine has no swap
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub memory_swap: Option<String>,
    /// CPU limit, such as 0.5
    #[arg(long, value_name = "N")]
    pub cpus: Option<String>,
    /// Weight of its CPU time beside others
    #[arg(short, long, value_name = "WEIGHT")]
    pub cpu_shares: Option<u64>,
    /// Period of the CPU limit in microseconds
    #[arg(long, value_name = "TIME")]
    pub cpu_period: Option<u64>,
    /// CPU time in each period, in microseconds
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    pub cpu_quota: Option<i64>,
    /// CPUs of the machine that it may use, such as 0-1
    #[arg(long, value_name = "CPUS")]
    pub cpuset_cpus: Option<String>,
    /// Most processes (-1: no limit)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// Limit of each process, such as nofile=1024:2048
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub ulimit: Vec<String>,
    /// Kernel parameter of the container
    #[arg(long, value_name = "NAME=VALUE")]
    pub sysctl: Vec<String>,
    /// Who is killed first when memory runs out (-1000 to 1000)
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true)]
    pub oom_score_adj: Option<i64>,
    /// Most bytes a second read from its disk
    #[arg(long, value_name = "DISK:RATE")]
    pub device_read_bps: Vec<String>,
    /// Most bytes a second written to its disk
    #[arg(long, value_name = "DISK:RATE")]
    pub device_write_bps: Vec<String>,
    /// Most reads a second from its disk
    #[arg(long, value_name = "DISK:RATE")]
    pub device_read_iops: Vec<String>,
    /// Most writes a second to its disk
    #[arg(long, value_name = "DISK:RATE")]
    pub device_write_iops: Vec<String>,
}

/// The wall, and the privileges behind it.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Machine and privileges")]
pub struct SecurityFlags {
    /// What executes the guest: auto, kvm or uml
    #[arg(long, value_name = "ACCELERATOR", default_value = "auto")]
    pub accel: String,
    /// The weakest wall accepted: any, or vm for a hardware virtual machine only
    #[arg(long, value_name = "WALL", default_value = "any")]
    pub isolation: String,
    /// The same as --accel, for Docker's users
    #[arg(long, value_name = "NAME", hide = true)]
    pub runtime: Option<String>,
    /// Give a capability inside the machine
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_add: Vec<String>,
    /// Take a capability
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_drop: Vec<String>,
    /// seccomp=FILE, seccomp=unconfined or no-new-privileges
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<String>,
}
