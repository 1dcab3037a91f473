//! What drivers do to the registers of every device at the wrong time, or with values that cannot be.

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{self, Kind, World};
use super::supervisor;
use crate::memory::GuestMemoryMmap;
use crate::transport::mmio::MmioDevice;
use crate::virtio::testing::Random;

const RAM: u64 = 0x1_0000;
/// Offsets of registers (virtio 1.2 section 4.2.2).
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SELECT: u64 = 0x24;
const QUEUE_SELECT: u64 = 0x30;
const QUEUE_SIZE: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const NOTIFY: u64 = 0x50;
const INTERRUPT_ACK: u64 = 0x64;
const STATUS: u64 = 0x70;
const DESCRIPTORS: u64 = 0x80;
const AVAILABLE: u64 = 0x90;
const USED: u64 = 0xa0;
const CONFIGURATION: u64 = 0x100;

struct Guest {
    kind: Kind,
    sizes: Vec<u16>,
    memory: GuestMemoryMmap,
    device: MmioDevice,
    _world: World,
}

fn rings(queue: usize) -> u64 {
    0x3000 * queue as u64 + 0x1000
}

impl Guest {
    fn new(kind: Kind) -> Self {
        let (world, made) = device::make(kind);
        let sizes = made.queue_sizes().to_vec();
        let ram = usize::try_from(RAM).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), ram)]).unwrap();
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let device = MmioDevice::new(made, memory.clone(), irq).unwrap();
        Self { kind, sizes, memory, device, _world: world }
    }

    fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, register: u64, value: u32) {
        self.device.write(register, &value.to_le_bytes());
    }

    fn negotiate(&self) {
        for (register, value) in [
            (STATUS, 0),
            (STATUS, 1),
            (STATUS, 3),
            (DRIVER_FEATURES_SELECT, 1),
            (DRIVER_FEATURES, 1),
            (STATUS, 11),
        ] {
            self.write(register, value);
        }
        assert_eq!(self.read(STATUS), 11);
    }

    /// Whether the queue is ready now.
    fn configure(&self, queue: usize, size: u32, [descriptors, available, used]: [u64; 3]) -> bool {
        self.write(QUEUE_SELECT, u32::try_from(queue).unwrap());
        self.write(QUEUE_SIZE, size);
        for (register, address) in [(DESCRIPTORS, descriptors), (AVAILABLE, available), (USED, used)] {
            self.write(register, u32::try_from(address & u64::from(u32::MAX)).unwrap());
            self.write(register + 4, u32::try_from(address >> 32).unwrap());
        }
        self.write(QUEUE_READY, 1);
        self.read(QUEUE_READY) == 1
    }

    fn start(&self) {
        self.negotiate();
        for queue in 0..self.sizes.len() {
            let at = rings(queue);
            assert!(self.configure(queue, 16, [at, at + 0x1000, at + 0x2000]), "{:?} {queue}", self.kind);
        }
        self.write(STATUS, 15);
        assert!(self.device.is_active());
    }

    fn configuration(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        self.device.read(CONFIGURATION, &mut bytes);
        bytes
    }

    fn used(&self) -> Vec<u16> {
        let index = |queue| self.memory.read_obj(GuestAddress(rings(queue) + 0x2002)).unwrap();
        (0..self.sizes.len()).map(index).collect()
    }
}

/// States of every device that can be part of a snapshot, with damage that no checksum would show: each is refused, or makes a device that harms itself.
#[test]
fn states_with_single_bytes_changed_are_refused_or_harmless() {
    let mut random = Random(11);
    let mut seeds = 0;
    for (index, kind) in Kind::ALL.into_iter().enumerate() {
        let guest = Guest::new(kind);
        guest.start();
        // Folders cannot.
        let Some(seed) = supervisor::state(index, &guest.device) else {
            assert_eq!(kind, Kind::Fs);
            continue;
        };
        assert!(supervisor::snapshot(&seed), "{kind:?}");
        seeds += 1;
        let mut taken = 0;
        for _ in 0..1500 {
            let mut bytes = seed.clone();
            for _ in 0..=random.below(3) {
                let at = 1 + usize::try_from(random.below(bytes.len() as u64 - 1)).unwrap();
                bytes[at] = random.next().to_le_bytes()[0];
            }
            taken += u32::from(supervisor::snapshot(&bytes));
        }
        assert!((10..1490).contains(&taken), "{kind:?}: {taken} were taken");
    }
    assert_eq!(seeds, 8);
}

#[test]
fn no_register_of_any_device_changes_anything_after_driver_ok() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        guest.start();
        let (before, configuration) = (guest.device.describe(), guest.configuration());
        for register in (0..CONFIGURATION).step_by(4) {
            if [NOTIFY, INTERRUPT_ACK, STATUS].contains(&register) {
                continue;
            }
            for value in [0, 1, 7, 0x8000_0000, u32::MAX] {
                // Whichever queue is selected.
                guest.write(QUEUE_SELECT, value % 5);
                guest.write(register, value);
                for width in [1, 2, 8] {
                    guest.device.write(register, &value.to_le_bytes().repeat(2)[..width]);
                }
            }
        }
        // Bits of the status are never taken back, but by a reset.
        for value in [1, 3, 7, 11, 14] {
            guest.write(STATUS, value);
            assert_eq!(guest.read(STATUS), 15, "{kind:?}");
        }
        assert_eq!(guest.device.describe(), before, "{kind:?}");
        for (queue, _) in guest.sizes.iter().enumerate() {
            guest.write(QUEUE_SELECT, u32::try_from(queue).unwrap());
            assert_eq!(guest.read(QUEUE_READY), 1, "{kind:?} {queue}");
        }
        for offset in 0..64 {
            for width in 1..9 {
                guest.device.write(CONFIGURATION + offset, &[0x5a; 8][..width]);
            }
        }
        let mut expected = configuration;
        if kind == Kind::Balloon {
            // What the balloon has reached is the driver's to tell.
            expected[4..8].fill(0x5a);
        }
        assert_eq!(guest.configuration(), expected, "{kind:?}");
    }
}

#[test]
fn no_queue_of_any_device_becomes_ready_with_a_size_or_place_that_cannot_be() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        for (queue, largest) in guest.sizes.iter().enumerate() {
            guest.negotiate();
            let at = rings(queue);
            let right = [at, at + 0x1000, at + 0x2000];
            for size in [0, 3, 7, 2 * u32::from(*largest), 0xffff, 0x1_0000, 0x1_0010, u32::MAX] {
                assert!(!guest.configure(queue, size, right), "{kind:?} {queue}: {size}");
            }
            for (ring, wrong) in (0..3)
                .flat_map(|ring| [RAM, RAM - 4, at + 1, u64::MAX, !0xfff, 1 << 40].map(|wrong| (ring, wrong)))
            {
                let mut places = right;
                places[ring] = wrong;
                assert!(!guest.configure(queue, 16, places), "{kind:?} {queue}: {places:x?}");
            }
            assert!(guest.configure(queue, 16, right), "{kind:?} {queue}");
        }
    }
}

#[test]
fn a_device_whose_driver_stopped_half_way_touches_no_queue() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        // Each queue holds a chain that names nothing there is.
        let offer = || {
            for queue in 0..guest.sizes.len() {
                guest.memory.write_slice(&[0xff; 16], GuestAddress(rings(queue))).unwrap();
                guest.memory.write_slice(&[0, 0, 1, 0, 0, 0], GuestAddress(rings(queue) + 0x1000)).unwrap();
            }
        };
        let events = || {
            (0..guest.sizes.len()).for_each(|queue| guest.device.queue_event(queue));
            guest.device.host_event();
            assert_eq!(guest.device.take_failure(), None, "{kind:?}");
            assert!(guest.used().iter().all(|used| *used == 0), "{kind:?}");
        };
        // Reset while there is something to do.
        guest.start();
        offer();
        guest.write(STATUS, 0);
        events();
        assert!(!guest.device.is_active() && guest.read(STATUS) == 0);
        // Features agreed on, queues ready, and not a step further.
        guest.negotiate();
        let at = rings(0);
        assert!(guest.configure(0, 16, [at, at + 0x1000, at + 0x2000]));
        events();
        // The driver gave up.
        guest.write(STATUS, 11 | 128);
        guest.write(STATUS, 15);
        events();
        // Running without a single queue.
        guest.negotiate();
        guest.write(STATUS, 15);
        assert!(guest.device.is_active(), "{kind:?}");
        events();
        // And it still is as good as new.
        guest.memory.write_slice(&[0; 0x8000], GuestAddress(0x1000)).unwrap();
        guest.memory.write_slice(&[0; 0x6000], GuestAddress(0x9000)).unwrap();
        guest.start();
        events();
    }
}
