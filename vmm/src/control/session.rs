//! The VMM's end of the control socket: takes requests one at a time, answers each.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::{
    Answer, ControlSocket, Diagnosis, Envelope, Event, ExitReason, Malformed, Message, Refusal, RefusalKind,
    Request, RestoreRequest, SnapshotRequest, SnapshotWritten, Statistics, UNNUMBERED, VERSION,
};
use crate::config::{Fd, MachineConfig};
use crate::jail::sys;
use crate::virtio::command::Command;

/// Most packets that are no requests which a machine's supervisor may send before the machine ends.
pub const MAX_MALFORMED: u32 = 16;

/// What a running machine does at its supervisor's request.
pub trait Controlled {
    /// Stops vCPUs and devices.
    ///
    /// # Errors
    /// The accelerator cannot, or failed.
    fn pause(&mut self) -> Result<(), Refusal>;
    /// Goes on.
    ///
    /// # Errors
    /// As [`Self::pause`].
    fn resume(&mut self) -> Result<(), Refusal>;
    /// Whether it is paused.
    fn is_paused(&self) -> bool;
    /// Writes the state of the machine.
    ///
    /// # Errors
    /// The machine is not paused, the accelerator cannot, the descriptors are not there, or the host failed.
    fn snapshot(&mut self, to: SnapshotRequest, files: Vec<OwnedFd>) -> Result<SnapshotWritten, Refusal>;
    /// Writes the list of touched pages.
    ///
    /// # Errors
    /// The accelerator cannot, the descriptor is not there, or the host failed.
    fn working_set(&mut self, to: Fd, files: Vec<OwnedFd>) -> Result<(), Refusal>;
    /// Changes a device.
    ///
    /// # Errors
    /// There is no such device, or it refuses.
    fn device(&mut self, name: &str, command: &Command) -> Result<(), Refusal>;
    /// Counters.
    fn statistics(&mut self) -> Statistics;
    /// Everything.
    fn diagnose(&mut self) -> Diagnosis;
}

/// Why a machine ends that its supervisor ended.
pub type End = (ExitReason, String);

/// The first request that matters.
#[derive(Debug)]
pub enum First {
    /// A machine to boot, with its descriptors.
    Boot(Box<MachineConfig>, Vec<OwnedFd>),
    /// A machine to restore, with its descriptors.
    Restore(Box<RestoreRequest>, Vec<OwnedFd>),
}

/// A control socket on which a supervisor said hello.
#[derive(Debug)]
pub struct Session {
    socket: ControlSocket,
    /// The request that started the machine, until it is answered.
    start: Option<u64>,
    /// Packets that were no requests.
    malformed: u32,
}

impl Session {
    /// Waits for the greeting and the machine; `None` if the supervisor goes away or refuses first.
    ///
    /// # Errors
    /// The socket failed, or the supervisor broke the protocol; it has been told.
    pub fn accept(mut socket: ControlSocket) -> io::Result<Option<(Self, First)>> {
        let mut greeted = false;
        loop {
            let Some((Envelope { id, request }, descriptors)) = socket.receive::<Envelope>()? else {
                return Ok(None);
            };
            let mut session = Self { socket, start: Some(id), malformed: 0 };
            let refusal = match request {
                Request::Hello { version: VERSION } if !greeted => {
                    greeted = true;
                    session.answer(id, Answer::Hello { version: VERSION })?;
                    socket = session.socket;
                    continue;
                }
                Request::Hello { version } => Refusal::new(
                    RefusalKind::Version,
                    format!(
                        "the supervisor speaks version {version} of the control protocol, this VMM {VERSION}"
                    ),
                ),
                _ if !greeted => Refusal::new(RefusalKind::State, "the first request is not a greeting"),
                Request::Boot(config) => return Ok(Some((session, First::Boot(config, descriptors)))),
                Request::Restore(restore) => {
                    return Ok(Some((session, First::Restore(restore, descriptors))));
                }
                Request::Kill => {
                    session.answer(id, Answer::Done)?;
                    return Ok(None);
                }
                _ => Refusal::new(RefusalKind::State, "there is no machine yet"),
            };
            let error = io::Error::new(io::ErrorKind::InvalidData, refusal.text.clone());
            session.start = None;
            session.answer(id, Answer::Refused(refusal))?;
            return Err(error);
        }
    }

    /// A session whose greeting and start were taken elsewhere.
    #[must_use]
    pub fn new(socket: ControlSocket) -> Self {
        Self { socket, start: None, malformed: 0 }
    }

    fn answer(&self, id: u64, answer: Answer) -> io::Result<()> {
        self.socket.send_now(&Message::Reply { id, answer })
    }

    /// Tells that the machine starts, which also answers the request that started it.
    pub fn started(&mut self, event: Event) {
        // A supervisor that is gone is noticed by whoever watches the socket.
        if let Some(id) = self.start.take() {
            let _ = self.answer(id, Answer::Done);
        }
        let _ = self.socket.send_now(&Message::Event(event));
    }

    /// Tells how the machine ended.
    ///
    /// # Errors
    /// The socket failed. A supervisor that is gone is no error.
    pub fn ended(&mut self, event: Event) -> io::Result<()> {
        let mut outcome = Ok(());
        if let Some(id) = self.start.take() {
            let refusal = Refusal::new(RefusalKind::Host, "the machine could not be started");
            outcome = self.answer(id, Answer::Refused(refusal));
        }
        match outcome.and_then(|()| self.socket.send_now(&Message::Event(event))) {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Serves the request that is waiting, and while the machine is paused all that follow: its devices rest until
    /// it is resumed. `stopping` is a descriptor whose readiness ends the wait. Returns why the machine is to end, if it is.
    pub fn serve(&mut self, machine: &mut dyn Controlled, stopping: Option<RawFd>) -> Option<End> {
        loop {
            let received = match self.socket.receive_any::<Envelope>() {
                Ok(Some(received)) => received,
                Ok(None) => return Some(gone()),
                Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => return Some(gone()),
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {
                    return None;
                }
                Err(error) => {
                    return Some((ExitReason::Killed, format!("the control socket failed: {error}")));
                }
            };
            let (id, answer) = match received {
                Ok((Envelope { id, request: Request::Kill }, _)) => {
                    let _ = self.answer(id, Answer::Done);
                    return Some((ExitReason::Killed, "the supervisor asked for it".to_owned()));
                }
                Ok((Envelope { id, request }, files)) => {
                    (id, carry_out(request, files, machine).unwrap_or_else(Answer::Refused))
                }
                Err(Malformed { id, why }) => {
                    self.malformed += 1;
                    if self.malformed > MAX_MALFORMED {
                        let text = format!("the supervisor sent no valid request, again and again: {why}");
                        return Some((ExitReason::Killed, text));
                    }
                    let refusal = Refusal::new(RefusalKind::Invalid, format!("no valid request: {why}"));
                    (id.unwrap_or(UNNUMBERED), Answer::Refused(refusal))
                }
            };
            if let Err(error) = self.answer(id, answer) {
                return Some((ExitReason::Killed, format!("the supervisor does not take answers: {error}")));
            }
            if !machine.is_paused() || !self.wait(stopping) {
                return None;
            }
        }
    }

    /// Waits for the next request; false if the machine stops instead.
    fn wait(&self, stopping: Option<RawFd>) -> bool {
        let socket = self.socket.as_raw_fd();
        loop {
            let [stops, asked] = sys::wait_readable([stopping.unwrap_or(socket), socket]);
            if stopping.is_some() && stops {
                return false;
            }
            if asked {
                return true;
            }
        }
    }
}

fn gone() -> End {
    (ExitReason::Killed, "the supervisor went away".to_owned())
}

fn carry_out(request: Request, files: Vec<OwnedFd>, machine: &mut dyn Controlled) -> Result<Answer, Refusal> {
    match request {
        Request::Pause if machine.is_paused() => Ok(()),
        Request::Pause => machine.pause(),
        Request::Resume if !machine.is_paused() => Ok(()),
        Request::Resume => machine.resume(),
        Request::Snapshot(to) => return machine.snapshot(to, files).map(Answer::Snapshot),
        Request::WorkingSet { to } => machine.working_set(to, files),
        Request::Device { name, command } => machine.device(&name, &command),
        Request::Statistics => return Ok(Answer::Statistics(Box::new(machine.statistics()))),
        Request::Diagnose => return Ok(Answer::Diagnosis(Box::new(machine.diagnose()))),
        Request::Hello { .. } | Request::Boot(_) | Request::Restore(_) | Request::Kill => {
            Err(Refusal::new(RefusalKind::State, "there is a machine already"))
        }
    }
    .map(|()| Answer::Done)
}

impl AsRawFd for Session {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
