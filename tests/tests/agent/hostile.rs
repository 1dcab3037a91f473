//! A host that breaks the protocol, and requests without sense: the agent refuses, goes on, or ends its own machine.

use std::io::{Read, Write};

use agent::protocol::{Answer, Call, FailureKind, MAX_FRAME, ProcessId, STREAM_PORT, Stream, StreamOpen};
use bulkhead_tests::guest::{exec, id, prepare, start};
use engine::machine::PendingConnection;

use crate::{IDLE, harbour, spec};

#[test]
fn requests_without_sense_are_refused_and_the_agent_goes_on() {
    let Some(harbour) = harbour() else { return };
    let mut guest = harbour.boot();
    let early = guest.begin(start(spec(&harbour, "true")));
    assert!(guest.reply(early.request).unwrap_err().text.contains("not been prepared"));
    let (_, early) = guest.download(Call::Export);
    assert!(early.unwrap_err().text.contains("not been prepared"));
    for disk in ["sda", "../vda", "vd/x", "", "vdz"] {
        let mut wrong = prepare();
        wrong.image = disk.into();
        assert!(guest.call(Call::Prepare(Box::new(wrong))).is_err(), "{disk}");
    }
    assert_eq!(guest.call(Call::Prepare(Box::new(prepare()))), Ok(Answer::Done));
    assert!(guest.call(Call::Prepare(Box::new(prepare()))).unwrap_err().text.contains("already"));

    let init = guest.start(start(spec(&harbour, IDLE)));
    for signal in [0, 65, 255] {
        let refused = guest.call(Call::Signal { process: id("init"), signal }).unwrap_err();
        assert_eq!(refused.kind, FailureKind::Unsupported);
    }
    let mut wrong = exec("wrong", &["true"]);
    wrong.spec.cwd = "relative".into();
    let refused = guest.begin_exec(wrong);
    assert!(guest.reply(refused.request).unwrap_err().text.contains("absolute"));
    let nul = guest.begin_exec(exec("nul", &["true", "a\0b"]));
    assert!(guest.reply(nul.request).unwrap_err().text.contains("NUL"));

    // Requests whose streams never come wait, up to a bound.
    let requests: Vec<u64> =
        (0..100).map(|n| guest.send(Call::Exec(Box::new(exec(&format!("waits{n}"), &["true"]))))).collect();
    let refused = guest.reply(requests[99]).unwrap_err();
    assert!(refused.text.contains("too many"), "{refused:?}");
    // As their streams come, they run.
    for (n, request) in requests.iter().enumerate().take(64) {
        let process = id(&format!("waits{n}"));
        let streams = [Stream::Stdout, Stream::Stderr]
            .map(|stream| guest.stream(&StreamOpen::Process { process: process.clone(), stream }));
        assert_eq!(guest.reply(*request), Ok(Answer::Done));
        drop(streams);
    }
    // So do connections: those that say nothing, and those that nobody claims.
    let silent: Vec<_> = (0..80)
        .filter_map(|_| guest.machine().connect(STREAM_PORT).and_then(PendingConnection::accept).ok())
        .collect();
    drop(silent);
    assert_eq!(guest.shell("echo still here"), "still here\n");
    for bad in [&b"\xff\xff\xff\xff"[..], b"\x02\0\0\0[]", b"\x05\0\0\0nope!", b"\0"] {
        let mut stream = guest.machine().connect(STREAM_PORT).unwrap().accept().unwrap();
        stream.write_all(bad).unwrap();
        if bad.len() > 4 {
            assert_eq!(stream.read(&mut [0; 8]).unwrap_or(0), 0, "it is closed");
        }
    }
    for request in [0, u64::MAX] {
        drop(guest.stream(&StreamOpen::Transfer { request }));
    }
    drop(guest.stream(&StreamOpen::Process { process: id("nobody"), stream: Stream::Stdin }));
    assert_eq!(guest.shell("echo and now"), "and now\n");
    guest.kill(init);
}

#[test]
fn a_transfer_that_its_host_abandons_costs_nothing() {
    let Some(harbour) = harbour() else { return };
    let mut guest = harbour.prepared();
    let init = guest.start(start(spec(&harbour, "head -c 20000000 /dev/zero > /big; sleep 1000")));
    while guest.shell("[ -e /big ] && wc -c < /big || echo 0").trim() != "20000000" {}
    for _ in 0..3 {
        let request = guest.send(Call::ArchiveGet { path: "/big".into() });
        let mut stream = guest.stream(&StreamOpen::Transfer { request });
        stream.read_exact(&mut [0; 1000]).unwrap();
        drop(stream);
        assert!(guest.reply(request).is_err(), "an archive that nobody read is not done");
    }
    // More transfers than helpers: the others wait, and all are served.
    let requests: Vec<u64> =
        (0..24).map(|_| guest.send(Call::ArchiveGet { path: "/etc/passwd".into() })).collect();
    let streams: Vec<_> =
        requests.iter().map(|r| guest.stream(&StreamOpen::Transfer { request: *r })).collect();
    for request in requests {
        assert_eq!(guest.reply(request), Ok(Answer::Done));
    }
    drop(streams);
    let Ok(Answer::Processes(list)) = guest.call(Call::Processes) else { panic!("no list") };
    assert_eq!(list.processes.len(), 1);
    guest.kill(init);
}

#[test]
fn a_broken_control_connection_ends_the_machine_and_nothing_else() {
    let Some(harbour) = harbour() else { return };
    let oversize = u32::try_from(MAX_FRAME + 1).unwrap().to_le_bytes().to_vec();
    let json = |text: &str| {
        let mut frame = u32::try_from(text.len()).unwrap().to_le_bytes().to_vec();
        frame.extend(text.bytes());
        frame
    };
    let cases = [
        oversize,
        json("no json"),
        json(r#"{"id":1,"call":"unknown"}"#),
        json(r#"{"id":1,"call":{"signal":{"process":"../init","signal":9}}}"#),
        json(r#"{"id":1,"call":"processes","more":1}"#),
    ];
    for bytes in cases {
        let guest = harbour.prepared();
        guest.machine().agent().write_all(&bytes).unwrap();
        let mut rest = Vec::new();
        // The agent is PID 1: its end is the machine's.
        let _ = guest.machine().agent().read_to_end(&mut rest);
    }
    assert!(ProcessId::try_from("../init".to_owned()).is_err());
}
