//! The state in which a vCPU starts: features, model-specific registers, registers.

use crate::memory::GuestMemoryMmap;
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, Msrs, kvm_cpuid_entry2, kvm_fpu, kvm_msr_entry, kvm_regs,
    kvm_segment,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::KvmError;
use super::layout::{GDT, PAGE_TABLES, STACK, ZERO_PAGE};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MSR_MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
/// Enabled, write back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// A feature leaf's bits that describe this machine rather than the host's CPU.
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;

/// What all vCPUs share.
#[derive(Debug, Clone, Copy)]
pub struct Topology {
    /// Number of vCPUs, each a core of its own in one package.
    pub vcpus: u8,
    /// Frequency of the time-stamp counter, in kHz.
    pub tsc_khz: u32,
}

/// The features that vCPU `id` shows: what KVM supports, with the machine's own topology and clock.
#[must_use]
pub fn features(supported: &CpuId, id: u8, topology: Topology) -> Vec<kvm_cpuid_entry2> {
    let count = u32::from(topology.vcpus);
    let id = u32::from(id);
    // Width of the core part of an APIC id.
    let core_bits = count.next_power_of_two().trailing_zeros();
    let mut leaves: Vec<_> = supported
        .as_slice()
        .iter()
        .filter(|leaf| !matches!(leaf.function, 0xb | 0x15 | 0x16 | 0x1f))
        .copied()
        .collect();
    for leaf in &mut leaves {
        match leaf.function {
            // The highest leaf must cover the clock's.
            0 => leaf.eax = leaf.eax.max(0x16),
            1 => {
                leaf.ecx |= LEAF1_ECX_TSC_DEADLINE | LEAF1_ECX_HYPERVISOR;
                leaf.ebx = leaf.ebx & 0xffff | id << 24 | (1 << core_bits) << 16;
                leaf.edx = if count > 1 { leaf.edx | LEAF1_EDX_HTT } else { leaf.edx & !LEAF1_EDX_HTT };
            }
            // Caches: levels 1 and 2 belong to one core, the rest to all.
            4 => {
                let sharing = if leaf.eax >> 5 & 7 < 3 { 0 } else { (1 << core_bits) - 1 };
                leaf.eax = leaf.eax & 0x3fff | sharing << 14 | ((1 << core_bits) - 1) << 26;
            }
            0x8000_0008 => leaf.ecx = core_bits << 12 | (count - 1),
            0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (id, id & 0xff, 0),
            _ => {}
        }
    }
    let entry = |function, index, [eax, ebx, ecx, edx]: [u32; 4]| kvm_cpuid_entry2 {
        function,
        index,
        flags: if function == 0xb { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    };
    leaves.push(entry(0xb, 0, [0, 1, 1 << 8, id]));
    leaves.push(entry(0xb, 1, [core_bits, count, 2 << 8 | 1, id]));
    leaves.push(entry(0xb, 2, [0, 0, 2, id]));
    // The clock: tsc = crystal * ebx / eax, with a crystal of 1 MHz so that Linux's 32-bit arithmetic holds it exactly; leaf
    // 0x16 is in MHz.
    leaves.push(entry(0x15, 0, [1000, topology.tsc_khz, 1_000_000, 0]));
    let mhz = topology.tsc_khz / 1000;
    leaves.push(entry(0x16, 0, [mhz, mhz, 100, 0]));
    leaves
}

/// Installs features and the model-specific registers that a reset leaves unlike a firmware's.
///
/// # Errors
/// KVM refused.
pub fn set_up(vcpu: &VcpuFd, features: &[kvm_cpuid_entry2]) -> Result<(), KvmError> {
    let cpuid = CpuId::from_entries(features).map_err(|_| KvmError::Cpuid)?;
    vcpu.set_cpuid2(&cpuid).map_err(KvmError::call("set the vCPU's features"))?;
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let values =
        [entry(MSR_MISC_ENABLE, MSR_MISC_ENABLE_FAST_STRING), entry(MSR_MTRR_DEFAULT_TYPE, MTRR_WRITE_BACK)];
    for value in values {
        let msrs = Msrs::from_entries(&[value]).map_err(|_| KvmError::Cpuid)?;
        vcpu.set_msrs(&msrs).map_err(KvmError::call("set a model-specific register"))?;
    }
    // The FPU as after FNINIT, all SIMD exceptions masked.
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(KvmError::call("set the vCPU's FPU"))
}

fn segment(selector: u16, type_: u8) -> kvm_segment {
    let code = type_ & 8 != 0;
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        ..Default::default()
    }
}

/// The descriptor in the format of the table.
fn descriptor(segment: &kvm_segment) -> u64 {
    let flags = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7
        | u64::from(segment.l) << 13
        | u64::from(segment.db) << 14
        | u64::from(segment.g) << 15;
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    limit & 0xffff
        | (segment.base & 0xff_ffff) << 16
        | flags << 40
        | (limit >> 16 & 0xf) << 48
        | (segment.base >> 24 & 0xff) << 56
}

/// Puts the first vCPU at a 64-bit entry point as the boot protocol asks: long mode, the first GiB mapped to itself, flat
/// segments 0x10 and 0x18, the zero page in RSI, interrupts off. Writes the descriptor table.
///
/// # Errors
/// KVM refused, or memory is missing.
pub fn enter_long_mode(vcpu: &VcpuFd, memory: &GuestMemoryMmap, entry: u64) -> Result<(), KvmError> {
    let (code, data) = (segment(0x10, 0xb), segment(0x18, 0x3));
    // VMX wants a busy 64-bit TSS.
    let task =
        kvm_segment { selector: 0x20, type_: 0xb, s: 0, l: 0, g: 0, limit: 0x67, ..segment(0x20, 0xb) };
    let table = [0, 0, descriptor(&code), descriptor(&data), descriptor(&task), 0];
    for (index, entry) in table.iter().enumerate() {
        memory.write_obj(*entry, GuestAddress(GDT + 8 * index as u64)).map_err(KvmError::Write)?;
    }
    let mut sregs = vcpu.get_sregs().map_err(KvmError::call("read the vCPU's registers"))?;
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task;
    sregs.gdt.base = GDT;
    sregs.gdt.limit = u16::try_from(size_of_val(&table) - 1).unwrap_or(0);
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs).map_err(KvmError::call("set the vCPU's system registers"))?;
    let regs =
        kvm_regs { rip: entry, rsp: STACK, rbp: STACK, rsi: ZERO_PAGE, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).map_err(KvmError::call("set the vCPU's registers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_architectures() {
        assert_eq!(descriptor(&segment(0x10, 0xb)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(0x18, 0x3)), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn topology_and_clock_are_the_machines() {
        let supported = CpuId::from_entries(&[
            kvm_cpuid_entry2 { function: 0, eax: 0xd, ..Default::default() },
            kvm_cpuid_entry2 { function: 1, ebx: 0x7700_0800, ..Default::default() },
            kvm_cpuid_entry2 { function: 0xb, ebx: 99, ..Default::default() },
        ])
        .unwrap();
        let leaves = features(&supported, 2, Topology { vcpus: 3, tsc_khz: 2_400_000 });
        let leaf =
            |function, index| *leaves.iter().find(|l| l.function == function && l.index == index).unwrap();
        assert_eq!(leaf(0, 0).eax, 0x16);
        assert_eq!(leaf(1, 0).ebx, 0x0204_0800);
        assert_ne!(leaf(1, 0).edx & LEAF1_EDX_HTT, 0);
        assert_eq!((leaf(0xb, 1).eax, leaf(0xb, 1).ebx, leaf(0xb, 1).edx), (2, 3, 2));
        let clock = leaf(0x15, 0);
        assert_eq!(u64::from(clock.ecx) * u64::from(clock.ebx) / u64::from(clock.eax), 2_400_000_000);
    }
}
