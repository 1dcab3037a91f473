//! Our devices over vhost-user with a front-end that is not ours: QEMU's, with a bare-metal guest. (The vsock device has its turn in
//! `instructions.rs`, where the agent says hello through it.)

#![allow(clippy::unwrap_used, clippy::panic)]

mod qemu;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use qemu::{Accelerator, Device, Payload, Qemu};
use vmm::virtio::block::Block;
use vmm::virtio::block::extents::Extent;

const DISK_BYTES: u64 = 8 << 20;
const RESULT_BYTE: u64 = 4 << 20;
const BLOCK_BYTES: usize = 4096;
const ROUNDS: usize = 16;
const BURSTS: usize = 2;
const BURST: usize = 64;

#[test]
fn a_disk_is_read_and_written_through_qemus_front_end() {
    if let Some(why) = qemu::missing() {
        eprintln!("skipped: a disk behind QEMU's front-end: {why}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("payload");
    Payload {
        disk: qemu::VIRTIO,
        net: None,
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
    let device = Box::new(Block::new(0, vec![extent], false).unwrap());

    let mut machine = Qemu::new(Accelerator::Translator, File::open(&image).unwrap(), initramfs);
    machine.memory_mib = 64;
    machine.devices = vec![Device::Ours { front_end: "vhost-user-blk", device }];
    machine.start().finished();

    // It read all blocks, one after another to the same place, and then wrote what it read last to all of them.
    let mut blocks = vec![0; ROUNDS * BLOCK_BYTES];
    disk.read_exact_at(&mut blocks, 0).unwrap();
    assert!(blocks.iter().all(|byte| usize::from(*byte) == ROUNDS), "{:?}", &blocks[..16]);
    // Each request took some time.
    let mut ticks = vec![0; 8 * 2 * ROUNDS];
    disk.read_exact_at(&mut ticks, RESULT_BYTE).unwrap();
    assert!(ticks.chunks(8).all(|tick| tick != [0; 8]));
}
