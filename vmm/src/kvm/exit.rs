//! Why KVM gave up on an instruction, read from the raw exit record.

use std::fmt::Write;

use kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
use kvm_ioctls::VcpuFd;

/// Longest x86 instruction in bytes.
pub const MAX_INSTRUCTION: usize = 15;

/// A KVM_EXIT_INTERNAL_ERROR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InternalError {
    /// KVM's own number.
    pub suberror: u32,
    /// What KVM tells beside it, as far as it does.
    data: [u64; 16],
    count: usize,
}

impl InternalError {
    /// Reads the record of the exit that just happened. Meaningless after any other exit.
    pub fn of(vcpu: &mut VcpuFd) -> Self {
        // SAFETY: every bit pattern is valid for this member of the union, which consists of integers only.
        let raw = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal };
        let count = usize::try_from(raw.ndata).unwrap_or(0).min(raw.data.len());
        Self { suberror: raw.suberror, data: raw.data, count }
    }

    /// The bytes from the instruction on that KVM could not execute, if that is the reason and it tells them.
    #[must_use]
    pub fn instruction(&self) -> Option<Vec<u8>> {
        const HAS_BYTES: u64 = 1;
        if self.suberror != KVM_INTERNAL_ERROR_EMULATION || self.count < 3 || self.data[0] & HAS_BYTES == 0 {
            return None;
        }
        let raw = [self.data[1].to_le_bytes(), self.data[2].to_le_bytes()].concat();
        let size = usize::from(raw[0]).min(MAX_INSTRUCTION);
        Some(raw[1..=size].to_vec())
    }

    /// For people.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = format!("KVM internal error {}", self.suberror);
        if let Some(bytes) = self.instruction() {
            text.push_str(", instruction");
            for byte in bytes {
                let _ = write!(text, " {byte:02x}");
            }
        }
        text
    }
}

/// The registers that a diagnosis needs, in one line.
#[must_use]
pub fn registers(vcpu: &VcpuFd) -> String {
    let (Ok(regs), Ok(sregs)) = (vcpu.get_regs(), vcpu.get_sregs()) else {
        return "registers unreadable".to_owned();
    };
    format!(
        "rip={:#x} rsp={:#x} rflags={:#x} rax={:#x} rcx={:#x} rdx={:#x} rsi={:#x} rdi={:#x} cs={:#x} cpl={} \
         cr0={:#x} cr2={:#x} cr3={:#x} cr4={:#x} efer={:#x}",
        regs.rip,
        regs.rsp,
        regs.rflags,
        regs.rax,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        sregs.cs.selector,
        sregs.ss.dpl,
        sregs.cr0,
        sregs.cr2,
        sregs.cr3,
        sregs.cr4,
        sregs.efer,
    )
}
