//! Virtio over memory-mapped registers (virtio 1.2 section 4.2, version 2, no legacy).
//!
//! The driver is not trusted. The status register is a one-way road (acknowledge, driver, features, driver OK) that only a
//! reset leads back from; features can be chosen only before FEATURES_OK, queues configured only between FEATURES_OK and
//! DRIVER_OK, and from DRIVER_OK on everything but notification, interrupt acknowledgement and status is frozen. A write
//! at the wrong time is ignored. A queue that does not lie wholly in guest memory does not become ready.
//!
//! Registers are written by vCPU threads, whose system call filters know nothing of sockets and files. So a write only notes
//! that the device is to be reset, or what features it was given; the event loop tells the device, before anything else.

pub mod state;

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::memory::GuestMemoryMmap;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX,
    VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_SHM_BASE_HIGH, VIRTIO_MMIO_SHM_BASE_LOW, VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_LEN_LOW,
    VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::virtio::command::{Command, CommandError, Counter};
use crate::virtio::{DeviceError, Interrupt, Io, NoDriver, VirtioDevice};

/// Bytes of address space of one device.
pub const REGION_BYTES: u64 = 0x1000;
/// Offset of the register that notifies the device; the value written is the queue's index.
pub const NOTIFY_OFFSET: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// "virt", little endian.
const MAGIC: u32 = 0x7472_6976;
/// The register layout of virtio 1.0 and later.
const VERSION: u32 = 2;
/// "BLKH", little endian: a vendor id of our own, which no driver looks at.
const VENDOR: u32 = 0x484b_4c42;
/// The status bits that a driver may set.
const DRIVER_BITS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FAILED;

/// The interrupt line and its status register. Apart from the device's lock, because the driver reads it in every
/// interrupt handler, also while the device is busy.
#[derive(Debug)]
struct Line {
    status: AtomicU32,
    generation: AtomicU32,
    irq: EventFd,
}

impl Line {
    fn raise(&self, cause: u32) {
        self.status.fetch_or(cause, Ordering::SeqCst);
        // The counter cannot overflow before 2^64 - 1 interrupts, and an unread one is still pending.
        let _ = self.irq.write(1);
    }
}

impl Interrupt for Line {
    fn queue_used(&self, _index: usize) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }
}

/// What the driver wrote for a queue that is not ready yet.
#[derive(Debug, Clone, Copy, Default)]
struct QueueRegisters {
    size: u32,
    descriptors: u64,
    available: u64,
    used: u64,
}

struct State {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemoryMmap,
    queues: Vec<Queue>,
    registers: Vec<QueueRegisters>,
    status: u32,
    accepted: u64,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
    failure: Option<String>,
    /// What the device does not know yet: that it was reset, and then what features the driver took.
    reset_due: bool,
    features_due: Option<u64>,
}

/// One device behind a page of registers. vCPU threads call [`Self::read`] and [`Self::write`], the event loop the rest.
pub struct MmioDevice {
    name: String,
    line: Arc<Line>,
    notify: Vec<EventFd>,
    activity: EventFd,
    state: Mutex<State>,
}

impl MmioDevice {
    /// Puts a device behind registers. `irq` is signalled for every interrupt.
    ///
    /// # Errors
    /// The host is out of descriptors, or the device has a queue size that is no power of two.
    pub fn new(device: Box<dyn VirtioDevice>, memory: GuestMemoryMmap, irq: EventFd) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let sizes = device.queue_sizes();
        let queues = sizes.iter().map(|size| Queue::new(*size)).collect::<Result<Vec<_>, _>>();
        let queues = queues.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let notify = sizes.iter().map(|_| event()).collect::<io::Result<_>>()?;
        let registers = vec![QueueRegisters::default(); sizes.len()];
        Ok(Self {
            name: device.name().to_owned(),
            line: Arc::new(Line { status: AtomicU32::new(0), generation: AtomicU32::new(0), irq }),
            notify,
            activity: event()?,
            state: Mutex::new(State {
                device,
                memory,
                queues,
                registers,
                status: 0,
                accepted: 0,
                device_features_select: 0,
                driver_features_select: 0,
                queue_select: 0,
                failure: None,
                reset_due: false,
                features_due: None,
            }),
        })
    }

    /// The device's name for diagnosis.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Signalled when the driver notifies a queue, by index. To be bound to writes at [`NOTIFY_OFFSET`]; writes that come
    /// as exits all the same are passed on to it.
    #[must_use]
    pub fn notify_events(&self) -> &[EventFd] {
        &self.notify
    }

    /// Signalled when the device starts or stops to serve its driver: the time to (un)watch [`Self::host_fd`].
    #[must_use]
    pub fn activity_event(&self) -> &EventFd {
        &self.activity
    }

    /// The device's own descriptor, see [`VirtioDevice::host_fd`].
    #[must_use]
    pub fn host_fd(&self) -> Option<RawFd> {
        self.lock().device.host_fd()
    }

    /// Whether the driver is ready and has not broken the rules.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.lock().is_active()
    }

    /// Why the device needs a reset, told once.
    #[must_use]
    pub fn take_failure(&self) -> Option<String> {
        self.lock().failure.take()
    }

    /// Queue `index` was notified: serves it, if the driver is ready.
    pub fn queue_event(&self, index: usize) {
        self.event(|device, io| device.queue_event(index, io));
    }

    /// [`Self::host_fd`] is readable: serves it, if the driver is ready.
    pub fn host_event(&self) {
        self.event(|device, io| device.host_event(io));
    }

    /// The supervisor asks for a change of the device.
    ///
    /// # Errors
    /// The device refuses it.
    pub fn command(&self, command: &Command) -> Result<(), CommandError> {
        let mut state = self.lock();
        if state.is_active() {
            return state.device.command(command, &*self.line);
        }
        let outcome = state.device.command(command, &NoDriver);
        // A driver that is just reading the configuration must notice that it is another now.
        self.line.generation.fetch_add(1, Ordering::SeqCst);
        outcome
    }

    /// What the device has counted.
    #[must_use]
    pub fn counters(&self) -> Vec<Counter> {
        self.lock().device.counters()
    }

    fn event(&self, serve: impl FnOnce(&mut dyn VirtioDevice, &mut Io<'_>) -> Result<(), DeviceError>) {
        let mut state = self.lock();
        if !state.is_active() {
            return;
        }
        let State { device, memory, queues, .. } = &mut *state;
        let mut io = Io { memory, queues, interrupt: &*self.line };
        if let Err(error) = serve(device.as_mut(), &mut io) {
            state.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
            state.failure = Some(error.to_string());
            self.line.config_changed();
            self.tell_activity();
        }
    }

    /// The driver reads a register or the configuration space. What does not exist reads as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= u64::from(VIRTIO_MMIO_CONFIG) {
            if let Ok(offset) = usize::try_from(offset - u64::from(VIRTIO_MMIO_CONFIG)) {
                self.registers().device.read_config(offset, data);
            }
            return;
        }
        if let (Ok(register), Ok(data)) = (u32::try_from(offset), <&mut [u8; 4]>::try_from(data)) {
            *data = self.read_register(register).to_le_bytes();
        }
    }

    fn read_register(&self, register: u32) -> u32 {
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_INTERRUPT_STATUS => self.line.status.load(Ordering::SeqCst),
            VIRTIO_MMIO_CONFIG_GENERATION => self.line.generation.load(Ordering::SeqCst),
            // No shared memory region: length and base are all ones (section 4.2.2.1).
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => self.registers().read_register(register),
        }
    }

    /// The driver writes a register. What does not exist, has the wrong width or comes at the wrong time is ignored; so is
    /// what is written to the configuration space, but for the few fields that are the driver's.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if offset >= u64::from(VIRTIO_MMIO_CONFIG) {
            if let Ok(offset) = usize::try_from(offset - u64::from(VIRTIO_MMIO_CONFIG)) {
                self.registers().write_config(offset, data);
            }
            return;
        }
        let (Ok(register), Ok(data)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) else {
            return;
        };
        let value = u32::from_le_bytes(data);
        match register {
            VIRTIO_MMIO_INTERRUPT_ACK => {
                self.line.status.fetch_and(!value, Ordering::SeqCst);
            }
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(event) = usize::try_from(value).ok().and_then(|index| self.notify.get(index)) {
                    let _ = event.write(1);
                }
            }
            VIRTIO_MMIO_STATUS => self.write_status(value),
            _ => self.registers().write_register(register, value),
        }
    }

    fn write_status(&self, value: u32) {
        let mut state = self.registers();
        let before = state.is_active();
        if value == 0 {
            state.reset();
            self.line.status.store(0, Ordering::SeqCst);
        } else {
            state.advance(value);
        }
        // A reset concerns the device also if it was not active.
        if state.is_active() != before || value == 0 {
            self.tell_activity();
        }
    }

    fn tell_activity(&self) {
        let _ = self.activity.write(1);
    }

    /// For vCPU threads: the device may not know yet what the registers say.
    fn registers(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the event loop, and whoever else may do what devices do: the device knows what the registers say.
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.registers();
        state.tell_device();
        state
    }
}

impl State {
    fn offered(&self) -> u64 {
        self.device.features() | 1 << VIRTIO_F_VERSION_1
    }

    fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    fn is_active(&self) -> bool {
        self.has(VIRTIO_CONFIG_S_DRIVER_OK) && !self.has(VIRTIO_CONFIG_S_FAILED | VIRTIO_CONFIG_S_NEEDS_RESET)
    }

    fn tell_device(&mut self) {
        if std::mem::take(&mut self.reset_due) {
            self.device.reset();
        }
        if let Some(accepted) = self.features_due.take() {
            self.device.set_features(accepted);
        }
    }

    fn reset(&mut self) {
        self.reset_due = true;
        self.features_due = None;
        self.queues.iter_mut().for_each(QueueT::reset);
        self.registers.fill(QueueRegisters::default());
        self.status = 0;
        self.accepted = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
        self.failure = None;
    }

    /// The driver adds status bits: in order, and never takes one back (section 2.1).
    fn advance(&mut self, value: u32) {
        let current = self.status & DRIVER_BITS;
        if self.has(VIRTIO_CONFIG_S_FAILED) || current & !value != 0 {
            return;
        }
        if value & VIRTIO_CONFIG_S_FAILED != 0 {
            self.status |= VIRTIO_CONFIG_S_FAILED;
            return;
        }
        let steps = [VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_FEATURES_OK];
        for step in steps {
            if self.has(step) {
                continue;
            }
            if value & step == 0 {
                return;
            }
            if step == VIRTIO_CONFIG_S_FEATURES_OK && !self.settle_features() {
                return;
            }
            self.status |= step;
        }
        // The driver must have read FEATURES_OK back before it goes on (section 3.1.1).
        if value & VIRTIO_CONFIG_S_DRIVER_OK != 0 && current & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            self.status |= VIRTIO_CONFIG_S_DRIVER_OK;
        }
    }

    /// Whether the driver's choice of features is one that the device can work with.
    fn settle_features(&mut self) -> bool {
        if self.accepted & !self.offered() != 0 || self.accepted & 1 << VIRTIO_F_VERSION_1 == 0 {
            return false;
        }
        let event_index = self.accepted & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        for queue in &mut self.queues {
            queue.set_event_idx(event_index);
        }
        self.features_due = Some(self.accepted);
        true
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if self.has(VIRTIO_CONFIG_S_DRIVER) {
            self.device.write_config(offset, data);
        }
    }

    fn selected(&self) -> Option<usize> {
        usize::try_from(self.queue_select).ok().filter(|index| *index < self.queues.len())
    }

    fn read_register(&self, register: u32) -> u32 {
        let queue = self.selected().map(|index| &self.queues[index]);
        match register {
            VIRTIO_MMIO_DEVICE_ID => self.device.device_type(),
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered(), self.device_features_select),
            VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| u32::from(queue.max_size())),
            VIRTIO_MMIO_QUEUE_READY => queue.map_or(0, |queue| u32::from(queue.ready())),
            VIRTIO_MMIO_STATUS => self.status,
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.choose_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            _ => self.configure_queue(register, value),
        }
    }

    fn choose_features(&mut self, value: u32) {
        if !self.has(VIRTIO_CONFIG_S_DRIVER) || self.has(VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_FAILED)
        {
            return;
        }
        match self.driver_features_select {
            0 => set_low(&mut self.accepted, value),
            1 => set_high(&mut self.accepted, value),
            _ => {}
        }
    }

    fn configure_queue(&mut self, register: u32, value: u32) {
        if !self.has(VIRTIO_CONFIG_S_FEATURES_OK)
            || self.has(VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FAILED)
        {
            return;
        }
        let Some(index) = self.selected() else {
            return;
        };
        if register == VIRTIO_MMIO_QUEUE_READY {
            if value == 1 && !self.queues[index].ready() {
                self.make_ready(index);
            } else if value == 0 {
                self.queues[index].set_ready(false);
            }
            return;
        }
        // Registers of a ready queue are not to be written (section 4.2.2.2).
        if self.queues[index].ready() {
            return;
        }
        let registers = &mut self.registers[index];
        match register {
            VIRTIO_MMIO_QUEUE_NUM => registers.size = value,
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut registers.descriptors, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut registers.descriptors, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut registers.available, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut registers.available, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut registers.used, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut registers.used, value),
            _ => {}
        }
    }

    /// Size a power of two within the device's limit, addresses aligned, all three rings wholly in guest memory: else
    /// the queue stays as it is, and the driver reads zero from QueueReady.
    fn make_ready(&mut self, index: usize) {
        let QueueRegisters { size, descriptors, available, used } = self.registers[index];
        let queue = &mut self.queues[index];
        let Ok(size) = u16::try_from(size) else {
            return;
        };
        let set = queue
            .try_set_size(size)
            .and_then(|()| queue.try_set_desc_table_address(GuestAddress(descriptors)))
            .and_then(|()| queue.try_set_avail_ring_address(GuestAddress(available)))
            .and_then(|()| queue.try_set_used_ring_address(GuestAddress(used)));
        queue.set_ready(set.is_ok());
        if !queue.is_valid(&self.memory) {
            queue.set_ready(false);
        }
    }
}

fn half(value: u64, select: u32) -> u32 {
    let half = match select {
        0 => value & u64::from(u32::MAX),
        1 => value >> 32,
        _ => 0,
    };
    u32::try_from(half).unwrap_or(0)
}

fn set_low(target: &mut u64, value: u32) {
    *target = *target & !u64::from(u32::MAX) | u64::from(value);
}

fn set_high(target: &mut u64, value: u32) {
    *target = *target & u64::from(u32::MAX) | u64::from(value) << 32;
}

#[cfg(test)]
mod tests;
