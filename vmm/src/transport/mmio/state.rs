//! The transport's part of a snapshot: registers and queues of one device, and the device's own state.
//!
//! A state may come from anywhere. What the driver could not have reached by writing registers is refused, and so
//! is a queue that does not lie in guest memory; from there on a restored device is as safe as any other.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_queue::{Queue, QueueState, QueueT};

use super::{DRIVER_BITS, MmioDevice, QueueRegisters, State};
use crate::control::{Refusal, RefusalKind};
use crate::virtio::{Io, MAX_DEVICE_STATE};

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioState {
    kind: u32,
    status: u32,
    accepted: u64,
    selects: [u32; 3],
    interrupt_status: u32,
    generation: u32,
    queues: Vec<QueueRecord>,
    device: Vec<u8>,
}

/// A queue, with what the driver wrote to its registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct QueueRecord {
    ready: bool,
    size: u16,
    next_available: u16,
    next_used: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    written_size: u32,
    written: [u64; 3],
}

impl MmioDevice {
    /// Reads the device's state, while nobody uses it.
    ///
    /// # Errors
    /// The device cannot be part of a snapshot.
    pub fn save(&self) -> Result<MmioState, Refusal> {
        let state = self.lock();
        let queues = state.queues.iter().zip(&state.registers).map(|(queue, registers)| {
            let queue = queue.state();
            QueueRecord {
                ready: queue.ready,
                size: queue.size,
                next_available: queue.next_avail,
                next_used: queue.next_used,
                descriptors: queue.desc_table,
                available: queue.avail_ring,
                used: queue.used_ring,
                written_size: registers.size,
                written: [registers.descriptors, registers.available, registers.used],
            }
        });
        Ok(MmioState {
            kind: state.device.device_type(),
            status: state.status,
            accepted: state.accepted,
            selects: [state.device_features_select, state.driver_features_select, state.queue_select],
            interrupt_status: self.line.status.load(Ordering::SeqCst),
            generation: self.line.generation.load(Ordering::SeqCst),
            queues: queues.collect(),
            device: state.device.save()?,
        })
    }

    /// Gives a new device a state.
    ///
    /// # Errors
    /// It is not one of such a device.
    pub fn restore(&self, saved: &MmioState) -> Result<(), Refusal> {
        let mut state = self.lock();
        let name = self.name();
        check(saved, &state).map_err(|what| {
            Refusal::new(RefusalKind::Invalid, format!("{name}: the snapshot holds {what}"))
        })?;
        let queues = rebuild(saved, &state).map_err(|what| {
            Refusal::new(RefusalKind::Invalid, format!("{name}: the snapshot holds {what}"))
        })?;
        state.queues = queues;
        state.status = saved.status;
        state.accepted = saved.accepted;
        [state.device_features_select, state.driver_features_select, state.queue_select] = saved.selects;
        state.registers = saved.queues.iter().map(registers).collect();
        if state.has(VIRTIO_CONFIG_S_FEATURES_OK) {
            let accepted = state.accepted;
            state.device.set_features(accepted);
        }
        state.device.restore(&saved.device)?;
        self.line.generation.store(saved.generation, Ordering::SeqCst);
        // An interrupt or notification may have been on its way: one too many does no harm.
        let status = saved.interrupt_status & (VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG);
        self.line.status.store(status, Ordering::SeqCst);
        if status != 0 {
            let _ = self.line.irq.write(1);
        }
        if state.is_active() {
            for (queue, notify) in state.queues.iter().zip(&self.notify) {
                if queue.ready() {
                    let _ = notify.write(1);
                }
            }
        }
        drop(state);
        self.tell_activity();
        self.event(|device, io: &mut Io<'_>| device.restored(io));
        Ok(())
    }

    /// One line for a diagnosis.
    #[must_use]
    pub fn describe(&self) -> String {
        let state = self.lock();
        let queues = state.queues.iter().map(|queue| (queue.ready(), queue.size(), queue.next_avail()));
        format!(
            "{}: status {:#x}, features {:#x}, interrupt {:#x}, queues (ready, size, next) {:?}",
            self.name,
            state.status,
            state.accepted,
            self.line.status.load(Ordering::SeqCst),
            queues.collect::<Vec<_>>()
        )
    }
}

fn registers(record: &QueueRecord) -> QueueRegisters {
    let [descriptors, available, used] = record.written;
    QueueRegisters { size: record.written_size, descriptors, available, used }
}

fn check(saved: &MmioState, state: &State) -> Result<(), &'static str> {
    if saved.kind != state.device.device_type() {
        return Err("a device of another type");
    }
    if saved.queues.len() != state.queues.len() {
        return Err("another number of queues");
    }
    if saved.status & !(DRIVER_BITS | VIRTIO_CONFIG_S_NEEDS_RESET) != 0 {
        return Err("a status that does not exist");
    }
    let negotiated = saved.status & (VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK) != 0;
    if negotiated && saved.accepted & !state.offered() != 0 {
        return Err("features that this device does not offer");
    }
    if saved.device.len() > MAX_DEVICE_STATE {
        return Err("a device state that is too large");
    }
    Ok(())
}

fn rebuild(saved: &MmioState, state: &State) -> Result<Vec<Queue>, &'static str> {
    let event_index = saved.accepted & 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX != 0;
    let rebuilt = saved.queues.iter().zip(&state.queues).map(|(record, queue)| {
        let wanted = QueueState {
            max_size: queue.max_size(),
            next_avail: record.next_available,
            next_used: record.next_used,
            event_idx_enabled: event_index,
            size: record.size,
            ready: record.ready,
            desc_table: record.descriptors,
            avail_ring: record.available,
            used_ring: record.used,
        };
        let queue = Queue::try_from(wanted).map_err(|_| "a queue that cannot be")?;
        if queue.ready() && !queue.is_valid(&state.memory) {
            return Err("a queue outside guest memory");
        }
        Ok(queue)
    });
    rebuilt.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
    use vm_memory::GuestAddress;
    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::config::{BalloonConfig, Fd, NetBackend, NetConfig, RateLimit};
    use crate::console::ConsoleRing;
    use crate::memory::GuestMemoryMmap;
    use crate::virtio::VirtioDevice;
    use crate::virtio::balloon::Balloon;
    use crate::virtio::console::Console;
    use crate::virtio::net::Net;
    use crate::virtio::rng::Rng;
    use crate::virtio::vsock::Vsock;

    fn plugged(device: Box<dyn VirtioDevice>) -> MmioDevice {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        MmioDevice::new(device, memory, EventFd::new(0).unwrap()).unwrap()
    }

    fn all() -> Vec<MmioDevice> {
        let net = NetConfig {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            backend: NetBackend::Socket { socket: Fd(0), headers: false },
            check_source: true,
            receive: RateLimit::default(),
            send: RateLimit::default(),
        };
        let balloon = BalloonConfig { target_mib: 1, deflate_on_oom: false, free_page_reporting: false };
        let devices: Vec<Box<dyn VirtioDevice>> = vec![
            Box::new(Rng::new().unwrap()),
            Box::new(Console::new(ConsoleRing::default()).unwrap()),
            Box::new(Balloon::new(&balloon, 64).unwrap()),
            Box::new(Vsock::new(3, None, []).unwrap()),
            Box::new(Net::new(0, &net, UnixDatagram::pair().unwrap().0.into()).unwrap()),
        ];
        devices.into_iter().map(plugged).collect()
    }

    /// A driver that has got as far as using queue 0.
    fn running(device: &MmioDevice) -> MmioState {
        let mut state = device.save().unwrap();
        state.status = 15;
        state.accepted = 1 << VIRTIO_F_VERSION_1;
        state.interrupt_status = 1;
        let queue = &mut state.queues[0];
        (queue.ready, queue.size, queue.next_available, queue.next_used) = (true, 8, 5, 4);
        (queue.descriptors, queue.available, queue.used) = (0x1000, 0x2000, 0x3000);
        state
    }

    #[test]
    fn every_device_goes_on_in_another_process() {
        for (one, other) in all().iter().zip(all()) {
            let state = running(one);
            other.restore(&state).unwrap_or_else(|error| panic!("{}: {error}", one.name()));
            assert!(other.is_active());
            let again = other.save().unwrap();
            assert_eq!(again.queues, state.queues, "{}", one.name());
            assert_eq!((again.status, again.accepted), (15, state.accepted));
            // What may have been on its way is repeated.
            assert_eq!(other.notify[0].read().unwrap(), 1);
            assert_eq!(other.line.irq.read().unwrap(), 1);
        }
    }

    #[test]
    fn states_that_no_driver_can_reach_are_refused() {
        type Change = fn(&mut MmioState);
        let changes: [(&str, Change); 9] = [
            ("another type", |state| state.kind = 99),
            ("number of queues", |state| state.queues.truncate(0)),
            ("a status that does not exist", |state| state.status = 0x1ff),
            ("features", |state| state.accepted = u64::MAX),
            ("a queue outside guest memory", |state| state.queues[0].used = 0x10_0000 - 4),
            ("a queue outside guest memory", |state| state.queues[0].descriptors = !0xf),
            ("a queue that cannot be", |state| state.queues[0].size = 7),
            ("a queue that cannot be", |state| state.queues[0].available = 1),
            ("too large", |state| state.device = vec![0; MAX_DEVICE_STATE + 1]),
        ];
        for (what, change) in changes {
            for device in all() {
                let mut state = running(&device);
                change(&mut state);
                let error = device.restore(&state).unwrap_err().to_string();
                assert!(error.contains(what), "{what}: {error}");
                assert!(!device.is_active());
            }
        }
        for device in all() {
            let mut state = running(&device);
            state.device.push(7);
            assert!(device.restore(&state).is_err(), "{}", device.name());
        }
    }
}
