//! What answers when the guest touches a port or an address that is not memory.

use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::layout::{KEYBOARD_PORT, SERIAL_PORT, VIRTIO};
use super::outcome::Outcome;
use super::serial::{self, Serial};
use crate::control::ExitReason;
use crate::transport::mmio::{MmioDevice, REGION_BYTES};

/// Keyboard controller command: pulse the CPU's reset line.
const KEYBOARD_RESET: u8 = 0xfe;

/// Ports and device registers, shared by all vCPUs.
pub struct Bus {
    serial: Mutex<Serial>,
    serial_irq: EventFd,
    devices: Vec<Arc<MmioDevice>>,
    outcome: Arc<Outcome>,
}

impl Bus {
    /// The machine's bus; device `i` has page `i` from [`VIRTIO`].
    #[must_use]
    pub fn new(
        serial: Serial,
        serial_irq: EventFd,
        devices: Vec<Arc<MmioDevice>>,
        outcome: Arc<Outcome>,
    ) -> Self {
        Self { serial: Mutex::new(serial), serial_irq, devices, outcome }
    }

    /// The guest kernel's last words, if it panicked.
    #[must_use]
    pub fn panic(&self) -> Option<String> {
        self.with_serial(|serial| serial.panic().map(str::to_owned))
    }

    /// The guest writes to a port; several bytes are one after another (string instructions), or one wide value, of which
    /// byte-wide devices take the lowest.
    pub fn port_write(&self, port: u16, data: &[u8]) {
        if let Some(offset) = serial_register(port) {
            let interrupt = self.with_serial(|serial| {
                let wanting = data.iter().filter(|byte| serial.write(offset, **byte));
                wanting.count() > 0
            });
            if interrupt {
                // An eventfd's counter does not overflow by ones.
                let _ = self.serial_irq.write(1);
            }
        } else if port == KEYBOARD_PORT && data.first() == Some(&KEYBOARD_RESET) {
            match self.panic() {
                Some(words) => self.outcome.end(ExitReason::Panic, words),
                None => self.outcome.end(ExitReason::Reset, String::new()),
            }
        }
    }

    /// The guest reads a port. What does not exist reads as zero: no device of a PC reports trouble with that, and the
    /// kernel's loops over absent timers, clocks and keyboards end at once.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = serial_register(port) {
            self.with_serial(|serial| data.iter_mut().for_each(|byte| *byte = serial.read(offset)));
        }
    }

    /// The guest writes to an address that is not memory. What does not exist ignores it.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.device(address) {
            device.write(offset, data);
        }
    }

    /// The guest reads an address that is not memory. What does not exist reads as all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.device(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    fn device(&self, address: u64) -> Option<(&MmioDevice, u64)> {
        let offset = address.checked_sub(VIRTIO)?;
        let index = usize::try_from(offset / REGION_BYTES).ok()?;
        self.devices.get(index).map(|device| (&**device, offset % REGION_BYTES))
    }

    /// The serial port's registers, for a snapshot.
    #[must_use]
    pub fn save_serial(&self) -> [u8; serial::STATE_BYTES] {
        self.with_serial(|serial| serial.save())
    }

    /// Takes over what [`Self::save_serial`] gave.
    pub fn restore_serial(&self, state: [u8; serial::STATE_BYTES]) {
        self.with_serial(|serial| serial.restore(state));
    }

    fn with_serial<T>(&self, access: impl FnOnce(&mut Serial) -> T) -> T {
        access(&mut self.serial.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn serial_register(port: u16) -> Option<u16> {
    port.checked_sub(SERIAL_PORT).filter(|offset| *offset < serial::PORTS)
}
