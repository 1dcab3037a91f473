//! The `kvm` accelerator: our own machine around /dev/kvm.
//!
//! [`probe`] tells what a /dev/kvm is good for; [`run`] builds a machine of [`Parts`], runs it to its end and tells how it ended.
//! Nothing of the machine outlives `run`.

mod boot;
mod bus;
mod cpu;
mod events;
mod exit;
pub mod layout;
mod memory;
mod mptable;
mod outcome;
mod probe;
mod quirks;
mod serial;
mod vcpu;

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use kvm_ioctls::{IoEventAddress, Kvm, VmFd};
use vm_memory::{GuestMemoryError, GuestMemoryMmap};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::bus::Bus;
use self::outcome::Outcome;
use self::quirks::Software;
use self::serial::Serial;
use self::vcpu::Vcpu;
use crate::console::ConsoleRing;
use crate::control::{ControlSocket, Event, ExitReason, ExitReport};
use crate::machine::Parts;
use crate::transport::mmio::{MmioDevice, NOTIFY_OFFSET, REGION_BYTES};
use crate::virtio::VirtioDevice;

pub use self::probe::{Probe, probe};

/// Why a machine could not be built or started. The text is shown to people as it is.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The configuration came without /dev/kvm.
    #[error("the machine was given no /dev/kvm")]
    NoDevice,
    /// The probe found no usable KVM.
    #[error("/dev/kvm cannot run a guest: {0}")]
    Unusable(String),
    /// KVM's interface is not the stable one.
    #[error("/dev/kvm has interface version {0}, not 12")]
    Version(i32),
    /// A capability is missing.
    #[error("/dev/kvm lacks {0}")]
    Lacks(&'static str),
    /// A call to KVM or the host failed.
    #[error("cannot {what}: {source}")]
    Call {
        /// What was to be done.
        what: &'static str,
        /// The host's error.
        source: errno::Error,
    },
    /// The probe's guest did something else than it was told.
    #[error("a trial guest did not run: {0}")]
    Probe(String),
    /// The host is out of descriptors or memory.
    #[error("the host refused a resource: {0}")]
    Host(#[from] io::Error),
    /// Guest RAM could not be reserved.
    #[error("guest memory cannot be reserved: {0}")]
    Memory(String),
    /// Guest RAM could not be written while the machine was built.
    #[error("guest memory cannot be written: {0}")]
    Write(GuestMemoryError),
    /// The kernel is none, or does not fit.
    #[error("the guest kernel cannot be loaded: {0}")]
    Kernel(String),
    /// The initramfs cannot be read.
    #[error("the initramfs cannot be read: {0}")]
    Initramfs(io::Error),
    /// The initramfs does not fit.
    #[error("the initramfs of {size} bytes does not fit into the {room} bytes that the kernel leaves free")]
    InitramfsSize {
        /// Its size.
        size: u64,
        /// Bytes between the kernel's end and the end of low memory.
        room: u64,
    },
    /// The command line is too long.
    #[error("the kernel command line has {0} bytes, the kernel takes {max}", max = layout::COMMAND_LINE_BYTES)]
    CommandLine(usize),
    /// There are more devices than interrupt lines.
    #[error("{0} devices: a machine has at most {max}", max = layout::MAX_VIRTIO)]
    Devices(usize),
    /// The list of CPU features is too long for KVM.
    #[error("the list of CPU features is too long")]
    Cpuid,
    /// The event loop failed.
    #[error("the event loop failed: {0}")]
    Events(event_manager::Error),
}

impl KvmError {
    fn call(what: &'static str) -> impl FnOnce(errno::Error) -> Self {
        move |source| Self::Call { what, source }
    }
}

/// Builds the machine, runs it to its end, and tells how it ended. [`Event::Started`] is sent right before the first guest
/// instruction, with the time since `arrival`; the caller sends the report.
#[must_use]
pub fn run(parts: Parts, control: &ControlSocket, arrival: Instant) -> ExitReport {
    let console = parts.console.clone();
    let (reason, detail) = match Machine::build(parts) {
        Ok(machine) => machine.run(control, arrival),
        Err(error) => (ExitReason::BootFailed, error.to_string()),
    };
    ExitReport { reason, detail, console: console.text() }
}

/// A handle of our own to an open /dev/kvm.
fn open(device: &File) -> Result<Kvm, KvmError> {
    let device = device.try_clone()?;
    // SAFETY: the descriptor has just been made for us and is owned by nobody else. If it is not /dev/kvm, its calls fail.
    Ok(unsafe { Kvm::from_raw_fd(device.into_raw_fd()) })
}

fn event() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

/// A machine, ready to run.
struct Machine {
    // The order matters: vCPUs go before the VM, and the VM before its memory.
    vcpus: Vec<Vcpu>,
    vm: VmFd,
    memory: GuestMemoryMmap,
    devices: Vec<Arc<MmioDevice>>,
    outcome: Arc<Outcome>,
    console: ConsoleRing,
    boundary: &'static str,
}

impl Machine {
    fn build(parts: Parts) -> Result<Self, KvmError> {
        let Parts { config, mut kernel, mut initramfs, kvm, devices, console } = parts;
        let device = kvm.ok_or(KvmError::NoDevice)?;
        let probed = probe(&device);
        if let Probe::Unusable { why } = probed {
            return Err(KvmError::Unusable(why));
        }
        let kvm = open(&device)?;
        let vm = kvm.create_vm().map_err(KvmError::call("create a VM"))?;
        vm.set_tss_address(layout::TSS).map_err(KvmError::call("place the TSS"))?;
        vm.set_identity_map_address(layout::IDENTITY_MAP)
            .map_err(KvmError::call("place the identity map"))?;
        vm.create_irq_chip().map_err(KvmError::call("create interrupt controllers"))?;
        let memory = memory::allocate(config.memory_mib)?;
        memory::plug(&vm, &memory, 0)?;

        let loaded = boot::load_kernel(&memory, &mut kernel)?;
        let initramfs = boot::load_initramfs(&memory, &mut initramfs, loaded)?;
        let supported = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::call("list CPU features"))?;
        let software = match probed {
            Probe::Software { .. } => Some(Software::prepare(&vm, &memory, &supported)?),
            _ => None,
        };

        let outcome = Arc::new(Outcome::new()?);
        let devices = plug_devices(&vm, &memory, devices)?;
        let serial_irq = event()?;
        vm.register_irqfd(&serial_irq, layout::SERIAL_IRQ)
            .map_err(KvmError::call("wire the serial port's interrupt"))?;
        let bus = Bus::new(Serial::new(console.clone()), serial_irq, devices.clone(), Arc::clone(&outcome));
        let bus = Arc::new(bus);

        let mut vcpus = Vec::new();
        let mut tsc_khz = 0;
        for id in 0..config.vcpus {
            let fd = vm.create_vcpu(u64::from(id)).map_err(KvmError::call("create a vCPU"))?;
            tsc_khz = fd.get_tsc_khz().map_err(KvmError::call("read the TSC's frequency"))?;
            let topology = cpu::Topology { vcpus: config.vcpus, tsc_khz };
            let mut features = cpu::features(&supported, id, topology);
            if software.is_some() {
                quirks::mask_features(&mut features);
            }
            cpu::set_up(&fd, &features)?;
            let (bus, outcome) = (Arc::clone(&bus), Arc::clone(&outcome));
            vcpus.push(Vcpu { fd, bus, outcome, quirk: software.clone() });
        }
        if let Some(first) = vcpus.first() {
            cpu::enter_long_mode(&first.fd, &memory, loaded.entry)?;
        }

        let extra = if software.is_some() { quirks::COMMAND_LINE } else { "" };
        let line = boot::command_line(devices.len(), tsc_khz, extra, &config.cmdline);
        let mut seed = [0; 32];
        crate::virtio::sys::random(&mut seed)?;
        boot::write_parameters(&memory, &line, Some(initramfs), seed)?;
        boot::write_page_tables(&memory)?;
        mptable::write(&memory, config.vcpus)?;
        Ok(Self { vcpus, vm, memory, devices, outcome, console, boundary: probed.boundary() })
    }

    fn run(self, control: &ControlSocket, arrival: Instant) -> (ExitReason, String) {
        let Self { vcpus, vm, memory, devices, outcome, console, boundary } = self;
        let served = start(vcpus, control, arrival, boundary).and_then(|threads| {
            let served = events::serve(&devices, control, &outcome, &console);
            if let Err(error) = &served {
                outcome.end(ExitReason::Internal, error.to_string());
            }
            vcpu::stop(threads);
            served
        });
        drop(vm);
        drop(memory);
        match (outcome.get(), served) {
            (Some(end), _) => end,
            (None, Err(error)) => (ExitReason::BootFailed, error.to_string()),
            (None, Ok(())) => (ExitReason::Internal, "the event loop ended without a reason".to_owned()),
        }
    }
}

/// Starts the vCPUs' threads.
fn start(
    vcpus: Vec<Vcpu>,
    control: &ControlSocket,
    arrival: Instant,
    boundary: &str,
) -> Result<Vec<thread::JoinHandle<()>>, KvmError> {
    vcpu::prepare_kicks()?;
    let outcomes = vcpus.first().map(|vcpu| Arc::clone(&vcpu.outcome));
    let micros = u64::try_from(arrival.elapsed().as_micros()).unwrap_or(u64::MAX);
    // A supervisor that is gone is noticed by the event loop.
    let _ = control.send(&Event::Started { micros, boundary: boundary.to_owned() }, &[]);
    let mut threads = Vec::new();
    for (id, vcpu) in vcpus.into_iter().enumerate() {
        match thread::Builder::new().name(format!("vcpu{id}")).spawn(move || vcpu.run()) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                if let Some(outcome) = &outcomes {
                    outcome.end(ExitReason::Internal, format!("cannot start vCPU {id}: {error}"));
                }
                break;
            }
        }
    }
    Ok(threads)
}

/// Puts every device behind its page of registers, with its interrupt line in and its queues' notifications out of KVM.
fn plug_devices(
    vm: &VmFd,
    memory: &GuestMemoryMmap,
    devices: Vec<Box<dyn VirtioDevice>>,
) -> Result<Vec<Arc<MmioDevice>>, KvmError> {
    if devices.len() > layout::MAX_VIRTIO {
        return Err(KvmError::Devices(devices.len()));
    }
    let mut plugged = Vec::new();
    for (index, device) in devices.into_iter().enumerate() {
        let irq = event()?;
        let line = layout::VIRTIO_IRQ + u32::try_from(index).unwrap_or(0);
        vm.register_irqfd(&irq, line).map_err(KvmError::call("wire a device's interrupt"))?;
        let device = MmioDevice::new(device, memory.clone(), irq)?;
        let address = layout::VIRTIO + REGION_BYTES * index as u64 + NOTIFY_OFFSET;
        for (queue, notify) in (0u32..).zip(device.notify_events()) {
            vm.register_ioevent(notify, &IoEventAddress::Mmio(address), queue)
                .map_err(KvmError::call("wire a queue's notification"))?;
        }
        plugged.push(Arc::new(device));
    }
    Ok(plugged)
}
