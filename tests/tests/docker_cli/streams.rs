//! Logs, and connections that are taken over.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use bulkhead_tests::daemon::Daemon;

#[test]
fn logs_and_attach_follow_a_container() {
    let Some(daemon) = Daemon::with_docker() else { return };
    let script = "for i in 1 2 3; do echo line $i; done; echo bad >&2; read x; echo got $x";
    let _ = daemon.ok(&["run", "-d", "-i", "--name", "talk", "busybox", "sh", "-c", script]);
    let mut follow = daemon
        .command(&["logs", "-f", "-t", "talk"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let (time, text) = first.split_once(' ').unwrap();
    assert!(
        text == "line 1" && time.ends_with('Z') && time.len() == "2006-01-02T15:04:05.000000000Z".len(),
        "{first}"
    );
    // Somebody else types the line that it waits for; the end of its input reaches the program.
    let attached = daemon.fed(&["attach", "talk"], b"hello\n");
    assert_eq!((attached.code, attached.stdout.as_str()), (0, "got hello\n"), "{attached:?}");
    let rest: Vec<String> = lines.map(|line| line.unwrap().split_once(' ').unwrap().1.to_owned()).collect();
    assert_eq!(rest, ["line 2", "line 3", "got hello"]);
    assert!(follow.wait().unwrap().success());
    let logs = daemon.docker(&["logs", "talk"]);
    assert_eq!(
        (logs.stdout.as_str(), logs.stderr.as_str()),
        ("line 1\nline 2\nline 3\ngot hello\n", "bad\n")
    );
    assert_eq!(daemon.ok(&["logs", "--tail", "1", "talk"]), "got hello");
    assert_eq!(daemon.ok(&["logs", "--since", "2100-01-01T00:00:00Z", "talk"]), "");
    assert_eq!(daemon.ok(&["logs", "--until", "2001-01-01T00:00:00Z", "talk"]), "");
    daemon.fails(
        1,
        "does not support reading",
        &["logs", &daemon.ok(&["create", "--log-driver", "none", "busybox"])],
    );
    // `start -a` attaches before it starts.
    let _ = daemon.ok(&["create", "--name", "again", "busybox", "sh", "-c", "echo again; exit 4"]);
    for _ in 0..2 {
        let ran = daemon.docker(&["start", "-a", "again"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (4, "again\n"), "{ran:?}");
    }
}

/// Raw HTTP over the daemon's socket; returns it with the answer's head.
fn taken_over(daemon: &Daemon, request: &str) -> (UnixStream, String) {
    let mut socket = UnixStream::connect(daemon.socket()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    socket.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    (socket, String::from_utf8(head).unwrap().to_ascii_lowercase())
}

#[test]
fn the_keys_leave_a_terminal() {
    let Some(daemon) = Daemon::with_docker() else { return };
    let _ = daemon.ok(&["run", "-d", "-it", "--name", "term", "busybox", "cat"]);
    // The daemon handles the keys whatever the client does: raw bytes over the socket, without docker's command line.
    let (mut socket, head) = taken_over(
        &daemon,
        "POST /v1.43/containers/term/attach?stream=1&stdin=1&stdout=1&detachKeys=ctrl-a,x HTTP/1.1\r\nHost: x\r\n\
         Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
    );
    assert!(
        head.starts_with("http/1.1 101 ") && head.contains("application/vnd.docker.raw-stream"),
        "{head}"
    );
    // What is typed comes back twice: from the terminal, and from the program.
    socket.write_all(b"hi\n").unwrap();
    let mut said = [0; 8];
    socket.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hi\r\nhi\r\n");
    socket.write_all(b"\x01x").unwrap();
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "{rest:?}");
    assert_eq!(daemon.ok(&["inspect", "-f", "{{.State.Running}}", "term"]), "true", "it runs on");
    let _ = daemon.ok(&["rm", "-f", "term"]);
}

#[test]
fn a_websocket_attaches() {
    let Some(daemon) = Daemon::with_docker() else { return };
    let _ = daemon.ok(&["run", "-d", "-i", "--name", "echo", "busybox", "cat"]);
    let (mut socket, head) = taken_over(
        &daemon,
        "GET /containers/echo/attach/ws?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    assert!(head.starts_with("http/1.1 101 ") && head.contains("sec-websocket-accept: "), "{head}");
    // A client's frames are masked (here with zeros), the server's are not (RFC 6455, section 5.2).
    socket.write_all(b"\x82\x83\0\0\0\0hi\n").unwrap();
    let mut frame = [0; 5];
    socket.read_exact(&mut frame).unwrap();
    assert_eq!(&frame, b"\x82\x03hi\n", "without Docker's frames");
    let _ = daemon.ok(&["rm", "-f", "echo"]);
}
