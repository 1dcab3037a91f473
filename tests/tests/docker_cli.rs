//! Docker's own command line against `bulkhead serve`, without it knowing: every command's output and exit code, compared with what
//! Docker prints.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use bulkhead_tests::daemon::Daemon;
use bulkhead_tests::registry::Registry;

/// Whether a text is an id of 64 digits.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[test]
fn run_passes_bytes_and_exit_codes_on() {
    let Some(daemon) = Daemon::with_docker() else { return };
    let run = |args: &[&str]| daemon.docker(&[&["run", "--rm"], args].concat());
    let ran = run(&["busybox", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (3, "out\n", "err\n"));
    let ran = daemon.fed(&["run", "--rm", "-i", "busybox", "cat"], b"through a pipe\n");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "through a pipe\n"), "{ran:?}");
    let big = vec![b'x'; 3 << 20];
    let ran = daemon.fed(&["run", "--rm", "-i", "busybox", "sh", "-c", "wc -c"], &big);
    assert_eq!((ran.code, ran.stdout.trim()), (0, "3145728"), "{ran:?}");
    let ran = run(&["-t", "busybox", "sh", "-c", "tty; echo $TERM"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "/dev/pts/0\r\nxterm\r\n"), "{ran:?}");
    // Docker's codes of its own: the program is not found, cannot be executed, was never started.
    let ran = run(&["busybox", "nope"]);
    assert_eq!(ran.code, 127, "{ran:?}");
    assert!(ran.stderr.contains("Error response from daemon") && ran.stderr.contains("not found"), "{ran:?}");
    assert_eq!(run(&["busybox", "/etc/passwd"]).code, 126);
    assert_eq!(run(&["busybox", "/etc"]).code, 126);
    let ran = run(&["--privileged", "busybox", "true"]);
    assert_eq!(ran.code, 125, "{ran:?}");
    assert!(ran.stderr.contains("--privileged cannot be done"), "{ran:?}");
    assert_eq!(run(&["busybox", "sh", "-c", "kill -9 $$"]).code, 137);
    let ran = run(&["--name", "-bad", "busybox", "true"]);
    assert!(ran.code == 125 && ran.stderr.contains("Invalid container name"), "{ran:?}");
    assert_eq!(daemon.ok(&["ps", "-aq"]), "");
}

#[test]
fn run_takes_dockers_options() {
    let Some(daemon) = Daemon::with_docker() else { return };
    let run = |options: &[&str], script: &str| {
        daemon.ok(&[&["run", "--rm"], options, &["busybox", "sh", "-c", script]].concat())
    };
    let env = daemon.bulkhead.root.path().join("env");
    fs::write(&env, "FROM_FILE=1\n").unwrap();
    let file = env.to_str().unwrap();
    assert_eq!(run(&["-e", "A=b", "--env-file", file], "echo $A $FROM_FILE"), "b 1");
    assert_eq!(run(&["-w", "/made/here"], "pwd"), "/made/here");
    assert_eq!(run(&["-u", "nobody"], "id -u"), "65534");
    assert_eq!(run(&["-u", "12:34"], "id -u; id -g"), "12\n34");
    assert_eq!(run(&["-h", "host.example"], "hostname"), "host.example");
    assert_eq!(daemon.ok(&["run", "--rm", "--entrypoint", "echo", "busybox", "a", "b"]), "a b");
    assert_eq!(
        run(
            &["--read-only", "--tmpfs", "/run:size=1m"],
            "touch /x 2>/dev/null || echo no; touch /run/x && echo yes"
        ),
        "no\nyes"
    );
    assert_eq!(run(&["--cap-drop", "ALL"], "grep CapEff /proc/self/status | cut -f2"), "0000000000000000");
    assert_eq!(run(&["--ulimit", "nofile=77:88"], "ulimit -n"), "77");
    assert_eq!(
        run(&["--security-opt", "no-new-privileges"], "grep NoNewPrivs /proc/self/status | cut -f2"),
        "1"
    );
    assert_eq!(run(&["--init"], "ps -o comm | sed -n 2p"), "init");
    let memory = run(&["-m", "64m"], "cat /sys/fs/cgroup/memory.max");
    assert_eq!(memory, (64 << 20).to_string());
    assert_eq!(run(&["--pids-limit", "50"], "cat /sys/fs/cgroup/pids.max"), "50");
    assert_eq!(run(&["--cpus", "0.5"], "cat /sys/fs/cgroup/cpu.max"), "50000 100000");
    assert_eq!(run(&["--group-add", "7"], "id -G"), "0 7");
    assert_eq!(
        run(
            &["--sysctl", "net.ipv4.ip_unprivileged_port_start=99"],
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"
        ),
        "99"
    );
    assert_eq!(run(&["--shm-size", "2m"], "df -k /dev/shm | tail -1 | awk '{print $2}'"), "2048");
    assert_eq!(run(&["--network", "none"], "ls /sys/class/net"), "lo");
    for (options, words) in [
        (&["--pid", "host"][..], "--pid host cannot be done"),
        (&["--network", "host"], "--network host cannot be done"),
        (&["--ipc", "host"], "--ipc host cannot be done"),
        (&["--uts", "host"], "--uts host cannot be done"),
        (&["--device", "/dev/null"], "--device cannot be done"),
        (&["--gpus", "all"], "--gpus cannot be done"),
        (&["--userns", "host"], "--userns host cannot be done"),
        (&["--cgroup-parent", "x"], "--cgroup-parent x cannot be done"),
        (&["--link", "a:b"], "--link cannot be done"),
        (&["--runtime", "kata"], "--runtime kata cannot be done"),
        (&["--log-driver", "syslog"], "--log-driver syslog cannot be done"),
        (&["--volume-driver", "nfs"], "--volume-driver nfs cannot be done"),
        (&["-m", "1m"], "Minimum memory limit allowed is 6MB"),
    ] {
        daemon.fails(125, words, &[&["run", "--rm"], options, &["busybox", "true"]].concat());
    }
    assert_eq!(daemon.ok(&["ps", "-aq"]), "", "something was created all the same");
}

#[test]
fn a_container_from_create_to_rm() {
    let Some(daemon) = Daemon::with_docker() else { return };
    let id = daemon.ok(&[
        "create",
        "--name",
        "web",
        "--label",
        "tier=front",
        "-p",
        "127.0.0.1:0:80",
        "-e",
        "A=1",
        "busybox",
        "sh",
        "-c",
        "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done",
    ]);
    assert!(is_id(&id), "{id}");
    assert_eq!(
        daemon.ok(&["ps", "-a", "--format", "{{.Names}} {{.Status}} {{.Image}}"]),
        "web Created busybox"
    );
    assert_eq!(daemon.ok(&["ps", "-q"]), "");
    daemon.fails(1, "is already in use by container", &["create", "--name", "web", "busybox"]);
    daemon.fails(1, "is not running", &["exec", "web", "true"]);
    daemon.fails(1, "is not running", &["kill", "web"]);
    assert_eq!(daemon.ok(&["start", "web"]), "web");
    assert_eq!(daemon.ok(&["start", "web"]), "web", "starting twice is no error");
    let format =
        "{{.State.Status}} {{.State.Running}} {{.Config.Image}} {{.Name}} {{.HostConfig.RestartPolicy.Name}}";
    assert_eq!(daemon.ok(&["inspect", "-f", format, "web"]), "running true busybox /web no");
    assert_eq!(daemon.ok(&["inspect", "-f", "{{.Id}}", &id[..12]]), id);
    assert!(daemon.ok(&["ps", "--format", "{{.Status}}"]).starts_with("Up "));
    assert_eq!(
        daemon.ok(&["ps", "-q", "--no-trunc", "--filter", "label=tier=front", "--filter", "name=^web$"]),
        id
    );
    assert_eq!(daemon.ok(&["ps", "-q", "--filter", "status=exited"]), "");
    assert!(daemon.ok(&["port", "web"]).contains("80/tcp -> 127.0.0.1"), "port");
    daemon.fails(1, "container is running", &["rm", "web"]);
    assert_eq!(daemon.ok(&["rename", "web", "site"]), "");
    assert_eq!(daemon.ok(&["pause", "site"]), "site");
    assert!(daemon.ok(&["ps", "--format", "{{.Status}}"]).ends_with("(Paused)"));
    daemon.fails(1, "is paused", &["exec", "site", "true"]);
    assert_eq!(daemon.ok(&["unpause", "site"]), "site");
    daemon.fails(1, "is not paused", &["unpause", "site"]);
    assert_eq!(daemon.ok(&["update", "--memory", "64m", "--restart", "on-failure:2", "site"]), "site");
    let limits = "{{.HostConfig.Memory}} {{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}";
    assert_eq!(daemon.ok(&["inspect", "-f", limits, "site"]), "67108864 on-failure 2");
    assert_eq!(daemon.ok(&["update", "--restart", "no", "site"]), "site");
    assert_eq!(daemon.ok(&["stop", "site"]), "site");
    assert_eq!(daemon.ok(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "site"]), "exited 7");
    assert_eq!(daemon.ok(&["wait", "site"]), "7");
    assert!(daemon.ok(&["ps", "-a", "--format", "{{.Status}}"]).starts_with("Exited (7) "));
    assert_eq!(daemon.ok(&["logs", "site"]), "up\nbye");
    assert_eq!(daemon.ok(&["restart", "-t", "1", "site"]), "site");
    assert_eq!(daemon.ok(&["kill", "-s", "KILL", "site"]), "site");
    assert_eq!(daemon.ok(&["wait", "site"]), "137");
    assert_eq!(daemon.ok(&["rm", "-v", "site"]), "site");
    daemon.fails(1, "No such container: site", &["rm", "site"]);
    daemon.fails(1, "No such object: site", &["inspect", "site"]);
    let second = daemon.ok(&["run", "-d", "busybox", "sleep", "1000"]);
    assert!(is_id(&second), "{second}");
    assert_eq!(daemon.ok(&["rm", "-f", &second]), second);
    assert_eq!(daemon.ok(&["ps", "-aq"]), "");
}

#[test]
fn exec_into_a_container() {
    let Some(daemon) = Daemon::with_docker() else { return };
    let _ = daemon.ok(&["run", "-d", "--name", "box", "-e", "A=outer", "busybox", "sleep", "1000"]);
    let ran = daemon.docker(&["exec", "box", "sh", "-c", "echo out; echo err >&2; exit 5"]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (5, "out\n", "err\n"));
    let ran = daemon.fed(&["exec", "-i", "box", "cat"], b"piped\n");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "piped\n"), "{ran:?}");
    assert_eq!(
        daemon.ok(&[
            "exec",
            "-e",
            "B=2",
            "-w",
            "/tmp",
            "-u",
            "nobody",
            "box",
            "sh",
            "-c",
            "echo $A $B $(pwd) $(id -u)"
        ]),
        "outer 2 /tmp 65534"
    );
    assert_eq!(daemon.ok(&["exec", "-t", "box", "tty"]), "/dev/pts/0");
    let ran = daemon.docker(&["exec", "box", "nope"]);
    assert_eq!(ran.code, 127, "{ran:?}");
    assert!(format!("{}{}", ran.stdout, ran.stderr).contains("executable file not found"), "{ran:?}");
    assert_eq!(daemon.docker(&["exec", "box", "/etc/passwd"]).code, 126);
    assert_eq!(daemon.ok(&["exec", "-d", "box", "touch", "/tmp/detached"]), "");
    let found = "until [ -e /tmp/detached ]; do sleep 0.02; done; echo yes";
    assert_eq!(daemon.ok(&["exec", "box", "sh", "-c", found]), "yes");
    daemon.fails(1, "--privileged cannot be done", &["exec", "--privileged", "box", "true"]);
    daemon.fails(1, "No such container: nobox", &["exec", "nobox", "true"]);
    let top = daemon.ok(&["top", "box"]);
    assert!(top.starts_with("UID") && top.contains("sleep 1000"), "{top}");
    assert!(daemon.ok(&["top", "box", "-o", "pid,args"]).contains("sleep 1000"));
    let stats = daemon.ok(&["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}} {{.MemUsage}}", "box"]);
    assert!(stats.starts_with("box 1 ") && !stats.contains("0B / 0B"), "{stats}");
    let _ = daemon.ok(&["rm", "-f", "box"]);
}

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

#[test]
fn files_go_in_and_out() {
    let Some(daemon) = Daemon::with_docker() else { return };
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir_all(work.path().join("tree/deep")).unwrap();
    fs::write(work.path().join("tree/deep/file"), "content\n").unwrap();
    let _ = daemon.ok(&["run", "-d", "--name", "box", "busybox", "sleep", "1000"]);
    for state in ["running", "stopped"] {
        if state == "stopped" {
            let _ = daemon.ok(&["kill", "box"]);
            let _ = daemon.ok(&["wait", "box"]);
        }
        let _ = daemon.ok(&["cp", &path("tree"), &format!("box:/tmp/{state}")]);
        let _ = daemon.ok(&["cp", &format!("box:/tmp/{state}"), &path(state)]);
        assert_eq!(fs::read_to_string(path(&format!("{state}/deep/file"))).unwrap(), "content\n");
        let tar = daemon.fed(&["cp", "-", "box:/tmp"], &{
            let mut tar = tar::Builder::new(Vec::new());
            bulkhead_tests::image::add_file(&mut tar, &format!("piped-{state}"), b"piped", 0o600);
            tar.into_inner().unwrap()
        });
        assert_eq!(tar.code, 0, "{tar:?}");
        let _ = daemon.ok(&["cp", &format!("box:/tmp/piped-{state}"), &path("piped")]);
        assert_eq!(fs::read_to_string(path("piped")).unwrap(), "piped");
        daemon.fails(1, "Could not find the file /nope in container", &["cp", "box:/nope", &path("x")]);
        let changes = daemon.ok(&["diff", "box"]);
        assert!(changes.lines().any(|line| line == format!("A /tmp/{state}/deep/file")), "{changes}");
        assert!(changes.lines().any(|line| line == "C /tmp"), "{changes}");
    }
    let exported = daemon.command(&["export", "box"]).output().unwrap();
    let mut tar = tar::Archive::new(&exported.stdout[..]);
    let names: Vec<String> =
        tar.entries().unwrap().map(|e| e.unwrap().path().unwrap().to_string_lossy().into_owned()).collect();
    assert!(names.iter().any(|name| name.trim_start_matches("./") == "tmp/running/deep/file"), "{names:?}");
    let id = daemon.ok(&[
        "commit",
        "-m",
        "said",
        "-a",
        "me",
        "-c",
        "CMD [\"cat\", \"/tmp/running/deep/file\"]",
        "box",
        "made:1",
    ]);
    assert!(id.starts_with("sha256:"), "{id}");
    assert_eq!(daemon.ok(&["run", "--rm", "made:1"]), "content");
    assert_eq!(daemon.ok(&["inspect", "-f", "{{.Comment}} {{.Author}}", "made:1"]), "said me");
    let imported =
        daemon.fed(&["import", "-c", "CMD [\"echo\", \"imported\"]", "-", "flat:1"], &exported.stdout);
    assert!(imported.code == 0 && imported.stdout.starts_with("sha256:"), "{imported:?}");
    assert_eq!(daemon.ok(&["run", "--rm", "-e", "PATH=/bin", "flat:1"]), "imported");
    let _ = daemon.ok(&["rm", "box"]);
}

#[test]
fn images_are_told_of_tagged_saved_and_removed() {
    let Some(daemon) = Daemon::with_docker() else { return };
    assert_eq!(daemon.ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"]), "busybox:latest");
    let id = daemon.ok(&["inspect", "-f", "{{.Id}}", "busybox"]);
    assert_eq!(daemon.ok(&["images", "-q", "--no-trunc"]), id);
    assert_eq!(
        daemon.ok(&["inspect", "-f", "{{.Os}}/{{.Architecture}} {{json .Config.Cmd}}", "busybox"]),
        "linux/amd64 [\"sh\"]"
    );
    let _ = daemon.ok(&["tag", "busybox", "other/name:v1"]);
    assert_eq!(daemon.ok(&["images", "-q", "--no-trunc", "other/name"]), id);
    assert_eq!(daemon.ok(&["images", "-q", "--filter", "reference=nothing"]), "");
    assert_eq!(daemon.ok(&["history", "-q", "--no-trunc", "busybox"]), id);
    let saved = daemon.command(&["save", "busybox", "other/name:v1"]).output().unwrap();
    assert!(saved.status.success(), "{saved:?}");
    daemon.fails(1, "image is referenced in multiple repositories", &["rmi", &id]);
    assert_eq!(daemon.ok(&["rmi", "other/name:v1"]), "Untagged: other/name:v1");
    let _ = daemon.ok(&["create", "--name", "user", "busybox"]);
    daemon.fails(1, "image is being used by stopped container", &["rmi", "busybox"]);
    let _ = daemon.ok(&["rm", "user"]);
    assert_eq!(daemon.ok(&["rmi", "busybox"]), format!("Untagged: busybox:latest\nDeleted: {id}"));
    daemon.fails(1, "No such image: busybox:latest", &["rmi", "busybox"]);
    let loaded = daemon.fed(&["load", "-q"], &saved.stdout);
    let mut lines: Vec<&str> = loaded.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["Loaded image: busybox:latest", "Loaded image: other/name:v1"], "{loaded:?}");
    assert_eq!(daemon.ok(&["inspect", "-f", "{{.Id}}", "other/name:v1"]), id);
    daemon.fails(1, "search is not supported", &["search", "busybox"]);
    let pruned = daemon.ok(&["image", "prune", "-a", "-f"]);
    assert!(pruned.contains(&id) && pruned.contains("Total reclaimed space"), "{pruned}");
    assert_eq!(daemon.ok(&["images", "-q"]), "");
    let broken = daemon.fed(&["load"], b"this is no archive");
    assert!(broken.code == 1 && !broken.stderr.is_empty(), "{broken:?}");
}

#[test]
fn images_are_pulled_and_pushed() {
    let Some(daemon) = Daemon::with_docker() else { return };
    let directory = tempfile::tempdir().unwrap();
    let Some(registry) = Registry::start(directory.path(), "", "") else { return };
    let name = format!("{}/some/busybox:v1", registry.address);
    let _ = daemon.ok(&["tag", "busybox", &name]);
    let pushed = daemon.ok(&["push", &name]);
    assert!(
        pushed.contains("The push refers to repository") && pushed.contains("v1: digest: sha256:"),
        "{pushed}"
    );
    // What the registry has under the name, without pulling it; docker's command line has no verb for that.
    let url = format!("http://x/distribution/{name}/json");
    let asked =
        Command::new("curl").args(["-sS", "--unix-socket"]).arg(daemon.socket()).arg(url).output().unwrap();
    let told: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap();
    assert!(pushed.contains(told["Descriptor"]["digest"].as_str().unwrap()), "{told}");
    assert_eq!(told["Platforms"][0]["architecture"], "amd64", "{told}");
    let _ = daemon.ok(&["rmi", &name]);
    let _ = daemon.ok(&["rmi", "busybox"]);
    // `run` pulls what is missing.
    let ran = daemon.docker(&["run", "--rm", &name, "echo", "pulled"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "pulled\n"), "{ran:?}");
    assert!(
        ran.stderr.contains("Unable to find image") && ran.stderr.contains("Downloaded newer image"),
        "{ran:?}"
    );
    let again = daemon.ok(&["pull", &name]);
    assert!(again.contains("Image is up to date for"), "{again}");
    assert_eq!(daemon.ok(&["pull", "-q", &name]), name);
    daemon.fails(1, "not found", &["pull", &format!("{}/some/busybox:v2", registry.address)]);
    daemon.fails(
        125,
        "pull access denied for no/thing",
        &["run", "--rm", &format!("{}/no/thing", registry.address)],
    );
}

#[test]
fn volumes_and_networks_are_objects() {
    let Some(daemon) = Daemon::with_docker() else { return };
    assert_eq!(daemon.ok(&["volume", "create", "--label", "tier=x", "data"]), "data");
    assert_eq!(daemon.ok(&["volume", "ls", "-q", "--filter", "label=tier=x"]), "data");
    assert_eq!(
        daemon.ok(&["volume", "inspect", "-f", "{{.Name}} {{.Driver}} {{.Scope}}", "data"]),
        "data local local"
    );
    daemon.fails(1, "--opt", &["volume", "create", "-o", "type=nfs", "bad"]);
    let _ = daemon.ok(&["create", "--name", "user", "-v", "data:/data", "busybox"]);
    daemon.fails(1, "volume is in use", &["volume", "rm", "data"]);
    assert_eq!(
        daemon.ok(&[
            "inspect",
            "-f",
            "{{range .Mounts}}{{.Type}} {{.Name}} {{.Destination}} {{.RW}}{{end}}",
            "user"
        ]),
        "volume data /data true"
    );
    let _ = daemon.ok(&["rm", "user"]);
    assert_eq!(daemon.ok(&["volume", "rm", "data"]), "data");
    daemon.fails(1, "no such volume", &["volume", "inspect", "data"]);
    assert!(daemon.ok(&["volume", "prune", "-f"]).contains("Total reclaimed space"));

    let id = daemon.ok(&["network", "create", "--subnet", "172.30.0.0/16", "front"]);
    assert!(is_id(&id), "{id}");
    let list = daemon.ok(&["network", "ls", "--format", "{{.Name}} {{.Driver}}"]);
    for line in ["bridge bridge", "front bridge", "none null"] {
        assert!(list.lines().any(|have| have == line), "{list}");
    }
    assert_eq!(
        daemon.ok(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", "front"]),
        "172.30.0.0/16"
    );
    daemon.fails(1, "front", &["network", "create", "front"]);
    daemon.fails(1, "--driver overlay cannot be done", &["network", "create", "-d", "overlay", "far"]);
    let _ = daemon.ok(&["create", "--name", "member", "busybox"]);
    let _ = daemon.ok(&["network", "connect", "--alias", "alias", "front", "member"]);
    let networks = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}";
    assert_eq!(daemon.ok(&["inspect", "-f", networks, "member"]), "bridge front");
    daemon.fails(1, "", &["network", "rm", "front"]);
    let _ = daemon.ok(&["network", "disconnect", "front", "member"]);
    assert_eq!(daemon.ok(&["network", "rm", "front"]), "front");
    daemon.fails(1, "pre-defined network", &["network", "rm", "bridge"]);
    assert_eq!(daemon.ok(&["network", "prune", "-f"]), "");
    let _ = daemon.ok(&["rm", "member"]);
}

#[test]
fn the_system_tells_about_itself() {
    let Some(daemon) = Daemon::with_docker() else { return };
    let version = daemon.ok(&[
        "version",
        "--format",
        "{{.Server.APIVersion}} {{.Server.MinAPIVersion}} {{.Server.Os}}",
    ]);
    assert_eq!(version, "1.50 1.24 linux");
    let text = daemon.ok(&["version"]);
    assert!(text.contains("Server: Bulkhead"), "{text}");
    assert_eq!(
        daemon.ok(&["info", "--format", "{{.Driver}} {{.OSType}} {{.DefaultRuntime}} {{.Images}}"]),
        "erofs linux bulkhead 1"
    );
    assert!(daemon.ok(&["info"]).contains("Boundary: "));
    let old = daemon.command(&["ps"]).env("DOCKER_API_VERSION", "1.24").output().unwrap();
    assert!(old.status.success(), "{old:?}");
    let too_old = daemon.command(&["ps"]).env("DOCKER_API_VERSION", "1.12").output().unwrap();
    assert!(
        String::from_utf8_lossy(&too_old.stderr).contains("client version 1.12 is too old"),
        "{too_old:?}"
    );
    assert_eq!(daemon.ok(&["plugin", "ls", "-q"]), "");
    daemon.fails(1, "not a swarm manager", &["service", "ls"]);
    let _ = daemon.ok(&["run", "--name", "once", "--label", "a=b", "busybox", "true"]);
    let past =
        ["events", "--since", "1", "--until", "0s", "--filter", "container=once", "--format", "{{.Action}}"];
    let events = daemon.ok(&past);
    let actions: Vec<&str> = events.lines().collect();
    assert!(
        actions.starts_with(&["create"]) && actions.contains(&"start") && actions.contains(&"die"),
        "{events}"
    );
    let exit_code = [
        "events",
        "--since",
        "1",
        "--until",
        "0s",
        "--filter",
        "event=die",
        "--format",
        "{{.Actor.Attributes.exitCode}}",
    ];
    assert_eq!(daemon.ok(&exit_code), "0");
    let df = daemon.ok(&["system", "df", "--format", "{{.Type}} {{.TotalCount}}"]);
    assert_eq!(df, "Images 1\nContainers 1\nLocal Volumes 0\nBuild Cache 0");
    assert!(daemon.ok(&["system", "df", "-v"]).contains("once"));
    assert!(daemon.ok(&["container", "prune", "-f"]).contains("Total reclaimed space"));
    assert_eq!(daemon.ok(&["ps", "-aq"]), "");
    let _ = daemon.ok(&["system", "prune", "-f"]);
    let build = tempfile::tempdir().unwrap();
    fs::write(build.path().join("Dockerfile"), "FROM busybox\n").unwrap();
    let built = daemon
        .command(&["build", build.path().to_str().unwrap()])
        .env("DOCKER_BUILDKIT", "0")
        .output()
        .unwrap();
    assert!(!built.status.success());
    assert!(
        String::from_utf8_lossy(&built.stderr).contains("building images is not supported yet"),
        "{built:?}"
    );
}

#[test]
fn events_are_told_as_they_happen() {
    let Some(daemon) = Daemon::with_docker() else { return };
    let mut events = daemon
        .command(&[
            "events",
            "--filter",
            "type=container",
            "--format",
            "{{.Action}} {{.Actor.Attributes.name}}",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    // Only what happens once it listens is told.
    let listens = || daemon.ok(&["info", "--format", "{{.NEventsListener}}"]) == "1";
    assert!((0..1000).any(|_| listens()), "docker events does not listen");
    let _ = daemon.ok(&["run", "--rm", "--name", "probe", "busybox", "true"]);
    let told: Vec<String> =
        lines.by_ref().map(Result::unwrap).take_while(|line| line != "destroy probe").collect();
    let order = ["create probe", "attach probe", "start probe", "die probe"];
    let places: Vec<_> = order.iter().map(|action| told.iter().position(|line| line == action)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{told:?}");
    events.kill().unwrap();
    events.wait().unwrap();
}

#[test]
fn containers_outlive_their_daemon() {
    let Some(mut daemon) = Daemon::with_docker() else { return };
    let id = daemon.ok(&["run", "-d", "--name", "box", "busybox", "sh", "-c", "while :; do sleep 0.1; done"]);
    daemon.crash();
    assert_eq!(daemon.ok(&["ps", "-q", "--no-trunc"]), id);
    assert_eq!(daemon.ok(&["exec", "box", "echo", "here"]), "here");
    let _ = daemon.ok(&["rm", "-f", "box"]);
    daemon.end();
    assert!(!daemon.socket().exists(), "the socket is left");
}

/// The two commands of the README, side by side.
#[test]
fn docker_run_and_bulkhead_run_say_the_same() {
    let Some(daemon) = Daemon::with_docker() else { return };
    let args = ["run", "--rm", "busybox", "sh", "-c", "echo same; exit 9"];
    let docker = daemon.docker(&args);
    let bulkhead = Command::new(std::env::var_os("BULKHEAD").unwrap())
        .env("BULKHEAD_ROOT", daemon.bulkhead.root.path())
        .args(args)
        .output()
        .unwrap();
    assert_eq!((docker.code, docker.stdout.as_str()), (9, "same\n"), "{docker:?}");
    assert_eq!((bulkhead.status.code(), &bulkhead.stdout[..]), (Some(9), &b"same\n"[..]), "{bulkhead:?}");
}
