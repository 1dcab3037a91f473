//! A container's life, and further processes in it.

use bulkhead_tests::daemon::Daemon;

use crate::is_id;

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
