//! A guest's driver on real queues, honest and hostile, and the host's programs around it.

#![allow(clippy::cast_possible_truncation)]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::memory::GuestMemoryMmap;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::device::{QUEUE_RX, QUEUE_TX, Vsock};
use super::muxer::{MAX_RESETS, WIDE_BUFFER};
use super::packet::{
    HEADER_SIZE, HOST_CID, Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op,
};
use crate::virtio::{DeviceError, Interrupt, Io, VirtioDevice};

mod restore;

const CID: u64 = 3;
const PORT: u32 = 1024;
const GUEST_PORT: u32 = 5000;
const SIZE: u16 = 64;
const RING: u64 = 0x1000;
/// Where the driver's buffers of each queue begin; each is `BUFFER` bytes.
const BUFFERS: [u64; 2] = [0x10_0000, 0x80_0000];
const BUFFER: u64 = 0x1_1000;
const RX_BUFFER: u32 = 4096;

#[derive(Default)]
struct Counter(AtomicUsize);

impl Interrupt for Counter {
    fn queue_used(&self, _index: usize) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn config_changed(&self) {}
}

/// The driver, with the device that it drives.
struct Guest {
    memory: GuestMemoryMmap,
    queues: Vec<Queue>,
    available: [u16; 2],
    used: [u16; 2],
    interrupts: Counter,
    device: Vsock,
    /// What the driver tells of its own buffer.
    buf_alloc: u32,
    fwd_cnt: u32,
}

fn ring(queue: usize, part: u64) -> u64 {
    RING + 0x4000 * queue as u64 + 0x1000 * part
}

impl Guest {
    fn new(device: Vsock) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let queues = (0..3)
            .map(|index| {
                let mut queue = Queue::new(SIZE).unwrap();
                queue.try_set_desc_table_address(GuestAddress(ring(index, 0))).unwrap();
                queue.try_set_avail_ring_address(GuestAddress(ring(index, 1))).unwrap();
                queue.try_set_used_ring_address(GuestAddress(ring(index, 2))).unwrap();
                queue.set_ready(true);
                queue
            })
            .collect();
        let mut guest = Self {
            memory,
            queues,
            available: [0; 2],
            used: [0; 2],
            interrupts: Counter::default(),
            device,
            buf_alloc: 1 << 20,
            fwd_cnt: 0,
        };
        for slot in 0..SIZE {
            guest.offer_rx(slot);
        }
        guest
    }

    /// A device with one port behind which `UnixStream` waits, and no receive buffers yet if `starved`.
    fn with_port() -> (Self, UnixStream) {
        let (host, inner) = UnixStream::pair().unwrap();
        host.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let device = Vsock::new(3, None, [(PORT, OwnedFd::from(inner))]).unwrap();
        (Self::new(device), host)
    }

    fn connected() -> (Self, UnixStream) {
        let (mut guest, host) = Self::with_port();
        guest.send(op::REQUEST, 0, &[]);
        assert_eq!(guest.receive().unwrap().0.op, op::RESPONSE);
        (guest, host)
    }

    fn descriptor(&self, queue: usize, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let mut raw = [0u8; 16];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&length.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&raw, GuestAddress(ring(queue, 0) + 16 * u64::from(index))).unwrap();
    }

    fn offer(&mut self, queue: usize, head: u16) {
        let available = self.available[queue];
        let slot = ring(queue, 1) + 4 + 2 * u64::from(available % SIZE);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.available[queue] = available.wrapping_add(1);
        self.memory.write_obj(self.available[queue], GuestAddress(ring(queue, 1) + 2)).unwrap();
    }

    fn offer_rx(&mut self, slot: u16) {
        let address = BUFFERS[QUEUE_RX] + BUFFER * u64::from(slot);
        self.descriptor(QUEUE_RX, slot, address, RX_BUFFER, 2, 0);
        self.offer(QUEUE_RX, slot);
    }

    fn event(&mut self, queue: Option<usize>) -> Result<(), DeviceError> {
        let mut io = Io { memory: &self.memory, queues: &mut self.queues, interrupt: &self.interrupts };
        match queue {
            Some(index) => self.device.queue_event(index, &mut io),
            None => self.device.host_event(&mut io),
        }
    }

    fn used(&mut self, queue: usize) -> Option<(u16, u32)> {
        let index: u16 = self.memory.read_obj(GuestAddress(ring(queue, 2) + 2)).unwrap();
        if index == self.used[queue] {
            return None;
        }
        let slot = ring(queue, 2) + 4 + 8 * u64::from(self.used[queue] % SIZE);
        self.used[queue] = self.used[queue].wrapping_add(1);
        let head: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
        let length = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
        Some((u16::try_from(head).unwrap(), length))
    }

    fn header(&self, operation: u16, flags: u32, length: usize) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: GUEST_PORT,
            dst_port: PORT,
            len: u32::try_from(length).unwrap(),
            kind: TYPE_STREAM,
            op: operation,
            flags,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        }
    }

    /// Sends a packet whose data lies in parts of at most 4 KiB, as Linux does with large ones.
    fn send_header(&mut self, header: &Header, data: &[u8]) -> Result<(), DeviceError> {
        let address = BUFFERS[QUEUE_TX];
        self.memory.write_slice(&header.encode(), GuestAddress(address)).unwrap();
        let data_address = address + 0x100;
        self.memory.write_slice(data, GuestAddress(data_address)).unwrap();
        let parts = data.chunks(4096).count();
        self.descriptor(QUEUE_TX, 0, address, HEADER_SIZE as u32, u16::from(parts > 0), 1);
        for (index, part) in data.chunks(4096).enumerate() {
            let at = u16::try_from(index + 1).unwrap();
            let flags = u16::from(index + 1 < parts);
            let start = data_address + 4096 * index as u64;
            self.descriptor(QUEUE_TX, at, start, part.len() as u32, flags, at + 1);
        }
        self.offer(QUEUE_TX, 0);
        self.event(Some(QUEUE_TX))
    }

    fn send(&mut self, operation: u16, flags: u32, data: &[u8]) {
        let header = self.header(operation, flags, data.len());
        self.send_header(&header, data).unwrap();
        assert!(self.used(QUEUE_TX).is_some(), "the device kept the packet");
    }

    /// The next packet for the guest; its buffer goes back to the device.
    fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let packet = self.receive_and_keep()?;
        self.offer_rx(packet.2);
        Some((packet.0, packet.1))
    }

    fn receive_and_keep(&mut self) -> Option<(Header, Vec<u8>, u16)> {
        self.event(None).unwrap();
        let (slot, length) = self.used(QUEUE_RX)?;
        let address = BUFFERS[QUEUE_RX] + BUFFER * u64::from(slot);
        let mut bytes = vec![0; length as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        let header = Header::decode(bytes[..HEADER_SIZE].try_into().unwrap());
        assert_eq!(header.len as usize, bytes.len() - HEADER_SIZE);
        Some((header, bytes.split_off(HEADER_SIZE), slot))
    }

    fn expect(&mut self, operation: u16) -> Header {
        let (header, _) = self.receive().expect("no packet");
        assert_eq!(header.op, operation);
        assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, CID, TYPE_STREAM));
        header
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 + index / 4096) as u8).collect()
}

#[test]
fn a_port_of_the_configuration_works_once_and_others_never() {
    let (mut guest, _host) = Guest::with_port();
    let mut header = guest.header(op::REQUEST, 0, 0);
    header.dst_port = PORT + 1;
    guest.send_header(&header, &[]).unwrap();
    let reset = guest.expect(op::RST);
    assert_eq!((reset.src_port, reset.dst_port), (PORT + 1, GUEST_PORT));

    guest.send(op::REQUEST, 0, &[]);
    let response = guest.expect(op::RESPONSE);
    assert_eq!((response.src_port, response.dst_port), (PORT, GUEST_PORT));
    assert_eq!(response.buf_alloc, WIDE_BUFFER);

    let mut second = guest.header(op::REQUEST, 0, 0);
    second.src_port = GUEST_PORT + 1;
    guest.send_header(&second, &[]).unwrap();
    guest.expect(op::RST);
    let mut config = [0xff; 12];
    guest.device.read_config(0, &mut config);
    assert_eq!(config, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_client_of_the_host_reaches_the_guest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut guest = Guest::new(Vsock::new(3, Some(listener.into()), []).unwrap());
    let mut client = UnixStream::connect(&path).unwrap();
    assert!(guest.receive().is_none());
    client.write_all(b"CONN").unwrap();
    assert!(guest.receive().is_none());
    client.write_all(b"ECT 77\nearly").unwrap();
    let request = guest.expect(op::REQUEST);
    assert_eq!(request.dst_port, 77);
    let mut answer = guest.header(op::RESPONSE, 0, 0);
    (answer.src_port, answer.dst_port) = (77, request.src_port);
    guest.send_header(&answer, &[]).unwrap();
    let (data, bytes) = guest.receive().unwrap();
    assert_eq!((data.op, bytes.as_slice()), (op::RW, b"early".as_slice()));
    let mut line = vec![0; format!("OK {}\n", request.src_port).len()];
    client.read_exact(&mut line).unwrap();
    assert_eq!(line, format!("OK {}\n", request.src_port).into_bytes());

    let mut refused = UnixStream::connect(&path).unwrap();
    refused.write_all(b"CONNECT 78\n").unwrap();
    let request = guest.expect(op::REQUEST);
    let mut reset = guest.header(op::RST, 0, 0);
    (reset.src_port, reset.dst_port) = (78, request.src_port);
    guest.send_header(&reset, &[]).unwrap();
    assert_eq!(refused.read(&mut [0; 8]).unwrap(), 0, "the client sees the end");

    let mut wrong = UnixStream::connect(&path).unwrap();
    wrong.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    assert!(guest.receive().is_none());
    assert!(matches!(wrong.read(&mut [0; 8]), Ok(0) | Err(_)));

    // A client that goes away while the guest is asked.
    let mut gone = UnixStream::connect(&path).unwrap();
    gone.write_all(b"CONNECT 79\n").unwrap();
    let request = guest.expect(op::REQUEST);
    drop(gone);
    let reset = guest.expect(op::RST);
    assert_eq!(reset.src_port, request.src_port);
}

#[test]
fn megabytes_pass_both_ways_in_64_kib_packets() {
    let (mut guest, mut host) = Guest::connected();
    let sent = pattern(10 << 20);
    let expected = sent.clone();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; expected.len()];
        host.read_exact(&mut got).unwrap();
        assert!(got == expected);
        host.write_all(&expected).unwrap();
        host
    });
    let mut credit = WIDE_BUFFER;
    let mut sent_bytes = 0u32;
    for chunk in sent.chunks(64 << 10) {
        while (credit as usize) < chunk.len() {
            match guest.receive() {
                Some((header, _)) => credit = header.buf_alloc - sent_bytes.wrapping_sub(header.fwd_cnt),
                None => std::thread::yield_now(),
            }
        }
        guest.send(op::RW, 0, chunk);
        sent_bytes += chunk.len() as u32;
        credit -= chunk.len() as u32;
    }
    let mut got = Vec::new();
    while got.len() < sent.len() {
        let Some((header, data)) = guest.receive() else {
            std::thread::yield_now();
            continue;
        };
        match header.op {
            op::RW => {
                got.extend_from_slice(&data);
                guest.fwd_cnt = guest.fwd_cnt.wrapping_add(data.len() as u32);
                if got.len() % (256 << 10) < data.len() {
                    guest.send(op::CREDIT_UPDATE, 0, &[]);
                }
            }
            op::CREDIT_REQUEST => guest.send(op::CREDIT_UPDATE, 0, &[]),
            op::CREDIT_UPDATE => {}
            other => panic!("operation {other}"),
        }
    }
    assert!(got == sent);
    drop(reader.join().unwrap());
    let end = guest.expect(op::SHUTDOWN);
    assert_eq!(end.flags, SHUTDOWN_BOTH);
}

#[test]
fn the_guest_can_end_its_direction_and_go_on_reading() {
    let (mut guest, mut host) = Guest::connected();
    guest.send(op::RW, 0, b"question");
    guest.send(op::SHUTDOWN, SHUTDOWN_SEND, &[]);
    let mut got = String::new();
    host.read_to_string(&mut got).unwrap();
    assert_eq!(got, "question");
    host.write_all(b"answer").unwrap();
    assert_eq!(guest.receive().unwrap().1, b"answer");
    drop(host);
    assert_eq!(guest.expect(op::SHUTDOWN).flags, SHUTDOWN_BOTH);
    guest.send(op::RST, 0, &[]);
    assert!(guest.receive().is_none(), "a reset is not answered");
}

#[test]
fn the_host_can_end_its_direction_and_go_on_reading() {
    let (mut guest, mut host) = Guest::connected();
    host.write_all(b"question").unwrap();
    host.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(guest.receive().unwrap().1, b"question");
    assert_eq!(guest.expect(op::SHUTDOWN).flags, SHUTDOWN_SEND);
    guest.send(op::RW, 0, b"answer");
    guest.send(op::SHUTDOWN, SHUTDOWN_SEND, &[]);
    let mut got = String::new();
    host.read_to_string(&mut got).unwrap();
    assert_eq!(got, "answer");
    assert_eq!(guest.expect(op::SHUTDOWN).flags, SHUTDOWN_BOTH);
}

#[test]
fn the_host_ends_only_its_reading() {
    let (mut guest, host) = Guest::connected();
    host.shutdown(std::net::Shutdown::Read).unwrap();
    guest.send(op::RW, 0, b"lost");
    assert_eq!(guest.expect(op::SHUTDOWN).flags, SHUTDOWN_RECEIVE);
    guest.send(op::RW, 0, b"lost too");
    (&host).write_all(b"still").unwrap();
    assert_eq!(guest.receive().unwrap().1, b"still");
}

#[test]
fn the_guest_ends_only_its_reading() {
    let (mut guest, mut host) = Guest::connected();
    guest.send(op::SHUTDOWN, SHUTDOWN_RECEIVE, &[]);
    assert_eq!(host.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    guest.send(op::RW, 0, b"still");
    let mut got = [0; 5];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still");
}

#[test]
fn what_was_sent_before_a_close_or_reset_arrives() {
    for end in [op::SHUTDOWN, op::RST] {
        let (mut guest, mut host) = Guest::connected();
        if end == op::SHUTDOWN {
            // Does not turn the host's end of file into an error, as closing over unread bytes would.
            host.write_all(b"never read").unwrap();
        }
        let sent = pattern(WIDE_BUFFER as usize);
        for chunk in sent.chunks(64 << 10) {
            guest.send(op::RW, 0, chunk);
        }
        guest.send(end, if end == op::SHUTDOWN { SHUTDOWN_BOTH } else { 0 }, &[]);
        // The ports are free again at once, whatever the host does.
        let mut operations = Vec::new();
        while let Some((header, _)) = guest.receive() {
            operations.push(header.op);
        }
        assert_eq!(operations.contains(&op::RST), end == op::SHUTDOWN, "{operations:?}");
        let mut got = vec![0; 100_000];
        host.read_exact(&mut got).unwrap();
        guest.event(None).unwrap();
        let reader = std::thread::spawn(move || {
            host.read_to_end(&mut got).unwrap();
            got
        });
        // The end of the machine comes before the host has read: nothing is lost.
        drop(guest);
        assert!(reader.join().unwrap() == sent);
    }
}

#[test]
fn a_host_that_does_not_read_stops_the_guest_by_credit_and_nothing_else() {
    let (mut guest, mut host) = Guest::connected();
    let chunk = pattern(64 << 10);
    let mut total = 0usize;
    let mut last_forwarded = 0;
    // The driver obeys: it stops when its credit is used up.
    while total - (last_forwarded as usize) + chunk.len() <= WIDE_BUFFER as usize {
        guest.send(op::RW, 0, &chunk);
        total += chunk.len();
        while let Some((header, _)) = guest.receive() {
            last_forwarded = header.fwd_cnt;
        }
    }
    assert!(guest.receive().is_none());
    // A unix socket reports room only once three quarters of its buffer are free.
    let in_socket = last_forwarded as usize;
    host.read_exact(&mut vec![0; in_socket]).unwrap();
    guest.event(None).unwrap();
    guest.send(op::CREDIT_REQUEST, 0, &[]);
    let mut newest = last_forwarded;
    while let Some((header, _)) = guest.receive() {
        assert_eq!(header.op, op::CREDIT_UPDATE);
        newest = header.fwd_cnt;
    }
    assert!(newest > last_forwarded);
    for _ in 0..(total - in_socket) / 4096 {
        host.read_exact(&mut [0; 4096]).unwrap();
        guest.event(None).unwrap();
    }
}

#[test]
fn a_guest_without_credit_gets_nothing_until_it_has_some() {
    let (mut guest, mut host) = Guest::with_port();
    guest.buf_alloc = 0;
    guest.send(op::REQUEST, 0, &[]);
    guest.expect(op::RESPONSE);
    host.write_all(b"abcdef").unwrap();
    guest.expect(op::CREDIT_REQUEST);
    assert!(guest.receive().is_none(), "asked once");
    guest.buf_alloc = 4;
    guest.send(op::CREDIT_UPDATE, 0, &[]);
    assert_eq!(guest.receive().unwrap().1, b"abcd");
    drop(host);
    guest.expect(op::CREDIT_REQUEST);
    guest.fwd_cnt = 4;
    guest.send(op::CREDIT_UPDATE, 0, &[]);
    assert_eq!(guest.receive().unwrap().1, b"ef");
    assert_eq!(guest.expect(op::SHUTDOWN).flags, SHUTDOWN_BOTH);
}

#[test]
fn a_guest_without_buffers_gets_everything_later_and_costs_no_wake_ups() {
    let (mut guest, mut host) = Guest::connected();
    let data = pattern(usize::from(SIZE) * (RX_BUFFER as usize - HEADER_SIZE));
    let sent = data.clone();
    let writer = std::thread::spawn(move || {
        host.write_all(&sent).unwrap();
        host.write_all(b"more").unwrap();
        host
    });
    let mut slots = Vec::new();
    let mut got: Vec<u8> = Vec::new();
    while slots.len() < usize::from(SIZE) {
        if let Some((_, bytes, slot)) = guest.receive_and_keep() {
            got.extend(bytes);
            slots.push(slot);
        }
    }
    let _host = writer.join().unwrap();
    while guest.receive_and_keep().is_some() {}
    let mut poll = [libc::pollfd { fd: guest.device.host_fd().unwrap(), events: libc::POLLIN, revents: 0 }];
    // SAFETY: the array is valid for the length of the call.
    assert_eq!(unsafe { libc::poll(poll.as_mut_ptr(), 1, 0) }, 0, "the device would spin");
    while got.len() < data.len() + 4 {
        guest.offer_rx(slots[0]);
        guest.event(Some(QUEUE_RX)).unwrap();
        got.extend(guest.receive_and_keep().unwrap().1);
    }
    assert!(got[..data.len()] == data && &got[data.len()..] == b"more");
}

#[test]
fn malformed_packets_are_refused_or_end_the_device() {
    type Change = fn(&mut Header);
    let refused: [Change; 6] = [
        |h| h.kind = 2,
        |h| h.dst_cid = 5,
        |h| h.dst_port = 1,
        |h| h.src_port = 1,
        |h| h.op = 99,
        |h| h.op = 0,
    ];
    for change in refused {
        let (mut guest, _host) = Guest::connected();
        let mut header = guest.header(op::RW, 0, 0);
        change(&mut header);
        guest.send_header(&header, &[]).unwrap();
        let (reset, _) = guest.receive().unwrap();
        assert_eq!((reset.op, reset.src_cid, reset.kind), (op::RST, header.dst_cid, header.kind));
        assert_eq!((reset.src_port, reset.dst_port), (header.dst_port, header.src_port));
    }
    let (mut guest, _host) = Guest::connected();
    let mut header = guest.header(op::RW, 0, 0);
    header.src_cid = 4;
    guest.send_header(&header, &[]).unwrap();
    assert!(guest.receive().is_none(), "from nobody that we know");
    for (length, data) in [(5, 4), (u32::MAX, 0)] {
        let (mut guest, _host) = Guest::connected();
        let mut header = guest.header(op::RW, 0, 0);
        header.len = length;
        let error = guest.send_header(&header, &vec![0; data]).unwrap_err();
        assert!(matches!(error, DeviceError::Request(_)), "{error}");
    }
    let (mut guest, _host) = Guest::connected();
    guest.descriptor(QUEUE_TX, 0, BUFFERS[1], HEADER_SIZE as u32 - 1, 0, 0);
    guest.offer(QUEUE_TX, 0);
    assert!(guest.event(Some(QUEUE_TX)).is_err());
    let (mut guest, _host) = Guest::connected();
    guest.descriptor(QUEUE_TX, 0, u64::MAX - 10, HEADER_SIZE as u32, 0, 0);
    guest.offer(QUEUE_TX, 0);
    assert!(guest.event(Some(QUEUE_TX)).is_err());
}

#[test]
fn more_data_than_credit_resets_the_stream() {
    let (mut guest, mut host) = Guest::connected();
    let chunk = pattern(64 << 10);
    // The host reads nothing, the driver ignores its credit.
    for _ in 0..64 {
        guest.send(op::RW, 0, &chunk);
    }
    let mut operations = Vec::new();
    while let Some((header, _)) = guest.receive() {
        operations.push(header.op);
    }
    assert!(operations.contains(&op::RST), "{operations:?}");
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        host.read_to_end(&mut got).unwrap();
        got.len()
    });
    drop(guest);
    let got = reader.join().unwrap();
    assert!(got >= WIDE_BUFFER as usize && got < 64 * chunk.len(), "{got}");
}

#[test]
fn data_after_its_own_end_resets_the_stream() {
    let (mut guest, mut host) = Guest::connected();
    guest.send(op::SHUTDOWN, SHUTDOWN_SEND, &[]);
    guest.send(op::RW, 0, b"x");
    guest.expect(op::RST);
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
    guest.send(op::RW, 0, b"x");
    guest.expect(op::RST);
}

#[test]
fn a_flood_of_bad_packets_waits_for_the_guest_to_take_the_answers() {
    let (mut guest, _host) = Guest::connected();
    let mut header = guest.header(op::RW, 0, 0);
    header.dst_port = 9;
    let mut taken = 0;
    for _ in 0..10 * usize::from(SIZE) {
        if guest.available[QUEUE_TX].wrapping_sub(guest.used[QUEUE_TX]) >= SIZE {
            break;
        }
        guest.send_header(&header, &[]).unwrap();
        while guest.used(QUEUE_TX).is_some() {
            taken += 1;
        }
    }
    // As many as the driver's buffers hold, and the bounded rest; then the device stops taking packets.
    assert_eq!(taken, usize::from(SIZE) + MAX_RESETS);
    let mut answers = 0;
    let mut idle = 0;
    while idle < 3 {
        match guest.receive() {
            Some((header, _)) => {
                assert_eq!(header.op, op::RST);
                answers += 1;
                idle = 0;
            }
            None => idle += 1,
        }
        guest.event(Some(QUEUE_RX)).unwrap();
    }
    while guest.used(QUEUE_TX).is_some() {
        taken += 1;
    }
    assert_eq!(answers, taken);
    assert_eq!(taken, 2 * usize::from(SIZE) + MAX_RESETS);
}

#[test]
fn random_packets_never_panic() {
    let (mut guest, _host) = Guest::with_port();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..20_000 {
        let r = random();
        let length = (r >> 8) as usize % 300;
        let mut header = guest.header((r % 10) as u16, (r >> 20) as u32 % 5, length);
        header.src_port = (r >> 32) as u32 % 3;
        header.dst_port = if r & (1 << 40) == 0 { PORT } else { (1 << 30) + (r >> 41) as u32 % 2 };
        header.buf_alloc = random() as u32;
        header.fwd_cnt = random() as u32;
        guest.send_header(&header, &vec![0; length]).unwrap();
        while guest.used(QUEUE_TX).is_some() {}
        while guest.receive().is_some() {}
    }
}

#[test]
fn a_reset_forgets_the_streams_and_delivers_what_was_sent() {
    let (mut guest, mut host) = Guest::connected();
    guest.send(op::RW, 0, b"last words");
    guest.device.reset();
    let mut got = String::new();
    host.read_to_string(&mut got).unwrap();
    assert_eq!(got, "last words");
    guest.send(op::RW, 0, b"x");
    guest.expect(op::RST);
}
