use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;
use vm_memory::Bytes;

use super::*;
use crate::config::{Fd, NetBackend, NetConfig, RateLimit};
use crate::virtio::net::Net;
use crate::virtio::rng::Rng;

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const END: u64 = 0x1_0000;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

struct Guest {
    memory: GuestMemoryMmap,
    device: MmioDevice,
    irq: EventFd,
}

impl Guest {
    fn new() -> Self {
        Self::with(Box::new(Rng::new().unwrap()))
    }

    fn with(device: Box<dyn VirtioDevice>) -> Self {
        let end = usize::try_from(END).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), end)]).unwrap();
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let device = MmioDevice::new(device, memory.clone(), irq.try_clone().unwrap()).unwrap();
        Self { memory, device, irq }
    }

    fn read(&self, register: u32) -> u32 {
        let mut data = [0xa5; 4];
        self.device.read(u64::from(register), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, register: u32, value: u32) {
        self.device.write(u64::from(register), &value.to_le_bytes());
    }

    fn status(&self, value: u32) -> u32 {
        self.write(VIRTIO_MMIO_STATUS, value);
        self.read(VIRTIO_MMIO_STATUS)
    }

    fn features(&self, low: u32, high: u32) {
        self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES, low);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES, high);
    }

    fn negotiate(&self) {
        assert_eq!(self.status(ACKNOWLEDGE), 1);
        assert_eq!(self.status(ACKNOWLEDGE | DRIVER), 3);
        self.features(0, 1);
        assert_eq!(self.status(ACKNOWLEDGE | DRIVER | FEATURES_OK), 11);
    }

    fn configure(&self, size: u32, descriptors: u64, available: u64, used: u64) -> u32 {
        self.write(VIRTIO_MMIO_QUEUE_SEL, 0);
        self.write(VIRTIO_MMIO_QUEUE_NUM, size);
        for (register, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, descriptors),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, available),
            (VIRTIO_MMIO_QUEUE_USED_LOW, used),
        ] {
            self.write(register, half(address, 0));
            self.write(register + 4, half(address, 1));
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
        self.read(VIRTIO_MMIO_QUEUE_READY)
    }

    fn go(&self) {
        self.negotiate();
        assert_eq!(self.configure(16, DESCRIPTORS, AVAILABLE, USED), 1);
        assert_eq!(self.status(15), 15);
        assert!(self.device.is_active());
    }

    /// Offers one buffer and notifies through the register.
    fn request(&self, address: u64) {
        let mut descriptor = address.to_le_bytes().to_vec();
        descriptor.extend([64, 0, 0, 0, 2, 0, 0, 0]);
        self.memory.write_slice(&descriptor, GuestAddress(DESCRIPTORS)).unwrap();
        let index: u16 = self.memory.read_obj(GuestAddress(AVAILABLE + 2)).unwrap();
        self.memory.write_obj(index + 1, GuestAddress(AVAILABLE + 2)).unwrap();
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        assert_eq!(self.device.notify_events()[0].read().unwrap(), 1);
        self.device.queue_event(0);
    }

    fn used(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }
}

#[test]
fn a_polite_driver_is_served() {
    let guest = Guest::new();
    assert_eq!(guest.read(VIRTIO_MMIO_MAGIC_VALUE), MAGIC);
    assert_eq!(guest.read(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(guest.read(VIRTIO_MMIO_DEVICE_ID), 4);
    assert_eq!(guest.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
    guest.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    assert_eq!(guest.read(VIRTIO_MMIO_DEVICE_FEATURES), 1);
    guest.go();
    assert_eq!(guest.device.activity_event().read().unwrap(), 1);
    guest.request(0x5000);
    assert_eq!(guest.used(), 1);
    assert_eq!(guest.irq.read().unwrap(), 1);
    assert_eq!(guest.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    guest.write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
    assert_eq!(guest.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn status_is_a_one_way_road() {
    let guest = Guest::new();
    // Steps cannot be left out.
    assert_eq!(guest.status(DRIVER), 0);
    assert_eq!(guest.status(FEATURES_OK | DRIVER_OK), 0);
    assert_eq!(guest.status(ACKNOWLEDGE | FEATURES_OK), 1);
    guest.status(ACKNOWLEDGE | DRIVER);
    guest.features(0, 1);
    // FEATURES_OK must be read back before DRIVER_OK.
    assert_eq!(guest.status(15), 11);
    // Bits cannot be taken back, unknown and device bits not be set.
    assert_eq!(guest.status(ACKNOWLEDGE), 11);
    assert_eq!(guest.status(0xffff_ff70 | 11), 11);
    assert_eq!(guest.status(11 | NEEDS_RESET), 11);
    assert_eq!(guest.status(15), 15);
    assert_eq!(guest.status(15 | FAILED), 15 | FAILED);
    assert!(!guest.device.is_active());
    assert_eq!(guest.status(15), 15 | FAILED);
    assert_eq!(guest.status(0), 0);
    guest.go();
}

#[test]
fn features_are_checked_and_then_frozen() {
    let guest = Guest::new();
    // Too early: ignored.
    guest.features(0, 1);
    guest.status(ACKNOWLEDGE | DRIVER);
    assert_eq!(guest.status(11), 3, "VERSION_1 was not accepted");
    guest.features(1 << 7, 1);
    assert_eq!(guest.status(11), 3, "a feature that was not offered");
    guest.features(0, 1 | 1 << (VIRTIO_F_RING_PACKED - 32));
    assert_eq!(guest.status(11), 3, "packed rings were not offered");
    guest.features(0, 1);
    assert_eq!(guest.status(11), 11);
    guest.features(u32::MAX, u32::MAX);
    assert_eq!(guest.status(15), 15);
    assert_eq!(guest.device.lock().accepted, 1 << VIRTIO_F_VERSION_1);
}

#[test]
fn impossible_queues_do_not_become_ready() {
    let guest = Guest::new();
    assert_eq!(guest.configure(16, DESCRIPTORS, AVAILABLE, USED), 0, "before FEATURES_OK");
    guest.negotiate();
    for (size, descriptors, available, used) in [
        (0, DESCRIPTORS, AVAILABLE, USED),
        (3, DESCRIPTORS, AVAILABLE, USED),
        (128, DESCRIPTORS, AVAILABLE, USED),
        (0x1_0010, DESCRIPTORS, AVAILABLE, USED),
        (u32::MAX, DESCRIPTORS, AVAILABLE, USED),
        (16, DESCRIPTORS + 8, AVAILABLE, USED),
        (16, DESCRIPTORS, AVAILABLE + 1, USED),
        (16, DESCRIPTORS, AVAILABLE, USED + 2),
        (16, END - 0x80, AVAILABLE, USED),
        (16, DESCRIPTORS, END - 8, USED),
        (16, DESCRIPTORS, AVAILABLE, END - 8),
        (16, u64::MAX - 15, AVAILABLE, USED),
        (16, DESCRIPTORS, u64::MAX - 1, USED),
        (16, DESCRIPTORS, AVAILABLE, u64::MAX - 3),
        (16, DESCRIPTORS, AVAILABLE, 1 << 40),
    ] {
        assert_eq!(guest.configure(size, descriptors, available, used), 0, "{size} {descriptors:#x}");
    }
    guest.write(VIRTIO_MMIO_QUEUE_SEL, 1);
    guest.write(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(guest.read(VIRTIO_MMIO_QUEUE_READY), 0);
    assert_eq!(guest.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
    // A driver that goes on without a queue is served nothing, and nothing breaks.
    assert_eq!(guest.status(15), 15);
    guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    guest.device.queue_event(0);
    assert!(guest.device.is_active());
}

#[test]
fn queues_are_frozen_once_ready_and_once_the_driver_is_ok() {
    let guest = Guest::new();
    guest.negotiate();
    assert_eq!(guest.configure(16, DESCRIPTORS, AVAILABLE, USED), 1);
    guest.write(VIRTIO_MMIO_QUEUE_NUM, 32);
    guest.write(VIRTIO_MMIO_QUEUE_DESC_LOW, 0x8000);
    guest.write(VIRTIO_MMIO_QUEUE_READY, 1);
    guest.status(15);
    guest.configure(32, 0x8000, 0x8000, 0x8000);
    guest.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(guest.read(VIRTIO_MMIO_QUEUE_READY), 1);
    let state = guest.device.lock();
    assert_eq!(state.queues[0].size(), 16);
    assert_eq!(state.queues[0].desc_table(), DESCRIPTORS);
}

#[test]
fn a_broken_rule_costs_the_device_until_reset() {
    let guest = Guest::new();
    guest.go();
    guest.request(END);
    assert_eq!(guest.read(VIRTIO_MMIO_STATUS), 15 | NEEDS_RESET);
    assert_eq!(guest.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(guest.read(VIRTIO_MMIO_CONFIG_GENERATION), 1);
    assert!(guest.device.take_failure().unwrap().contains("does not have"));
    assert!(guest.device.take_failure().is_none());
    guest.request(0x5000);
    assert_eq!(guest.used(), 0);
    assert_eq!(guest.status(15), 15 | NEEDS_RESET);
    assert_eq!(guest.status(0), 0);
    assert_eq!(guest.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    assert_eq!(guest.read(VIRTIO_MMIO_QUEUE_READY), 0);
    guest.memory.write_obj(0u16, GuestAddress(AVAILABLE + 2)).unwrap();
    guest.go();
    guest.request(0x5000);
    assert_eq!(guest.used(), 1);
}

#[test]
fn odd_accesses_do_nothing() {
    let guest = Guest::new();
    guest.go();
    for offset in 0..0x1100u64 {
        for width in [0, 1, 2, 3, 8, 16] {
            let mut data = [0xa5u8; 16];
            guest.device.read(offset, &mut data[..width]);
            assert!(data[..width].iter().all(|byte| *byte == 0), "{offset:#x} {width}");
            guest.device.write(offset, &[0; 16][..width]);
        }
        if offset != u64::from(VIRTIO_MMIO_STATUS) {
            guest.device.write(offset, &[0xff; 4]);
        }
    }
    guest.device.read(u64::MAX, &mut [0; 8]);
    guest.device.write(u64::MAX, &[0; 4]);
    assert!(guest.device.notify_events()[0].read().is_err());
    guest.request(0x5000);
    assert_eq!(guest.used(), 1);
}

/// Notes what it is told.
struct Recorder(Arc<Mutex<Vec<String>>>);

impl Recorder {
    fn note(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }
}

impl VirtioDevice for Recorder {
    fn device_type(&self) -> u32 {
        4
    }

    fn name(&self) -> &'static str {
        "recorder"
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16]
    }

    fn features(&self) -> u64 {
        1 << 5
    }

    fn set_features(&mut self, accepted: u64) {
        self.note(format!("features {accepted:#x}"));
    }

    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    fn queue_event(&mut self, index: usize, _io: &mut Io<'_>) -> Result<(), DeviceError> {
        self.note(format!("queue {index}"));
        Ok(())
    }

    fn reset(&mut self) {
        self.note("reset".to_owned());
    }
}

#[test]
fn a_device_is_told_by_the_event_loop_and_in_order() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let guest = Guest::with(Box::new(Recorder(Arc::clone(&heard))));
    let heard = || std::mem::take(&mut *heard.lock().unwrap());
    // All that a vCPU does: to and fro, and in the end the driver is ready.
    for features in [1 << 5, 0] {
        guest.status(0);
        guest.status(ACKNOWLEDGE);
        guest.status(ACKNOWLEDGE | DRIVER);
        guest.features(features, 1);
        guest.status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        guest.configure(16, DESCRIPTORS, AVAILABLE, USED);
        guest.status(15);
    }
    guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert!(heard().is_empty());
    assert!(guest.device.activity_event().read().is_ok());
    guest.device.queue_event(0);
    assert_eq!(heard(), ["reset", "features 0x100000000", "queue 0"]);
    guest.device.queue_event(0);
    assert_eq!(heard(), ["queue 0"]);
    // A reset alone is told as well, as soon as the loop looks whether the device is active.
    guest.status(0);
    assert!(guest.device.activity_event().read().is_ok());
    assert!(heard().is_empty());
    assert!(!guest.device.is_active());
    assert_eq!(heard(), ["reset"]);
}

#[test]
fn events_before_driver_ok_are_ignored() {
    let guest = Guest::new();
    guest.negotiate();
    guest.configure(16, DESCRIPTORS, AVAILABLE, USED);
    guest.request(0x5000);
    guest.device.host_event();
    assert_eq!(guest.used(), 0);
}

#[test]
fn a_command_changes_the_configuration_and_interrupts_only_a_driver() {
    let (cable, _peer) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let config = NetConfig {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        backend: NetBackend::Socket { socket: Fd(0), headers: false },
        check_source: true,
        receive: RateLimit::default(),
        send: RateLimit::default(),
    };
    let guest = Guest::with(Box::new(Net::new(0, &config, cable.into()).unwrap()));
    let link = |guest: &Guest| {
        let mut status = [0; 2];
        guest.device.read(u64::from(VIRTIO_MMIO_CONFIG) + 6, &mut status);
        status
    };
    assert_eq!(link(&guest), [1, 0]);
    guest.device.command(&Command::SetLink { up: false }).unwrap();
    assert_eq!(link(&guest), [0, 0]);
    assert_eq!(guest.read(VIRTIO_MMIO_CONFIG_GENERATION), 1);
    assert!(guest.irq.read().is_err());
    assert_eq!(guest.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    guest.go();
    guest.device.command(&Command::SetLink { up: true }).unwrap();
    assert_eq!(link(&guest), [1, 0]);
    assert_eq!(guest.read(VIRTIO_MMIO_CONFIG_GENERATION), 2);
    assert_eq!(guest.irq.read().unwrap(), 1);
    assert_eq!(guest.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    guest.device.command(&Command::LimitDisk(RateLimit::default())).unwrap_err();
    assert_eq!(guest.device.counters()[0], ("received_frames", 0));
}
