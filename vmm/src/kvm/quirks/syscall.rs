//! SYSCALL on a KVM that executes it by a jump alone: the CPU arrives at LSTAR still in user mode.
//!
//! So LSTAR must point to something that user mode can execute. An MSR filter hands us the guest's write of LSTAR; we keep
//! its value and put the address of a trampoline there instead: a page of our own memory slot, mapped for user mode
//! through an entry of the guest's top-level page table that Linux does not use and copies into every process.
//! The trampoline is one store to an address that is not memory. On that exit the vCPU is put where SYSCALL should have put it.

use crate::memory::GuestMemoryMmap;
use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, Msrs, kvm_enable_cap, kvm_msr_entry, kvm_regs,
};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};

use crate::kvm::{KvmError, memory};

const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SYSCALL_MASK: u32 = 0xc000_0084;

/// Our memory slot: in the device hole, behind the virtio registers. Three page tables, then the code.
const SLOT: u64 = 0xe000_0000;
/// Slot number, far from RAM's.
const SLOT_NUMBER: u32 = 31;
const CODE: u64 = SLOT + 3 * PAGE;
/// Where the trampoline stores: no memory, no device.
const DOOR: u64 = SLOT + 0x10_0000;
const PAGE: u64 = 4096;

/// Entry of the top-level page table: the unused hole between Linux's direct map and its vmalloc area. Unlike the holes
/// below the direct map, it is copied into every process.
const TOP_INDEX: u64 = 401;
/// The addresses that this entry begins.
const VIRTUAL: u64 = 0xffff_0000_0000_0000 | TOP_INDEX << 39;
const VIRTUAL_DOOR: u64 = VIRTUAL + PAGE;

/// Present, user, accessed, dirty; writable on top. Preset, so that the walker need not write to them.
const USER_READ: u64 = 0x65;
const USER_WRITE: u64 = USER_READ | 2;
const ADDRESS_MASK: u64 = 0x000f_ffff_ffff_f000;

/// The flags that user mode may have; R11 could hold any when the trampoline was jumped to.
const USER_FLAGS: u64 = 0x24_0dd5;
const FLAG_FIXED: u64 = 2;
const FLAG_INTERRUPT: u64 = 1 << 9;

/// The trampoline of a VM, as one vCPU uses it.
#[derive(Debug, Clone)]
pub struct Trampoline {
    /// The guest's own LSTAR.
    entry: u64,
    /// Keeps the slot's memory.
    _slot: GuestMemoryMmap,
}

impl Trampoline {
    /// Sets up the VM: the slot, and the filter that shows us writes of LSTAR.
    ///
    /// # Errors
    /// KVM refused.
    pub fn install(vm: &VmFd) -> Result<Self, KvmError> {
        let slot = memory::reserve(&[(SLOT, 4 * PAGE)])?;
        let write =
            |address: u64, value: u64| slot.write_obj(value, GuestAddress(address)).map_err(KvmError::Write);
        write(SLOT, (SLOT + PAGE) | USER_WRITE)?;
        write(SLOT + PAGE, (SLOT + 2 * PAGE) | USER_WRITE)?;
        write(SLOT + 2 * PAGE, CODE | USER_READ)?;
        write(SLOT + 2 * PAGE + 8, DOOR | USER_WRITE)?;
        // mov [door], al, which changes neither registers nor flags; and back to it, should the store be repeated.
        let mut code = vec![0xa2];
        code.extend(VIRTUAL_DOOR.to_le_bytes());
        code.extend([0xeb, 0xf5]);
        slot.write_slice(&code, GuestAddress(CODE)).map_err(KvmError::Write)?;
        memory::plug(vm, &slot, SLOT_NUMBER, false)?;

        let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..Default::default() };
        cap.args[0] = u64::from(KVM_MSR_EXIT_REASON_FILTER);
        vm.enable_cap(&cap).map_err(KvmError::call("ask for exits on model-specific registers"))?;
        let denied = [0u8];
        let range = MsrFilterRange {
            flags: MsrFilterRangeFlags::WRITE,
            base: MSR_LSTAR,
            msr_count: 1,
            bitmap: &denied,
        };
        vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[range])
            .map_err(KvmError::call("filter model-specific registers"))?;
        Ok(Self { entry: 0, _slot: slot })
    }

    /// The guest's own LSTAR.
    #[must_use]
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// Sets it, after a restore.
    pub fn set_entry(&mut self, entry: u64) {
        self.entry = entry;
    }

    /// Whether a store to this guest physical address is the trampoline's.
    #[must_use]
    pub fn claims(&self, address: u64) -> bool {
        address == DOOR
    }

    /// The guest sets LSTAR: keeps the value, points the register at the trampoline, and maps that into the page tables in use.
    ///
    /// # Errors
    /// KVM refused, or the page tables are not in RAM.
    pub fn write_msr(
        &mut self,
        vcpu: &VcpuFd,
        memory: &GuestMemoryMmap,
        index: u32,
        value: u64,
    ) -> Result<(), String> {
        if index != MSR_LSTAR {
            return Err("not the one that is filtered".to_owned());
        }
        let sregs = vcpu.get_sregs().map_err(|error| error.to_string())?;
        let top = GuestAddress((sregs.cr3 & ADDRESS_MASK) + 8 * TOP_INDEX);
        memory.write_obj(SLOT | USER_WRITE, top).map_err(|error| error.to_string())?;
        self.entry = value;
        set_msr(vcpu, MSR_LSTAR, VIRTUAL)
    }

    /// The trampoline's store: goes on as SYSCALL should have (Intel SDM volume 2, SYSCALL): selectors from STAR, flags
    /// masked, at the guest's LSTAR. A store by anybody else is ignored, as where there is no device.
    ///
    /// # Errors
    /// KVM refused.
    pub fn enter_kernel(&mut self, vcpu: &VcpuFd) -> Result<(), String> {
        let say = |error: vmm_sys_util::errno::Error| error.to_string();
        let mut regs = vcpu.get_regs().map_err(say)?;
        let mut sregs = vcpu.get_sregs().map_err(say)?;
        if regs.rip & !(PAGE - 1) != VIRTUAL || sregs.ss.dpl != 3 || self.entry == 0 {
            return Ok(());
        }
        let [star, mask] = msrs(vcpu, [MSR_STAR, MSR_SYSCALL_MASK])?;
        let selector = u16::try_from(star >> 32 & 0xfffc).unwrap_or(0);
        let stack = selector.wrapping_add(8);
        for (segment, selector, type_) in [(&mut sregs.cs, selector, 0xb), (&mut sregs.ss, stack, 0x3)] {
            segment.base = 0;
            segment.limit = u32::MAX;
            segment.selector = selector;
            segment.type_ = type_;
            (segment.present, segment.dpl, segment.s, segment.g, segment.unusable) = (1, 0, 1, 1, 0);
            (segment.l, segment.db) = if type_ == 0xb { (1, 0) } else { (0, 1) };
        }
        enter(&mut regs, self.entry, mask);
        vcpu.set_sregs(&sregs).map_err(say)?;
        vcpu.set_regs(&regs).map_err(say)
    }
}

fn enter(regs: &mut kvm_regs, entry: u64, mask: u64) {
    regs.r11 = regs.r11 & USER_FLAGS | FLAG_INTERRUPT | FLAG_FIXED;
    regs.rflags = regs.rflags & !mask | FLAG_FIXED;
    regs.rip = entry;
}

fn set_msr(vcpu: &VcpuFd, index: u32, data: u64) -> Result<(), String> {
    let entry = kvm_msr_entry { index, data, ..Default::default() };
    let msrs = Msrs::from_entries(&[entry]).map_err(|error| format!("{error:?}"))?;
    match vcpu.set_msrs(&msrs) {
        Ok(1) => Ok(()),
        Ok(_) => Err("refused".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn msrs<const N: usize>(vcpu: &VcpuFd, indexes: [u32; N]) -> Result<[u64; N], String> {
    let entries = indexes.map(|index| kvm_msr_entry { index, ..Default::default() });
    let mut msrs = Msrs::from_entries(&entries).map_err(|error| format!("{error:?}"))?;
    let read = vcpu.get_msrs(&mut msrs).map_err(|error| error.to_string())?;
    let values: Vec<u64> = msrs.as_slice().iter().take(read).map(|entry| entry.data).collect();
    values.try_into().map_err(|_| "model-specific registers cannot be read".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forged_flags_do_not_reach_the_kernel() {
        let mut regs = kvm_regs { r11: u64::MAX, rflags: 0x3202, rcx: 5, ..Default::default() };
        enter(&mut regs, 0xffff_ffff_8160_0040, 0x4_7700);
        assert_eq!(regs.r11, 0x24_0fd7);
        assert_eq!((regs.rflags, regs.rcx, regs.rip), (2, 5, 0xffff_ffff_8160_0040));
    }
}
