//! Each class of attack on a queue, on every queue of every device: what the rules forbid costs the driver its device and is never answered,
//! what they allow is served.

use nix::sys::socket::{MsgFlags, recv, send};
use std::os::fd::AsRawFd;

use super::*;
use crate::fuzz::tests::{allowance, peak};

/// What a device does with the chains of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Serves them when it is told.
    Asked,
    /// Keeps the last of them until its supervisor asks for it.
    Held,
    /// Fills them when the host has something.
    Filled,
    /// Never looks at them: nobody types on the console, and the socket device's events come from restores only.
    Idle,
}

fn role(kind: Kind, queue: usize) -> Role {
    match (kind, queue) {
        (Kind::Net | Kind::NetHeaders | Kind::Vsock, 0) => Role::Filled,
        (Kind::Console, 0) | (Kind::Vsock, 2) => Role::Idle,
        (Kind::Balloon, 2) => Role::Held,
        _ => Role::Asked,
    }
}

/// What a request of the queue consists of: what the device reads, and how many bytes it may write.
fn request(kind: Kind, queue: usize) -> (Vec<u8>, u32) {
    match (kind, queue) {
        // A flush; a read of one sector.
        (Kind::Block, _) => ([&[4][..], &[0; 15]].concat(), 1),
        (Kind::ReadOnlyBlock, _) => (vec![0; 16], 513),
        (Kind::Net | Kind::NetHeaders, 1) => {
            ([&[0; 12][..], &[0xff; 6], &[2, 0, 0, 0, 0, 1], &[0; 46]].concat(), 0)
        }
        // Something is forgotten, which wants no answer.
        (Kind::Fs, _) => ([&[48, 0, 0, 0, 2, 0, 0, 0][..], &[0; 40]].concat(), 0),
        // A packet to a stream that there is not, which is answered.
        (Kind::Vsock, 1) => {
            let ids = [&[3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0][..], &[9; 8]].concat();
            ([&ids[..], &[0; 4], &[1, 0, 5, 0], &[0; 12]].concat(), 0)
        }
        (Kind::Balloon, 0 | 1) => (vec![0x80, 0, 0, 0], 0),
        (Kind::Balloon, 2) => (vec![0; 20], 0),
        (Kind::Balloon, _) => (Vec::new(), 8192),
        (Kind::Console, 1) => (b"text".to_vec(), 0),
        (Kind::Rng, _) => (Vec::new(), 64),
        // Room for what the host has.
        _ => (Vec::new(), 2048),
    }
}

fn rings(queue: usize) -> u64 {
    RINGS + 0x4000 * queue as u64
}

impl Attack {
    /// Lays out the queue's request with its parts at these addresses, and offers it.
    fn lay_out(&mut self, queue: usize, readable: u64, writable: u64) {
        let (bytes, room) = request(self.kind, queue);
        self.write(readable, &bytes);
        let length = u32::try_from(bytes.len()).unwrap();
        let next = if room > 0 { NEXT } else { 0 };
        let mut at = 0;
        if length > 0 {
            self.descriptor(rings(queue), at, readable, length, next, at + 1);
            at += 1;
        }
        if room > 0 {
            self.descriptor(rings(queue), at, writable, room, WRITE, 0);
        }
        self.offer(queue, 0);
    }

    /// The same, where nothing is in the way.
    fn lay_out_well(&mut self, queue: usize) {
        self.lay_out(queue, DATA, DATA + 0x4000);
    }

    /// Makes the device look at the queue. An error is not mended, as [`Self::event`] does.
    fn serve(&mut self, queue: usize) -> Result<(), DeviceError> {
        if role(self.kind, queue) == Role::Filled {
            match self.kind {
                // An answer falls due.
                Kind::Vsock => {
                    let (bytes, _) = request(self.kind, 1);
                    self.write(DATA + 0x8000, &bytes);
                    let length = u32::try_from(bytes.len()).unwrap();
                    self.descriptor(rings(1), 0, DATA + 0x8000, length, 0, 0);
                    self.offer(1, 0);
                }
                _ => {
                    let header = if self.kind == Kind::NetHeaders { 12 } else { 0 };
                    let frame = [&vec![0; header][..], &[0xff; 6], &[0xaa; 54]].concat();
                    let cable = self.world.peers().first().unwrap().as_raw_fd();
                    send(cable, &frame, MsgFlags::MSG_DONTWAIT).unwrap();
                }
            }
        }
        let mut io = Io { memory: &self.memory, queues: &mut self.queues, interrupt: &self.interrupts };
        self.device.queue_event(queue, &mut io)?;
        self.device.host_event(&mut io)?;
        if self.kind == Kind::Fs {
            // The server has forgotten the driver of before; only then it is asked for anything.
            let server = self.world.peers().first().unwrap().as_raw_fd();
            let mut asked = [0; 64];
            while recv(server, &mut asked, MsgFlags::MSG_DONTWAIT).is_ok_and(|length| length > 0) {
                if asked[4] == 38 {
                    let answer = [&[16, 0, 0, 0, 0, 0, 0, 0], &asked[8..16]].concat();
                    send(server, &answer, MsgFlags::MSG_DONTWAIT).unwrap();
                }
            }
            self.device.host_event(&mut io)?;
        }
        Ok(())
    }

    fn used(&self, queue: usize) -> u16 {
        let index: u16 = self.memory.read_obj(GuestAddress(rings(queue) + 0x2002)).unwrap();
        assert_eq!(index, self.queues[queue].next_used());
        index
    }

    /// How many chains the queue's device is done with after one that is well.
    fn expected(&self, queue: usize) -> u16 {
        u16::from(matches!(role(self.kind, queue), Role::Asked | Role::Filled))
    }

    fn restart(&mut self) {
        let features = self.device.features();
        for queue in 0..self.queues.len() {
            self.write(rings(queue) + 0x2000, &[0; 4]);
        }
        self.start(features);
    }
}

/// Every queue of every device, fresh.
fn each(mut test: impl FnMut(&mut Attack, usize)) {
    let mut queues = 0;
    for kind in Kind::ALL {
        for queue in 0..Attack::new(kind).queues.len() {
            test(&mut Attack::new(kind), queue);
            queues += 1;
        }
    }
    assert_eq!(queues, 18, "a queue was added: what is it for?");
}

type Break = fn(&mut Attack, usize, u16);

/// What the rules of queues forbid (virtio 1.2 section 2.7); the third argument are the flags of a descriptor that the queue may hold.
const BREAKS: [(&str, Break); 19] = [
    ("a head beyond the table", |a, q, _| a.offer(q, SIZE)),
    ("a head far beyond the table", |a, q, _| a.offer(q, u16::MAX)),
    ("an index too far ahead", |a, q, _| a.write(rings(q) + 0x1002, &(SIZE + 1).to_le_bytes())),
    ("an index that went back", |a, q, _| a.write(rings(q) + 0x1002, &u16::MAX.to_le_bytes())),
    ("a next beyond the table", |a, q, f| {
        a.descriptor(rings(q), 0, DATA, 8, f | NEXT, SIZE);
        a.offer(q, 0);
    }),
    ("a loop of one", |a, q, f| {
        a.descriptor(rings(q), 0, DATA, 8, f | NEXT, 0);
        a.offer(q, 0);
    }),
    ("a loop of two", |a, q, f| {
        a.descriptor(rings(q), 0, DATA, 8, f | NEXT, 1);
        a.descriptor(rings(q), 1, DATA, 8, f | NEXT, 0);
        a.offer(q, 0);
    }),
    ("a loop of all", |a, q, f| {
        (0..SIZE).for_each(|at| a.descriptor(rings(q), at, DATA, 8, f | NEXT, (at + 1) % SIZE));
        a.offer(q, 0);
    }),
    ("what is read after what is written", |a, q, _| {
        a.descriptor(rings(q), 0, DATA, 8, WRITE | NEXT, 1);
        a.descriptor(rings(q), 1, DATA, 8, 0, 0);
        a.offer(q, 0);
    }),
    ("an indirect table behind memory", |a, q, _| indirect(a, q, END, 32)),
    ("an indirect table across the end", |a, q, _| indirect(a, q, END - 8, 16)),
    ("an indirect table at the last address", |a, q, _| indirect(a, q, u64::MAX - 15, 16)),
    ("an indirect table of nothing", |a, q, _| indirect(a, q, TABLE, 0)),
    ("an indirect table and a half", |a, q, f| {
        a.descriptor(TABLE, 0, DATA, 8, f, 0);
        indirect(a, q, TABLE, 24);
    }),
    ("an indirect table of 4 GiB", |a, q, f| {
        a.descriptor(TABLE, 0, DATA, 8, f | NEXT, u16::MAX);
        indirect(a, q, TABLE, !15);
    }),
    ("an indirect table in another", |a, q, _| {
        a.descriptor(TABLE, 0, TABLE, 16, INDIRECT, 0);
        indirect(a, q, TABLE, 16);
    }),
    ("a loop in an indirect table", |a, q, f| {
        a.descriptor(TABLE, 0, DATA, 8, f | NEXT, 0);
        indirect(a, q, TABLE, 16);
    }),
    ("a next beyond an indirect table", |a, q, f| {
        a.descriptor(TABLE, 0, DATA, 8, f | NEXT, 1);
        indirect(a, q, TABLE, 16);
    }),
    ("an indirect table longer than the queue", |a, q, f| {
        let table = DATA + 0x8000;
        for at in 0..2 * SIZE {
            let last = at + 1 == 2 * SIZE;
            a.descriptor(table, at, DATA, 8, if last { f } else { f | NEXT }, at + 1);
        }
        indirect(a, q, table, 32 * u32::from(SIZE));
    }),
];

fn indirect(attack: &mut Attack, queue: usize, table: u64, bytes: u32) {
    attack.descriptor(rings(queue), 0, table, bytes, INDIRECT, 0);
    attack.offer(queue, 0);
}

#[test]
fn what_breaks_a_queue_costs_the_device_until_it_is_reset() {
    for (what, make) in BREAKS {
        each(|attack, queue| {
            let (kind, role) = (attack.kind, role(attack.kind, queue));
            let flags = if device::is_for_buffers(kind, queue) { WRITE } else { 0 };
            make(attack, queue, flags);
            let outcome = attack.serve(queue);
            assert_eq!(outcome.is_err(), role != Role::Idle, "{kind:?} {queue}: {what}: {outcome:?}");
            assert_eq!(attack.used(queue), 0, "{kind:?} {queue}: {what}");
            attack.restart();
            attack.lay_out_well(queue);
            attack.serve(queue).unwrap();
            assert_eq!(attack.used(queue), attack.expected(queue), "{kind:?} {queue}: after {what}");
            attack.check();
        });
    }
}

#[test]
fn buffers_across_the_seam_of_two_regions_are_whole() {
    each(|attack, queue| {
        let (bytes, room) = request(attack.kind, queue);
        let (bytes, room) = (bytes.len() as u64, u64::from(room));
        for (readable, writable) in [(SEAM - bytes / 2, DATA), (DATA, SEAM - room / 2)] {
            attack.lay_out(queue, readable, writable);
            attack.serve(queue).unwrap();
            assert_eq!(attack.used(queue), attack.expected(queue), "{:?} {queue}", attack.kind);
            attack.restart();
        }
    });
}

#[test]
fn buffers_beyond_memory_cost_the_device_or_get_an_error() {
    each(|attack, queue| {
        let (kind, role) = (attack.kind, role(attack.kind, queue));
        let (bytes, room) = request(kind, queue);
        let (bytes, room) = (bytes.len() as u64, u64::from(room));
        let mut places = Vec::new();
        if bytes > 0 {
            places.extend([END - bytes / 2, END, u64::MAX - bytes / 2].map(|at| (at, DATA)));
        }
        if room > 0 {
            // Of a larger buffer than what the host has only the start is used.
            let half = if role == Role::Filled { None } else { Some(END - room / 2) };
            places.extend(half.into_iter().chain([END, u64::MAX - room / 2]).map(|at| (DATA, at)));
        }
        for (readable, writable) in places {
            attack.lay_out(queue, readable, writable);
            let outcome = attack.serve(queue);
            let what = format!("{kind:?} {queue} at {readable:#x} {writable:#x}: {outcome:?}");
            if role == Role::Idle {
                assert!(outcome.is_ok() && attack.used(queue) == 0, "{what}");
            } else if readable != DATA && matches!(kind, Kind::Block | Kind::ReadOnlyBlock) {
                // There is a place for the answer: an error.
                let status: u8 = attack.memory.read_obj(GuestAddress(DATA + room - 1)).unwrap();
                assert!(outcome.is_ok() && status == 1, "{what}, status {status}");
            } else {
                assert!(outcome.is_err() && attack.used(queue) == 0, "{what}");
            }
            attack.restart();
        }
    });
}

#[test]
fn a_half_reset_device_serves_nothing_that_was_offered_before() {
    each(|attack, queue| {
        attack.lay_out_well(queue);
        // As the transports do it: the device forgets its driver, the queues are not ready.
        attack.device.reset();
        attack.queues.iter_mut().for_each(QueueT::reset);
        if role(attack.kind, queue) != Role::Filled {
            attack.serve(queue).unwrap();
        }
        let mut io = Io { memory: &attack.memory, queues: &mut attack.queues, interrupt: &attack.interrupts };
        attack.device.host_event(&mut io).unwrap();
        let index: u16 = attack.memory.read_obj(GuestAddress(rings(queue) + 0x2002)).unwrap();
        assert_eq!((index, attack.interrupts()), (0, 0), "{:?} {queue}", attack.kind);
        // Its rings are another driver's now.
        attack.restart();
        attack.serve(queue).unwrap();
        assert_eq!(attack.used(queue), 0, "{:?} {queue}", attack.kind);
        attack.lay_out_well(queue);
        attack.serve(queue).unwrap();
        assert_eq!(attack.used(queue), attack.expected(queue), "{:?} {queue}", attack.kind);
    });
}

#[test]
fn requests_of_hundreds_of_mebibytes_allocate_little() {
    each(|attack, queue| {
        let kind = attack.kind;
        let (bytes, room) = request(kind, queue);
        for flags in [0, WRITE] {
            for whole in [END, 1 << 31] {
                attack.write(DATA, &bytes);
                let length = u32::try_from(bytes.len()).unwrap();
                attack.descriptor(rings(queue), 0, DATA, length, NEXT, 1);
                // All of memory, hundreds of times; or more than there is.
                let whole = u32::try_from(whole).unwrap();
                (1..SIZE - 1)
                    .for_each(|at| attack.descriptor(rings(queue), at, 0, whole, flags | NEXT, at + 1));
                attack.descriptor(rings(queue), SIZE - 1, DATA, room.max(1), WRITE, 0);
                let first = if bytes.is_empty() { 1 } else { 0 };
                attack.offer(queue, first);
                let mut outcome = Ok(());
                let most = peak(|| outcome = attack.serve(queue));
                assert!(most <= allowance(kind), "{kind:?} {queue}: {most} bytes, {outcome:?}");
                attack.restart();
            }
        }
        attack.check();
    });
}
