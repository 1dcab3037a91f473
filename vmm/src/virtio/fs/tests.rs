use nix::sys::socket::{AddressFamily, SockFlag, socketpair};

use super::*;
use crate::virtio::testing::{Driver, END, SIZE, rings_within};

const DATA: u64 = 0x1_0000;
const ROOM: u64 = 0x4_0000;
const HIGH: usize = 0;
const REQUESTS: usize = 1;

/// A driver, its device, and a server that answers what the test says.
struct Guest {
    driver: Driver,
    fs: Fs,
    server: Option<OwnedFd>,
}

impl Guest {
    fn new() -> Self {
        let (ours, server) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        Self { driver: Driver::with_queues(2), fs: Fs::new(0, "data", ours).unwrap(), server: Some(server) }
    }

    /// Offers a request from descriptor `first` on, in two pieces, with so much room for the answer.
    fn offer(&mut self, queue: usize, first: u16, request: &[u8], room: u32) {
        let at = DATA + 0x400 * u64::from(first);
        self.driver.write(at, request);
        let length = u32::try_from(request.len()).unwrap();
        let mut parts = vec![(at, 40.min(length), false)];
        if length > 40 {
            parts.push((at + 40, length - 40, false));
        }
        if room > 0 {
            parts.push((ROOM + 0x1000 * u64::from(first), room, true));
        }
        self.driver.chain_on(queue, first, &parts);
    }

    fn notify(&mut self, queue: usize) {
        self.driver.notify_on(queue, &mut self.fs).unwrap();
    }

    fn server_gets(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; MAX_PACKET];
        let fd = self.server.as_ref().unwrap().as_raw_fd();
        let length = recv(fd, &mut bytes, MsgFlags::MSG_DONTWAIT).ok()?;
        bytes.truncate(length);
        Some(bytes)
    }

    fn server_says(&mut self, bytes: &[u8]) {
        send(self.server.as_ref().unwrap().as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT).unwrap();
        self.turn();
    }

    fn turn(&mut self) {
        for _ in 0..1000 {
            if !rings_within(&self.fs, 0) {
                return;
            }
            self.driver.host_event(&mut self.fs).unwrap();
        }
        panic!("the device never rests");
    }

    fn answer(&mut self, queue: usize) -> Option<Vec<u8>> {
        let (head, length) = self.driver.used_on(queue)?;
        Some(self.driver.read(ROOM + 0x1000 * u64::from(head), usize::try_from(length).unwrap()))
    }
}

fn request(operation: u32, id: u64, body: &[u8]) -> Vec<u8> {
    let mut header = [0; REQUEST_BYTES];
    packet::set_header(&mut header, operation, id);
    header[..4].copy_from_slice(&u32::try_from(REQUEST_BYTES + body.len()).unwrap().to_le_bytes());
    [&header[..], body].concat()
}

fn reply(id: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = packet::error(id, 0).to_vec();
    bytes[..4].copy_from_slice(&u32::try_from(ANSWER_BYTES + body.len()).unwrap().to_le_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn answers_go_to_the_requests_that_they_belong_to() {
    let mut guest = Guest::new();
    // Two requests with the same id, which is the driver's affair.
    guest.offer(REQUESTS, 0, &request(1, 77, b"one\0"), 200);
    guest.offer(REQUESTS, 4, &request(1, 77, b"two\0"), 200);
    guest.notify(REQUESTS);
    let (one, two) = (guest.server_gets().unwrap(), guest.server_gets().unwrap());
    assert_eq!((&one[40..], &two[40..]), (&b"one\0"[..], &b"two\0"[..]));
    assert_ne!(packet::unique(&one), packet::unique(&two));
    guest.server_says(&reply(packet::unique(&two), b"second"));
    guest.server_says(&reply(packet::unique(&one), b"first"));
    assert_eq!(guest.answer(REQUESTS).unwrap(), reply(77, b"second"));
    assert_eq!(guest.answer(REQUESTS).unwrap(), reply(77, b"first"));
    assert_eq!(guest.fs.counters(), [("requests", 2), ("refused", 0), ("waiting", 0)]);
}

#[test]
fn what_wants_no_answer_gets_none_and_does_not_wait() {
    let mut guest = Guest::new();
    guest.offer(HIGH, 0, &request(2, 5, &[1; 8]), 0);
    guest.notify(HIGH);
    assert_eq!(guest.driver.used_on(HIGH), Some((0, 0)));
    let forget = guest.server_gets().unwrap();
    guest.server_says(&reply(packet::unique(&forget), b"unasked"));
    assert_eq!(guest.driver.used_on(HIGH), None);
}

#[test]
fn malformed_requests_get_an_error_or_cost_the_device() {
    let mut guest = Guest::new();
    let mut wrong = request(1, 9, b"name\0");
    wrong[0] += 1;
    guest.offer(REQUESTS, 0, &wrong, 64);
    guest.notify(REQUESTS);
    assert_eq!(guest.answer(REQUESTS).unwrap(), packet::error(9, libc::EINVAL));
    // Too large for anyone, whatever it says.
    guest.driver.write(DATA, &request(16, 10, &[]));
    let huge = [(DATA, 40, false), (DATA, 0x8_0000, false), (ROOM, 64, true)];
    guest.driver.chain_on(REQUESTS, 0, &huge);
    guest.notify(REQUESTS);
    assert_eq!(guest.answer(REQUESTS).unwrap(), packet::error(10, libc::E2BIG));
    assert_eq!(guest.server_gets(), None);
    for parts in [
        &[(DATA, 39, false), (ROOM, 64, true)][..],
        &[(DATA, 40, false), (ROOM, 15, true)],
        &[(END, 40, false), (ROOM, 64, true)],
    ] {
        let mut guest = Guest::new();
        guest.driver.write(DATA, &request(1, 1, &[]));
        guest.driver.chain_on(REQUESTS, 0, parts);
        assert!(guest.driver.notify_on(REQUESTS, &mut guest.fs).is_err());
    }
    // Room for the answer that does not exist is found out when the answer comes.
    let mut guest = Guest::new();
    guest.driver.write(DATA, &request(1, 1, &[]));
    guest.driver.chain_on(REQUESTS, 0, &[(DATA, 40, false), (END, 64, true)]);
    guest.notify(REQUESTS);
    let id = packet::unique(&guest.server_gets().unwrap());
    send(guest.server.as_ref().unwrap().as_raw_fd(), &reply(id, b""), MsgFlags::empty()).unwrap();
    assert!(guest.driver.host_event(&mut guest.fs).is_err());
}

#[test]
fn a_server_that_answers_nonsense_harms_nobody() {
    let mut guest = Guest::new();
    guest.offer(REQUESTS, 0, &request(1, 3, b"name\0"), 64);
    guest.notify(REQUESTS);
    let id = packet::unique(&guest.server_gets().unwrap());
    let mut short = reply(id, b"");
    short[0] = 99;
    for nonsense in [vec![0; 1], vec![0; 16], short, reply(id + 1, b"to nobody"), vec![0; MAX_PACKET + 100]] {
        guest.server_says(&nonsense);
        assert_eq!(guest.driver.used_on(REQUESTS), None);
    }
    // An answer that is larger than the room for it.
    guest.server_says(&reply(id, &[1; 100]));
    assert_eq!(guest.answer(REQUESTS).unwrap(), packet::error(3, libc::EIO));
    guest.server_says(&reply(id, b"again"));
    assert_eq!(guest.driver.used_on(REQUESTS), None);
}

#[test]
fn a_server_that_goes_leaves_nobody_waiting() {
    let mut guest = Guest::new();
    guest.offer(REQUESTS, 0, &request(1, 3, b"name\0"), 64);
    guest.notify(REQUESTS);
    guest.server = None;
    guest.turn();
    assert_eq!(guest.answer(REQUESTS).unwrap(), packet::error(3, libc::ENOTCONN));
    guest.offer(REQUESTS, 0, &request(1, 4, b"name\0"), 64);
    guest.notify(REQUESTS);
    assert_eq!(guest.answer(REQUESTS).unwrap(), packet::error(4, libc::ENOTCONN));
    assert!(!rings_within(&guest.fs, 0));
}

#[test]
fn a_slow_server_holds_requests_up_and_loses_none() {
    let mut guest = Guest::new();
    let mut sent = 0u64;
    // Until the socket or the bound is full: the driver has few descriptors, so it must take back what is used.
    loop {
        guest.offer(HIGH, 0, &request(2, sent, &[0; 512]), 0);
        sent += 1;
        guest.notify(HIGH);
        if guest.driver.used_on(HIGH).is_none() {
            break;
        }
        assert!(sent < 10_000, "never full");
    }
    guest.turn();
    assert!(!rings_within(&guest.fs, 0));
    let mut got = 0;
    while guest.server_gets().is_some() {
        got += 1;
        guest.turn();
    }
    assert_eq!(got, sent);
    assert_eq!(guest.driver.used_on(HIGH), Some((0, 0)));
}

#[test]
fn no_more_requests_are_under_way_than_the_bound() {
    let mut guest = Guest::new();
    for _ in 0..30 {
        for _ in 0..SIZE {
            // The same descriptors again and again, as only a hostile driver does.
            guest.offer(REQUESTS, 0, &request(1, 1, b"x\0"), 64);
        }
        guest.notify(REQUESTS);
        guest.turn();
        if guest.fs.waiting.len() == MAX_UNDER_WAY {
            break;
        }
    }
    guest.offer(REQUESTS, 0, &request(1, 1, b"x\0"), 64);
    guest.notify(REQUESTS);
    assert_eq!(guest.fs.waiting.len(), MAX_UNDER_WAY);
    let id = packet::unique(&guest.server_gets().unwrap());
    guest.server_says(&reply(id, b""));
    assert_eq!(guest.fs.waiting.len(), MAX_UNDER_WAY, "an answer makes room for the next");
}

#[test]
fn a_reset_forgets_requests_and_tells_the_server() {
    let mut guest = Guest::new();
    guest.offer(REQUESTS, 0, &request(1, 3, b"name\0"), 64);
    guest.notify(REQUESTS);
    let id = packet::unique(&guest.server_gets().unwrap());
    guest.fs.reset();
    guest.server_says(&reply(id, b"late"));
    assert_eq!(guest.driver.used_on(REQUESTS), None);
    // Before anything of the next driver's.
    guest.offer(REQUESTS, 0, &request(26, 1, &[0; 16]), 64);
    guest.notify(REQUESTS);
    let destroy = guest.server_gets().unwrap();
    assert_eq!(destroy[4..8], DESTROY.to_le_bytes());
    assert_eq!(guest.server_gets(), None, "the server has not forgotten yet");
    // The answer to it is nobody's.
    guest.server_says(&reply(packet::unique(&destroy), b""));
    assert_eq!(guest.driver.used_on(REQUESTS), None);
    let init = guest.server_gets().unwrap();
    assert_eq!(init[4], 26);
    guest.server_says(&reply(packet::unique(&init), b""));
    assert_eq!(guest.answer(REQUESTS).unwrap(), reply(1, b""));
}

#[test]
fn configuration_space_is_as_the_specification_lays_it_out() {
    let guest = Guest::new();
    let mut space = [0xa5; 44];
    guest.fs.read_config(0, &mut space);
    assert_eq!(&space[..5], b"data\0");
    assert_eq!(space[36..], [1, 0, 0, 0, 0, 0, 0, 0]);
    let (stream, _other) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).unwrap();
    assert!(Fs::new(0, "data", stream).is_err());
}
