//! What Docker has and a microVM has not: each option with why, and what to do instead.
//!
//! An option that is in no reader and not in this table is refused by its name as well; the table gives those a reason that
//! people do ask for.

use crate::fields::Refusal;

const fn refusal(
    field: &'static str,
    option: &'static str,
    neutral: &'static [&'static str],
    why: &'static str,
    instead: &'static str,
) -> Refusal {
    Refusal { field, option, neutral, why, instead }
}

const OWN_KERNEL: &str = "a container has a kernel of its own, which sees no devices of the host";
const OWN_CGROUP: &str = "a container's cgroup is in its own machine";
const NO_SWAP: &str = "a machine has memory of its own and no swap";
const WINDOWS: &str = "it is an option of Windows containers";
const LEAVE: &str = "leave it out";

/// The table.
pub const REFUSED: [Refusal; 38] = [
    refusal(
        "HostConfig.Privileged",
        "--privileged",
        &[],
        "a container has a kernel of its own; there are no privileges of the host to give",
        "use --cap-add ALL for every privilege inside its machine",
    ),
    refusal("HostConfig.Devices", "--device", &[], OWN_KERNEL, "mount a folder, or attach over the network"),
    refusal("HostConfig.DeviceCgroupRules", "--device-cgroup-rule", &[], OWN_KERNEL, LEAVE),
    refusal(
        "HostConfig.DeviceRequests",
        "--gpus",
        &[],
        OWN_KERNEL,
        "run what needs a GPU with another engine",
    ),
    refusal(
        "HostConfig.PidMode",
        "--pid",
        &["private"],
        "the processes of the host and of other containers are in other machines",
        "use docker top and docker exec to look into a container",
    ),
    refusal(
        "HostConfig.IpcMode",
        "--ipc",
        &["private"],
        "memory cannot be shared between machines",
        "share files over a volume, or run both programs in one container",
    ),
    refusal("HostConfig.UTSMode", "--uts", &[], "the host's name is the host's", "use --hostname"),
    refusal(
        "HostConfig.UsernsMode",
        "--userns",
        &[],
        "no user of a container is a user of the host, root neither",
        LEAVE,
    ),
    refusal("HostConfig.CgroupnsMode", "--cgroupns", &["private"], OWN_CGROUP, LEAVE),
    refusal(
        "HostConfig.CgroupParent",
        "--cgroup-parent",
        &[],
        OWN_CGROUP,
        "use --memory, --cpus and --pids-limit",
    ),
    refusal("HostConfig.Cgroup", "", &[], OWN_CGROUP, LEAVE),
    refusal(
        "HostConfig.Links",
        "--link",
        &[],
        "links are an old way to find a container",
        "attach both containers to one network; they find each other by name",
    ),
    refusal(
        "HostConfig.VolumeDriver",
        "--volume-driver",
        &["local"],
        "volumes are folders of this host",
        LEAVE,
    ),
    refusal("HostConfig.MemorySwappiness", "--memory-swappiness", &["-1"], NO_SWAP, LEAVE),
    refusal(
        "HostConfig.OomKillDisable",
        "--oom-kill-disable",
        &[],
        "the machine would hang",
        "raise --memory",
    ),
    refusal(
        "HostConfig.KernelMemory",
        "--kernel-memory",
        &[],
        "kernel memory counts as memory",
        "use --memory",
    ),
    refusal("HostConfig.KernelMemoryTCP", "", &[], "kernel memory counts as memory", "use --memory"),
    refusal(
        "HostConfig.BlkioWeight",
        "--blkio-weight",
        &[],
        "weights need several containers on one kernel",
        "use --device-write-bps",
    ),
    refusal(
        "HostConfig.BlkioWeightDevice",
        "--blkio-weight-device",
        &[],
        "weights need several containers on one kernel",
        "use --device-write-bps",
    ),
    refusal("HostConfig.CpusetMems", "--cpuset-mems", &[], "a machine has one memory node", LEAVE),
    refusal(
        "HostConfig.CpuRealtimePeriod",
        "--cpu-rt-period",
        &[],
        "guest kernels have no real-time groups",
        "use --cpus",
    ),
    refusal(
        "HostConfig.CpuRealtimeRuntime",
        "--cpu-rt-runtime",
        &[],
        "guest kernels have no real-time groups",
        "use --cpus",
    ),
    refusal("HostConfig.CpuCount", "", &[], WINDOWS, "use --cpus"),
    refusal("HostConfig.CpuPercent", "", &[], WINDOWS, "use --cpus"),
    refusal("HostConfig.IOMaximumIOps", "", &[], WINDOWS, "use --device-write-iops"),
    refusal("HostConfig.IOMaximumBandwidth", "", &[], WINDOWS, "use --device-write-bps"),
    refusal("HostConfig.CredentialSpec", "", &[], WINDOWS, LEAVE),
    refusal(
        "MacAddress",
        "--mac-address",
        &[],
        "an address belongs to a place in a network",
        "set it in EndpointsConfig",
    ),
    refusal("OnBuild", "", &[], "it is a word of builds, not of containers", LEAVE),
    refusal(
        "NetworkingConfig.EndpointsConfig.Links",
        "--link",
        &[],
        "links are an old way to find a container",
        "they find each other by name already",
    ),
    refusal(
        "NetworkingConfig.EndpointsConfig.GwPriority",
        "gw-priority",
        &[],
        "the first network is the way out",
        LEAVE,
    ),
    refusal("Devices", "--device", &[], OWN_KERNEL, LEAVE),
    refusal("MemorySwappiness", "--memory-swappiness", &["-1"], NO_SWAP, LEAVE),
    refusal("KernelMemory", "--kernel-memory", &[], "kernel memory counts as memory", "use --memory"),
    refusal("BlkioWeight", "--blkio-weight", &[], "weights need several containers on one kernel", LEAVE),
    refusal("CpusetMems", "--cpuset-mems", &[], "a machine has one memory node", LEAVE),
    refusal(
        "CpuRealtimePeriod",
        "--cpu-rt-period",
        &[],
        "guest kernels have no real-time groups",
        "use --cpus",
    ),
    refusal(
        "CpuRealtimeRuntime",
        "--cpu-rt-runtime",
        &[],
        "guest kernels have no real-time groups",
        "use --cpus",
    ),
];
