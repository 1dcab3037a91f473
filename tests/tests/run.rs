//! `bulkhead run`: what a container sees and how it ends.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use bulkhead_tests::image::{ImageBuilder, add_file};
use bulkhead_tests::{Bulkhead, Ran, busybox};
use serde_json::json;

#[test]
fn output_goes_to_its_stream_and_the_exit_code_is_the_containers() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let ran = bulkhead.run(&[&busybox(), "sh", "-c", "echo out; echo err >&2; exit 42"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (42, "out\n"), "{ran:?}");
    assert!(ran.stderr.ends_with("err\n"), "{ran:?}");
    bulkhead.assert_nothing_left();
}

#[test]
fn a_signals_exit_code_is_128_and_the_signal() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let ran = bulkhead.run(&[&busybox(), "sh", "-c", "sh -c 'kill -9 $$'; exit $?"]);
    assert_eq!(ran.code, 137, "{ran:?}");
}

#[test]
fn standard_input_is_read_to_its_end_and_megabytes_pass_both_ways() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let mut child = bulkhead
        .command(&["run", "--rm", "--accel", "uml", "-i", &busybox(), "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let data: Vec<u8> = (0..8u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut stdin = child.stdin.take().unwrap();
    let sent = data.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let mut received = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(received == data, "{} bytes came back of {}", received.len(), data.len());
}

#[test]
fn without_i_standard_input_is_empty() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let output = bulkhead
        .command(&[
            "run",
            "--rm",
            "--accel",
            "uml",
            &busybox(),
            "sh",
            "-c",
            "wc -c; readlink /proc/self/fd/0",
        ])
        .stdin(std::fs::File::open("/bin/busybox").unwrap())
        .output()
        .unwrap();
    assert_eq!(Ran::from(output).stdout, "0\n/dev/null\n");
}

#[test]
fn the_images_configuration_is_honoured_and_the_callers_options_win() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let directory = tempfile::tempdir().unwrap();
    let image = ImageBuilder::new(json!({
        "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo $0 $A $B; pwd; id"],
        "Env": ["A=image", "B=image", "PATH=/bin"], "WorkingDir": "/work/deep", "User": "app",
    }))
    .busybox_layer()
    .layer(|tar| {
        add_file(
            tar,
            "etc/passwd",
            b"root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n",
            0o644,
        );
        add_file(tar, "etc/group", b"root:x:0:\napp:x:1001:\nextra:x:50:app\n", 0o644);
    })
    .write(directory.path());
    let image = format!("oci:{}", image.display());

    let ran = bulkhead.run(&[&image]);
    let expected =
        "/bin/sh image image\n/work/deep\nuid=1000(app) gid=1001(app) groups=1001(app),50(extra)\n";
    assert_eq!(
        ran.stdout.replace("groups=50(extra),1001(app)", "groups=1001(app),50(extra)"),
        expected,
        "{ran:?}"
    );

    let ran = bulkhead.run(&[
        "-e",
        "A=caller",
        "-w",
        "/new",
        "-u",
        "0:50",
        &image,
        "echo $A $B $HOME; pwd; id -u; id -g",
    ]);
    assert_eq!(ran.stdout, "caller image /root\n/new\n0\n50\n", "{ran:?}");

    let ran = bulkhead.run(&["--entrypoint", "/bin/echo", &image, "one", "two"]);
    assert_eq!(ran.stdout, "one two\n", "{ran:?}");

    let ran = bulkhead.run(&["-u", "4242", &image, "id -u; echo $HOME"]);
    assert_eq!(ran.stdout, "4242\n/\n", "{ran:?}");
}

#[test]
fn the_container_has_namespaces_devices_and_limits_of_its_own() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let script = "echo pid $$; hostname; ls /dev | tr '\\n' ' '; echo; ip -o link | wc -l; \
        cat /proc/1/cgroup; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max; \
        echo x > /proc/sysrq-trigger; dd if=/dev/zero of=/tmp/file bs=1k count=8 2>/dev/null && wc -c < /tmp/file; \
        grep CapEff /proc/self/status; test -c /proc/interrupts && echo masked; mount | grep -c overlay";
    let ran = bulkhead.run(&[
        "--hostname",
        "box",
        "--memory",
        "64m",
        "--cpus",
        "0.5",
        &busybox(),
        "sh",
        "-c",
        script,
    ]);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines[0], "pid 1", "{ran:?}");
    assert_eq!(lines[1], "box");
    let devices: Vec<&str> = lines[2].split_whitespace().collect();
    assert_eq!(
        devices,
        [
            "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
            "stdout", "tty", "urandom", "zero"
        ]
    );
    assert_eq!(
        lines[3], "2",
        "the loopback interface, and one in the default network: spare cards are not the container's"
    );
    assert_eq!(lines[4], "0::/");
    assert_eq!((lines[5], lines[6]), ("67108864", "50000 100000"));
    assert_eq!(lines[7], "8192");
    assert_eq!(lines[8], "CapEff:\t00000000a80425fb", "Docker's fourteen capabilities");
    assert_eq!(lines[9], "masked", "/proc/interrupts is hidden by /dev/null");
    assert_eq!(lines[10], "1");
    assert!(ran.stderr.contains("sysrq-trigger"), "{ran:?}");
}

#[test]
fn running_out_of_memory_kills_the_container_and_is_told() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let ran = bulkhead.run(&["--memory", "32m", &busybox(), "sh", "-c", "head -c 200m /dev/zero | tail"]);
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("bulkhead: the container ran out of memory\nwhy: "), "{ran:?}");
    assert!(ran.stderr.ends_with("next: give it more with --memory\n"), "{ran:?}");
    bulkhead.assert_nothing_left();
}

#[test]
fn signals_reach_the_container() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    for (signal, code) in [("TERM", 15), ("INT", 2), ("USR1", 10)] {
        let script =
            format!("trap 'echo got; exit {code}' {signal}; echo ready; while :; do sleep 0.05; done");
        let mut child = bulkhead
            .command(&["run", "--rm", "--accel", "uml", &busybox(), "sh", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut text = [0u8; 6];
        stdout.read_exact(&mut text).unwrap();
        kill(child.id(), signal);
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert_eq!(rest, "got\n");
    }
    bulkhead.assert_nothing_left();
}

#[test]
fn the_images_stop_signal_is_honoured_and_stop_loses_patience() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let directory = tempfile::tempdir().unwrap();
    let image = ImageBuilder::new(json!({ "Env": ["PATH=/bin"], "StopSignal": "SIGUSR2" }))
        .busybox_layer()
        .write(directory.path());
    let image = format!("oci:{}", image.display());
    let start = |script: &str| {
        let mut child = bulkhead
            .command(&["run", "--accel", "uml", &image, "sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0u8; 6]).unwrap();
        let id = bulkhead.ran(&["ps", "-q"]).stdout.trim().to_owned();
        (child, id)
    };
    let (child, id) =
        start("trap 'echo stopped; exit 4' USR2; trap '' TERM; echo ready; while :; do sleep 0.05; done");
    let stopped = bulkhead.ran(&["stop", &id]);
    assert_eq!((stopped.code, stopped.stdout.trim()), (0, id.as_str()), "{stopped:?}");
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.stdout.as_str()), (4, "stopped\n"));

    let (mut child, id) = start("trap '' USR2; echo ready; while :; do sleep 0.05; done");
    assert_eq!(bulkhead.ran(&["stop", "--time", "1", &id]).code, 0);
    assert_eq!(child.wait().unwrap().code(), Some(137), "it was killed");
    let listed = bulkhead.ran(&["ps", "-a"]).stdout;
    assert!(listed.contains("Exited (137)") && listed.contains("Exited (4)"), "{listed}");
    for id in bulkhead.ran(&["ps", "-aq"]).stdout.lines() {
        assert_eq!(bulkhead.ran(&["rm", id]).code, 0);
    }
    bulkhead.assert_nothing_left();
}

#[test]
fn the_third_interrupt_ends_a_container_that_ignores_them() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let mut child = bulkhead
        .command(&[
            "run",
            "--rm",
            "--accel",
            "uml",
            &busybox(),
            "sh",
            "-c",
            "trap '' INT; echo ready; sleep 1000",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0u8; 6]).unwrap();
    for _ in 0..3 {
        kill(child.id(), "INT");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
    bulkhead.assert_nothing_left();
}

#[test]
fn a_reader_that_goes_away_ends_the_container() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let mut child = bulkhead
        .command(&["run", "--rm", "--accel", "uml", &busybox(), "yes"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0u8; 100_000]).unwrap();
    // What SIGPIPE is to a process, the end of its reader is to a container: its output would go on for ever.
    assert_eq!(child.wait().unwrap().code(), Some(137));
    bulkhead.assert_nothing_left();
}

#[test]
fn kill_9_of_the_command_leaves_its_container_to_its_supervisor() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let mut child = bulkhead
        .command(&["run", "--rm", "--accel", "uml", &busybox(), "sh", "-c", "echo ready; sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0u8; 6]).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let id = bulkhead.ran(&["ps", "-q"]).stdout.trim().to_owned();
    assert_eq!(id.len(), 12, "the container runs on, as with Docker");
    let stopped = bulkhead.ran(&["stop", "-t", "0", &id]);
    assert_eq!((stopped.code, stopped.stdout.trim()), (0, id.as_str()), "{stopped:?}");
    // It was a temporary one.
    assert_eq!(bulkhead.ran(&["ps", "-a", "-q"]).stdout, "");
    bulkhead.assert_nothing_left();
}

#[test]
fn a_kept_container_is_listed_with_its_exit_code_and_removed() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let ran = bulkhead.ran(&[
        "run",
        "--accel",
        "uml",
        &busybox(),
        "sh",
        "-c",
        "echo kept > /root/file; sync; exit 3",
    ]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let listed = bulkhead.ran(&["ps", "-a"]);
    assert!(
        listed.stdout.contains("Exited (3)") && listed.stdout.contains("user-space kernel"),
        "{listed:?}"
    );
    let id = bulkhead.ran(&["ps", "-aq"]).stdout.trim().to_owned();
    assert_eq!(id.len(), 12);
    assert_eq!(bulkhead.ran(&["rm", &id]).code, 0);
    bulkhead.assert_nothing_left();
}

#[test]
fn containers_run_side_by_side() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let start = Instant::now();
    let children: Vec<_> = (0..8)
        .map(|n| {
            let script = format!("sleep 0.2; echo {n}");
            let args = ["run", "--rm", "--accel", "uml", &busybox(), "sh", "-c", &script];
            bulkhead.command(&args).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for (n, child) in children.into_iter().enumerate() {
        assert_eq!(Ran::from(child.wait_with_output().unwrap()).stdout, format!("{n}\n"));
    }
    eprintln!("eight containers at once: {:?}", start.elapsed());
    bulkhead.assert_nothing_left();
}

fn kill(pid: u32, signal: &str) {
    let status = std::process::Command::new("kill").args(["-s", signal, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}
