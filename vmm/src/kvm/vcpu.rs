//! A vCPU: runs the guest and answers its exits. Its thread is in [`super::threads`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{
    KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_cpuid_entry2,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::KvmError;
use super::bus::Bus;
use super::exit::{InternalError, registers};
use super::outcome::Outcome;
use super::quirks::Software;
use crate::control::ExitReason;

/// A vCPU with all that its thread needs.
pub struct Vcpu {
    /// Its descriptor.
    pub fd: VcpuFd,
    /// What answers its exits.
    pub bus: Arc<Bus>,
    /// Where it reports the machine's end.
    pub outcome: Arc<Outcome>,
    /// What a KVM without hardware needs.
    pub quirk: Option<Software>,
    /// The features that it was told to show. Some KVMs show more.
    pub features: Vec<kvm_cpuid_entry2>,
    /// How often it came out of the guest.
    pub exits: Arc<AtomicU64>,
}

/// What is left to do once the borrow of the exit record has ended.
enum Next {
    Run,
    Internal,
    Stored(u64),
    Msr { index: u32, data: u64 },
    End(ExitReason, &'static str),
}

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Makes the signal that gets vCPU threads out of the guest harmless to the process.
///
/// # Errors
/// The host refused the handler.
pub fn prepare_kicks() -> Result<(), KvmError> {
    register_signal_handler(SIGRTMIN(), ignore).map_err(KvmError::call("handle the vCPU signal"))
}

impl Drop for Vcpu {
    /// However its thread ends, a panic included, the machine does not go on without it. The first reason wins.
    fn drop(&mut self) {
        self.outcome.end(ExitReason::Internal, "a vCPU's thread ended by itself");
    }
}

impl Vcpu {
    /// Runs until `stop` says so or the machine has ended. Then the vCPU's state is whole, and can be read.
    pub fn run(&mut self, stop: impl Fn() -> bool) {
        while !stop() && !self.outcome.has_ended() {
            match self.step() {
                Next::Run => {}
                Next::End(reason, what) => {
                    self.outcome.end(reason, format!("{what}; {}", registers(&self.fd)));
                }
                Next::Internal => self.internal_error(),
                Next::Stored(address) => self.stored(address),
                Next::Msr { index, data } => self.msr(index, data),
            }
        }
        self.complete();
    }

    /// Has KVM finish the instruction of the last exit, whose effect on the registers comes with the next entry (KVM's
    /// documentation of KVM_RUN), without entering the guest.
    fn complete(&mut self) {
        self.fd.set_kvm_immediate_exit(1);
        // Interrupted, as asked for.
        let _ = self.fd.run();
        self.fd.set_kvm_immediate_exit(0);
    }

    fn step(&mut self) -> Next {
        let bus = &self.bus;
        self.exits.fetch_add(1, Ordering::Relaxed);
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => bus.port_write(port, data),
            Ok(VcpuExit::IoIn(port, data)) => bus.port_read(port, data),
            Ok(VcpuExit::MmioRead(address, data)) => bus.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => {
                if self.quirk.as_ref().is_some_and(|quirk| quirk.claims(address)) {
                    return Next::Stored(address);
                }
                bus.write(address, data);
            }
            Ok(VcpuExit::X86Wrmsr(exit)) => return Next::Msr { index: exit.index, data: exit.data },
            Ok(VcpuExit::Intr) => {}
            Ok(VcpuExit::Shutdown) => return Next::End(ExitReason::TripleFault, "triple fault"),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
                self.outcome.end(ExitReason::Shutdown, "");
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => self.outcome.end(ExitReason::Reset, ""),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => {
                return Next::End(ExitReason::Panic, "the guest reported a crash");
            }
            Ok(VcpuExit::InternalError) => return Next::Internal,
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                let text = format!("KVM cannot enter the guest: reason {reason:#x}, host CPU {cpu}");
                self.outcome.end(ExitReason::Internal, text);
            }
            Ok(VcpuExit::MemoryFault { gpa, .. }) => {
                let text = format!("guest memory at {gpa:#x} cannot be given: the host is out of memory");
                self.outcome.end(ExitReason::OutOfMemory, text);
            }
            Ok(other) => {
                let text = format!("unexpected exit {other:?}");
                self.outcome.end(ExitReason::Internal, text);
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            // The page behind guest memory could not be given: huge pages or the file's device are used up.
            Err(error) if error.errno() == libc::EFAULT => {
                let text = format!("guest memory cannot be given: {error}; {}", registers(&self.fd));
                self.outcome.end(ExitReason::OutOfMemory, text);
            }
            Err(error) => {
                self.outcome.end(ExitReason::Internal, format!("KVM_RUN failed: {error}"));
            }
        }
        Next::Run
    }

    fn internal_error(&mut self) {
        let error = InternalError::of(&mut self.fd);
        let helped = match (&mut self.quirk, error.instruction()) {
            (Some(quirk), Some(bytes)) => quirk.finish_instruction(&self.fd, &bytes),
            _ => Err("no help for it".to_owned()),
        };
        if let Err(why) = helped {
            let text = format!("{} ({why}); {}", error.describe(), registers(&self.fd));
            self.outcome.end(ExitReason::Internal, text);
        }
    }

    fn stored(&mut self, address: u64) {
        let Some(quirk) = &mut self.quirk else {
            return;
        };
        if let Err(why) = quirk.store(&self.fd, address) {
            self.outcome.end(ExitReason::Internal, format!("{why}; {}", registers(&self.fd)));
        }
    }

    fn msr(&mut self, index: u32, data: u64) {
        let done = match &mut self.quirk {
            Some(quirk) => quirk.write_msr(&self.fd, index, data),
            None => Err("unexpected write of a model-specific register".to_owned()),
        };
        if let Err(why) = done {
            self.outcome.end(ExitReason::Internal, format!("MSR {index:#x}: {why}"));
        }
    }
}
