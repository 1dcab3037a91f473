//! What a supervisor may send, and the snapshots that it may name: packets on the control socket, and states of machines and devices.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Input;
use super::device::{self, Kind};
use crate::config::Fd;
use crate::control::{
    Answer, ControlSocket, Controlled, Diagnosis, ExitReason, MAX_MALFORMED, Message, Refusal, Session,
    SnapshotRequest, SnapshotWritten, Statistics,
};
use crate::kvm::MachineState;
use crate::memory::GuestMemoryMmap;
use crate::snapshot::format;
use crate::transport::mmio::MmioDevice;
use crate::transport::mmio::state::MmioState;
use crate::virtio::command::Command;

/// A machine that does all that it is asked for, and nothing.
struct Willing {
    paused: bool,
}

impl Controlled for Willing {
    fn pause(&mut self) -> Result<(), Refusal> {
        self.paused = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Refusal> {
        self.paused = false;
        Ok(())
    }

    fn is_paused(&self) -> bool {
        self.paused
    }

    fn snapshot(&mut self, _to: SnapshotRequest, _files: Vec<OwnedFd>) -> Result<SnapshotWritten, Refusal> {
        Ok(SnapshotWritten { state_bytes: 1, memory_bytes: 2, micros: 3 })
    }

    fn working_set(&mut self, _to: Fd, _files: Vec<OwnedFd>) -> Result<(), Refusal> {
        Ok(())
    }

    fn device(&mut self, name: &str, _command: &Command) -> Result<(), Refusal> {
        Err(Refusal::no_device(name))
    }

    fn statistics(&mut self) -> Statistics {
        Statistics::default()
    }

    fn diagnose(&mut self) -> Diagnosis {
        Diagnosis::default()
    }
}

/// Packets with and without descriptors, each after two bytes: how many of both.
///
/// # Panics
/// A packet was not answered, or ended the machine for no reason.
pub fn control(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (ours, theirs) = ControlSocket::pair().expect("a socket pair");
    let mut session = Session::new(theirs);
    let mut machine = Willing { paused: false };
    // A paused machine waits for its next request; this one always has something else to do.
    let busy = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    busy.write(1).expect("a small number");
    let mut malformed = 0;
    while let Some((length, extra)) = input.u16().zip(input.u8()) {
        let Some(packet) = input.bytes(usize::from(length)).filter(|packet| !packet.is_empty()) else {
            return;
        };
        let given = vec![busy.as_raw_fd(); usize::from(extra % 4)];
        let rights = [ControlMessage::ScmRights(&given)];
        let control: &[ControlMessage<'_>] = if given.is_empty() { &[] } else { &rights };
        let packets = [std::io::IoSlice::new(packet)];
        sendmsg::<()>(ours.as_raw_fd(), &packets, control, MsgFlags::MSG_NOSIGNAL, None)
            .expect("a small packet");
        let end = session.serve(&mut machine, Some(busy.as_raw_fd()));
        let answer = if malformed < MAX_MALFORMED || end.is_none() {
            let answer = match ours.receive::<Message>().expect("a message") {
                Some((Message::Reply { answer, .. }, _)) => Some(answer),
                _ => None,
            };
            Some(answer.expect("an answer, and no event"))
        } else {
            None
        };
        if let Some(Answer::Refused(refusal)) = &answer {
            malformed += u32::from(refusal.text.starts_with("no valid request"));
        }
        if let Some((reason, why)) = end {
            let asked = why.contains("asked for it") && matches!(answer, Some(Answer::Done));
            let enough = why.contains("again and again") && malformed == MAX_MALFORMED;
            assert!(reason == ExitReason::Killed && (asked || enough), "{why}, {answer:?}");
            return;
        }
    }
}

/// A state's file; the state of a machine; or, of a device that the first byte chooses, a state that it is to go on from, and then is driven by what
/// lies in memory. Tells whether the device took it.
///
/// # Panics
/// A state was taken that cannot be given back.
pub fn snapshot(bytes: &[u8]) -> bool {
    let Some((choice, rest)) = bytes.split_first() else { return false };
    let mut file = File::from(memfd_create(c"state", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
    file.write_all(rest).expect("room for a state");
    let _ = format::read::<MachineState>(&file);
    let _ = format::decode::<MachineState>(rest);
    let Some(kind) = Kind::ALL.get(usize::from(*choice) % Kind::ALL.len()) else { return false };
    let Ok((state, memory)) = format::decode::<(MmioState, Vec<u8>)>(rest) else { return false };
    let fresh = || {
        let (world, made) = device::make(*kind);
        let queues = made.queue_sizes().len();
        let memory =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).expect("memory for a guest");
        let irq = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let device = MmioDevice::new(made, memory.clone(), irq).expect("eventfds");
        (world, device, memory, queues)
    };
    let (world, device, ram, queues) = fresh();
    let _ = vm_memory::Bytes::write(&ram, &memory, GuestAddress(0));
    if device.restore(&state).is_err() {
        return false;
    }
    for _ in 0..4 {
        (0..queues).for_each(|queue| device.queue_event(queue));
        device.host_event();
    }
    let _ = device.take_failure();
    let saved = device.save().expect("what was restored can be saved");
    // By then a queue's indexes may be anything that a driver can make them; the next twin takes them as well.
    let (_other_world, other, _, _) = fresh();
    other.restore(&saved).expect("what was saved can be restored");
    world.check();
    true
}

/// The state of a device as it is after a driver has started it, in the form that [`snapshot`] takes.
#[cfg(test)]
pub(super) fn state(kind: usize, device: &MmioDevice) -> Option<Vec<u8>> {
    let state = device.save().ok()?;
    let mut bytes = vec![u8::try_from(kind).ok()?];
    bytes.extend(postcard::to_allocvec(&(state, vec![1u8; 64])).ok()?);
    Some(bytes)
}
