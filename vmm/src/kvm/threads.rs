//! The vCPUs' threads, and the gate at which they rest.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmm_sys_util::signal::{Killable, SIGRTMIN};

use super::KvmError;
use super::outcome::Outcome;
use super::vcpu::{Vcpu, prepare_kicks};
use crate::control::ExitReason;
use crate::jail::filter::Role;
use crate::machine::Confinement;

/// How long to wait for a vCPU before its thread is signalled again: a signal that comes between its look at the gate and
/// its entry into the guest is lost.
const AGAIN: Duration = Duration::from_micros(100);

/// How long to wait for a thread that comes by itself before looking whether it is still there.
const UNHURRIED: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    open: bool,
    ended: bool,
    /// Threads at the gate.
    resting: usize,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rests until the gate opens; false if the machine has ended instead.
    fn pass(&self) -> bool {
        let mut state = self.lock();
        state.resting += 1;
        self.changed.notify_all();
        while !state.open && !state.ended {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.resting -= 1;
        !state.ended
    }

    fn is_closed(&self) -> bool {
        let state = self.lock();
        !state.open || state.ended
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// All vCPUs of a machine, each on its thread. They start at rest.
pub struct Threads {
    gate: Arc<Gate>,
    vcpus: Vec<Arc<Mutex<Vcpu>>>,
    exits: Vec<Arc<AtomicU64>>,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Makes the threads, each under its filter.
    ///
    /// # Errors
    /// The host refused a thread or the signal's handler.
    pub fn start(
        vcpus: Vec<Vcpu>,
        outcome: &Arc<Outcome>,
        confinement: &Confinement,
    ) -> Result<Self, KvmError> {
        prepare_kicks()?;
        let gate = Arc::new(Gate::default());
        let mut all = Self { gate, vcpus: Vec::new(), exits: Vec::new(), threads: Vec::new() };
        for (id, vcpu) in vcpus.into_iter().enumerate() {
            let role = if vcpu.quirk.is_some() { Role::SoftwareVcpu } else { Role::Vcpu };
            let (gate, outcome, confinement) =
                (Arc::clone(&all.gate), Arc::clone(outcome), confinement.clone());
            all.exits.push(Arc::clone(&vcpu.exits));
            let vcpu = Arc::new(Mutex::new(vcpu));
            all.vcpus.push(Arc::clone(&vcpu));
            let run = move || {
                if let Err(error) = confinement.confine(role) {
                    outcome.end(ExitReason::Internal, format!("vCPU {id}: {error}"));
                }
                while gate.pass() {
                    let mut vcpu = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
                    vcpu.run(|| gate.is_closed());
                }
            };
            match thread::Builder::new().name(format!("vcpu{id}")).spawn(run) {
                Ok(thread) => all.threads.push(thread),
                Err(error) => {
                    all.end();
                    return Err(error.into());
                }
            }
        }
        // Only when all are under their filters does the caller go on to put itself under its own.
        // They come to the gate by themselves: a kick would only cost them, and us, system calls.
        all.await_rest(UNHURRIED, || {});
        Ok(all)
    }

    /// Lets the guest run.
    pub fn resume(&self) {
        self.gate.set(|state| state.open = true);
    }

    /// Stops the guest; returns when every vCPU rests.
    pub fn pause(&self) {
        self.gate.set(|state| state.open = false);
        self.await_rest(AGAIN, || self.kick());
    }

    /// Waits for every thread, and calls `remind` first and then each time that `interval` has passed in vain.
    fn await_rest(&self, interval: Duration, remind: impl Fn()) {
        let missing = |state: &mut State| {
            state.resting < self.threads.len() && !self.threads.iter().all(JoinHandle::is_finished)
        };
        while missing(&mut self.gate.lock()) {
            remind();
            drop(self.gate.changed.wait_timeout_while(self.gate.lock(), interval, missing));
        }
    }

    fn kick(&self) {
        for thread in self.threads.iter().filter(|thread| !thread.is_finished()) {
            let _ = thread.kill(SIGRTMIN());
        }
    }

    /// The vCPUs, which must rest: else this waits for as long as they run.
    pub fn vcpus(&self) -> impl Iterator<Item = MutexGuard<'_, Vcpu>> {
        self.vcpus.iter().map(|vcpu| vcpu.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Exits of each vCPU.
    #[must_use]
    pub fn exits(&self) -> Vec<u64> {
        self.exits.iter().map(|exits| exits.load(std::sync::atomic::Ordering::Relaxed)).collect()
    }

    /// Ends the threads of a machine that has ended.
    pub fn end(&mut self) {
        self.gate.set(|state| state.ended = true);
        for thread in self.threads.drain(..) {
            while !thread.is_finished() {
                let _ = thread.kill(SIGRTMIN());
                thread::sleep(AGAIN);
            }
            let _ = thread.join();
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.end();
    }
}
