//! The gateway from a guest's side, segment by segment: names over TCP, flows to the world, and what becomes of them.

use bulkhead_fixtures::world::{FAR, World};
use bulkhead_net::frame::rest::HEADER_BYTES;
use bulkhead_net::frame::{self, Frame, Packet, TCP};
use bulkhead_net::reason::Reason;
use bulkhead_net::switch::GATEWAY_MAC;

use crate::site::{Guest, Switch};

/// A connection of a guest's whose segments all arrive, in order: nothing is ever sent again.
struct Connection<'a> {
    guest: &'a mut Guest,
    to: String,
    port: u16,
    next: u32,
    expected: u32,
}

impl<'a> Connection<'a> {
    /// Begins one. `None` if it is refused.
    fn open(guest: &'a mut Guest, to: &str, port: u16) -> Option<Self> {
        let syn = guest.syn(to, port);
        Self::open_by(guest, &syn, to, port)
    }

    /// Begins one with this first segment.
    fn open_by(guest: &'a mut Guest, syn: &[u8], to: &str, port: u16) -> Option<Self> {
        guest.send_out(syn);
        let mut connection = Self { guest, to: to.to_owned(), port, next: 10, expected: 0 };
        let (flags, sequence, _) = connection.segment();
        if flags & 0x04 != 0 {
            return None;
        }
        assert_eq!(flags & 0x12, 0x12, "no answer to a first segment");
        connection.expected = sequence.wrapping_add(1);
        connection.say(0x10, b"");
        Some(connection)
    }

    fn say(&mut self, flags: u8, data: &[u8]) {
        self.say_unfinished(&[0; HEADER_BYTES], flags, data);
    }

    /// The same with a header that says what is still to be done to it.
    fn say_unfinished(&mut self, header: &[u8], flags: u8, data: &[u8]) {
        let (from, to) = (self.guest.ipv4, self.to.parse().unwrap());
        let mut segment = vec![0x10, 0x00];
        segment.extend_from_slice(&self.port.to_be_bytes());
        segment.extend_from_slice(&self.next.to_be_bytes());
        segment.extend_from_slice(&self.expected.to_be_bytes());
        segment.extend_from_slice(&[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend_from_slice(data);
        self.next += data.len() as u32 + u32::from(flags & 1);
        let packet = frame::ip_packet(from.into(), to, TCP, &segment, 16).unwrap();
        let mac = self.guest.mac;
        self.guest.send_unfinished(header, &frame::ethernet(GATEWAY_MAC, mac, &packet));
    }

    /// The next segment: flags, sequence number, data.
    fn segment(&self) -> (u8, u32, Vec<u8>) {
        self.read(&self.guest.receive())
    }

    fn read(&self, bytes: &[u8]) -> (u8, u32, Vec<u8>) {
        let frame = Frame::read(bytes).unwrap();
        let packet = Packet::read(frame.kind, frame.payload).unwrap();
        assert_eq!((packet.protocol, packet.source.to_string()), (TCP, self.to.clone()));
        let header = packet.payload;
        let data = header[usize::from(header[12] >> 4) * 4..].to_vec();
        (header[13], u32::from_be_bytes([header[4], header[5], header[6], header[7]]), data)
    }

    /// Hears so many bytes.
    fn hear(&mut self, length: usize) -> Vec<u8> {
        let mut heard = Vec::new();
        while heard.len() < length {
            let (flags, sequence, data) = self.segment();
            assert_eq!(flags & 0x04, 0, "reset after {heard:?}");
            if sequence == self.expected && !data.is_empty() {
                self.expected = self.expected.wrapping_add(data.len() as u32);
                heard.extend(data);
                self.say(0x10, b"");
            }
        }
        heard
    }
}

/// A question for the address of a name, with its length before it.
fn question(name: &str) -> Vec<u8> {
    let mut message = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    [&(message.len() as u16).to_be_bytes()[..], &message].concat()
}

#[test]
fn names_are_answered_over_tcp_too() {
    let switch = Switch::start(1);
    let mut guest = switch.guest(2);
    let own = guest.ipv4.octets();
    let mut connection = Connection::open(&mut guest, "10.1.0.1", 53).unwrap();
    // Two questions in three pieces.
    let both = [question("guest2"), question("GUEST2")].concat();
    let length = question("guest2").len();
    for piece in [&both[..1], &both[1..length + 5], &both[length + 5..]] {
        connection.say(0x18, piece);
    }
    // Two answers in however many.
    let mut heard = Vec::new();
    for _ in 0..2 {
        while heard.len() < 2 || heard.len() < 2 + usize::from(u16::from_be_bytes([heard[0], heard[1]])) {
            heard.extend(connection.hear(1));
        }
        let length = 2 + usize::from(u16::from_be_bytes([heard[0], heard[1]]));
        let answer: Vec<u8> = heard.drain(..length).collect();
        assert!(answer.ends_with(&own), "{answer:?}");
    }
    // Nonsense ends the connection.
    connection.say(0x18, &[0, 4, 1, 2, 3, 4]);
    while connection.segment().0 & 0x05 == 0 {}
    assert_eq!(guest.refused(Reason::Malformed), 1);
}

#[test]
fn the_world_is_spoken_to_and_refuses_for_itself() {
    let Some(world) = World::enter() else { return };
    let seen = world.tcp_echo(FAR, 7000);
    let asked = world.resolver(FAR, &[("good.example", &[FAR]), ("evil.example", &["127.0.0.1"])]);
    let switch = Switch::start(1);
    let mut guest = switch.guest_with(2, "allow=good.example:7000", |_| {});
    // Not before its name was asked for.
    assert!(Connection::open(&mut guest, FAR, 7000).is_none());
    assert_eq!(seen.lock().unwrap().len(), 0);
    for (name, code) in [("evil.example", 5), ("other.example", 5), ("good.example", 0)] {
        let query = guest.udp("10.1.0.1", 53, &question(name)[2..]);
        guest.send_out(&query);
        let bytes = guest.receive();
        let frame = Frame::read(&bytes).unwrap();
        let answer = Packet::read(frame.kind, frame.payload).unwrap().datagram().unwrap().to_vec();
        assert_eq!(answer[3] & 15, code, "{name}");
    }
    // What no rule has a use for is not even asked.
    assert_eq!(*asked.lock().unwrap(), ["good.example"]);
    let mut connection = Connection::open(&mut guest, FAR, 7000).unwrap();
    connection.say(0x18, b"there and back");
    assert_eq!(connection.hear(14), b"there and back");
    // Its end is the end, on both sides.
    connection.say(0x11, b"");
    while connection.segment().0 & 0x01 == 0 {}
    assert_eq!(seen.lock().unwrap().len(), 1);
    // Another port of that name; and one where nobody listens.
    assert!(Connection::open(&mut guest, FAR, 7001).is_none());
    assert_eq!(guest.refused(Reason::Rule), 2);
    let mut free = switch.guest(3);
    assert!(Connection::open(&mut free, FAR, 7001).is_none());
    assert_eq!(free.report().refused, []);
}

#[test]
fn what_a_guest_would_cut_up_goes_through_in_one_piece_both_ways() {
    const SEGMENT: u16 = 1000;
    let Some(world) = World::enter() else { return };
    let _seen = world.tcp_echo(FAR, 7000);
    let switch = Switch::start(1);
    let mut guest = switch.guest(2);
    // The first segment says how much data the guest takes in one.
    let plain = guest.syn(FAR, 7000);
    let mut segment = [&plain[20..], &[2, 4, 0, 0]].concat();
    segment[12] = 0x60;
    segment[22..24].copy_from_slice(&SEGMENT.to_be_bytes());
    let syn = frame::ip_packet(guest.ipv4.into(), FAR.parse().unwrap(), TCP, &segment, 16).unwrap();
    let mut connection = Connection::open_by(&mut guest, &syn, FAR, 7000).unwrap();
    // 30,000 bytes as one frame, which no cable of 1500 bytes would take, and whose checksum is nobody's business.
    let data: Vec<u8> = (0..30_000u32).map(|n| (n % 251) as u8).collect();
    let words = |words: [u16; 4]| words.map(u16::to_le_bytes).concat();
    let header = [&[1, 1][..], &words([54, 1460, 34, 16]), &[0, 0]].concat();
    connection.say_unfinished(&header, 0x18, &data);
    let (mut heard, mut frames) = (Vec::new(), 0);
    while heard.len() < data.len() {
        let (header, bytes) = connection.guest.receive_unfinished();
        let (flags, sequence, part) = connection.read(&bytes);
        assert_eq!(flags & 0x04, 0);
        assert_eq!(
            (header[0], &header[6..10]),
            (1, &words([34, 16, 0, 0])[..4]),
            "the guest makes checksums"
        );
        // Whatever is larger than the MTU is to be cut as the guest said.
        let cut = (header[1], u16::from_le_bytes([header[4], header[5]]));
        assert_eq!(cut, if bytes.len() > 1514 { (1, SEGMENT) } else { (0, 0) });
        if sequence == connection.expected && !part.is_empty() {
            connection.expected = connection.expected.wrapping_add(part.len() as u32);
            connection.say(0x10, b"");
            heard.extend(part);
            frames += 1;
        }
    }
    assert!(heard == data && frames < 20, "{frames} frames for {} bytes", heard.len());
    // A frame of that size without the header is none.
    connection.say(0x18, &data);
    assert_eq!(guest.refused(Reason::TooLong), 1);
}

#[test]
fn guests_leave_nothing_to_each_other_but_what_the_packet_bears() {
    let switch = Switch::start(1);
    let (mut one, two) = (switch.guest(2), switch.guest(3));
    let mut segment = vec![0; 20 + 9000];
    segment[12] = 0x50;
    let packet = frame::ip_packet(one.ipv4.into(), two.ipv4.into(), TCP, &segment, 16).unwrap();
    let frame = frame::ethernet(two.mac, one.mac, &packet);
    let header = |flags: u8, kind: u8, words: [u16; 4]| {
        [&[flags, kind][..], &words.map(u16::to_le_bytes).concat(), &[0, 0]].concat()
    };
    let right = header(1, 1, [54, 1460, 34, 16]);
    one.send_unfinished(&right, &frame);
    assert_eq!(two.receive_unfinished(), (<[u8; HEADER_BYTES]>::try_from(right).unwrap(), frame.clone()));
    // Checksums that would be written elsewhere, segments that are too many, too large or of another kind, and flags that there are not.
    let wrong = [
        header(1, 1, [54, 1460, 14, 10]),
        header(1, 1, [54, 1460, 0xfff0, 0xfff0]),
        header(1, 1, [54, 1, 34, 16]),
        header(1, 1, [54, 9000, 34, 16]),
        header(1, 4, [54, 1440, 34, 16]),
        header(0, 1, [54, 1460, 34, 16]),
        header(8, 1, [54, 1460, 34, 16]),
        header(1, 5, [54, 1460, 34, 16]),
        header(1, 0x81, [54, 1460, 34, 16]),
    ];
    for header in &wrong {
        one.send_unfinished(header, &frame);
    }
    one.send_unfinished(&[0; 12], &frame);
    one.send_unfinished(&[], &[1, 2, 3]);
    assert_eq!(one.refused(Reason::Malformed), wrong.len() as u64 + 1);
    assert_eq!(one.refused(Reason::TooLong), 1);
    assert!(two.received().is_empty());
}
