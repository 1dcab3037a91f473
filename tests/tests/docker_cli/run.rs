//! `docker run`: bytes, exit codes, options.

use std::fs;
use std::process::Command;

use bulkhead_tests::daemon::Daemon;

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
    assert_eq!(run(&["busybox", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"]).code, 137);
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
