//! From the initramfs to a root that containers can pivot away from, with the kernel's own file systems mounted.

use std::fs;
use std::io;

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use super::{AgentError, Context};

/// Where the agent mounts cgroup v2.
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup";
/// Where the agent keeps the mounts of the container's disks.
pub(crate) const RUN: &str = "/run";

/// Controllers of cgroup v2 that containers get where the kernel has them.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// Mounts /dev, /proc, /sys and cgroup v2 in a new tmpfs root.
pub(crate) fn mount_kernel_file_systems() -> Result<(), AgentError> {
    let guarded = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    leave_initramfs().context("leave the initramfs")?;
    // Containers come and go: favordynmods keeps a move between cgroups from waiting for a grace period.
    for (kind, target, flags, data) in [
        ("devtmpfs", "/dev", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, None),
        ("proc", "/proc", guarded, None),
        ("sysfs", "/sys", guarded, None),
        ("cgroup2", CGROUPS, guarded, Some("nsdelegate,favordynmods")),
    ] {
        fs::create_dir_all(target).context(format!("create {target}"))?;
        mount(Some(kind), target, Some(kind), flags, data).context(format!("mount {target}"))?;
    }
    delegate_controllers().context("enable the cgroup controllers")
}

/// The initramfs cannot be pivoted away from, so a tmpfs takes its place as the root.
fn leave_initramfs() -> io::Result<()> {
    fs::create_dir_all("/root.new")?;
    mount(
        Some("tmpfs"),
        "/root.new",
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=0755"),
    )?;
    chdir("/root.new")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    chdir("/")?;
    fs::create_dir_all(RUN)
}

/// Lets children of the root cgroup limit what the kernel can limit.
fn delegate_controllers() -> io::Result<()> {
    let offered = fs::read_to_string(format!("{CGROUPS}/cgroup.controllers"))?;
    let wanted: Vec<String> =
        offered.split_whitespace().filter(|c| CONTROLLERS.contains(c)).map(|c| format!("+{c}")).collect();
    fs::write(format!("{CGROUPS}/cgroup.subtree_control"), wanted.join(" "))
}
