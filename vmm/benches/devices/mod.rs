//! Disk and network interface: time of a request and throughput, of our devices on both transports and of QEMU's own, driven by the same
//! bare-metal guest, which polls, on the same accelerator.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vmm::control::ExitReason;
use vmm::kvm::layout;
use vmm::virtio::block::Block;
use vmm::virtio::block::extents::Extent;
use vmm::virtio::net::Net;

use crate::kvm::Machine;
use crate::kvm::files::memfd;
use crate::qemu::cable::{Echo, interface};
use crate::qemu::{self, Accelerator, Device, Qemu};

const DISK_BYTES: u64 = 128 << 20;
/// Where the guest leaves what it noted.
const RESULT_BYTE: u64 = 64 << 20;
const ROUNDS: usize = 1000;
const BURSTS: usize = 40;
const BURST: usize = 80;
/// Sizes as in `payload.c`.
const LARGE: f64 = 65_536.0;
const LONG_FRAME: f64 = 1514.0;

/// Who serves the guest's requests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rig {
    /// Our VMM.
    Ours,
    /// QEMU's machine with its own devices.
    Theirs(Accelerator),
    /// QEMU's machine with our devices behind its front-ends.
    OursBehind(Accelerator),
}

/// What the guest noted, in microseconds.
struct Noted {
    reads: Vec<f64>,
    writes: Vec<f64>,
    echoes: Vec<f64>,
    read_bursts: Vec<f64>,
    frame_bursts: Vec<f64>,
}

/// Prints the table's rows.
pub fn compare(line: impl Fn(&str, Vec<f64>, &str, &str, &str), kvm: bool) {
    if let Some(why) = qemu::missing() {
        return println!("skipped: devices beside QEMU's: {why}");
    }
    let clock = ticks_per_micro();
    let mut rigs = vec![
        ("QEMU's translator: our device over vhost-user", Rig::OursBehind(Accelerator::Translator)),
        ("QEMU's translator: QEMU's own device", Rig::Theirs(Accelerator::Translator)),
    ];
    if kvm {
        rigs.extend([
            ("kvm: our device", Rig::Ours),
            ("kvm: QEMU's own device", Rig::Theirs(Accelerator::Kvm)),
        ]);
    }
    for (name, rig) in rigs {
        let noted = match std::panic::catch_unwind(|| run(rig, clock)) {
            Ok(noted) => noted,
            Err(_) => {
                println!("skipped: {name}: the machine did not run, see above");
                continue;
            }
        };
        let print = |what: &str, samples: Vec<f64>, unit: &str, peer: &str| {
            line(&format!("{name}: {what}"), samples, unit, "-", peer);
        };
        // For a rate, the 99th percentile is that of the slow end.
        let rates =
            |bytes: f64, micros: Vec<f64>| micros.iter().map(|it| bytes * BURST as f64 / it).collect();
        print("read of 4 KiB", noted.reads, "us", "none published");
        print("write of 4 KiB", noted.writes, "us", "none published");
        let peer = "1074, with 70 % of a core (SPECIFICATION.md)";
        print("reads of 64 KiB, 16 at a time", rates(LARGE, noted.read_bursts), "MB/s", peer);
        let peer = "adds 60 on average (SPECIFICATION.md)";
        print("frame of 64 bytes, there and back", noted.echoes, "us", peer);
        let peer = "1812, with 80 % of a core (SPECIFICATION.md)";
        print("frames of 1514 bytes, 64 at a time", rates(LONG_FRAME, noted.frame_bursts), "MB/s", peer);
    }
}

/// The host's time-stamp counter, which the guest sees under every accelerator used here.
fn ticks_per_micro() -> f64 {
    // SAFETY: every x86-64 CPU has the instruction.
    let now = || unsafe { core::arch::x86_64::_rdtsc() };
    let (began, first) = (Instant::now(), now());
    thread::sleep(Duration::from_millis(200));
    (now() - first) as f64 / began.elapsed().as_secs_f64() / 1e6
}

fn run(rig: Rig, clock: f64) -> Noted {
    let directory = tempfile::tempdir().unwrap();
    let (registers, stride) = match rig {
        Rig::Ours => (layout::VIRTIO, vmm::transport::mmio::REGION_BYTES),
        _ => (qemu::VIRTIO, qemu::VIRTIO_BYTES),
    };
    let image = directory.path().join("payload");
    let net = Some(registers + stride);
    qemu::Payload { disk: registers, net, rounds: ROUNDS, bursts: BURSTS, burst: BURST, result: RESULT_BYTE }
        .compile(&image);
    let disk = memfd(&[]);
    disk.set_len(DISK_BYTES).unwrap();
    let (cable, echo) = Echo::new();
    match rig {
        Rig::Ours => in_our_vmm(&image, &disk, cable),
        Rig::Theirs(accelerator) => {
            let drive = format!(
                "if=none,id=disk,format=raw,file.locking=off,file=/proc/{}/fd/{}",
                std::process::id(),
                disk.as_raw_fd()
            );
            let netdev = format!("dgram,id=cable,local.type=fd,local.str={}", cable.as_raw_fd());
            let theirs = |device: &str, more: [&str; 2], descriptor| Device::Theirs {
                device: device.to_owned(),
                more: more.map(str::to_owned).to_vec(),
                descriptor,
            };
            let devices = vec![
                theirs("virtio-blk-device,drive=disk", ["-drive", &drive], None),
                theirs(
                    "virtio-net-device,netdev=cable,mac=02:00:00:00:00:01",
                    ["-netdev", &netdev],
                    Some(cable),
                ),
            ];
            in_qemu(accelerator, &image, devices);
        }
        Rig::OursBehind(accelerator) => {
            let extent = Extent { file: Arc::new(disk.try_clone().unwrap()), offset: 0, length: DISK_BYTES };
            let block = Box::new(Block::new(0, vec![extent], false).unwrap());
            let net = Box::new(Net::new(0, &interface(), cable).unwrap());
            let devices = vec![
                Device::Ours { front_end: "vhost-user-blk", device: block },
                Device::Ours { front_end: "virtio-net-device,mac=02:00:00:00:00:01", device: net },
            ];
            in_qemu(accelerator, &image, devices);
        }
    }
    drop(echo);
    let mut bytes = vec![0; 8 * (3 * ROUNDS + 2 * BURSTS)];
    disk.read_exact_at(&mut bytes, RESULT_BYTE).unwrap();
    let ticks: Vec<f64> =
        bytes.chunks(8).map(|chunk| u64::from_le_bytes(chunk.try_into().unwrap()) as f64 / clock).collect();
    let row = |start: usize, length: usize| ticks[start..start + length].to_vec();
    Noted {
        reads: row(0, ROUNDS),
        writes: row(ROUNDS, ROUNDS),
        echoes: row(2 * ROUNDS, ROUNDS),
        read_bursts: row(3 * ROUNDS, BURSTS),
        frame_bursts: row(3 * ROUNDS + BURSTS, BURSTS),
    }
}

fn in_our_vmm(image: &Path, disk: &File, cable: OwnedFd) {
    let mut kernel = Vec::new();
    File::open(image).unwrap().read_to_end(&mut kernel).unwrap();
    let kvm = crate::kvm::device().unwrap();
    let mut machine =
        Machine::new(kvm, &kernel).disk(&Arc::new(disk.try_clone().unwrap()), DISK_BYTES, false);
    machine = machine.device(Net::new(0, &interface(), cable).unwrap());
    machine.deadline = Duration::from_secs(120);
    machine.memory_mib = 64;
    let report = machine.run();
    assert!(report.reason == ExitReason::Reset && report.console.is_empty(), "{report:?}");
}

fn in_qemu(accelerator: Accelerator, image: &Path, devices: Vec<Device>) {
    let mut machine = Qemu::new(accelerator, File::open(image).unwrap(), memfd(&[0; 512]));
    machine.devices = devices;
    machine.memory_mib = 64;
    machine.start().finished();
}
