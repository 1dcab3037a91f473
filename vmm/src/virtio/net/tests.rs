mod tap;

use std::io::ErrorKind;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use virtio_queue::QueueT;

use super::header::{HEADER_BYTES, MAX_FRAME};
use super::*;
use crate::config::{Bucket, Fd, RateLimit};
use crate::virtio::testing::{Driver, END, SEAM, SIZE, rings_within};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const MTU: u16 = 1500;
const DATA: u64 = 0x1_0000;
const BUFFER: u64 = 0x8000;

/// A driver, its device, and the other end of the cable.
struct Guest {
    driver: Driver,
    net: Net,
    peer: Option<OwnedFd>,
}

fn config(headers: bool) -> NetConfig {
    NetConfig {
        mac: MAC,
        mtu: MTU,
        backend: NetBackend::Socket { socket: Fd(0), headers },
        check_source: true,
        receive: RateLimit::default(),
        send: RateLimit::default(),
    }
}

impl Guest {
    fn new(config: &NetConfig, kind: SockType) -> Self {
        let (ours, peer) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let mut net = Net::new(0, config, ours).unwrap();
        let features = net.features();
        net.set_features(features);
        Self { driver: Driver::with_queues(2), net, peer: Some(peer) }
    }

    fn plain() -> Self {
        Self::new(&config(false), SockType::SeqPacket)
    }

    fn peer_sends(&self, bytes: &[u8]) {
        let peer = self.peer.as_ref().unwrap().as_raw_fd();
        assert_eq!(send(peer, bytes, MsgFlags::MSG_DONTWAIT), Ok(bytes.len()));
    }

    fn peer_receives(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 1 << 17];
        match recv(self.peer.as_ref().unwrap().as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => {
                bytes.truncate(length);
                Some(bytes)
            }
            Err(error) => {
                assert_eq!(std::io::Error::from(error).kind(), ErrorKind::WouldBlock);
                None
            }
        }
    }

    /// Offers a frame behind a header; `parts` are the sizes of its descriptors.
    fn offer(&mut self, header: &[u8], frame: &[u8], parts: &[usize]) {
        let bytes = [header, frame].concat();
        self.driver.write(DATA, &bytes);
        let mut at = DATA;
        let mut left = bytes.len();
        let mut chain = Vec::new();
        for size in parts.iter().copied().chain([usize::MAX]) {
            let size = size.min(left);
            chain.push((at, u32::try_from(size).unwrap(), false));
            at += size as u64;
            left -= size;
            if left == 0 {
                break;
            }
        }
        self.driver.chain_on(QUEUE_TX, 0, &chain);
    }

    fn sends(&mut self, header: &[u8], frame: &[u8], parts: &[usize]) {
        self.offer(header, frame, parts);
        self.driver.notify_on(QUEUE_TX, &mut self.net).unwrap();
        assert_eq!(self.driver.used_on(QUEUE_TX), Some((0, 0)));
    }

    /// Offers buffer number `index`, of so many bytes.
    fn buffer(&mut self, index: u16, size: u32) {
        self.driver.chain_on(QUEUE_RX, index, &[(DATA + BUFFER * u64::from(index), size, true)]);
    }

    /// The next used buffer's content.
    fn received(&mut self) -> Option<Vec<u8>> {
        let (head, length) = self.driver.used_on(QUEUE_RX)?;
        Some(self.driver.read(DATA + BUFFER * u64::from(head), usize::try_from(length).unwrap()))
    }

    fn event(&mut self) {
        self.driver.host_event(&mut self.net).unwrap();
    }

    /// Serves the device as long as it wants to be, as an event loop does.
    fn turn(&mut self) {
        for _ in 0..1000 {
            if !rings_within(&self.net, 0) {
                return;
            }
            self.event();
        }
        panic!("the device never rests");
    }

    fn counter(&self, name: &str) -> u64 {
        self.net.counters().into_iter().find(|(other, _)| *other == name).unwrap().1
    }

    fn link(&self) -> bool {
        let mut status = [0; 2];
        self.net.read_config(6, &mut status);
        status == [1, 0]
    }
}

fn frame(length: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..length).map(|index| (index * 7 + index / 256).to_le_bytes()[0]).collect();
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&MAC);
    frame
}

/// A header that leaves a checksum, and if `segment` is not 0 the cutting up, to the other side.
fn header(segment: u16) -> [u8; HEADER_BYTES] {
    let kind = u8::from(segment > 0);
    let [low, high] = segment.to_le_bytes();
    [1, kind, if kind == 1 { 54 } else { 0 }, 0, low, high, 34, 0, 16, 0, 0, 0]
}

const NONE: [u8; HEADER_BYTES] = [0; HEADER_BYTES];

#[test]
fn frames_pass_both_ways_over_either_kind_of_socket() {
    for kind in [SockType::SeqPacket, SockType::Datagram] {
        let mut guest = Guest::new(&config(false), kind);
        for length in [14, 60, 1514, 1518] {
            // In one piece, and with every border at an odd place.
            for parts in [&[][..], &[12], &[5, 9, 3], &[12, 6, 6, 2], &[26]] {
                guest.sends(&NONE, &frame(length), parts);
                assert_eq!(guest.peer_receives(), Some(frame(length)), "{length} {parts:?}");
            }
            guest.buffer(0, 2048);
            guest.peer_sends(&frame(length));
            guest.turn();
            let got = guest.received().unwrap();
            assert_eq!(got[..HEADER_BYTES], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            assert_eq!(got[HEADER_BYTES..], frame(length));
        }
        assert_eq!(guest.counter("sent_frames"), 20);
        assert_eq!(guest.counter("received_frames"), 4);
        assert_eq!(guest.counter("received_bytes"), 14 + 60 + 1514 + 1518);
        assert_eq!(guest.counter("sent_dropped") + guest.counter("received_dropped"), 0);
    }
}

#[test]
fn configuration_space_is_as_the_specification_lays_it_out() {
    let guest = Guest::plain();
    let mut space = [0xa5; 16];
    guest.net.read_config(0, &mut space);
    assert_eq!(space, [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0xdc, 5, 0, 0, 0, 0]);
    let offloads = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6;
    assert_eq!(guest.net.features() & offloads, 0, "without headers nothing can be left undone");
    let guest = Guest::new(&config(true), SockType::SeqPacket);
    assert_eq!(guest.net.features() & offloads, offloads);
}

#[test]
fn large_frames_pass_with_their_headers() {
    let mut guest = Guest::new(&config(true), SockType::SeqPacket);
    let large = frame(MAX_FRAME);
    guest.sends(&header(1460), &large, &[12, 14, 30_000, 1, 20_000]);
    let sent = guest.peer_receives().unwrap();
    assert_eq!(sent[..HEADER_BYTES], header(1460));
    assert!(sent[HEADER_BYTES..] == large);

    // Merged from buffers of 9000 bytes; all become visible at once.
    let packet = [&header(1460)[..], &large].concat();
    for index in 0..8 {
        guest.buffer(index, 9000);
    }
    guest.peer_sends(&packet);
    guest.turn();
    let parts: Vec<Vec<u8>> = std::iter::from_fn(|| guest.received()).collect();
    assert_eq!(parts.len(), 8);
    assert!(parts[..7].iter().all(|part| part.len() == 9000));
    let mut got = parts.concat();
    assert_eq!(got[10..12], [8, 0], "number of buffers");
    got[10..12].fill(0);
    assert!(got == packet);
}

#[test]
fn a_frame_waits_for_enough_buffers_without_a_wake_up() {
    let mut guest = Guest::new(&config(true), SockType::SeqPacket);
    guest.driver.queues[QUEUE_RX].set_event_idx(true);
    let packet = [&header(1460)[..], &frame(5000)].concat();
    guest.peer_sends(&packet);
    guest.peer_sends(&[&NONE[..], &frame(60)].concat());
    guest.turn();
    for index in 0..5 {
        assert_eq!(guest.received(), None);
        assert!(!rings_within(&guest.net, 0));
        // The driver is told to notify at exactly the buffer that comes next.
        let wished = guest.driver.avail_event(QUEUE_RX);
        assert_eq!(wished, index);
        guest.buffer(index, 1024);
        guest.driver.notify_on(QUEUE_RX, &mut guest.net).unwrap();
    }
    let got = (0..5).flat_map(|_| guest.received().unwrap()).collect::<Vec<_>>();
    assert_eq!(got[10], 5);
    assert!(got[12..] == packet[12..]);
    guest.buffer(5, 1024);
    guest.driver.notify_on(QUEUE_RX, &mut guest.net).unwrap();
    assert_eq!(guest.received().unwrap()[12..], frame(60));
}

#[test]
fn a_driver_that_does_not_merge_gets_one_buffer_or_nothing() {
    let mut guest = Guest::plain();
    guest.net.set_features(0);
    guest.buffer(0, 100);
    guest.peer_sends(&frame(89));
    guest.turn();
    assert_eq!(guest.received(), None);
    assert_eq!(guest.counter("received_dropped"), 1);
    guest.peer_sends(&frame(88));
    guest.turn();
    assert_eq!(guest.received().unwrap()[12..], frame(88));
}

#[test]
fn buffers_that_can_never_hold_a_frame_cost_it_and_nothing_else() {
    let mut guest = Guest::plain();
    for index in 0..SIZE {
        guest.buffer(index, 12);
    }
    guest.peer_sends(&frame(1514));
    guest.peer_sends(&frame(60));
    guest.turn();
    assert_eq!(guest.counter("received_dropped"), 1);
    assert_eq!(std::iter::from_fn(|| guest.received()).count(), 6);
}

#[test]
fn frames_that_may_not_pass_are_dropped_and_counted() {
    let mut foreign = frame(60);
    foreign[11] = 2;
    let without = [
        (NONE, foreign.clone()),
        (NONE, frame(1519)),
        (NONE, frame(14)[..13].to_vec()),
        (NONE, vec![]),
        (header(0), frame(60)),
        (header(1460), frame(5000)),
        ([4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], frame(60)),
    ];
    let with = [
        (NONE, foreign),
        (NONE, frame(1519)),
        (header(1460), frame(MAX_FRAME + 1)),
        (header(1), frame(5000)),
        (header(0), frame(51)),
        ([1, 3, 54, 0, 200, 5, 34, 0, 16, 0, 0, 0], frame(5000)),
    ];
    for (headers, cases) in [(false, &without[..]), (true, &with)] {
        let mut guest = Guest::new(&config(headers), SockType::SeqPacket);
        for (header, frame) in cases {
            guest.sends(header, frame, &[]);
        }
        assert_eq!(guest.peer_receives(), None);
        assert_eq!(guest.counter("sent_dropped"), cases.len() as u64);
        // Neither does the other end get them in, but for the sender's address, which is anybody's.
        for index in 0..4 {
            guest.buffer(index, 16 << 10);
        }
        for (header, frame) in &cases[1..] {
            let bytes = if headers { [&header[..], frame].concat() } else { frame.clone() };
            if !bytes.is_empty() {
                guest.peer_sends(&bytes);
            }
        }
        guest.peer_sends(&vec![0; 100_000]);
        guest.turn();
        let passed = if headers { 0 } else { 2 };
        assert_eq!(std::iter::from_fn(|| guest.received()).count(), passed, "headers {headers}");
        // Still in order.
        guest.sends(&NONE, &frame(60), &[]);
        assert!(guest.peer_receives().is_some());
    }
}

#[test]
fn without_the_check_any_sender_passes() {
    let mut guest = Guest::new(&NetConfig { check_source: false, ..config(false) }, SockType::SeqPacket);
    guest.sends(&NONE, &[7; 60], &[]);
    assert_eq!(guest.peer_receives(), Some(vec![7; 60]));
}

#[test]
fn a_full_cable_holds_frames_up_and_loses_none() {
    for kind in [SockType::SeqPacket, SockType::Datagram] {
        let mut guest = Guest::new(&config(false), kind);
        let mut offered = 0u8;
        // Until the socket is full.
        loop {
            let mut next = frame(1000);
            next[20] = offered;
            guest.offer(&NONE, &next, &[]);
            offered += 1;
            guest.driver.notify_on(QUEUE_TX, &mut guest.net).unwrap();
            if guest.driver.used_on(QUEUE_TX).is_none() {
                break;
            }
            assert!(offered < 255, "the socket never fills");
        }
        guest.turn();
        assert!(!rings_within(&guest.net, 0));
        let mut taken = 0;
        while let Some(got) = guest.peer_receives() {
            assert_eq!(got[20], taken);
            taken += 1;
            guest.turn();
        }
        assert_eq!(taken, offered);
        assert_eq!(guest.driver.used_on(QUEUE_TX), Some((0, 0)));
        assert_eq!(guest.counter("sent_dropped"), 0);
        // With room again, what the other end reads is no event.
        guest.sends(&NONE, &frame(60), &[]);
        guest.turn();
        guest.peer_receives().unwrap();
        assert!(!rings_within(&guest.net, 0));
    }
}

#[test]
fn limits_hold_in_both_directions_and_are_lifted_while_running() {
    let slow = RateLimit { bytes: None, operations: Some(Bucket { per_second: 1, burst: 2 }) };
    let limited = NetConfig { receive: slow, send: slow, ..config(false) };
    let mut guest = Guest::new(&limited, SockType::SeqPacket);
    for index in 0..5 {
        guest.buffer(index, 2048);
        guest.peer_sends(&frame(60));
        guest.offer(&NONE, &frame(60), &[]);
    }
    guest.driver.notify_on(QUEUE_TX, &mut guest.net).unwrap();
    guest.turn();
    let sent = std::iter::from_fn(|| guest.peer_receives()).count();
    let received = std::iter::from_fn(|| guest.received()).count();
    // The bucket's two; more only if this took seconds.
    assert!((2..5).contains(&sent) && (2..5).contains(&received), "{sent} {received}");
    assert!(guest.counter("sent_throttled") > 0 && guest.counter("received_throttled") > 0);
    let lift = Command::LimitNet { receive: RateLimit::default(), send: RateLimit::default() };
    guest.net.command(&lift, &guest.driver.interrupts).unwrap();
    guest.turn();
    assert_eq!(sent + std::iter::from_fn(|| guest.peer_receives()).count(), 5);
    assert_eq!(received + std::iter::from_fn(|| guest.received()).count(), 5);
    let bad = Bucket { per_second: 0, burst: 1 };
    let bad = RateLimit { bytes: Some(bad), operations: None };
    let bad = Command::LimitNet { receive: RateLimit::default(), send: bad };
    guest.net.command(&bad, &guest.driver.interrupts).unwrap_err();
}

#[test]
fn a_pulled_cable_passes_nothing_and_says_so() {
    let mut guest = Guest::plain();
    assert!(guest.link());
    for (up, changes) in [(true, 0), (false, 1), (false, 1)] {
        guest.net.command(&Command::SetLink { up }, &guest.driver.interrupts).unwrap();
        assert_eq!(guest.driver.interrupts.changes(), changes);
        assert_eq!(guest.link(), up);
    }
    guest.buffer(0, 2048);
    guest.peer_sends(&frame(60));
    guest.turn();
    guest.sends(&NONE, &frame(60), &[]);
    assert_eq!((guest.received(), guest.peer_receives()), (None, None));
    assert_eq!((guest.counter("sent_dropped"), guest.counter("received_dropped")), (1, 1));
    // A reset does not plug it in; the supervisor does.
    guest.net.reset();
    assert!(!guest.link());
    guest.net.command(&Command::SetLink { up: true }, &guest.driver.interrupts).unwrap();
    guest.sends(&NONE, &frame(60), &[]);
    assert!(guest.link() && guest.peer_receives().is_some());
}

#[test]
fn the_other_ends_end_pulls_the_cable_after_its_last_frame() {
    let mut guest = Guest::plain();
    guest.buffer(0, 2048);
    guest.peer_sends(&frame(77));
    guest.peer = None;
    guest.turn();
    assert_eq!(guest.received().unwrap().len(), 77 + HEADER_BYTES);
    assert!(!guest.link());
    assert_eq!(guest.driver.interrupts.changes(), 1);
    guest.sends(&NONE, &frame(60), &[]);
    assert_eq!(guest.counter("sent_dropped"), 1);
    assert!(!rings_within(&guest.net, 0));
}

#[test]
fn a_driver_that_breaks_the_queues_loses_its_device() {
    type Break = fn(&mut Guest);
    let breaks: &[(&str, usize, Break)] = &[
        ("frame beyond memory", QUEUE_TX, |g| {
            g.driver.write(DATA, &frame(60));
            g.driver.chain_on(QUEUE_TX, 0, &[(DATA, 40, false), (END - 10, 20, false)]);
        }),
        ("frame to write to", QUEUE_TX, |g| {
            g.driver.chain_on(QUEUE_TX, 0, &[(DATA, 100, false), (DATA, 1, true)]);
        }),
        ("head out of range", QUEUE_TX, |g| g.driver.offer_on(QUEUE_TX, SIZE)),
        ("buffer without room", QUEUE_RX, |g| g.buffer(0, 11)),
        ("buffer to read from", QUEUE_RX, |g| {
            g.driver.chain_on(QUEUE_RX, 0, &[(DATA, 100, false), (DATA, 2000, true)]);
        }),
        ("buffer beyond memory", QUEUE_RX, |g| {
            g.driver.chain_on(QUEUE_RX, 0, &[(END - 20, 2000, true)]);
        }),
    ];
    for (what, queue, make) in breaks {
        let mut guest = Guest::plain();
        guest.peer_sends(&frame(60));
        make(&mut guest);
        assert!(guest.driver.notify_on(*queue, &mut guest.net).is_err(), "{what}");
        assert_eq!(guest.peer_receives(), None, "{what}");
    }
    // A frame that crosses the seam of two regions is a frame like any other.
    let mut guest = Guest::plain();
    guest.driver.write(SEAM - 42, &[&NONE[..], &frame(60)].concat());
    guest.driver.chain_on(QUEUE_TX, 0, &[(SEAM - 42, 72, false)]);
    guest.driver.notify_on(QUEUE_TX, &mut guest.net).unwrap();
    assert_eq!(guest.peer_receives(), Some(frame(60)));
}

#[test]
fn what_is_no_cable_is_refused() {
    let (stream, _other) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).unwrap();
    assert!(Net::new(0, &config(false), stream).is_err());
    let file = OwnedFd::from(File::open("/dev/null").unwrap());
    assert!(Net::new(0, &config(false), file.try_clone().unwrap()).is_err());
    let tap = NetConfig { backend: NetBackend::Tap { tap: Fd(0) }, ..config(false) };
    assert!(Net::new(0, &tap, file).is_err());
}
