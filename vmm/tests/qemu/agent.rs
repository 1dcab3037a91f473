//! Our kernel and agent, counted until the agent is ready.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use vmm::virtio::block::Block;
use vmm::virtio::block::extents::Extent;
use vmm::virtio::net::Net;
use vmm::virtio::vsock::Vsock;

use super::cable::{Echo, interface};
use super::{Accelerator, Counts, Device, Qemu, cannot_count, missing};

/// The port on the host that the agent connects to.
const AGENT_PORT: u32 = 1024;
/// Most bytes of the agent's first frame.
const MAX_HELLO: usize = 4096;
const DISK_BYTES: u64 = 16 << 20;

/// What is booted.
pub struct Parts {
    pub kernel: File,
    pub initramfs: File,
}

/// The parts; or why there are none.
pub fn parts() -> Result<Parts, String> {
    if let Some(why) = missing().or_else(cannot_count) {
        return Err(why);
    }
    let kernel = std::env::var_os("BULKHEAD_KERNEL_KVM").map(PathBuf::from).or_else(|| {
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let base = || std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
        let cache = std::env::var_os("BULKHEAD_CACHE").map(PathBuf::from);
        Some(cache.or_else(|| Some(base()?.join("bulkhead")))?.join("kernels/kvm/vmlinux"))
    });
    let kernel = kernel.and_then(|path| File::open(path).ok());
    let kernel = kernel.ok_or("no guest kernel for kvm (make kernel-kvm builds it)")?;
    // Or beside the binaries: this program is in a directory next to them.
    let beside = || Some(std::env::current_exe().ok()?.parent()?.parent()?.join("initramfs.cpio"));
    let initramfs = std::env::var_os("BULKHEAD_INITRAMFS").map(PathBuf::from).or_else(beside);
    let initramfs = initramfs.and_then(|path| File::open(path).ok());
    let initramfs = initramfs.ok_or("no initramfs (make build makes it)")?;
    Ok(Parts { kernel, initramfs })
}

/// What the machine has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Equipment {
    /// The agent's channel, and nothing else: the machine that can say hello.
    Least,
    /// What an ordinary container's machine has: two disks, a network interface, the channel, an entropy source.
    Container,
}

/// Boots until the agent says hello. `profile` gets how often each block of code was executed.
pub fn count(parts: &Parts, equipment: Equipment, profile: Option<PathBuf>) -> Counts {
    let file = |file: &File| file.try_clone().unwrap();
    let mut machine = Qemu::new(Accelerator::Clockwork, file(&parts.kernel), file(&parts.initramfs));
    let (agent, far) = UnixStream::pair().unwrap();
    machine.devices = match equipment {
        Equipment::Least => vec![vsock(far)],
        Equipment::Container => vec![disk(0), disk(1), net(), vsock(far), rng()],
    };
    machine.count = true;
    machine.profile = profile;
    let mut machine = machine.start();
    let mut length = [0; 4];
    machine.read(&agent, &mut length);
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap();
    assert!(length <= MAX_HELLO, "a hello of {length} bytes");
    let mut hello = vec![0; length];
    machine.read(&agent, &mut hello);
    let counts = machine.counts();
    let hello = String::from_utf8_lossy(&hello).into_owned();
    assert!(hello.contains("\"hello\""), "{hello}");
    machine.end().unwrap();
    counts
}

fn disk(index: usize) -> Device {
    let file =
        File::from(nix::sys::memfd::memfd_create(c"disk", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(DISK_BYTES).unwrap();
    let extent = Extent { file: Arc::new(file), offset: 0, length: DISK_BYTES };
    Device::Ours {
        front_end: "vhost-user-blk",
        device: Box::new(Block::new(index, vec![extent], index == 0).unwrap()),
    }
}

fn vsock(far: UnixStream) -> Device {
    let ports = [(AGENT_PORT, OwnedFd::from(far))];
    Device::Ours {
        front_end: "vhost-user-vsock-device",
        device: Box::new(Vsock::new(3, None, ports).unwrap()),
    }
}

/// Nobody is at the other end of its cable.
fn net() -> Device {
    let (near, _) = Echo::new();
    let device = Box::new(Net::new(0, &interface(), near).unwrap());
    Device::Ours { front_end: "virtio-net-device,mac=02:00:00:00:00:01", device }
}

/// QEMU's own: its vhost-user front-end accepts features on the driver's behalf that our device did not offer.
fn rng() -> Device {
    Device::Theirs { device: "virtio-rng-device".to_owned(), more: Vec::new(), descriptor: None }
}
