//! What a snapshot holds beside RAM, taken from KVM and given back to it.
//!
//! KVM checks what it is given; what it accepts can hurt nothing but the guest. What is ours (counts, queues) is checked here.

use std::sync::{Arc, MutexGuard};

use kvm_bindings::{
    CpuId, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES, Msrs,
    kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VmFd};
use serde::{Deserialize, Serialize};
use vmm_sys_util::errno;

use super::KvmError;
use super::serial::STATE_BYTES;
use super::vcpu::Vcpu;
use crate::config::MachineConfig;
use crate::control::{Refusal, RefusalKind};
use crate::snapshot::SnapshotError;
use crate::transport::mmio::MmioDevice;
use crate::transport::mmio::state::MmioState;

/// Most model-specific registers of a vCPU in a snapshot.
const MAX_MSRS: usize = 1024;
/// The time-stamp counter, and the deadline that is compared with it: restored first and last.
const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// A whole machine but its RAM.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// MiB of RAM.
    pub memory_mib: u32,
    /// Each vCPU.
    pub vcpus: Vec<VcpuState>,
    /// What they share.
    pub vm: VmState,
    /// The serial port.
    pub serial: [u8; STATE_BYTES],
    /// Each virtio device.
    pub devices: Vec<MmioState>,
}

/// A vCPU.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    /// The features that it shows.
    pub features: Vec<kvm_cpuid_entry2>,
    /// Frequency of its time-stamp counter in kHz.
    pub tsc_khz: u32,
    msrs: Vec<kvm_msr_entry>,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Box<kvm_xsave>,
    xcrs: kvm_xcrs,
    lapic: Box<kvm_lapic_state>,
    mp_state: kvm_mp_state,
    events: kvm_vcpu_events,
    debug: kvm_debugregs,
    /// On a KVM without hardware: what its quirks need.
    pub quirk: Option<u64>,
}

/// What vCPUs share.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmState {
    clock: kvm_clock_data,
    chips: Vec<kvm_irqchip>,
}

/// The model-specific registers that this KVM saves and restores.
///
/// # Errors
/// KVM refused.
pub fn known_msrs(kvm: &Kvm) -> Result<Vec<u32>, KvmError> {
    let list = kvm.get_msr_index_list().map_err(KvmError::call("list model-specific registers"))?;
    Ok(list.as_slice().to_vec())
}

fn refused(what: &'static str) -> impl Fn(errno::Error) -> Refusal {
    move |error| Refusal::new(RefusalKind::Host, format!("cannot read {what}: {error}"))
}

impl MachineState {
    /// Reads the state of a machine that rests.
    ///
    /// # Errors
    /// KVM refused, or a device cannot be part of a snapshot.
    pub fn save<'a>(
        vm: &VmFd,
        vcpus: impl Iterator<Item = MutexGuard<'a, Vcpu>>,
        serial: [u8; STATE_BYTES],
        devices: &[Arc<MmioDevice>],
        config: &MachineConfig,
        msrs: &[u32],
    ) -> Result<Self, Refusal> {
        let devices = devices.iter().map(|device| device.save()).collect::<Result<_, _>>()?;
        let vcpus = vcpus.map(|vcpu| VcpuState::save(&vcpu, msrs)).collect::<Result<_, _>>()?;
        Ok(Self { memory_mib: config.memory_mib, vcpus, vm: VmState::save(vm)?, serial, devices })
    }

    /// Whether this is a state of such a machine.
    ///
    /// # Errors
    /// What does not fit, by name.
    pub fn check(&self, config: &MachineConfig, devices: usize) -> Result<(), SnapshotError> {
        let differs = |what, saved: String, here: String| Err(SnapshotError::Machine { what, saved, here });
        if self.memory_mib != config.memory_mib {
            return differs("MiB of memory", self.memory_mib.to_string(), config.memory_mib.to_string());
        }
        if self.vcpus.len() != usize::from(config.vcpus) {
            return differs("vCPUs", self.vcpus.len().to_string(), config.vcpus.to_string());
        }
        if self.devices.len() != devices {
            return differs("devices", self.devices.len().to_string(), devices.to_string());
        }
        let most = self.vcpus.iter().map(|vcpu| vcpu.features.len()).max().unwrap_or(0);
        if most > KVM_MAX_CPUID_ENTRIES || self.vcpus.iter().any(|vcpu| vcpu.msrs.len() > MAX_MSRS) {
            return Err(SnapshotError::Malformed("a vCPU with more features than there are".to_owned()));
        }
        if self.vm.chips.len() != CHIPS.len() {
            return Err(SnapshotError::Malformed("another number of interrupt controllers".to_owned()));
        }
        Ok(())
    }
}

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

impl VmState {
    fn save(vm: &VmFd) -> Result<Self, Refusal> {
        let mut chips = Vec::new();
        for chip_id in CHIPS {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map_err(refused("interrupt controllers"))?;
            chips.push(chip);
        }
        let mut clock = vm.get_clock().map_err(refused("the clock"))?;
        // The flags tell what is valid; to be given back are the clock's time and nothing of this host.
        clock.flags = 0;
        Ok(Self { clock, chips })
    }

    /// Gives it back.
    ///
    /// # Errors
    /// KVM refused.
    pub fn restore(&self, vm: &VmFd) -> Result<(), KvmError> {
        for (chip, id) in self.chips.iter().zip(CHIPS) {
            let chip = kvm_irqchip { chip_id: id, ..*chip };
            vm.set_irqchip(&chip).map_err(KvmError::call("restore an interrupt controller"))?;
        }
        let clock = kvm_clock_data { clock: self.clock.clock, ..Default::default() };
        vm.set_clock(&clock).map_err(KvmError::call("restore the clock"))
    }
}

impl VcpuState {
    fn save(vcpu: &Vcpu, msrs: &[u32]) -> Result<Self, Refusal> {
        let fd = &vcpu.fd;
        // First: it also settles what is pending (KVM's documentation of KVM_GET_MP_STATE).
        let mp_state = fd.get_mp_state().map_err(refused("the vCPU's run state"))?;
        Ok(Self {
            mp_state,
            features: vcpu.features.clone(),
            tsc_khz: fd.get_tsc_khz().map_err(refused("the TSC's frequency"))?,
            regs: fd.get_regs().map_err(refused("registers"))?,
            sregs: fd.get_sregs().map_err(refused("system registers"))?,
            xsave: Box::new(fd.get_xsave().map_err(refused("the extended state"))?),
            xcrs: fd.get_xcrs().map_err(refused("extended control registers"))?,
            lapic: Box::new(fd.get_lapic().map_err(refused("the local APIC"))?),
            debug: fd.get_debug_regs().map_err(refused("debug registers"))?,
            msrs: save_msrs(vcpu, msrs)?,
            // Last: reading the others may change it.
            events: fd.get_vcpu_events().map_err(refused("pending events"))?,
            quirk: vcpu.quirk.as_ref().map(super::quirks::Software::save),
        })
    }

    /// Gives it to a new vCPU.
    ///
    /// # Errors
    /// KVM refused.
    pub fn restore(&self, vcpu: &mut Vcpu) -> Result<(), KvmError> {
        vcpu.features.clone_from(&self.features);
        let fd = &vcpu.fd;
        let features = CpuId::from_entries(&self.features).map_err(|_| KvmError::Cpuid)?;
        fd.set_cpuid2(&features).map_err(KvmError::call("restore the vCPU's features"))?;
        if fd.get_tsc_khz().is_ok_and(|here| here != self.tsc_khz) {
            fd.set_tsc_khz(self.tsc_khz).map_err(KvmError::call("restore the TSC's frequency"))?;
        }
        fd.set_mp_state(self.mp_state).map_err(KvmError::call("restore the vCPU's run state"))?;
        fd.set_sregs(&self.sregs).map_err(KvmError::call("restore system registers"))?;
        fd.set_xcrs(&self.xcrs).map_err(KvmError::call("restore extended control registers"))?;
        // SAFETY: KVM reads as many bytes as this structure has: features that need more are only given to processes that
        // ask for them (arch_prctl), which this one does not.
        unsafe { fd.set_xsave(&self.xsave) }.map_err(KvmError::call("restore the extended state"))?;
        fd.set_debug_regs(&self.debug).map_err(KvmError::call("restore debug registers"))?;
        fd.set_regs(&self.regs).map_err(KvmError::call("restore registers"))?;
        fd.set_lapic(&self.lapic).map_err(KvmError::call("restore the local APIC"))?;
        // The deadline of the timer is compared with the counter, and needs the APIC's mode.
        let order = |entry: &&kvm_msr_entry| match entry.index {
            MSR_TSC => 0,
            MSR_TSC_DEADLINE => 2,
            _ => 1,
        };
        let mut msrs: Vec<&kvm_msr_entry> = self.msrs.iter().collect();
        msrs.sort_by_key(order);
        restore_msrs(vcpu, &msrs)?;
        vcpu.fd.set_vcpu_events(&self.events).map_err(KvmError::call("restore pending events"))?;
        if let (Some(quirk), Some(state)) = (&mut vcpu.quirk, self.quirk) {
            quirk.restore(state);
        }
        Ok(())
    }
}

/// All that can be read; KVM stops at the first that cannot, which depends on the vCPU's features.
fn save_msrs(vcpu: &Vcpu, indexes: &[u32]) -> Result<Vec<kvm_msr_entry>, Refusal> {
    let mut saved = Vec::new();
    let mut left = indexes;
    while !left.is_empty() {
        let entries: Vec<_> =
            left.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let few = entries.get(..entries.len().min(128)).unwrap_or(&entries);
        let mut msrs = Msrs::from_entries(few)
            .map_err(|_| Refusal::new(RefusalKind::Host, "too many model-specific registers"))?;
        let read = vcpu.fd.get_msrs(&mut msrs).map_err(refused("model-specific registers"))?;
        saved.extend(msrs.as_slice().iter().take(read));
        let skipped = usize::from(read < few.len());
        left = left.get(read + skipped..).unwrap_or(&[]);
    }
    Ok(saved)
}

/// Sets all that differ from what a new vCPU has: KVM refuses to set some, even to the value that they have.
fn restore_msrs(vcpu: &Vcpu, wanted: &[&kvm_msr_entry]) -> Result<(), KvmError> {
    let mut left = wanted;
    while !left.is_empty() {
        let few: Vec<kvm_msr_entry> = left.iter().take(128).map(|entry| **entry).collect();
        let msrs = Msrs::from_entries(&few).map_err(|_| KvmError::Cpuid)?;
        let set = vcpu.fd.set_msrs(&msrs).map_err(KvmError::call("restore model-specific registers"))?;
        let mut done = set;
        if let Some(failed) = few.get(set) {
            let index = kvm_msr_entry { index: failed.index, ..Default::default() };
            let mut now = Msrs::from_entries(&[index]).map_err(|_| KvmError::Cpuid)?;
            let same = vcpu.fd.get_msrs(&mut now).is_ok_and(|read| {
                read == 1 && now.as_slice().first().is_some_and(|now| now.data == failed.data)
            });
            if !same {
                return Err(SnapshotError::Msr { index: failed.index, value: failed.data }.into());
            }
            done += 1;
        }
        left = left.get(done..).unwrap_or(&[]);
    }
    Ok(())
}
