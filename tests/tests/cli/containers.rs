//! A container's life, and what is told of it.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use bulkhead_tests::cli::Cli;

use crate::is_id;

/// Tells that it runs, and ends with 4 when it is asked to.
const PATIENT: &str = "echo started; echo bad >&2; trap 'exit 4' TERM; while :; do sleep 0.05; done";

/// Waits until a container has written this.
fn written(cli: &Cli, name: &str, words: &str) {
    let began = Instant::now();
    while cli.ok(&["logs", name]) != words {
        assert!(began.elapsed() < Duration::from_secs(60), "{name} does not write {words:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_container_lives_through_every_verb() {
    for cli in Cli::both() {
        let id = cli.ok(&[
            "run",
            "-d",
            "--name",
            "web",
            "-l",
            "tier=front",
            "--accel",
            "uml",
            "busybox",
            "sh",
            "-c",
            PATIENT,
        ]);
        written(&cli, "web", "started");
        assert!(is_id(&id), "{id}");
        assert_eq!(cli.ok(&["ps", "-q"]), id[..12]);
        assert_eq!(cli.ok(&["ps", "-q", "--no-trunc"]), id);
        assert_eq!(
            cli.ok(&["inspect", "-f", "{{.State.Status}} {{.Name}} {{.Config.Labels.tier}}", "web"]),
            "running /web front"
        );
        let table = cli.ok(&["container", "ls"]);
        let heading: Vec<&str> =
            table.lines().next().unwrap().split("   ").map(str::trim).filter(|h| !h.is_empty()).collect();
        assert_eq!(
            heading,
            ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "BOUNDARY", "NAMES"]
        );
        assert!(
            table.contains("\"sh -c 'echo started…\"") && table.contains("uml (user-space kernel in a jail)"),
            "{table}"
        );

        // Processes beside the first one.
        let ran = cli.fed(
            &["exec", "-i", "-e", "A=b", "-w", "/tmp", "web", "sh", "-c", "echo $A; pwd; cat; exit 3"],
            b"typed\n",
        );
        assert_eq!((ran.code, ran.stdout.as_str()), (3, "b\n/tmp\ntyped\n"), "{ran:?}");
        let ran = cli.ran(&["exec", "web", "nothing-here"]);
        assert_eq!(ran.code, 127, "{ran:?}");
        assert_eq!(cli.ok(&["exec", "-d", "web", "sleep", "100"]), "");
        let top = cli.ok(&["top", "web", "-o", "pid,args"]);
        assert!(top.starts_with("PID") && top.contains("sleep 100"), "{top}");
        cli.fails(
            1,
            "not running",
            &["exec", &cli.ok(&["create", "--name", "idle", "busybox", "true"]), "true"],
        );
        assert_eq!(cli.ok(&["rm", "idle"]), "idle");

        // Numbers.
        let stats = cli.ok(&[
            "stats",
            "--no-stream",
            "--format",
            "{{.Name}}|{{.CPUPerc}}|{{.MemUsage}}|{{.PIDs}}",
            "web",
        ]);
        let parts: Vec<&str> = stats.split('|').collect();
        assert_eq!((parts[0], parts.len()), ("web", 4), "{stats}");
        assert!(
            parts[1].ends_with('%') && parts[2].contains("MiB / ") && parts[3].parse::<u32>().unwrap() >= 2,
            "{stats}"
        );

        // What it wrote.
        let logs = cli.ran(&["logs", "web"]);
        assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("started\n", "bad\n"));
        let logs = cli.ok(&["logs", "-t", "--since", "1h", "web"]);
        let (time, line) = logs.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && line == "started", "{logs}");
        assert_eq!(cli.ok(&["logs", "--until", "2001-01-01", "web"]), "");
        assert_eq!(cli.ran(&["logs", "-n", "0", "web"]).stdout, "");

        assert_eq!(cli.ok(&["pause", "web"]), "web");
        assert!(cli.ok(&["ps", "--format", "{{.Status}}"]).ends_with("(Paused)"));
        cli.fails(1, "paused", &["exec", "web", "true"]);
        assert_eq!(cli.ok(&["unpause", "web"]), "web");
        assert_eq!(cli.ok(&["rename", "web", "www"]), "");
        assert_eq!(cli.ok(&["update", "--memory", "96m", "--restart", "on-failure:2", "www"]), "www");
        let shown = cli.ok(&[
            "inspect",
            "--format",
            "{{.HostConfig.Memory}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}",
            "www",
        ]);
        assert_eq!(shown, "100663296 2");
        assert_eq!(cli.ok(&["restart", "-t", "5", "www"]), "www");
        written(&cli, "www", "started\nstarted");
        assert_eq!(cli.ok(&["stop", "www"]), "www");
        assert_eq!(cli.ok(&["wait", "www"]), "4");
        assert!(cli.ok(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"]).starts_with("www Exited (4) "));

        // Not of one that runs, unless by force.
        assert_eq!(cli.ok(&["start", "www"]), "www");
        cli.fails(1, "running", &["rm", "www"]);
        assert_eq!(cli.ok(&["kill", "-s", "TERM", "www"]), "www");
        assert_eq!(cli.ok(&["rm", "-f", "www"]), "www");
        cli.fails(1, "No such container: www", &["rm", "www"]);
        cli.assert_nothing_left();
    }
}

#[test]
fn names_that_are_wrong_do_not_stop_the_others() {
    let Some(cli) = Cli::alone() else { return };
    let id = cli.ok(&["create", "busybox"]);
    assert_eq!(cli.ok(&["create", "--name", "two", "busybox"]).len(), 64);
    let ran = cli.ran(&["rm", &id[..8], "none", "two"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, format!("{}\ntwo\n", &id[..8]).as_str()), "{ran:?}");
    assert_eq!(ran.stderr.lines().count(), 3, "{ran:?}");
    cli.fails(1, "invalid filter 'nonsense'", &["container", "prune", "-f", "--filter", "nonsense=1"]);
    cli.assert_nothing_left();
}

#[test]
fn streams_are_passed_on_by_start_and_attach() {
    for cli in Cli::both() {
        let _ = cli.ok(&["create", "--name", "again", "busybox", "sh", "-c", "echo again; exit 4"]);
        for _ in 0..2 {
            let ran = cli.ran(&["start", "-a", "again"]);
            assert_eq!((ran.code, ran.stdout.as_str()), (4, "again\n"), "{ran:?}");
        }
        let script = "echo ready; read x; echo got $x; exit 5";
        let _ = cli.ok(&["run", "-d", "-i", "--name", "talk", "busybox", "sh", "-c", script]);
        let mut follow = cli.command(&["logs", "-f", "talk"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        let ran = cli.fed(&["attach", "talk"], b"hello\n");
        assert_eq!((ran.code, ran.stdout.as_str()), (5, "got hello\n"), "{ran:?}");
        assert_eq!(lines.next().unwrap().unwrap(), "got hello");
        assert!(follow.wait().unwrap().success());
        cli.fails(1, "not running", &["attach", "talk"]);
        let pruned = cli.ok(&["container", "prune", "-f"]);
        assert!(
            pruned.starts_with("Deleted Containers:\n") && pruned.contains("\nTotal reclaimed space: "),
            "{pruned}"
        );
        cli.assert_nothing_left();
    }
}

#[test]
fn options_of_run_reach_the_container() {
    for cli in Cli::both() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(path("env"), "# a comment\nFROM_FILE=1\n").unwrap();
        let script = "hostname; echo $FROM_FILE $HERE; touch /x 2>/dev/null || echo read-only; stat -f -c %T /scratch; \
            cat /etc/hosts | grep other; ulimit -n; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; grep CapEff /proc/self/status; id -u";
        let ran = cli.ran(&[
            "run",
            "--rm",
            "--accel",
            "uml",
            "-h",
            "box",
            "--env-file",
            &path("env"),
            "-e",
            "HERE=2",
            "--read-only",
            "--tmpfs",
            "/scratch:size=1m",
            "--add-host",
            "other:10.9.8.7",
            "--ulimit",
            "nofile=512:1024",
            "--sysctl",
            "net.ipv4.ip_unprivileged_port_start=99",
            "--cap-drop",
            "ALL",
            "--cap-add",
            "CHOWN",
            "-u",
            "7",
            "--init",
            "--security-opt",
            "no-new-privileges",
            "--cidfile",
            &path("id"),
            "--name",
            "one",
            "--pids-limit",
            "50",
            "-m",
            "64m",
            "--memory-swap",
            "64m",
            "--stop-signal",
            "QUIT",
            "--health-cmd",
            "true",
            "busybox",
            "sh",
            "-c",
            script,
        ]);
        let lines: Vec<&str> = ran.stdout.lines().collect();
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(&lines[..4], ["box", "1 2", "read-only", "tmpfs"], "{ran:?}");
        assert!(lines[4].starts_with("10.9.8.7") && lines[4].ends_with("other"), "{ran:?}");
        assert_eq!(&lines[5..7], ["512", "99"], "{ran:?}");
        // Another user than root has its capabilities in the bounding set only.
        assert_eq!(&lines[7..], ["CapEff:\t0000000000000000", "7"], "{ran:?}");
        assert!(is_id(&std::fs::read_to_string(path("id")).unwrap()));
        cli.fails(125, "--cidfile", &["run", "--rm", "--cidfile", &path("id"), "busybox", "true"]);
        cli.fails(125, "--pull sometimes", &["run", "--rm", "--pull", "sometimes", "busybox", "true"]);
        cli.fails(125, "No such image: nothing", &["run", "--rm", "--pull", "never", "nothing", "true"]);
        cli.fails(
            125,
            "--network host cannot be done",
            &["run", "--rm", "--network", "host", "busybox", "true"],
        );
        cli.fails(125, "--publish x", &["run", "--rm", "-p", "x", "busybox", "true"]);
        cli.fails(
            125,
            "no-such-network",
            &["run", "--rm", "--network", "no-such-network", "busybox", "true"],
        );
        // What follows the image is the command's.
        let ran = cli.ran(&["run", "--rm", "--accel", "uml", "busybox", "echo", "--rm", "-d", "--help"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (0, "--rm -d --help\n"), "{ran:?}");
        cli.assert_nothing_left();
    }
}
