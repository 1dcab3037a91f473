//! Snapshots of machines on the real /dev/kvm: taken, refused, damaged, restored several times. Payloads are bare-metal.

// A helper that fails fails its test.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod kvm;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Mutex;
use std::time::Duration;

use kvm::assembler::Code;
use kvm::driver::Driver;
use kvm::files::memfd;
use kvm::process::Setup;
use kvm::{Machine, device};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use vmm::config::Fd;
use vmm::control::{
    Answer, Client, ExitReason, ExitReport, RefusalKind, Request, SnapshotKind, SnapshotRequest,
    SnapshotWritten,
};
use vmm::machine::Restore;
use vmm::virtio::fs::Fs;
use vmm::virtio::rng::Rng;

/// Where payloads count.
const COUNT: u64 = 0x6_0000;
/// 32 MiB, as the test machines have.
const RAM: u64 = 32 << 20;

/// Appends a loop that counts up to a number of rounds at [`COUNT`]; some microseconds each in software.
fn count(code: &mut Code, rounds: u32) {
    code.store32(COUNT, 0);
    // inc dword [COUNT]; cmp dword [COUNT], rounds; jb back
    let address = (COUNT as u32).to_le_bytes();
    code.raw(&[0xff, 0x04, 0x25]).raw(&address);
    code.raw(&[0x81, 0x3c, 0x25]).raw(&address).raw(&rounds.to_le_bytes()).raw(&[0x72, 0xec]);
}

/// A snapshot's files.
struct Snapshot {
    state: File,
    memory: File,
}

impl Snapshot {
    fn empty() -> Self {
        Self { state: memfd(b""), memory: memfd(b"") }
    }

    fn take(&self, client: &mut Client, kind: SnapshotKind) -> Answer {
        let request = SnapshotRequest { state: Fd(0), memory: Fd(1), kind };
        client.call(Request::Snapshot(request), &[self.state.as_fd(), self.memory.as_fd()]).unwrap()
    }

    /// A whole one, or the test fails.
    fn full(client: &mut Client) -> (Self, SnapshotWritten) {
        let snapshot = Self::empty();
        match snapshot.take(client, SnapshotKind::Full) {
            Answer::Snapshot(written) => (snapshot, written),
            other => panic!("{other:?}"),
        }
    }

    fn word(&self, address: u64) -> u32 {
        let mut bytes = [0; 4];
        self.memory.read_exact_at(&mut bytes, address).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn restore(&self, paused: bool) -> Restore {
        Restore {
            state: self.state.try_clone().unwrap(),
            memory: self.memory.try_clone().unwrap(),
            working_set: None,
            paused,
        }
    }
}

fn done(client: &mut Client, request: Request) {
    let answer = client.call(request, &[]).unwrap();
    assert!(matches!(answer, Answer::Done), "{answer:?}");
}

fn refused(answer: Answer) -> vmm::control::Refusal {
    match answer {
        Answer::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

/// A machine that goes on from a snapshot. Its kernel is none: it is not looked at.
fn restored(kvm: &File, restore: Restore) -> Machine {
    let mut machine = Machine::new(kvm.try_clone().unwrap(), b"no kernel");
    machine.restore = Some(restore);
    machine
}

/// Runs a payload, pauses it within its count, takes a snapshot and ends it.
fn snapshot_of(machine: Machine) -> (Snapshot, ExitReport) {
    let taken = Mutex::new(None);
    let report = machine.run_with(|control| {
        let client = control.as_mut().unwrap();
        std::thread::sleep(Duration::from_millis(30));
        done(client, Request::Pause);
        *taken.lock().unwrap() = Some(Snapshot::full(client).0);
        done(client, Request::Kill);
    });
    (taken.into_inner().unwrap().unwrap(), report)
}

#[test]
fn a_machine_pauses_and_goes_on() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    count(&mut code, 100_000);
    code.say("end").reset();
    let mut machine = Machine::new(kvm, &code.image());
    machine.vcpus = 2;
    let report = machine.run_with(|control| {
        let client = control.as_mut().unwrap();
        std::thread::sleep(Duration::from_millis(10));
        let refusal = refused(Snapshot::empty().take(client, SnapshotKind::Full));
        assert_eq!(refusal.kind, RefusalKind::State);
        for _ in 0..3 {
            done(client, Request::Pause);
            done(client, Request::Pause);
            let (first, written) = Snapshot::full(client);
            std::thread::sleep(Duration::from_millis(5));
            let (second, _) = Snapshot::full(client);
            let counted = first.word(COUNT);
            assert_eq!(second.word(COUNT), counted, "a machine that rests does not count");
            assert!(counted > 0 && counted < 100_000, "{counted}");
            assert_eq!(first.memory.metadata().unwrap().len(), RAM);
            // Holes stay holes.
            let blocks = first.memory.metadata().unwrap().blocks() * 512;
            assert!(blocks < 1 << 20 && written.memory_bytes <= blocks, "{blocks} {written:?}");
            done(client, Request::Resume);
            done(client, Request::Resume);
        }
        let Answer::Statistics(statistics) = client.call(Request::Statistics, &[]).unwrap() else { panic!() };
        assert_eq!((statistics.memory_bytes, statistics.paused, statistics.exits.len()), (RAM, false, 2));
        let Answer::Diagnosis(diagnosis) = client.call(Request::Diagnose, &[]).unwrap() else { panic!() };
        assert_eq!(diagnosis.vcpus.len(), 2);
        assert!(diagnosis.vcpus[0].contains("rip=0x100"), "{diagnosis:?}");
    });
    assert_eq!((report.reason, report.console.as_str()), (ExitReason::Reset, "end"), "{report:?}");
}

#[test]
fn a_machine_with_a_shared_folder_has_no_snapshots_and_goes_on() {
    let Some(kvm) = device() else { return };
    let (socket, _server) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let mut code = Code::new();
    count(&mut code, 20_000);
    code.say("end").reset();
    let machine = Machine::new(kvm, &code.image()).device(Fs::new(0, "data", socket).unwrap());
    let report = machine.run_with(|control| {
        let client = control.as_mut().unwrap();
        done(client, Request::Pause);
        let snapshot = Snapshot::empty();
        let refusal = refused(snapshot.take(client, SnapshotKind::Full));
        assert_eq!(refusal.kind, RefusalKind::Unsupported);
        assert!(refusal.text.contains("fs0") && refusal.text.contains("cannot be part of one"), "{refusal}");
        // Nothing was written.
        assert_eq!(
            (snapshot.state.metadata().unwrap().len(), snapshot.memory.metadata().unwrap().len()),
            (0, 0)
        );
        done(client, Request::Resume);
    });
    assert_eq!((report.reason, report.console.as_str()), (ExitReason::Reset, "end"), "{report:?}");
}

#[test]
fn twins_go_on_from_the_same_count_and_do_not_share_what_they_write() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    code.say("begin");
    count(&mut code, 60_000);
    code.say("end").reset();
    let (snapshot, report) = snapshot_of(Machine::new(kvm.try_clone().unwrap(), &code.image()));
    assert_eq!((report.reason, report.console.as_str()), (ExitReason::Killed, "begin"));
    let counted = snapshot.word(COUNT);
    for _ in 0..2 {
        // Before it runs, it is what it was.
        let report = restored(&kvm, snapshot.restore(true)).run_with(|control| {
            let client = control.as_mut().unwrap();
            let (same, _) = Snapshot::full(client);
            assert_eq!(same.word(COUNT), counted);
            // A busy host may give it no time at first; that it never goes on, the deadline notices.
            loop {
                done(client, Request::Resume);
                std::thread::sleep(Duration::from_millis(1));
                done(client, Request::Pause);
                let (later, _) = Snapshot::full(client);
                if later.word(COUNT) > counted {
                    break;
                }
            }
            done(client, Request::Resume);
        });
        // Then it goes on to the end; its console begins anew.
        assert_eq!((report.reason, report.console.as_str()), (ExitReason::Reset, "end"), "{report:?}");
        assert_eq!(snapshot.word(COUNT), counted, "the snapshot is not written to");
    }
    // A clone of a clone.
    let (second, _) = snapshot_of(restored(&kvm, snapshot.restore(false)));
    assert!(second.word(COUNT) >= counted);
    let report = restored(&kvm, second.restore(false)).run();
    assert_eq!((report.reason, report.console.as_str()), (ExitReason::Reset, "end"), "{report:?}");
}

#[test]
fn devices_and_interrupts_go_on() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    let mut driver = Driver::new(0);
    driver.start(&mut code);
    driver.request(&mut code, &[(0x7_0000, 64, true)]);
    count(&mut code, 60_000);
    // The queue goes on where it was; the data is new.
    code.store64(0x7_0000, 0);
    driver.request(&mut code, &[(0x7_0000, 64, true)]);
    code.refuse32(0x7_0000, 0, "random bytes").say("ok").reset();
    let machine = || Machine::new(kvm.try_clone().unwrap(), &code.image()).device(Rng::new().unwrap());
    let (snapshot, _) = snapshot_of(machine());
    for _ in 0..2 {
        let report = restored(&kvm, snapshot.restore(false)).device(Rng::new().unwrap()).run();
        assert_eq!((report.reason, report.console.as_str()), (ExitReason::Reset, "ok"), "{report:?}");
    }
    // Another set of devices is refused by name.
    let report = restored(&kvm, snapshot.restore(false)).run();
    assert_eq!(report.reason, ExitReason::BootFailed);
    assert!(report.detail.contains("a machine with 1 devices, this one has 0"), "{report:?}");
    let disk = std::sync::Arc::new(memfd(&[0; 4096]));
    let report = restored(&kvm, snapshot.restore(false)).disk(&disk, 4096, true).run();
    assert!(report.detail.contains("block0: the snapshot holds a device of another type"), "{report:?}");
}

#[test]
fn a_diff_holds_what_guest_and_devices_changed() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    let mut driver = Driver::new(0);
    driver.start(&mut code);
    code.store32(0x20_0000, 1);
    count(&mut code, 60_000);
    code.store32(0x30_0000, 2);
    driver.request(&mut code, &[(0x40_0000, 64, true)]);
    code.store32(COUNT + 8, 1).spin();
    let mut machine = Machine::new(kvm.try_clone().unwrap(), &code.image()).device(Rng::new().unwrap());
    machine.host.track_changes = true;
    let report = machine.run_with(|control| {
        let client = control.as_mut().unwrap();
        std::thread::sleep(Duration::from_millis(30));
        done(client, Request::Pause);
        let (base, whole) = Snapshot::full(client);
        assert_eq!((base.word(0x20_0000), base.word(0x30_0000)), (1, 0));
        // Nothing ran, nothing changed.
        let Answer::Snapshot(written) = base.take(client, SnapshotKind::Diff) else { panic!() };
        assert_eq!(written.memory_bytes, 0);
        loop {
            done(client, Request::Resume);
            std::thread::sleep(Duration::from_millis(30));
            done(client, Request::Pause);
            let Answer::Snapshot(written) = base.take(client, SnapshotKind::Diff) else { panic!() };
            assert!(
                written.memory_bytes > 0 && written.memory_bytes < whole.memory_bytes,
                "{written:?} {whole:?}"
            );
            if base.word(COUNT + 8) == 1 {
                break;
            }
        }
        assert_eq!((base.word(0x20_0000), base.word(0x30_0000)), (1, 2));
        assert_ne!(base.word(0x40_0000), 0, "written by the device, not by the guest");
        // The patched file is a whole snapshot.
        let (all, _) = Snapshot::full(client);
        let (mut one, mut other) = (vec![0; RAM as usize], vec![0; RAM as usize]);
        base.memory.read_exact_at(&mut one, 0).unwrap();
        all.memory.read_exact_at(&mut other, 0).unwrap();
        assert!(one == other);
        done(client, Request::Kill);
    });
    assert_eq!(report.reason, ExitReason::Killed);
    // Without tracking, a diff is refused.
    let machine = Machine::new(kvm, &Code::new().spin().image());
    machine.run_with(|control| {
        let client = control.as_mut().unwrap();
        done(client, Request::Pause);
        let refusal = refused(Snapshot::empty().take(client, SnapshotKind::Diff));
        assert!(refusal.text.contains("track_changes"), "{refusal}");
        done(client, Request::Kill);
    });
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    code.spin();
    let (snapshot, _) = snapshot_of(Machine::new(kvm.try_clone().unwrap(), &code.image()));
    let mut larger = restored(&kvm, snapshot.restore(false));
    larger.memory_mib = 64;
    let mut wider = restored(&kvm, snapshot.restore(false));
    wider.vcpus = 2;
    let mut short = snapshot.restore(false);
    short.memory = memfd(&[0; 4096]);
    let mut none = snapshot.restore(false);
    none.state = memfd(b"a file that is no snapshot, but is longer than the header of one is");
    for (machine, why) in [
        (larger, "a machine with 32 MiB of memory, this one has 64"),
        (wider, "a machine with 1 vCPUs, this one has 2"),
        (restored(&kvm, short), "the snapshot's has 4096 bytes, the machine's 33554432"),
        (restored(&kvm, none), "it is no snapshot of a machine"),
    ] {
        let report = machine.run();
        assert_eq!(report.reason, ExitReason::BootFailed, "{report:?}");
        assert!(report.detail.contains(why), "{why}: {report:?}");
    }
}

#[test]
fn a_hostile_state_ends_in_a_refusal_or_in_a_guest_that_harms_itself() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    let mut driver = Driver::new(0);
    driver.start(&mut code);
    count(&mut code, 60_000);
    code.reset();
    let machine = Machine::new(kvm.try_clone().unwrap(), &code.image()).device(Rng::new().unwrap());
    let (snapshot, _) = snapshot_of(machine);
    let mut bytes = vec![0; snapshot.state.metadata().unwrap().len() as usize];
    snapshot.state.read_exact_at(&mut bytes, 0).unwrap();
    let (mut refused, mut ran) = (0, 0);
    // Every place in turn is changed, and the checksum made right again: what a checksum cannot keep out.
    let step = bytes.len() / 60;
    for at in (56..bytes.len()).step_by(step) {
        let mut changed = bytes.clone();
        changed[at] ^= 0xff;
        let digest = <sha2::Sha256 as sha2::Digest>::digest(&changed[56..]);
        changed[24..56].copy_from_slice(&digest);
        let restore = Restore { state: memfd(&changed), ..snapshot.restore(false) };
        let mut machine = restored(&kvm, restore).device(Rng::new().unwrap());
        machine.deadline = Duration::from_millis(20);
        match machine.run().reason {
            ExitReason::BootFailed => refused += 1,
            _ => ran += 1,
        }
    }
    println!("{refused} refused, {ran} ran");
    assert!(refused > 0 && refused + ran >= 60);
}

/// The runs of pages of a working set.
fn runs(list: &File) -> Vec<(u64, u64)> {
    let mut bytes = vec![0; list.metadata().unwrap().len() as usize];
    list.read_exact_at(&mut bytes, 0).unwrap();
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    bytes.chunks(16).map(|run| (number(&run[..8]), number(&run[8..]))).collect()
}

#[test]
fn a_vmm_in_its_jail_records_the_working_set_whoever_started_it() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    count(&mut code, 60_000);
    code.spin();
    // As every VMM that is a process has one.
    let rng = Rng::new().unwrap();
    let (snapshot, _) = snapshot_of(Machine::new(kvm.try_clone().unwrap(), &code.image()).device(rng));
    let root = nix::unistd::geteuid().is_root();
    for uid in [None, Some(12345)] {
        if uid.is_some() && !root {
            kvm::skip("only root may start a VMM as another user");
            continue;
        }
        let mut setup = Setup::new(kvm.try_clone().unwrap(), b"no kernel");
        setup.uid = uid;
        let restore = snapshot.restore(false);
        setup.restore = Some((restore.state, restore.memory, false));
        let mut vmm = setup.boot(|_| {});
        vmm.started();
        // A busy host may give it no time at first; that it never runs, the time-out of the whole test notices.
        let touched = |client: &mut Client| {
            let list = memfd(b"");
            let answer = client.call(Request::WorkingSet { to: Fd(0) }, &[list.as_fd()]).unwrap();
            assert!(matches!(answer, Answer::Done), "{uid:?}: {answer:?}");
            runs(&list).iter().any(|(first, length)| (*first..first + length).contains(&(COUNT / 4096)))
        };
        while !touched(&mut vmm.client) {
            std::thread::sleep(Duration::from_millis(5));
        }
        vmm.client.ask(Request::Kill, &[]).unwrap();
        assert_eq!(vmm.ended().0.reason, ExitReason::Killed);
    }
}

#[test]
fn the_working_set_is_recorded_and_read_ahead() {
    let Some(kvm) = device() else { return };
    let mut code = Code::new();
    count(&mut code, 60_000);
    code.store32(0x100_0000 + 0x10_0000, 7).say("end").reset();
    let (snapshot, _) = snapshot_of(Machine::new(kvm.try_clone().unwrap(), &code.image()));
    let list = memfd(b"");
    restored(&kvm, snapshot.restore(false)).run_with(|control| {
        let client = control.as_mut().unwrap();
        std::thread::sleep(Duration::from_millis(5));
        let answer = client.call(Request::WorkingSet { to: Fd(0) }, &[list.as_fd()]).unwrap();
        assert!(matches!(answer, Answer::Done), "{answer:?}");
        done(client, Request::Kill);
    });
    let runs = runs(&list);
    let pages: u64 = runs.iter().map(|run| run.1).sum();
    assert!(pages > 0 && pages < RAM / 4096 / 4, "{runs:?}");
    assert!(
        runs.iter().any(|(first, length)| (*first..first + length).contains(&(COUNT / 4096))),
        "{runs:?}"
    );
    for list in [list, memfd(&[0xff; 64]), memfd(&[1; 7])] {
        let mut restore = snapshot.restore(false);
        restore.working_set = Some(list);
        let report = restored(&kvm, restore).run();
        assert_eq!((report.reason, report.console.as_str()), (ExitReason::Reset, "end"), "{report:?}");
    }
}
