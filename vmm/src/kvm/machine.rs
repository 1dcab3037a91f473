//! A machine on KVM: built for a boot or from a snapshot, then run to its end.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use kvm_bindings::CpuId;
use kvm_ioctls::{IoEventAddress, VmFd};

use super::bus::Bus;
use super::controls::Controls;
use super::memory::{self, Backing, Ram};
use super::outcome::Outcome;
use super::probe::{Probe, probe};
use super::quirks::{self, Software};
use super::serial::Serial;
use super::state::{self, MachineState};
use super::threads::Threads;
use super::vcpu::Vcpu;
use super::{KvmError, boot, cpu, event, events, host, layout, open};
use crate::config::MachineConfig;
use crate::console::ConsoleRing;
use crate::control::{Event, ExitReason, Session};
use crate::jail::filter::Role;
use crate::machine::{Confinement, Parts, Restore};
use crate::memory::GuestMemoryMmap;
use crate::snapshot::{self, working_set};
use crate::transport::mmio::{MmioDevice, NOTIFY_OFFSET, REGION_BYTES};
use crate::virtio::VirtioDevice;

/// A machine, ready to run.
pub struct Machine {
    // The order matters: vCPUs go before the VM, and the VM before its memory.
    vcpus: Vec<Vcpu>,
    vm: VmFd,
    ram: Ram,
    devices: Vec<Arc<MmioDevice>>,
    bus: Arc<Bus>,
    outcome: Arc<Outcome>,
    console: ConsoleRing,
    confinement: Confinement,
    config: MachineConfig,
    boundary: &'static str,
    /// Model-specific registers that this KVM knows.
    msrs: Vec<u32>,
    pagemap: Option<std::fs::File>,
    paused: bool,
}

impl Machine {
    /// Builds the machine of these parts.
    ///
    /// # Errors
    /// The host refuses something, or what is to be loaded does not fit.
    pub fn build(parts: Parts) -> Result<Self, KvmError> {
        let Parts {
            config,
            mut kernel,
            mut initramfs,
            kvm,
            devices,
            console,
            restore,
            confinement,
            pagemap,
            ..
        } = parts;
        let device = kvm.ok_or(KvmError::NoDevice)?;
        let probed = match config.host.kvm_kind {
            Some(kind) => Probe::from(kind),
            None => probe(&device),
        };
        if let Probe::Unusable { why } = probed {
            return Err(KvmError::Unusable(why));
        }
        let kvm = open(&device)?;
        let supported = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::call("list CPU features"))?;
        let saved = restore
            .as_ref()
            .map(|restore| read_state(restore, &config, devices.len(), &supported))
            .transpose()?;

        let vm = kvm.create_vm().map_err(KvmError::call("create a VM"))?;
        vm.set_tss_address(layout::TSS).map_err(KvmError::call("place the TSS"))?;
        vm.set_identity_map_address(layout::IDENTITY_MAP)
            .map_err(KvmError::call("place the identity map"))?;
        vm.create_irq_chip().map_err(KvmError::call("create interrupt controllers"))?;
        let backing = match &restore {
            Some(restore) => Backing::Private(&restore.memory),
            None => Backing::New { huge: config.host.huge_pages },
        };
        let track = config.host.track_changes;
        let ram = memory::allocate(config.memory_mib, backing, track)?;
        memory::plug(&vm, &ram.memory, 0, track)?;
        let software = match probed {
            Probe::Software { .. } => Some(Software::prepare(&vm, &ram.memory, &supported)?),
            _ => None,
        };

        let outcome = Arc::new(Outcome::new()?);
        let devices = plug_devices(&vm, &ram.memory, devices)?;
        let serial_irq = event()?;
        vm.register_irqfd(&serial_irq, layout::SERIAL_IRQ)
            .map_err(KvmError::call("wire the serial port's interrupt"))?;
        let bus = Bus::new(Serial::new(console.clone()), serial_irq, devices.clone(), Arc::clone(&outcome));
        let bus = Arc::new(bus);
        let mut machine = Self {
            vcpus: Vec::new(),
            vm,
            ram,
            devices,
            bus,
            outcome,
            console,
            confinement,
            msrs: state::known_msrs(&kvm)?,
            pagemap,
            paused: restore.as_ref().is_some_and(|restore| restore.paused),
            boundary: probed.boundary(),
            config,
        };
        match (saved, restore) {
            (Some(saved), Some(restore)) => machine.restore(&saved, &restore, software.as_ref())?,
            _ => machine.load(&mut kernel, &mut initramfs, &supported, software.as_ref())?,
        }
        Ok(machine)
    }

    fn add_vcpu(&mut self, id: u8, quirk: Option<&Software>) -> Result<&mut Vcpu, KvmError> {
        let fd = self.vm.create_vcpu(u64::from(id)).map_err(KvmError::call("create a vCPU"))?;
        self.vcpus.push(Vcpu {
            fd,
            bus: Arc::clone(&self.bus),
            outcome: Arc::clone(&self.outcome),
            quirk: quirk.cloned(),
            features: Vec::new(),
            exits: Arc::new(AtomicU64::new(0)),
        });
        self.vcpus.last_mut().ok_or(KvmError::Cpuid)
    }

    /// Fills memory and vCPUs for a boot.
    fn load(
        &mut self,
        kernel: &mut std::fs::File,
        initramfs: &mut std::fs::File,
        supported: &CpuId,
        software: Option<&Software>,
    ) -> Result<(), KvmError> {
        let memory = self.ram.memory.clone();
        let count = self.config.vcpus;
        let mut tsc_khz = 0;
        for id in 0..count {
            let vcpu = self.add_vcpu(id, software)?;
            tsc_khz = vcpu.fd.get_tsc_khz().map_err(KvmError::call("read the TSC's frequency"))?;
            let mut features = cpu::features(supported, id, cpu::Topology { vcpus: count, tsc_khz });
            if software.is_some() {
                quirks::mask_features(&mut features);
            }
            cpu::set_up(&vcpu.fd, &features)?;
            vcpu.features = features;
        }
        let extra = if software.is_some() { quirks::COMMAND_LINE } else { "" };
        let line = boot::command_line(self.devices.len(), tsc_khz, extra, &self.config.cmdline);
        let entry = boot::fill(&memory, kernel, initramfs, &line, count)?;
        match self.vcpus.first() {
            Some(first) => cpu::enter_long_mode(&first.fd, &memory, entry),
            None => Ok(()),
        }
    }

    /// Fills vCPUs and devices from a snapshot; memory is mapped already.
    fn restore(
        &mut self,
        saved: &MachineState,
        restore: &Restore,
        software: Option<&Software>,
    ) -> Result<(), KvmError> {
        for (id, state) in (0..self.config.vcpus).zip(&saved.vcpus) {
            let vcpu = self.add_vcpu(id, software)?;
            state.restore(vcpu)?;
        }
        saved.vm.restore(&self.vm)?;
        self.bus.restore_serial(saved.serial);
        for (device, state) in self.devices.iter().zip(&saved.devices) {
            device.restore(state).map_err(snapshot::SnapshotError::from)?;
        }
        if let Some(list) = &restore.working_set {
            working_set::prefetch(&self.ram.memory, list)?;
        }
        Ok(())
    }

    /// Runs the machine until it has ended.
    pub fn run(self, session: &mut Session) -> (ExitReason, String) {
        let Self { vcpus, vm, ram, devices, bus, outcome, console, confinement, config, .. } = self;
        let served = Threads::start(vcpus, &outcome, &confinement).and_then(|threads| {
            confinement.confine(Role::KvmLoop)?;
            session.started(Event::Started {
                micros: confinement.micros(),
                boundary: self.boundary.to_owned(),
                jail: confinement.strength,
            });
            if !self.paused {
                threads.resume();
            }
            let mut controls = Controls {
                threads,
                vm: &vm,
                ram: &ram,
                devices: &devices,
                bus: &bus,
                console: &console,
                confinement: &confinement,
                config: &config,
                msrs: &self.msrs,
                pagemap: self.pagemap.as_ref(),
                paused: self.paused,
            };
            let served = events::serve(&devices, session, &mut controls, &outcome, &console);
            if let Err(error) = &served {
                outcome.end(ExitReason::Internal, error.to_string());
            }
            controls.threads.end();
            served
        });
        match (outcome.get(), served) {
            // An error of the start comes first: what followed from it is a vCPU that went away.
            (_, Err(error @ KvmError::Jail(_))) | (None, Err(error)) => {
                (ExitReason::BootFailed, error.to_string())
            }
            (Some(end), _) => end,
            (None, Ok(())) => (ExitReason::Internal, "the event loop ended without a reason".to_owned()),
        }
    }
}

/// Reads a snapshot's state, and checks that it is one of this machine, for this host.
fn read_state(
    restore: &Restore,
    config: &MachineConfig,
    devices: usize,
    supported: &CpuId,
) -> Result<MachineState, KvmError> {
    let state: MachineState = snapshot::format::read(&restore.state)?;
    state.check(config, devices)?;
    host::check(&state, supported)?;
    Ok(state)
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
