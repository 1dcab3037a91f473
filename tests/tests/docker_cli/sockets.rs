//! Other ways to the daemon than its own unix socket.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};

use bulkhead_tests::authority::{Authority, Identity, Purpose};
use bulkhead_tests::daemon::{archive, docker_cli};
use bulkhead_tests::{Bulkhead, Ran};

/// A daemon that was started in some other way.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A docker command against an address, fed with some input.
fn docker(host: &str, options: &[&str], args: &[&str], input: &[u8]) -> Ran {
    let mut command = Command::new("timeout");
    command
        .arg("120")
        .arg(docker_cli().unwrap())
        .args(["-H", host])
        .args(options)
        .args(args)
        .env_remove("DOCKER_HOST");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let ran = child.wait_with_output().unwrap().into();
    feeding.join().unwrap();
    ran
}

#[test]
fn a_service_manager_may_hold_the_socket() {
    let (Some(_), Some(bulkhead)) = (docker_cli(), Bulkhead::new()) else { return };
    let socket = bulkhead.root.path().join("activated.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // As sd_listen_fds(3) has it: descriptor 3, meant for the process of this number.
    let script = "exec 3<&0 < /dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" serve -H fd://";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(&bulkhead.program).env("BULKHEAD_ROOT", bulkhead.root.path());
    command.stdin(std::os::fd::OwnedFd::from(listener)).stderr(Stdio::null());
    let _daemon = Other(command.spawn().unwrap());
    // The first client may come before the daemon: it waits in the socket's queue.
    let host = format!("unix://{}", socket.display());
    let ran = docker(&host, &[], &["version", "--format", "{{.Server.APIVersion}}"], b"");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "1.50\n"), "{ran:?}");
}

#[test]
fn docker_works_over_tls_with_a_client_certificate() {
    let (Some(_), Some(bulkhead)) = (docker_cli(), Bulkhead::new()) else { return };
    let authority = Authority::new(&bulkhead.root.path().join("tls"));
    let (server, client) =
        (authority.sign("server", Purpose::Server), authority.sign("client", Purpose::Client));
    let directory = server.key.parent().unwrap().to_str().unwrap();
    let mut child = bulkhead
        .command(&["serve", "-H", "tcp://127.0.0.1:0", "--tls", directory])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let _daemon = Other(child);
    let mut lines = log.lines().map(Result::unwrap);
    let host =
        lines.find_map(|line| line.split_once("address=").map(|(_, address)| address.trim().to_owned()));
    let host = host.expect("the daemon tells where it listens");
    std::thread::spawn(move || lines.for_each(drop));

    let Identity { authority, certificate, key } = &client;
    let option = |name: &str, path: &std::path::Path| format!("--{name}={}", path.display());
    let options = [option("tlscacert", authority), option("tlscert", certificate), option("tlskey", key)];
    let options: Vec<&str> =
        std::iter::once("--tlsverify").chain(options.iter().map(String::as_str)).collect();
    let ran = docker(&host, &options, &["load"], &std::fs::read(archive()).unwrap());
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "Loaded image: busybox:latest\n"), "{ran:?}");
    // A connection that is taken over, both ways, with the end of one before the end of the other.
    let run = ["run", "-i", "--rm", "busybox", "sh", "-c", "cat; echo the end; exit 5"];
    let ran = docker(&host, &options, &run, b"over TLS\n");
    assert_eq!((ran.code, ran.stdout.as_str()), (5, "over TLS\nthe end\n"), "{ran:?}");
    let ran = docker(&host, &["--tls"], &["ps"], b"");
    assert_eq!(ran.code, 1, "nobody is let in without a certificate: {ran:?}");
}
