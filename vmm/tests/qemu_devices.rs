//! Our devices over vhost-user with a front-end that is not ours: QEMU's, with a bare-metal guest. (The vsock device has its turn in
//! `instructions.rs`, where the agent says hello through it.)

#![allow(clippy::unwrap_used, clippy::panic)]

mod qemu;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use qemu::cable::{Echo, interface};
use qemu::{Accelerator, Device, Payload, Qemu};
use vmm::virtio::block::Block;
use vmm::virtio::block::extents::Extent;
use vmm::virtio::net::Net;

const DISK_BYTES: u64 = 8 << 20;
const RESULT_BYTE: u64 = 4 << 20;
const BLOCK_BYTES: usize = 4096;
const ROUNDS: usize = 16;
const BURSTS: usize = 2;
const BURST: usize = 64;

#[test]
fn a_disk_and_a_network_interface_serve_qemus_front_ends() {
    if let Some(why) = qemu::missing() {
        eprintln!("skipped: devices behind QEMU's front-ends: {why}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("payload");
    Payload {
        disk: qemu::VIRTIO,
        net: Some(qemu::VIRTIO + qemu::VIRTIO_BYTES),
        rounds: ROUNDS,
        bursts: BURSTS,
        burst: BURST,
        result: RESULT_BYTE,
    }
    .compile(&image);
    let memfd = |name| File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC).unwrap());
    let (disk, initramfs) = (memfd(c"disk"), memfd(c"initramfs"));
    disk.set_len(DISK_BYTES).unwrap();
    initramfs.set_len(512).unwrap();
    // Each block holds its own number.
    for number in 0..ROUNDS {
        let block = [u8::try_from(number + 1).unwrap(); BLOCK_BYTES];
        disk.write_all_at(&block, (number * BLOCK_BYTES) as u64).unwrap();
    }
    let extent = Extent { file: Arc::new(disk.try_clone().unwrap()), offset: 0, length: DISK_BYTES };
    let block = Box::new(Block::new(0, vec![extent], false).unwrap());
    let (cable, _echo) = Echo::new();
    let net = Box::new(Net::new(0, &interface(), cable).unwrap());

    let mut machine = Qemu::new(Accelerator::Translator, File::open(&image).unwrap(), initramfs);
    machine.memory_mib = 64;
    machine.devices = vec![
        Device::Ours { front_end: "vhost-user-blk", device: block },
        Device::Ours { front_end: "virtio-net-device,mac=02:00:00:00:00:01", device: net },
    ];
    machine.start().finished();

    // It read all blocks, one after another to the same place, and then wrote what it read last to all of them.
    let mut blocks = vec![0; ROUNDS * BLOCK_BYTES];
    disk.read_exact_at(&mut blocks, 0).unwrap();
    assert!(blocks.iter().all(|byte| usize::from(*byte) == ROUNDS), "{:?}", &blocks[..16]);
    // Each read, each write, and each frame that went there and back took some time.
    let mut ticks = vec![0; 8 * 3 * ROUNDS];
    disk.read_exact_at(&mut ticks, RESULT_BYTE).unwrap();
    let ticks: Vec<u64> = ticks.chunks(8).map(|tick| u64::from_le_bytes(tick.try_into().unwrap())).collect();
    assert!(!ticks.contains(&0), "{ticks:?}");
}
