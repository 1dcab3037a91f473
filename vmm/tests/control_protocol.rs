//! The control protocol as a supervisor sees it, with requests in the wrong order, of the wrong version and malformed.

#![allow(clippy::unwrap_used, clippy::panic)]

mod kvm;

use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};

use kvm::assembler::Code;
use kvm::files::memfd;
use kvm::process::Setup;
use nix::sys::socket::{MsgFlags, send};
use vmm::config::{Fd, RateLimit};
use vmm::control::{
    Answer, Client, ControlSocket, Envelope, Event, ExitReason, MAX_MALFORMED, MAX_PACKET, Message, Refusal,
    RefusalKind, Request, SnapshotKind, SnapshotRequest, UNNUMBERED, VERSION,
};
use vmm::virtio::command::Command as DeviceCommand;

fn start() -> (ControlSocket, Child) {
    let (ours, theirs) = ControlSocket::pair().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-vmm"));
    command.args(["--control-fd", "0"]).stdin(theirs.into_fd()).stderr(std::process::Stdio::null());
    (ours, command.spawn().unwrap())
}

fn refusal(message: Message) -> (u64, Refusal) {
    match message {
        Message::Reply { id, answer: Answer::Refused(refusal) } => (id, refusal),
        other => panic!("{other:?}"),
    }
}

fn receive(socket: &ControlSocket) -> Option<Message> {
    socket.receive().unwrap().map(|(message, _)| message)
}

#[test]
fn another_version_is_refused_by_name() {
    let (socket, mut vmm) = start();
    socket.send(&Envelope { id: 41, request: Request::Hello { version: VERSION + 1 } }, &[]).unwrap();
    let (id, refusal) = refusal(receive(&socket).unwrap());
    assert_eq!((id, refusal.kind), (41, RefusalKind::Version));
    assert!(refusal.text.contains("version 2") && refusal.text.contains("this VMM 1"), "{refusal}");
    assert!(receive(&socket).is_none());
    assert!(!vmm.wait().unwrap().success());
}

#[test]
fn nothing_is_done_before_the_greeting_and_the_machine() {
    for request in [Request::Pause, Request::Statistics, Request::Kill] {
        let (socket, mut vmm) = start();
        socket.send(&Envelope { id: 1, request }, &[]).unwrap();
        let (_, refusal) = refusal(receive(&socket).unwrap());
        assert_eq!(refusal.kind, RefusalKind::State);
        assert!(refusal.text.contains("greeting"), "{refusal}");
        vmm.wait().unwrap();
    }
    let (socket, mut vmm) = start();
    let mut client = Client::new(socket).unwrap();
    assert!(matches!(
        client.receive().unwrap(),
        Some(Message::Reply { id: 0, answer: Answer::Hello { version: 1 } })
    ));
    client.ask(Request::Resume, &[]).unwrap();
    let (id, refusal) = refusal(client.receive().unwrap().unwrap());
    assert_eq!((id, refusal.text.as_str()), (1, "there is no machine yet"));
    vmm.wait().unwrap();
    // A kill before there is anything to kill is a clean end.
    let (socket, mut vmm) = start();
    let mut client = Client::new(socket).unwrap();
    client.ask(Request::Kill, &[]).unwrap();
    assert!(vmm.wait().unwrap().success());
}

/// Packets that are no requests, and the number that their refusals bear.
fn bombs() -> Vec<(Vec<u8>, u64)> {
    let named = |text: &str, id| (text.as_bytes().to_vec(), id);
    vec![
        named("{", UNNUMBERED),
        named("null", UNNUMBERED),
        named("{\"id\":1,\"request\":\"frobnicate\"}", 1),
        named("{\"id\":2,\"request\":\"pause\",\"more\":1}", 2),
        named("{\"id\":-1,\"request\":\"pause\"}", UNNUMBERED),
        (format!("{{\"id\":3,\"request\":\"{}\"}}", "é".repeat(MAX_PACKET / 2 - 20)).into_bytes(), 3),
        (vec![b'['; MAX_PACKET], UNNUMBERED),
        (vec![0xff; MAX_PACKET], UNNUMBERED),
        (vec![b' '; MAX_PACKET + 1], UNNUMBERED),
    ]
}

#[test]
fn what_is_no_request_is_refused_and_the_machine_goes_on() {
    let Some(kvm) = kvm::device() else { return };
    let mut vmm = Setup::new(kvm, &Code::new().spin().image()).boot(|_| {});
    vmm.started();
    // Once it has answered, it has all that it ever opens.
    assert!(matches!(vmm.client.call(Request::Statistics, &[]).unwrap(), Answer::Statistics(_)));
    let inner = vmm.inner();
    let descriptors = || std::fs::read_dir(format!("/proc/{inner}/fd")).unwrap().count();
    let before = descriptors();
    for (bomb, expected) in bombs() {
        // With a descriptor, which nobody takes.
        let (pipe, _) = std::io::pipe().unwrap();
        let rights = [std::os::fd::AsRawFd::as_raw_fd(&pipe)];
        nix::sys::socket::sendmsg::<()>(
            std::os::fd::AsRawFd::as_raw_fd(&vmm.client.as_fd()),
            &[std::io::IoSlice::new(&bomb)],
            &[nix::sys::socket::ControlMessage::ScmRights(&rights)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .unwrap();
        let (id, refusal) = refusal(vmm.message());
        let what = String::from_utf8_lossy(&bomb[..bomb.len().min(40)]).into_owned();
        assert_eq!((id, refusal.kind), (expected, RefusalKind::Invalid), "{what}");
        assert!(refusal.text.starts_with("no valid request: ") && refusal.text.len() < 300, "{refusal}");
    }
    assert!(matches!(vmm.client.call(Request::Statistics, &[]).unwrap(), Answer::Statistics(_)));
    assert_eq!(descriptors(), before, "descriptors of refused packets are closed");
    // Paused or not.
    assert!(matches!(vmm.client.call(Request::Pause, &[]).unwrap(), Answer::Done));
    let sent = u32::try_from(bombs().len()).unwrap();
    for _ in sent..MAX_MALFORMED {
        send(std::os::fd::AsRawFd::as_raw_fd(&vmm.client.as_fd()), b"nonsense", MsgFlags::MSG_NOSIGNAL)
            .unwrap();
        assert_eq!(refusal(vmm.message()).0, UNNUMBERED);
    }
    assert!(matches!(vmm.client.call(Request::Resume, &[]).unwrap(), Answer::Done));
    // Enough is enough.
    send(std::os::fd::AsRawFd::as_raw_fd(&vmm.client.as_fd()), b"nonsense", MsgFlags::MSG_NOSIGNAL).unwrap();
    let (report, code) = vmm.ended();
    assert_eq!((report.reason, code), (ExitReason::Killed, Some(0)));
    assert!(report.detail.contains("again and again"), "{report:?}");
}

#[test]
fn what_is_no_greeting_ends_the_vmm_and_not_the_host() {
    // An empty packet is the end of the socket to its reader.
    let bombs = bombs().into_iter().map(|(bomb, _)| bomb).chain([Vec::new()]);
    for bomb in bombs {
        let (socket, mut vmm) = start();
        let _ = send(std::os::fd::AsRawFd::as_raw_fd(&socket), &bomb, MsgFlags::MSG_NOSIGNAL);
        let status = vmm.wait().unwrap();
        assert!(
            status.signal().is_none() && status.code() != Some(101),
            "{status} {:?}",
            &bomb[..bomb.len().min(40)]
        );
    }
}

#[test]
fn every_request_is_answered_under_its_number() {
    let Some(kvm) = kvm::device() else { return };
    let mut vmm = Setup::new(kvm, &Code::new().spin().image()).boot(|_| {});
    vmm.started();
    let client = &mut vmm.client;
    // Several at once; the answers come in order.
    let asked: Vec<u64> = [Request::Pause, Request::Statistics, Request::Resume, Request::Diagnose]
        .into_iter()
        .map(|request| client.ask(request, &[]).unwrap())
        .collect();
    for id in asked {
        assert!(
            matches!(client.receive().unwrap(), Some(Message::Reply { id: answered, .. }) if answered == id)
        );
    }
    let refused = |answer| match answer {
        Answer::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    };
    let again = refused(client.call(Request::Hello { version: VERSION }, &[]).unwrap());
    assert_eq!(again.kind, RefusalKind::State);
    let command = DeviceCommand::LimitDisk(RateLimit::default());
    let none = Request::Device { name: "block7".to_owned(), command: command.clone() };
    assert!(refused(client.call(none, &[]).unwrap()).text.contains("\"block7\""));
    let wrong = Request::Device { name: "rng".to_owned(), command };
    assert_eq!(refused(client.call(wrong, &[]).unwrap()).kind, RefusalKind::Unsupported);
    // Descriptors that did not come along, or are no files to write to.
    assert!(matches!(client.call(Request::Pause, &[]).unwrap(), Answer::Done));
    let request = |state, memory| {
        Request::Snapshot(SnapshotRequest { state: Fd(state), memory: Fd(memory), kind: SnapshotKind::Full })
    };
    let refusal = refused(client.call(request(0, 7), &[memfd(b"").as_fd()]).unwrap());
    assert!(refusal.text.contains("descriptor 7"), "{refusal}");
    let pipe = std::io::pipe().unwrap();
    let refusal = refused(client.call(request(0, 0), &[pipe.1.as_fd()]).unwrap());
    assert_eq!(refusal.kind, RefusalKind::Host, "{refusal}");
    let full = memfd(b"not empty");
    let refusal = refused(client.call(request(0, 1), &[memfd(b"").as_fd(), full.as_fd()]).unwrap());
    assert!(refusal.text.contains("not empty"), "{refusal}");
    // It is as well as before.
    assert!(matches!(client.call(Request::Resume, &[]).unwrap(), Answer::Done));
    assert!(matches!(client.call(Request::Kill, &[]).unwrap(), Answer::Done));
    let (report, code) = vmm.ended();
    assert_eq!((report.reason, code), (ExitReason::Killed, Some(0)));
}

#[test]
fn a_supervisor_that_asks_and_does_not_read_loses_its_machine_only() {
    let Some(kvm) = kvm::device() else { return };
    let mut vmm = Setup::new(kvm, &Code::new().spin().image()).boot(|_| {});
    vmm.started();
    let mut asked = 0;
    while asked < 100_000 && vmm.client.ask(Request::Diagnose, &[]).is_ok() {
        asked += 1;
    }
    assert!(asked < 100_000, "an answer was kept for each");
    let status = vmm.child.wait().unwrap();
    assert!(status.signal().is_none(), "{status}");
    while let Ok(Some(message)) = vmm.client.receive() {
        if let Message::Event(Event::Ended(report)) = message {
            assert_eq!(report.reason, ExitReason::Killed, "{report:?}");
        }
    }
}
