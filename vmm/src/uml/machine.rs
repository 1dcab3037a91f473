//! The event loop of a running machine: its devices, its console, its supervisor, its end.

use std::cell::RefCell;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};

use super::ending::{classify, read_status};
use super::launch::Launched;
use super::{BOUNDARY, UmlError};
use crate::config::Fd;
use crate::console::ConsoleRing;
use crate::control::{
    Controlled, Diagnosis, Event, ExitReason, Refusal, Session, SnapshotRequest, SnapshotWritten, Statistics,
    counters,
};
use crate::jail::cgroup::OutOfMemory;
use crate::jail::filter::Role;
use crate::jail::{StepError, sys};
use crate::machine::{Confinement, Parts};
use crate::transport::vhost_user::{Backend, FaultSlot};
use crate::virtio::command::Command;

const CONTROL: u32 = 0;
const INIT: u32 = 1;
const STARTED: u32 = 2;
const CONSOLE: u32 = 3;
const UNWATCHED: u32 = 4;

/// Guest memory may exceed the configured size by what the kernel rounds up.
const MEMORY_SLACK: u64 = 16 << 20;

/// What the event loop dispatches to.
enum Subscriber {
    Device(Box<Backend>),
    Watch(Watch),
}

impl MutEventSubscriber for Subscriber {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match self {
            Self::Device(backend) => backend.process(events, ops),
            Self::Watch(watch) => watch.process(events, ops),
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        match self {
            Self::Device(backend) => backend.init(ops),
            Self::Watch(watch) => watch.init(ops),
        }
    }
}

/// Notes which of the descriptors that are not a device's are ready, for the loop to act on.
struct Watch {
    fds: [(RawFd, u32); 4],
    ready: Rc<RefCell<Vec<u32>>>,
}

impl MutEventSubscriber for Watch {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let token = events.data();
        let at_end = !events.event_set().contains(EventSet::IN);
        if matches!(token, STARTED | INIT) || at_end {
            // Happens once; a pipe at its end would be ready for ever.
            let _ = ops.remove(events);
        }
        if !self.ready.borrow().contains(&token) {
            self.ready.borrow_mut().push(token);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (fd, token) in self.fds {
            if ops.add(Events::with_data_raw(fd, token, EventSet::IN)).is_err() {
                // Without its watch the machine could run for ever: end it.
                self.ready.borrow_mut().push(UNWATCHED);
            }
        }
    }
}

/// A machine whose guest kernel has been started.
pub struct Machine {
    launched: Launched,
    devices: Vec<Backend>,
    faults: FaultSlot,
    console: ConsoleRing,
    confinement: Confinement,
    out_of_memory: OutOfMemory,
    memory_bytes: u64,
}

impl Machine {
    /// Puts the devices behind their sockets, and this thread under its filter.
    ///
    /// # Errors
    /// The host refuses something.
    pub fn start(parts: Parts, mut launched: Launched) -> Result<Self, UmlError> {
        if let Some(placement) = &launched.placement {
            // Devices and guest kernel work at the same time where there are two CPUs.
            let _ = sys::set_affinity(&placement.devices);
        }
        let faults = FaultSlot::default();
        let memory_bytes = u64::from(parts.config.memory_mib) << 20;
        let listeners = std::mem::take(&mut launched.listeners);
        let devices = parts.devices.into_iter().zip(listeners);
        let devices = devices
            .map(|(device, listener)| {
                Backend::new(device, listener, memory_bytes + MEMORY_SLACK, faults.clone())
            })
            .collect::<Result<_, _>>()?;
        let Parts { console, confinement, out_of_memory, .. } = parts;
        confinement.confine(Role::UmlLoop)?;
        Ok(Self { launched, devices, faults, console, confinement, out_of_memory, memory_bytes })
    }

    /// Serves the machine until it ends.
    pub fn run(mut self, session: &mut Session) -> (ExitReason, String) {
        let outcome = match self.serve(session) {
            Ok(outcome) => outcome,
            Err(error) => (ExitReason::Internal, UmlError::from(error).to_string()),
        };
        self.launched.end();
        self.read_console();
        outcome
    }

    fn serve(&mut self, session: &mut Session) -> event_manager::Result<(ExitReason, String)> {
        let mut manager = EventManager::new()?;
        let ready = Rc::new(RefCell::new(Vec::new()));
        let launched = &self.launched;
        let fds = [
            (session.as_raw_fd(), CONTROL),
            (launched.status.as_raw_fd(), INIT),
            (launched.started.as_raw_fd(), STARTED),
            (launched.console.as_raw_fd(), CONSOLE),
        ];
        manager.add_subscriber(Subscriber::Watch(Watch { fds, ready: ready.clone() }));
        let mut devices: Vec<SubscriberId> = Vec::new();
        let mut connected = false;
        loop {
            manager.run()?;
            let faulted = self.faults.borrow_mut().take();
            if let Some(fault) = faulted {
                return Ok((ExitReason::Internal, fault.to_string()));
            }
            let mut tokens = std::mem::take(&mut *ready.borrow_mut());
            // That the start failed explains the end, so it comes first.
            tokens.sort_by_key(|token| *token != STARTED);
            for token in tokens {
                if token == INIT {
                    // What the guest sent last may not have been seen yet.
                    for id in &devices {
                        if let Ok(Subscriber::Device(device)) = manager.subscriber_mut(*id) {
                            device.finish();
                        }
                    }
                    return Ok(self.ended(connected));
                }
                if token == CONTROL {
                    let mut controls = Controls { machine: self, manager: &mut manager, devices: &devices };
                    if let Some(end) = session.serve(&mut controls, None) {
                        return Ok(end);
                    }
                    continue;
                }
                if let Some(outcome) = self.on_ready(token, session) {
                    return Ok(outcome);
                }
                if token == STARTED {
                    // Not before: a socket that does not listen yet looks like one that was hung up.
                    let waiting = self.devices.drain(..);
                    devices = waiting
                        .map(|one| manager.add_subscriber(Subscriber::Device(Box::new(one))))
                        .collect();
                }
            }
            if !connected && !devices.is_empty() {
                connected = devices.iter().all(|id| {
                    matches!(manager.subscriber_mut(*id), Ok(Subscriber::Device(device)) if device.is_connected())
                });
                if connected {
                    self.launched.clean_up();
                }
            }
        }
    }

    fn on_ready(&self, token: u32, session: &mut Session) -> Option<(ExitReason, String)> {
        match token {
            STARTED => self.on_started(session),
            CONSOLE => {
                self.read_console();
                None
            }
            _ => Some((ExitReason::Internal, "the machine cannot be watched".to_owned())),
        }
    }

    /// The jail is built and the guest kernel started, or not.
    fn on_started(&self, session: &mut Session) -> Option<(ExitReason, String)> {
        let mut bytes = [0; 8];
        let length = sys::read(self.launched.started.as_raw_fd(), &mut bytes).unwrap_or(0);
        if length > 0 {
            let why = StepError::decode(&bytes[..length]);
            let why = why.map_or_else(|| "the jail could not be built".to_owned(), |error| error.to_string());
            return Some((ExitReason::BootFailed, why));
        }
        session.started(Event::Started {
            micros: self.confinement.micros(),
            boundary: BOUNDARY.to_owned(),
            jail: self.confinement.strength,
        });
        None
    }

    /// Takes what the guest kernel printed, as far as it is there.
    fn read_console(&self) {
        let mut bytes = [0; 4096];
        // A guest that prints without end must not hold up the loop, nor the machine's end.
        for _ in 0..16 {
            match sys::read(self.launched.console.as_raw_fd(), &mut bytes) {
                Ok(length) if length > 0 => self.console.write(&bytes[..length]),
                _ => return,
            }
        }
    }

    /// The guest kernel has ended, or its jail.
    fn ended(&self, connected: bool) -> (ExitReason, String) {
        self.read_console();
        let status = read_status(&self.launched.status);
        let killed =
            status.is_none_or(|status| libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL);
        if killed && self.out_of_memory.happened() {
            return (ExitReason::OutOfMemory, "the machine's control group ran out of memory".to_owned());
        }
        match status {
            Some(status) => classify(status, &self.console.text(), connected),
            None => (ExitReason::Killed, "the jail of the guest kernel was killed from outside".to_owned()),
        }
    }
}

/// A running machine in the hands of its supervisor.
struct Controls<'a> {
    machine: &'a Machine,
    manager: &'a mut EventManager<Subscriber>,
    devices: &'a [SubscriberId],
}

impl Controls<'_> {
    /// Every device, connected or not.
    fn each(&mut self, mut see: impl FnMut(&mut Backend)) {
        for id in self.devices {
            if let Ok(Subscriber::Device(device)) = self.manager.subscriber_mut(*id) {
                see(device);
            }
        }
    }
}

impl Controlled for Controls<'_> {
    fn pause(&mut self) -> Result<(), Refusal> {
        Err(Refusal::unsupported(
            "pause: the uml accelerator cannot stop a guest's processes; freeze the container in the guest instead",
        ))
    }

    fn resume(&mut self) -> Result<(), Refusal> {
        Ok(())
    }

    fn is_paused(&self) -> bool {
        false
    }

    fn snapshot(&mut self, _: SnapshotRequest, _: Vec<OwnedFd>) -> Result<SnapshotWritten, Refusal> {
        Err(Refusal::unsupported(
            "snapshot: the uml accelerator's machine is the state of host processes, which cannot be saved; use kvm",
        ))
    }

    fn working_set(&mut self, _: Fd, _: Vec<OwnedFd>) -> Result<(), Refusal> {
        Err(Refusal::unsupported("working set: the uml accelerator has no snapshots"))
    }

    fn device(&mut self, name: &str, command: &Command) -> Result<(), Refusal> {
        let mut outcome = None;
        self.each(|device| {
            if device.name() == name {
                outcome = Some(device.command(command));
            }
        });
        outcome.map_or_else(|| Err(Refusal::no_device(name)), |outcome| outcome.map_err(Refusal::from))
    }

    fn statistics(&mut self) -> Statistics {
        let mut statistics = Statistics {
            uptime_micros: self.machine.confinement.micros(),
            memory_bytes: self.machine.memory_bytes,
            ..Statistics::default()
        };
        self.each(|device| {
            statistics.devices.insert(device.name().to_owned(), counters(device.counters()));
        });
        statistics
    }

    fn diagnose(&mut self) -> Diagnosis {
        let statistics = self.statistics();
        let mut devices = Vec::new();
        self.each(|device| devices.push(device.describe()));
        Diagnosis { statistics, vcpus: Vec::new(), devices, console: self.machine.console.text() }
    }
}
