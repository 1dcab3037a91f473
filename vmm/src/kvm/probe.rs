//! What kind of KVM this is, found out by using it: a virtual machine executes a few thousand instructions in kernel mode
//! against the clock. Hardware runs one in less than a nanosecond; KVMs that interpret guest kernels need about a
//! microsecond. CPU flags say nothing: hosts hide them, and /dev/kvm may exist without hardware behind it.

use std::fs::File;
use std::time::Instant;

use crate::memory::GuestMemoryMmap;
use kvm_ioctls::{Cap, Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress};

use super::{KvmError, memory, open};
use crate::config::KvmKind;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Guest kernels run at the hardware's speed.
    Hardware,
    /// Guest kernels are interpreted.
    Software {
        /// Nanoseconds per instruction in kernel mode.
        nanos: u32,
    },
    /// No guest can be run.
    Unusable {
        /// Why, for people.
        why: String,
    },
}

impl Probe {
    /// The boundary as `inspect` and `doctor` name it.
    #[must_use]
    pub fn boundary(&self) -> &'static str {
        match self {
            Self::Hardware => "hardware",
            Self::Software { .. } => "software",
            Self::Unusable { .. } => "unusable",
        }
    }
}

impl From<KvmKind> for Probe {
    /// What somebody else found.
    fn from(kind: KvmKind) -> Self {
        match kind {
            KvmKind::Hardware => Self::Hardware,
            KvmKind::Software => Self::Software { nanos: 0 },
        }
    }
}

/// Rounds of the loop.
const ROUNDS: u32 = 1000;
/// Instructions that this makes: two per round, one before, one after.
const INSTRUCTIONS: u32 = 2 * ROUNDS + 2;
/// Slower than this is no hardware: a hundred times slower than the slowest, ten times faster than the fastest software.
const HARDWARE_NANOS: u32 = 100;
/// A measurement can only be too slow, by a busy host: the best of so many counts.
const ATTEMPTS: u32 = 3;
/// Where the code lies.
const CODE: u64 = 0x1000;

/// What the machine's run cannot do without.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "user memory"),
    (Cap::Irqchip, "an in-kernel interrupt controller"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::SetTssAddr, "a TSS address"),
    (Cap::ImmediateExit, "immediate exit"),
];

/// Finds out what `kvm`, an open /dev/kvm, is good for. Takes about a millisecond on hardware, ten in software.
#[must_use]
pub fn probe(kvm: &File) -> Probe {
    match measure(kvm) {
        Ok(nanos) if nanos < HARDWARE_NANOS => Probe::Hardware,
        Ok(nanos) => Probe::Software { nanos },
        Err(error) => Probe::Unusable { why: error.to_string() },
    }
}

fn measure(kvm: &File) -> Result<u32, KvmError> {
    let kvm = open(kvm)?;
    check(&kvm)?;
    let memory = memory::reserve(&[(0, 0x10000)])?;
    load(&memory)?;
    let vm = kvm.create_vm().map_err(KvmError::call("create a VM"))?;
    memory::plug(&vm, &memory, 0, false)?;
    let mut vcpu = vm.create_vcpu(0).map_err(KvmError::call("create a vCPU"))?;
    let mut best = u32::MAX;
    for _ in 0..ATTEMPTS {
        let mut sregs = vcpu.get_sregs().map_err(KvmError::call("read registers"))?;
        // Protected mode, flat segments, no paging: the least that every KVM executes as kernel mode.
        for segment in [&mut sregs.cs, &mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
            (segment.base, segment.limit, segment.g, segment.db, segment.selector) =
                (0, u32::MAX, 1, 1, 0x10);
        }
        (sregs.cs.selector, sregs.cs.type_) = (8, 0xb);
        sregs.cr0 |= 1;
        vcpu.set_sregs(&sregs).map_err(KvmError::call("set registers"))?;
        let regs = kvm_bindings::kvm_regs { rip: CODE, rflags: 2, ..Default::default() };
        vcpu.set_regs(&regs).map_err(KvmError::call("set registers"))?;
        let start = Instant::now();
        match vcpu.run().map_err(KvmError::call("run a vCPU"))? {
            VcpuExit::Hlt => {}
            other => return Err(KvmError::Probe(format!("{other:?}"))),
        }
        let nanos = start.elapsed().as_nanos() / u128::from(INSTRUCTIONS);
        let after = vcpu.get_regs().map_err(KvmError::call("read registers"))?;
        if after.rcx != 0 {
            return Err(KvmError::Probe(format!("a loop of {ROUNDS} rounds ended with {} to go", after.rcx)));
        }
        best = best.min(u32::try_from(nanos).unwrap_or(u32::MAX));
        if best < HARDWARE_NANOS {
            break;
        }
    }
    Ok(best)
}

/// Whether KVM has all that a machine's run needs.
pub(super) fn check(kvm: &Kvm) -> Result<(), KvmError> {
    let version = kvm.get_api_version();
    if version != 12 {
        return Err(KvmError::Version(version));
    }
    match NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(KvmError::Lacks(name)),
        None => Ok(()),
    }
}

fn load(memory: &GuestMemoryMmap) -> Result<(), KvmError> {
    // mov ecx, ROUNDS; again: dec ecx; jnz again; hlt
    let mut code = vec![0xb9];
    code.extend(ROUNDS.to_le_bytes());
    code.extend([0x49, 0x75, 0xfd, 0xf4]);
    memory.write_slice(&code, GuestAddress(CODE)).map_err(KvmError::Write)
}
