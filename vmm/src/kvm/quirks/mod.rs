//! What it takes to run Linux on a KVM that interprets guest kernels in software. Active only where the probe says so,
//! never on hardware.
//!
//! Such a KVM runs user mode natively, but kernel mode in KVM's instruction emulator, which is incomplete:
//!
//! - it lacks instructions: they come out as internal errors and are finished here ([`instruction`]);
//! - SYSCALL jumps to the kernel's entry without entering kernel mode ([`syscall`]);
//! - features that guest kernels should not use cannot all be masked by CPUID: the command line turns them off.
//!
//! Where the host's CPU cannot trap CPUID in user mode, programs see the host's features whatever the guest kernel was
//! told, and use AVX. So the kernel must switch all of the vector state: XSAVE cannot be turned off, only its variants.

mod decode;
mod instruction;
mod linear;
mod syscall;
mod xsave;

use crate::memory::GuestMemoryMmap;
use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::{VcpuFd, VmFd};

use self::syscall::Trampoline;
use self::xsave::Layout;
use super::KvmError;

/// Keeps the kernel from instructions that the emulator lacks, and from work that costs seconds: patching its own lock
/// prefixes out, clearing 2 MiB areas for per-CPU data, calibrating a delay loop.
pub const COMMAND_LINE: &str = "clearcpuid=xsaveopt,xsavec,xsaves,smap,popcnt,erms,fsrm,fsgsbase,rdrand,rdseed noreplace-smp percpu_alloc=page lpj=1000000 rodata=off";

/// Leaf 1, ECX: CMPXCHG16B, PCID.
const LEAF1_ECX_MASKED: u32 = 1 << 13 | 1 << 17;
/// Leaf 7, EBX: INVPCID.
const LEAF7_EBX_MASKED: u32 = 1 << 10;

/// Takes away those features that the emulator lacks and that such a KVM lets be masked; the rest it puts back.
pub fn mask_features(leaves: &mut [kvm_cpuid_entry2]) {
    for leaf in leaves {
        match (leaf.function, leaf.index) {
            (1, _) => leaf.ecx &= !LEAF1_ECX_MASKED,
            (7, 0) => leaf.ebx &= !LEAF7_EBX_MASKED,
            _ => {}
        }
    }
}

/// The help that one vCPU needs.
#[derive(Clone)]
pub struct Software {
    memory: GuestMemoryMmap,
    trampoline: Trampoline,
    layout: Layout,
}

impl Software {
    /// Prepares a VM. `memory` is the guest's RAM, `supported` the features that KVM supports.
    ///
    /// # Errors
    /// KVM refused.
    pub fn prepare(vm: &VmFd, memory: &GuestMemoryMmap, supported: &CpuId) -> Result<Self, KvmError> {
        let (memory, layout) = (memory.clone(), Layout::new(supported));
        Ok(Self { memory, trampoline: Trampoline::install(vm)?, layout })
    }

    /// What a snapshot must hold of it.
    #[must_use]
    pub fn save(&self) -> u64 {
        self.trampoline.entry()
    }

    /// Takes over what [`Self::save`] gave: an address of the guest's, of which any is harmless.
    pub fn restore(&mut self, state: u64) {
        self.trampoline.set_entry(state);
    }

    /// Whether a store to this address is the trampoline's.
    #[must_use]
    pub fn claims(&self, address: u64) -> bool {
        self.trampoline.claims(address)
    }

    /// Finishes a store that [`Self::claims`] accepted.
    ///
    /// # Errors
    /// The vCPU is in no state in which this makes sense, or KVM refused.
    pub fn store(&mut self, vcpu: &VcpuFd, _address: u64) -> Result<(), String> {
        self.trampoline.enter_kernel(vcpu)
    }

    /// The guest writes a model-specific register that the filter holds back.
    ///
    /// # Errors
    /// KVM refused.
    pub fn write_msr(&mut self, vcpu: &VcpuFd, index: u32, value: u64) -> Result<(), String> {
        self.trampoline.write_msr(vcpu, &self.memory, index, value)
    }

    /// Finishes an instruction that KVM could not execute.
    ///
    /// # Errors
    /// It is not one that is known here, or its operand is not there.
    pub fn finish_instruction(&mut self, vcpu: &VcpuFd, bytes: &[u8]) -> Result<(), String> {
        instruction::finish(vcpu, &self.memory, &self.layout, bytes)
    }
}
