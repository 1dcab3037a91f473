//! The two transports and the configuration, as whoever is at their other end would have them.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use crate::memory::GuestMemoryMmap;
use event_manager::{EventManager, SubscriberOps};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Input;
use super::device::{self, Kind};
use crate::config::MachineConfig;
use crate::transport::mmio::MmioDevice;
use crate::transport::vhost_user::{Backend, FaultSlot};
use crate::virtio::command::Command;

const RAM: usize = 0x1_0000;

/// Register accesses of any width at any offset, memory writes and events, on a device that the first byte chooses.
///
/// # Panics
/// The transport broke a promise.
pub fn mmio(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let Some(kind) = input.below(Kind::ALL.len()).map(|index| Kind::ALL[index]) else { return };
    let (world, made) = device::make(kind);
    let queues = made.queue_sizes().len();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).expect("memory for a guest");
    let irq = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    let device = MmioDevice::new(made, memory.clone(), irq).expect("eventfds");
    let mut run = || -> Option<()> {
        loop {
            match input.u8()? % 8 {
                // The registers that there are, at their own width.
                0..=2 => {
                    let value = if input.u8()? < 128 { u32::from(input.u8()?) } else { input.u32()? };
                    device.write(u64::from(input.u8()? & !3), &value.to_le_bytes());
                }
                3 => {
                    let offset =
                        if input.u8()? < 240 { u64::from(input.u16()? % 0x1100) } else { input.u64()? };
                    let mut data = [0xa5; 16];
                    let width = input.below(17)?;
                    device.read(offset, &mut data[..width]);
                    device.write(offset, &data[..width]);
                }
                4 => {
                    let at = GuestAddress(u64::from(input.u16()?));
                    let _ = memory.write_slice(input.bytes(8)?, at);
                }
                5 => device.queue_event(input.below(queues)?),
                6 => device.host_event(),
                _ => {
                    // The polite way, of which the rest may go on.
                    for (register, value) in
                        [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)]
                    {
                        device.write(register, &u32::to_le_bytes(value));
                    }
                    for queue in 0..queues {
                        let base = 0x3000 * u32::try_from(queue).ok()? + 0x1000;
                        let registers = [
                            (0x30, u32::try_from(queue).ok()?),
                            (0x38, 16),
                            (0x80, base),
                            (0x90, base + 0x1000),
                            (0xa0, base + 0x2000),
                            (0x44, 1),
                        ];
                        for (register, value) in registers {
                            device.write(register, &value.to_le_bytes());
                        }
                    }
                    device.write(0x70, &u32::to_le_bytes(15));
                }
            }
            let _ = device.take_failure();
        }
    };
    let _ = run();
    let _ = device.command(&Command::SetLink { up: false });
    world.check();
}

/// Messages of a front-end, whole and in pieces, with and without descriptors, to a device that the first byte chooses.
///
/// # Panics
/// The transport broke a promise.
pub fn vhost_user(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let Some(kind) = input.below(Kind::ALL.len()).map(|index| Kind::ALL[index]) else { return };
    let (world, made) = device::make(kind);
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let faults = FaultSlot::default();
    let backend = Backend::connected(made, ours, RAM as u64, faults.clone()).expect("small queues");
    let mut manager = EventManager::new().expect("an epoll descriptor");
    manager.add_subscriber(backend);
    let ram = File::from(memfd_create(c"ram", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
    ram.set_len(RAM as u64).expect("room for memory");
    let event = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    let mut run = || -> Option<()> {
        loop {
            let request = u32::from(input.u8()? % 44);
            let mut body = Vec::new();
            match input.u8()? % 8 {
                0 => {}
                1 => body.extend(
                    [u32::from(input.u8()? % 4), u32::from(input.u16()? % 0x200)]
                        .map(u32::to_le_bytes)
                        .concat(),
                ),
                2 => body.extend(u64::from(input.u16()? % 0x200).to_le_bytes()),
                3 => body.extend((1u64 << 32 | u64::from(input.u8()?)).to_le_bytes()),
                // A table of memory: all of it, or nearly.
                4 => {
                    body.extend([1u32, 0].map(u32::to_le_bytes).concat());
                    let odd = if input.u8()? < 200 { 0 } else { input.u64()? };
                    body.extend([0, RAM as u64, 0, odd].map(u64::to_le_bytes).concat());
                }
                // The rings of a queue.
                5 => {
                    body.extend([u32::from(input.u8()? % 4), 0].map(u32::to_le_bytes).concat());
                    let at = u64::from(input.u8()?) << 8;
                    body.extend([at, at + 0x2000, at + 0x1000, u64::MAX].map(u64::to_le_bytes).concat());
                }
                6 => {
                    let size = u32::from(input.u8()?);
                    body.extend([u32::from(input.u8()?), size, 0].map(u32::to_le_bytes).concat());
                    body.resize(12 + size as usize, 1);
                }
                _ => body.extend(input.bytes(24)?),
            }
            let odd = input.u8()?;
            let length = if odd < 240 { u32::try_from(body.len()).ok()? } else { input.u32()? };
            let mut message = [request, 1 | u32::from(odd == 7) << 2, length].map(u32::to_le_bytes).concat();
            message.extend(body);
            let given: &[RawFd] = match odd % 4 {
                0 => &[],
                1 => &[ram.as_raw_fd()],
                2 => &[event.as_raw_fd()],
                _ => &[ram.as_raw_fd(), event.as_raw_fd()],
            };
            let (first, rest) = message.split_at(if odd & 0x40 == 0 { message.len() } else { 5 });
            let rights = [ControlMessage::ScmRights(given)];
            let control: &[ControlMessage<'_>] = if given.is_empty() { &[] } else { &rights };
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            for (part, control) in [(first, control), (rest, &[][..])] {
                if !part.is_empty() {
                    let _ = sendmsg::<()>(theirs.as_raw_fd(), &[IoSlice::new(part)], control, flags, None);
                    for _ in 0..8 {
                        if manager.run_with_timeout(0).expect("events") == 0 {
                            break;
                        }
                    }
                }
            }
            let _ = event.write(1);
            let mut replies = [0; 512];
            while recv(theirs.as_raw_fd(), &mut replies, MsgFlags::MSG_DONTWAIT).is_ok_and(|n| n > 0) {}
            if faults.borrow().is_some() {
                return None;
            }
        }
    };
    let _ = run();
    world.check();
}

/// A configuration as a supervisor might send it: what is taken for one holds its bounds.
pub fn configuration(bytes: &[u8]) {
    let Some((count, text)) = bytes.split_first() else { return };
    if let Ok(config) = serde_json::from_slice::<MachineConfig>(text)
        && config.validate(usize::from(*count)).is_ok()
    {
        let again = serde_json::to_vec(&config).expect("a configuration can be written");
        let again: MachineConfig = serde_json::from_slice(&again).expect("and read");
        assert_eq!(again.validate(usize::from(*count)), Ok(()));
    }
    let _ = serde_json::from_slice::<Command>(text);
}
