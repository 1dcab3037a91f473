//! A front-end on a real socket, honest and hostile.

#![allow(clippy::cast_possible_truncation)]

use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use crate::memory::GuestMemoryMmap;
use event_manager::{EventManager, SubscriberId, SubscriberOps};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vm_memory::{Bytes, FileOffset, GuestAddress};

use super::{Backend, FaultSlot};
use crate::config::{Fd, NetBackend, NetConfig, RateLimit};
use crate::virtio::VirtioDevice;
use crate::virtio::command::Command;
use crate::virtio::net::Net;
use crate::virtio::rng::Rng;

const RAM: u64 = 1 << 20;
/// Where the guest has its RAM, and where in the file it lies.
const BASE: u64 = 0x10_0000;
const VERSION_1: u64 = 1 << 32;

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;
const SET_BACKEND_REQ_FD: u32 = 21;
const GET_CONFIG: u32 = 24;

struct FrontEnd {
    manager: EventManager<Backend>,
    backend: SubscriberId,
    faults: FaultSlot,
    socket: UnixStream,
    ram: File,
    _directory: tempfile::TempDir,
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn double_words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

impl FrontEnd {
    fn new() -> Self {
        Self::with(Box::new(Rng::new().unwrap()))
    }

    fn with(device: Box<dyn VirtioDevice>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let faults = FaultSlot::default();
        let backend = Backend::new(device, listener, RAM, faults.clone()).unwrap();
        let mut manager = EventManager::new().unwrap();
        let backend = manager.add_subscriber(backend);
        let socket = UnixStream::connect(&path).unwrap();
        let ram = tempfile::tempfile().unwrap();
        ram.set_len(RAM).unwrap();
        let mut front_end = Self { manager, backend, faults, socket, ram, _directory: directory };
        front_end.turn();
        front_end
    }

    /// Lets the back-end do what it can.
    fn turn(&mut self) {
        for _ in 0..100 {
            if self.manager.run_with_timeout(0).unwrap() == 0 {
                break;
            }
        }
    }

    fn send_raw(&mut self, bytes: &[u8], fds: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(fds)];
        let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
        sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::empty(), None)
            .unwrap();
        self.turn();
    }

    fn send(&mut self, request: u32, body: &[u8], fds: &[RawFd]) {
        let mut bytes = words(&[request, 1, body.len() as u32]);
        bytes.extend(body);
        self.send_raw(&bytes, fds);
    }

    fn reply(&mut self) -> (u32, Vec<u8>) {
        let mut header = [0; 12];
        self.socket.read_exact(&mut header).unwrap();
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!(word(4), 5, "version 1, reply");
        let mut body = vec![0; word(8) as usize];
        self.socket.read_exact(&mut body).unwrap();
        (word(0), body)
    }

    fn fault(&self) -> Option<String> {
        self.faults.borrow().as_ref().map(ToString::to_string)
    }

    fn share_memory(&mut self) {
        let fd = self.ram.as_raw_fd();
        let mut body = words(&[1, 0]);
        body.extend(double_words(&[BASE, RAM, BASE, 0]));
        self.send(SET_MEM_TABLE, &body, &[fd]);
    }

    fn set_features(&mut self) {
        self.send(SET_OWNER, &[], &[]);
        self.send(SET_FEATURES, &double_words(&[VERSION_1 | 1 << 30]), &[]);
    }

    fn set_addresses(&mut self, addresses: [u64; 3]) {
        let mut body = words(&[0, 0]);
        body.extend(double_words(&addresses));
        body.extend(double_words(&[u64::MAX]));
        self.send(SET_VRING_ADDR, &body, &[]);
    }

    fn assert_fault(&self, part: &str) {
        let fault = self.fault().expect("no fault");
        assert!(fault.contains(part), "{fault:?} has no {part:?}");
    }
}

#[test]
fn a_device_works_from_first_message_to_interrupt() {
    let mut it = FrontEnd::new();
    it.send(SET_OWNER, &[], &[]);
    it.send(GET_FEATURES, &[], &[]);
    let (request, body) = it.reply();
    assert_eq!(request, GET_FEATURES);
    let features = u64::from_le_bytes(body.try_into().unwrap());
    assert_eq!(features & (VERSION_1 | 1 << 30), VERSION_1 | 1 << 30);
    it.send(GET_PROTOCOL_FEATURES, &[], &[]);
    assert_eq!(it.reply(), (GET_PROTOCOL_FEATURES, double_words(&[1 << 9])), "CONFIG, nothing else");
    it.send(SET_PROTOCOL_FEATURES, &double_words(&[1 << 9]), &[]);
    it.send(GET_CONFIG, &words(&[0, 8, 0, 0, 0]), &[]);
    assert_eq!(it.reply(), (GET_CONFIG, words(&[0, 8, 0, 0, 0])));

    it.send(SET_FEATURES, &double_words(&[VERSION_1 | 1 << 30]), &[]);
    it.share_memory();
    let file = FileOffset::new(it.ram.try_clone().unwrap(), 0);
    let memory =
        GuestMemoryMmap::from_ranges_with_files([(GuestAddress(BASE), RAM as usize, Some(file))]).unwrap();
    // One writable buffer of 64 bytes, available.
    let (table, available, used, buffer) = (BASE, BASE + 0x1000, BASE + 0x2000, BASE + 0x3000);
    let mut descriptor = double_words(&[buffer]);
    descriptor.extend(words(&[64, 2]));
    memory.write_slice(&descriptor, GuestAddress(table)).unwrap();
    memory.write_obj(1u16, GuestAddress(available + 2)).unwrap();

    let (mut interrupts, call) = std::io::pipe().unwrap();
    let kick = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    it.send(SET_VRING_CALL, &double_words(&[0]), &[call.as_raw_fd()]);
    it.send(SET_VRING_NUM, &words(&[0, 256]), &[]);
    it.send(SET_VRING_BASE, &words(&[0, 0]), &[]);
    it.set_addresses([table, used, available]);
    it.send(SET_VRING_KICK, &double_words(&[0]), &[kick.as_raw_fd()]);
    it.send(SET_VRING_ENABLE, &words(&[0, 1]), &[]);
    assert_eq!(it.fault(), None);
    let mut counter = [0; 8];
    interrupts.read_exact(&mut counter).unwrap();
    assert_eq!(memory.read_obj::<u16>(GuestAddress(used + 2)).unwrap(), 1);
    assert_ne!(memory.read_obj::<[u8; 16]>(GuestAddress(buffer)).unwrap(), [0; 16]);

    // Again by a kick.
    memory.write_obj(2u16, GuestAddress(available + 2)).unwrap();
    kick.write(1).unwrap();
    it.turn();
    interrupts.read_exact(&mut counter).unwrap();
    assert_eq!(memory.read_obj::<u16>(GuestAddress(used + 2)).unwrap(), 2);

    // In use, nothing may change.
    it.send(SET_VRING_NUM, &words(&[0, 128]), &[]);
    it.assert_fault("in use");
}

#[test]
fn a_queue_may_be_enabled_before_it_is_started() {
    let kick = vmm_sys_util::eventfd::EventFd::new(1).unwrap();
    // Before there is any memory; it is used when it is started.
    let mut it = FrontEnd::new();
    it.send(SET_VRING_ENABLE, &words(&[0, 1]), &[]);
    it.set_features();
    it.share_memory();
    it.send(SET_VRING_NUM, &words(&[0, 256]), &[]);
    it.send(SET_VRING_BASE, &words(&[0, 0]), &[]);
    it.set_addresses([BASE, BASE + 0x2000, BASE + 0x1000]);
    it.send(SET_VRING_KICK, &double_words(&[0]), &[kick.as_raw_fd()]);
    assert_eq!(it.fault(), None);
    it.send(SET_VRING_NUM, &words(&[0, 128]), &[]);
    it.assert_fault("in use");

    // What is started without memory is refused.
    let mut it = FrontEnd::new();
    it.send(SET_VRING_ENABLE, &words(&[0, 1]), &[]);
    assert_eq!(it.fault(), None);
    it.send(SET_VRING_KICK, &double_words(&[0]), &[kick.as_raw_fd()]);
    it.assert_fault("outside guest memory");
}

/// A queue that is in use, with the descriptor that kicks it and the guest's memory.
fn started() -> (FrontEnd, vmm_sys_util::eventfd::EventFd, GuestMemoryMmap) {
    let mut it = FrontEnd::new();
    it.set_features();
    it.share_memory();
    let file = FileOffset::new(it.ram.try_clone().unwrap(), 0);
    let memory =
        GuestMemoryMmap::from_ranges_with_files([(GuestAddress(BASE), RAM as usize, Some(file))]).unwrap();
    let kick = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    it.send(SET_VRING_NUM, &words(&[0, 256]), &[]);
    it.send(SET_VRING_BASE, &words(&[0, 0]), &[]);
    it.set_addresses([BASE, BASE + 0x2000, BASE + 0x1000]);
    it.send(SET_VRING_KICK, &double_words(&[0]), &[kick.as_raw_fd()]);
    it.send(SET_VRING_ENABLE, &words(&[0, 1]), &[]);
    assert_eq!(it.fault(), None);
    (it, kick, memory)
}

#[test]
fn a_driver_that_goes_may_use_its_rings_for_something_else() {
    let (mut it, kick, memory) = started();
    memory.write_obj(9999u16, GuestAddress(BASE + 0x1002)).unwrap();
    kick.write(1).unwrap();
    // Both are there when the back-end looks, the kick first.
    it.send(SET_VRING_ENABLE, &words(&[0, 0]), &[]);
    assert_eq!(it.fault(), None);

    // One that does not go breaks the rules.
    let (mut it, kick, memory) = started();
    memory.write_obj(9999u16, GuestAddress(BASE + 0x1002)).unwrap();
    kick.write(1).unwrap();
    it.turn();
    it.assert_fault("invalid available ring index");
}

fn net() -> FrontEnd {
    let (cable, _) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let config = NetConfig {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        backend: NetBackend::Socket { socket: Fd(0), headers: false },
        check_source: true,
        receive: RateLimit::default(),
        send: RateLimit::default(),
    };
    FrontEnd::with(Box::new(Net::new(0, &config, cable.into()).unwrap()))
}

#[test]
fn a_change_of_configuration_is_told_on_the_channel() {
    let mut it = net();
    it.send(GET_PROTOCOL_FEATURES, &[], &[]);
    assert_eq!(it.reply(), (GET_PROTOCOL_FEATURES, double_words(&[1 << 5 | 1 << 9])));
    it.send(SET_PROTOCOL_FEATURES, &double_words(&[1 << 5 | 1 << 9]), &[]);
    let pull = |it: &mut FrontEnd, up| {
        it.manager.subscriber_mut(it.backend).unwrap().command(&Command::SetLink { up }).unwrap();
    };
    // Without a channel, nobody is told, and nothing breaks.
    pull(&mut it, false);
    let (mut channel, writer) = std::io::pipe().unwrap();
    it.send(SET_BACKEND_REQ_FD, &[], &[writer.as_raw_fd()]);
    assert_eq!(it.fault(), None);
    pull(&mut it, true);
    let mut message = [0; 12];
    channel.read_exact(&mut message).unwrap();
    assert_eq!(message.to_vec(), words(&[2, 1, 0]));
    // The guest leaves them unread: then they are not told, and nobody waits.
    for up in [false, true].repeat(5000) {
        pull(&mut it, up);
    }
    it.send(SET_BACKEND_REQ_FD, &[], &[]);
    it.assert_fault("without its descriptor");
}

#[test]
fn a_message_in_pieces_is_waited_for_and_blocks_nobody() {
    let mut it = FrontEnd::new();
    let mut bytes = words(&[GET_FEATURES, 1, 0]);
    bytes.extend(words(&[SET_OWNER, 1, 0]));
    for byte in bytes {
        it.send_raw(&[byte], &[]);
    }
    assert_eq!(it.reply().0, GET_FEATURES);
    assert_eq!(it.fault(), None);
}

#[test]
fn a_front_end_that_goes_is_no_fault() {
    let mut it = FrontEnd::new();
    it.send_raw(&[1, 0], &[]);
    it.socket.shutdown(std::net::Shutdown::Both).unwrap();
    it.turn();
    assert_eq!(it.fault(), None);
}

#[test]
fn messages_that_break_the_protocol_end_the_machine() {
    let device = || File::open("/dev/null").unwrap();
    let cases: Vec<(&str, u32, Vec<u8>, usize)> = vec![
        ("unknown request", 999, vec![], 0),
        ("was not offered", 4, vec![], 0),
        ("was not offered", 17, vec![], 0),
        ("was not offered", 21, vec![], 0),
        ("too long", SET_OWNER, vec![0], 0),
        ("too short", SET_FEATURES, vec![0; 7], 0),
        ("not offered", SET_FEATURES, double_words(&[VERSION_1 | 1 << 63]), 0),
        ("before virtio 1.0", SET_FEATURES, double_words(&[0]), 0),
        ("not offered", SET_PROTOCOL_FEATURES, double_words(&[1 << 3]), 0),
        ("does not have", SET_VRING_NUM, words(&[7, 128]), 0),
        ("2048 entries", SET_VRING_NUM, words(&[0, 2048]), 0),
        ("100 entries", SET_VRING_NUM, words(&[0, 100]), 0),
        ("a queue of 0 entries", SET_VRING_NUM, words(&[0, 0]), 0),
        ("out of range", SET_VRING_BASE, words(&[0, 65536]), 0),
        ("neither", SET_VRING_ENABLE, words(&[0, 2]), 0),
        ("does not have", SET_VRING_ENABLE, words(&[9, 1]), 0),
        ("does not have", SET_VRING_KICK, double_words(&[5]), 1),
        ("missing or too many", SET_VRING_KICK, double_words(&[0]), 0),
        ("missing or too many", SET_VRING_KICK, double_words(&[0]), 2),
        ("missing or too many", SET_VRING_CALL, double_words(&[0x100]), 1),
        ("cannot be watched", SET_VRING_KICK, double_words(&[0]), 1),
        ("where none belong", SET_OWNER, vec![], 1),
        ("impossible size", GET_CONFIG, words(&[0, 0x1000, 0]), 0),
        ("impossible size", GET_CONFIG, words(&[0, 8, 0]), 0),
        ("impossible number", SET_MEM_TABLE, words(&[0, 0]), 0),
        ("impossible number", SET_MEM_TABLE, words(&[1, 0]), 0),
        ("impossible number", SET_MEM_TABLE, words(&[u32::MAX, 0]), 1),
        ("too short", SET_MEM_TABLE, words(&[1, 0]), 1),
        ("before memory", SET_VRING_ADDR, vec![0; 40], 0),
    ];
    for (part, request, body, files) in cases {
        let mut it = FrontEnd::new();
        let null: Vec<File> = (0..files).map(|_| device()).collect();
        // Something that epoll does not take.
        let regular = it.ram.try_clone().unwrap();
        let fds: Vec<RawFd> = if part == "cannot be watched" {
            vec![regular.as_raw_fd()]
        } else {
            null.iter().map(AsRawFd::as_raw_fd).collect()
        };
        it.send(request, &body, &fds);
        it.assert_fault(part);
    }
    for (bytes, part) in [
        (words(&[GET_FEATURES, 2, 0]), "version"),
        (words(&[GET_FEATURES, 1 | 4, 0]), "reply"),
        (words(&[GET_FEATURES, 1, 4097]), "too large"),
        (words(&[GET_FEATURES, 1, u32::MAX]), "too large"),
    ] {
        let mut it = FrontEnd::new();
        it.send_raw(&bytes, &[]);
        it.assert_fault(part);
    }
}

#[test]
fn guest_memory_that_is_not_there_is_refused() {
    for region in [
        // Beyond the file, beyond the limit, not whole pages, nothing, and sums that overflow.
        [BASE, RAM, BASE, 4096],
        [BASE, 2 * RAM, BASE, 0],
        [BASE + 1, 4096, BASE, 0],
        [BASE, 4095, BASE, 0],
        [BASE, 4096, BASE, 1],
        [BASE, 0, BASE, 0],
        [u64::MAX - 4095, 8192, BASE, 0],
        [BASE, 4096, u64::MAX - 1, 0],
        [BASE, 4096, BASE, u64::MAX - 4095],
    ] {
        let mut it = FrontEnd::new();
        let fd = it.ram.as_raw_fd();
        let mut body = words(&[1, 0]);
        body.extend(double_words(&region));
        it.send(SET_MEM_TABLE, &body, &[fd]);
        it.assert_fault("guest memory");
    }
}

#[test]
fn queues_outside_memory_are_refused() {
    for addresses in [
        [BASE - 16, BASE, BASE],
        [BASE, BASE + RAM, BASE],
        [!15, BASE, BASE],
        // Begins inside, ends outside.
        [BASE + RAM - 16, BASE, BASE],
    ] {
        let mut it = FrontEnd::new();
        it.set_features();
        it.share_memory();
        it.set_addresses(addresses);
        let kick = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
        it.send(SET_VRING_KICK, &double_words(&[0]), &[kick.as_raw_fd()]);
        it.send(SET_VRING_ENABLE, &words(&[0, 1]), &[]);
        it.assert_fault("outside guest memory");
    }
}

#[test]
fn random_messages_never_panic_or_block() {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..300 {
        let mut it = FrontEnd::new();
        it.set_features();
        it.share_memory();
        while it.fault().is_none() {
            let r = random();
            let body: Vec<u8> = match r >> 8 & 3 {
                0 => words(&[(r >> 16) as u32 & 1, (r >> 24) as u32 & 0x1ff]),
                1 => double_words(&[r >> 32 & 0x1ff]),
                2 => double_words(&[0, BASE + (r >> 16 & 0xfff0), BASE + (r >> 32 & 0xfff0), BASE, 0]),
                _ => vec![0; (r >> 16) as usize % 64],
            };
            let null = File::open("/dev/null").unwrap();
            let fds = if r >> 10 & 1 == 1 { vec![null.as_raw_fd()] } else { vec![] };
            // Replies are taken, as a driver does.
            it.send(1 + r as u32 % 26, &body, &fds);
            it.socket.set_nonblocking(true).unwrap();
            while it.socket.read(&mut [0; 256]).is_ok_and(|length| length > 0) {}
        }
    }
}

#[test]
fn a_front_end_that_takes_no_replies_is_dropped() {
    let mut it = FrontEnd::new();
    for _ in 0..100_000 {
        it.send(GET_FEATURES, &[], &[]);
        if it.fault().is_some() {
            return it.assert_fault("replies not taken");
        }
    }
    panic!("replies without bound");
}

#[test]
fn a_full_pipe_for_interrupts_blocks_nobody() {
    let calls = {
        let mut calls = super::Calls::new(1);
        let (reader, writer) = std::io::pipe().unwrap();
        // Kept open, never read.
        std::mem::forget(reader);
        calls.set(0, Some(File::from(std::os::fd::OwnedFd::from(writer))));
        calls
    };
    for _ in 0..20_000 {
        crate::virtio::Interrupt::queue_used(&calls, 0);
    }
    crate::virtio::Interrupt::queue_used(&calls, 7);
}
