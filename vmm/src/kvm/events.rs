//! The event loop: devices and the control socket, on one thread.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use super::KvmError;
use super::outcome::Outcome;
use crate::console::ConsoleRing;
use crate::control::{Controlled, Session};
use crate::transport::mmio::MmioDevice;

/// Event data of a device's descriptors other than its queues.
const ACTIVITY: u32 = u32::MAX;
const HOST: u32 = u32::MAX - 1;

enum Subscriber<'a> {
    Device { device: Arc<MmioDevice>, watching: bool, console: ConsoleRing },
    Control { session: &'a mut Session, controls: &'a mut dyn Controlled, outcome: Arc<Outcome> },
    End(Arc<Outcome>),
}

/// Serves devices and the control socket until the machine has ended.
///
/// # Errors
/// The host is out of descriptors, or epoll failed.
pub fn serve(
    devices: &[Arc<MmioDevice>],
    session: &mut Session,
    controls: &mut dyn Controlled,
    outcome: &Arc<Outcome>,
    console: &ConsoleRing,
) -> Result<(), KvmError> {
    let mut manager = EventManager::new().map_err(KvmError::Events)?;
    manager.add_subscriber(Subscriber::End(Arc::clone(outcome)));
    manager.add_subscriber(Subscriber::Control { session, controls, outcome: Arc::clone(outcome) });
    for device in devices {
        let device = Arc::clone(device);
        manager.add_subscriber(Subscriber::Device { device, watching: false, console: console.clone() });
    }
    while !outcome.has_ended() {
        match manager.run() {
            Ok(_) => {}
            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(KvmError::Events(error)),
        }
    }
    Ok(())
}

impl Subscriber<'_> {
    fn add(ops: &mut EventOps<'_>, events: Events) {
        // A descriptor that cannot be watched leaves its device mute; the guest's driver will time out and say so.
        let _ = ops.add(events);
    }
}

impl MutEventSubscriber for Subscriber<'_> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        match self {
            Self::End(outcome) => Self::add(ops, Events::new(outcome.event(), EventSet::IN)),
            Self::Control { session, .. } => {
                Self::add(ops, Events::with_data_raw(session.as_raw_fd(), 0, EventSet::IN));
            }
            Self::Device { device, .. } => {
                for (index, event) in (0..).zip(device.notify_events()) {
                    Self::add(ops, Events::with_data(event, index, EventSet::IN));
                }
                Self::add(ops, Events::with_data(device.activity_event(), ACTIVITY, EventSet::IN));
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match self {
            Self::End(_) => {}
            Self::Control { session, controls, outcome } => {
                if let Some((reason, detail)) = session.serve(*controls, Some(outcome.event().as_raw_fd())) {
                    outcome.end(reason, detail);
                }
            }
            Self::Device { device, watching, console } => {
                match events.data() {
                    HOST => device.host_event(),
                    ACTIVITY => {
                        // Only tells that something changed; what it is now is looked up below.
                        let _ = device.activity_event().read();
                        watch(device, watching, ops);
                    }
                    index => {
                        let index = usize::try_from(index).unwrap_or(usize::MAX);
                        if let Some(event) = device.notify_events().get(index) {
                            let _ = event.read();
                            device.queue_event(index);
                        }
                    }
                }
                if let Some(failure) = device.take_failure() {
                    console.write(format!("\nbulkhead: {} stopped: {failure}\n", device.name()).as_bytes());
                }
            }
        }
    }
}

/// A device's own descriptor is watched only while there is a driver to serve: readable and not read, it would spin the loop.
fn watch(device: &MmioDevice, watching: &mut bool, ops: &mut EventOps<'_>) {
    let Some(fd) = device.host_fd() else {
        return;
    };
    let events = Events::with_data_raw(fd, HOST, EventSet::IN);
    let active = device.is_active();
    let changed = match (active, *watching) {
        (true, false) => ops.add(events),
        (false, true) => ops.remove(events),
        _ => return,
    };
    if changed.is_ok() {
        *watching = active;
    }
}
