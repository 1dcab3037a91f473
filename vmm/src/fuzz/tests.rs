//! The kept corpus, a million requests to each device, and how much memory they may cost.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

use super::*;
use crate::virtio::testing::Random;

/// Counts what each thread has allocated and not freed.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // Not available while a thread ends.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(isize::try_from(layout.size()).unwrap_or(isize::MAX));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-isize::try_from(layout.size()).unwrap_or(isize::MAX));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most memory, in bytes, that a device may allocate for itself and its requests: buffers of a few frames or packets, and for
/// the socket device what its few streams may hold.
pub(super) fn allowance(kind: Kind) -> isize {
    match kind {
        Kind::Vsock => 2 << 20,
        _ => 1 << 20,
    }
}

const REQUESTS: u64 = 1_000_000;

/// The most memory that something allocated at a time beyond what there was before.
pub(super) fn peak(run: impl FnOnce()) -> isize {
    let before = LIVE.get();
    PEAK.set(before);
    run();
    PEAK.get() - before
}

/// Plays so many requests, in runs of fresh devices. Returns the most memory that a run took.
fn storm(kind: Kind) -> isize {
    let mut random = Random(0x5eed + kind as u64);
    let mut bytes = vec![0; 256 << 10];
    let (mut requests, mut most) = (0, 0);
    while requests < REQUESTS {
        for chunk in bytes.chunks_exact_mut(8) {
            chunk.copy_from_slice(&random.next().to_le_bytes());
        }
        most = most.max(peak(|| requests += device(kind, &bytes)));
    }
    most
}

fn survive(kind: Kind) {
    let most = storm(kind);
    println!("{kind:?}: {REQUESTS} requests, at most {most} bytes allocated");
    assert!(most <= allowance(kind), "{kind:?} took {most} bytes");
}

// One test each, so that they run side by side.

#[test]
fn a_million_requests_to_a_disk() {
    survive(Kind::Block);
}

#[test]
fn a_million_requests_to_a_read_only_disk() {
    survive(Kind::ReadOnlyBlock);
}

#[test]
fn a_million_requests_to_a_network_interface() {
    survive(Kind::Net);
}

#[test]
fn a_million_requests_to_a_network_interface_with_headers() {
    survive(Kind::NetHeaders);
}

#[test]
fn a_million_requests_to_a_shared_folder() {
    survive(Kind::Fs);
}

#[test]
fn a_million_requests_to_the_socket_device() {
    survive(Kind::Vsock);
}

#[test]
fn a_million_requests_to_the_balloon() {
    survive(Kind::Balloon);
}

#[test]
fn a_million_requests_to_the_console() {
    survive(Kind::Console);
}

#[test]
fn a_million_requests_to_the_entropy_device() {
    survive(Kind::Rng);
}

/// The generator must reach both what devices serve and what they refuse.
#[test]
fn storms_make_requests_that_are_served_and_requests_that_are_not() {
    for kind in Kind::ALL {
        let mut random = Random(3);
        let bytes: Vec<u8> = (0..32 << 10).flat_map(|_| random.next().to_le_bytes()).collect();
        let (mut attack, mut input) = (Attack::new(kind), Input::new(&bytes));
        let mut seen = std::collections::BTreeMap::new();
        while attack.step(&mut input).is_some() {
            for (name, value) in attack.counters() {
                let most = seen.entry(name).or_insert(0);
                *most = value.max(*most);
            }
        }
        assert!(attack.losses() > 10, "{kind:?}: {} losses", attack.losses());
        let (losses, requests) = (attack.losses(), attack.requests());
        assert!(losses * 10 < requests * 9, "{kind:?}: of {requests} requests {losses} lost the device");
        let served: &[&str] = match kind {
            Kind::Block | Kind::ReadOnlyBlock => &["requests", "bytes"],
            Kind::Net | Kind::NetHeaders => {
                &["sent_frames", "sent_dropped", "received_frames", "received_dropped"]
            }
            Kind::Fs => &["requests", "refused", "waiting"],
            Kind::Balloon => &["inflated_bytes", "deflated_bytes", "reported_bytes"],
            Kind::Console => &["printed_bytes"],
            Kind::Vsock | Kind::Rng => &[],
        };
        for name in served {
            assert!(seen[name] > 0, "{kind:?}: {name} stayed 0: {seen:?}");
        }
    }
}

/// However much a driver offers (here one chain, over and over), one event is over after so many requests: the other devices of the loop, and
/// so the machine's supervisor, get their turn; and there is no more than one interrupt for each event.
#[test]
fn one_event_serves_no_more_than_its_share() {
    let forget = [&[48, 0, 0, 0, 2, 0, 0, 0][..], &[0; 40]].concat();
    let frame = [&[0; 12][..], &[0xff; 6], &[2, 0, 0, 0, 0, 1], &[0; 46]].concat();
    // A packet to a stream that there is not, which is answered.
    let packet =
        [&[3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0][..], &[9; 8], &[0; 4], &[1, 0, 5, 0], &[0; 12]]
            .concat();
    for (kind, queue, request, answer) in [
        (Kind::Block, 0, vec![4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1),
        (Kind::ReadOnlyBlock, 0, vec![0; 16], 513),
        (Kind::Net, 1, frame.clone(), 0),
        (Kind::NetHeaders, 1, frame, 0),
        (Kind::Fs, 0, forget, 0),
        (Kind::Vsock, 1, packet, 0),
        (Kind::Balloon, 0, vec![0x80, 0, 0, 0], 0),
        (Kind::Balloon, 3, vec![], 64),
        (Kind::Console, 1, b"text".to_vec(), 0),
        (Kind::Rng, 0, vec![], 64),
    ] {
        let mut attack = Attack::new(kind);
        let events = attack.flood(queue, &request, answer);
        let total: u16 = events.iter().sum();
        // Of the queue that was notified, and of the one on which the socket device answers.
        let most = if kind == Kind::Vsock { 2 } else { 1 } * events.len() as u64;
        assert!(attack.interrupts() <= most, "{kind:?}: {} interrupts in {events:?}", attack.interrupts());
        assert!(events.iter().all(|served| *served <= 128), "{kind:?}: {events:?}");
        // Where the host's side has to take or give something first, less is served; else all of it, without another word.
        let waits = matches!(kind, Kind::Vsock | Kind::Fs | Kind::Net | Kind::NetHeaders);
        assert!(total == 256 || (waits && total > 0), "{kind:?}: {events:?}");
    }
}

fn random_bytes(random: &mut Random) -> Vec<u8> {
    (0..1 + random.below(400)).flat_map(|_| random.next().to_le_bytes()).collect()
}

#[test]
fn both_transports_survive_thousands_of_random_programs() {
    let mut random = Random(77);
    for _ in 0..3000 {
        mmio(&random_bytes(&mut random));
        vhost_user(&random_bytes(&mut random));
    }
}

/// Requests of a supervisor's, with a few bytes changed: each packet is answered, and only a kill or the last of many slips ends the machine.
#[test]
fn requests_with_single_bytes_changed_are_carried_out_or_refused() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/control/requests");
    let seed = std::fs::read(corpus).unwrap();
    control(&seed);
    let mut random = Random(9);
    for _ in 0..3000 {
        let mut bytes = seed.clone();
        for _ in 0..=random.below(4) {
            let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
            bytes[at] = random.next().to_le_bytes()[0];
        }
        control(&bytes);
    }
}

/// What a fuzzer has found, and seeds for it: every file of `vmm/fuzz/corpus`, by the name of its target's directory.
#[test]
fn the_corpus_is_survived() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut played = 0;
    for target in std::fs::read_dir(corpus).unwrap() {
        let target = target.unwrap().path();
        let name = target.file_name().unwrap().to_str().unwrap().to_owned();
        for file in std::fs::read_dir(target).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == name) {
                assert!(device(kind, &bytes) > 0, "{name} makes no request");
                played += 1;
                continue;
            }
            match name.as_str() {
                "mmio" => mmio(&bytes),
                "vhost_user" => vhost_user(&bytes),
                "configuration" => configuration(&bytes),
                "control" => control(&bytes),
                "snapshot" => {
                    let _ = snapshot(&bytes);
                }
                other => panic!("a corpus of nothing: {other}"),
            }
            played += 1;
        }
    }
    assert!(played >= 36, "{played} files");
}

#[test]
fn configurations_with_single_bytes_changed_never_break_a_bound() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/configuration/full");
    let seed = std::fs::read(corpus).unwrap();
    assert!(serde_json::from_slice::<crate::config::MachineConfig>(&seed[1..]).is_ok());
    let mut random = Random(5);
    for _ in 0..20_000 {
        let mut bytes = seed.clone();
        for _ in 0..=random.below(3) {
            let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
            bytes[at] = random.next().to_le_bytes()[0];
        }
        configuration(&bytes);
    }
}
