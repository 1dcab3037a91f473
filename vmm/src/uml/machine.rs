//! The event loop of a running machine: its devices, its console, its supervisor, its end.

use std::cell::RefCell;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::Instant;

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};

use super::ending::{classify, read_status};
use super::launch::{Launched, launch};
use super::{BOUNDARY, UmlError};
use crate::console::ConsoleRing;
use crate::control::{ControlSocket, Event, ExitReason, Request};
use crate::jail::{StepError, limits, sys};
use crate::machine::Parts;
use crate::transport::vhost_user::{Backend, FaultSlot};

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
    arrival: Instant,
}

impl Machine {
    /// Builds the jail and starts the guest kernel.
    ///
    /// # Errors
    /// The host refuses something.
    pub fn start(parts: Parts, arrival: Instant) -> Result<Self, UmlError> {
        let placement = limits::place(std::process::id());
        let mut launched = launch(&parts, placement)?;
        if let Some(placement) = &placement {
            // Devices and guest kernel work at the same time where there are two CPUs.
            let _ = sys::set_affinity(&placement.devices);
        }
        let faults = FaultSlot::default();
        let limit = (u64::from(parts.config.memory_mib) << 20) + MEMORY_SLACK;
        let listeners = std::mem::take(&mut launched.listeners);
        let mut devices = Vec::new();
        for (device, listener) in parts.devices.into_iter().zip(listeners) {
            match Backend::new(device, listener, limit, faults.clone()) {
                Ok(backend) => devices.push(backend),
                Err(error) => {
                    launched.kill();
                    return Err(error.into());
                }
            }
        }
        Ok(Self { launched, devices, faults, console: parts.console, arrival })
    }

    /// Serves the machine until it ends.
    pub fn run(mut self, control: &ControlSocket) -> (ExitReason, String) {
        let outcome = match self.serve(control) {
            Ok(outcome) => outcome,
            Err(error) => (ExitReason::Internal, UmlError::from(error).to_string()),
        };
        self.launched.kill();
        self.read_console();
        outcome
    }

    fn serve(&mut self, control: &ControlSocket) -> event_manager::Result<(ExitReason, String)> {
        let mut manager = EventManager::new()?;
        let ready = Rc::new(RefCell::new(Vec::new()));
        let launched = &self.launched;
        let fds = [
            (control.as_raw_fd(), CONTROL),
            (launched.init.as_raw_fd(), INIT),
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
            for token in std::mem::take(&mut *ready.borrow_mut()) {
                if token == INIT {
                    // What the guest sent last may not have been seen yet.
                    for id in &devices {
                        if let Ok(Subscriber::Device(device)) = manager.subscriber_mut(*id) {
                            device.finish();
                        }
                    }
                    return Ok(self.ended(connected));
                }
                if let Some(outcome) = self.on_ready(token, control) {
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

    fn on_ready(&self, token: u32, control: &ControlSocket) -> Option<(ExitReason, String)> {
        match token {
            STARTED => self.on_started(control),
            CONSOLE => {
                self.read_console();
                None
            }
            CONTROL => Some(match control.receive::<Request>() {
                Ok(Some((Request::Kill, _))) => {
                    (ExitReason::Killed, "the supervisor asked for it".to_owned())
                }
                Ok(None) => (ExitReason::Killed, "the supervisor went away".to_owned()),
                Ok(Some((Request::Boot(_), _))) => {
                    (ExitReason::Killed, "the supervisor asked for a second machine".to_owned())
                }
                Err(error) => (ExitReason::Killed, format!("the supervisor sent no valid request: {error}")),
            }),
            _ => Some((ExitReason::Internal, "the machine cannot be watched".to_owned())),
        }
    }

    /// The jail is built and the guest kernel started, or not.
    fn on_started(&self, control: &ControlSocket) -> Option<(ExitReason, String)> {
        let mut bytes = [0; 8];
        let length = sys::read(self.launched.started.as_raw_fd(), &mut bytes).unwrap_or(0);
        if length > 0 {
            let why = StepError::decode(&bytes[..length]);
            let why = why.map_or_else(|| "the jail could not be built".to_owned(), |error| error.to_string());
            return Some((ExitReason::BootFailed, why));
        }
        let micros = u64::try_from(self.arrival.elapsed().as_micros()).unwrap_or(u64::MAX);
        // If the supervisor is gone, its socket's end says so as well.
        let _ = control.send(&Event::Started { micros, boundary: BOUNDARY.to_owned() }, &[]);
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

    /// The jail's first process is gone.
    fn ended(&self, connected: bool) -> (ExitReason, String) {
        self.read_console();
        match read_status(&self.launched.status) {
            Some(status) => classify(status, &self.console.text(), connected),
            None => (ExitReason::Internal, "the jail of the guest kernel was killed from outside".to_owned()),
        }
    }
}
