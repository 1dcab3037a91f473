//! Further processes, signals, terminals, `--init`, and the list of processes.

use std::io::Write;

use agent::protocol::{Answer, Call, FailureKind, Message};
use bulkhead_tests::guest::{exec, id, start, terminal};

use crate::{IDLE, harbour, spec};

#[test]
fn further_processes_are_in_the_container_with_their_own_user_environment_and_streams() {
    let Some(harbour) = harbour() else { return };
    let mut guest = harbour.prepared();
    let mut spec = spec(&harbour, "echo first > /tmp/file; sleep 1000");
    spec.process.rlimits =
        vec![agent::protocol::spec::Rlimit { kind: "RLIMIT_NOFILE".into(), soft: 77, hard: 88 }];
    let init = guest.start(start(spec));

    // All namespaces, the cgroup and the root are those of the first process.
    let script = "for n in mnt pid net ipc uts cgroup; do \
        [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] || echo $n differs; done; \
        cat /proc/self/cgroup; cat /tmp/file; hostname; ulimit -n; grep CapEff /proc/self/status /proc/1/status";
    let inside = guest.shell(script);
    assert_eq!(
        inside,
        "0::/\nfirst\nharbour\n77\n/proc/self/status:CapEff:\t00000000a80425fb\n/proc/1/status:CapEff:\t00000000a80425fb\n"
    );

    let mut other = exec("other", &["sh", "-c", "id; pwd; echo $HOME $A; cat; echo err >&2; exit 7"]);
    other.user = "nobody".into();
    other.groups = vec!["root".into(), "4242".into()];
    other.spec.cwd = "/tmp".into();
    other.spec.env.push("A=b".into());
    other.stdin = true;
    let mut running = guest.begin_exec(other);
    assert_eq!(guest.reply(running.request), Ok(Answer::Done));
    running.stdin.as_ref().unwrap().write_all(b"to cat\n").unwrap();
    drop(running.stdin.take());
    let ended = guest.finish(running);
    assert_eq!(
        (ended.code, ended.stdout.as_str(), ended.stderr.as_str()),
        (
            7,
            "uid=65534(nobody) gid=65534(nogroup) groups=0(root),4242,65534(nogroup)\n/tmp\n/ b\nto cat\n",
            "err\n"
        )
    );

    // A user without capabilities of its own, unless they are asked for.
    let mut capable = exec("capable", &["grep", "-E", "CapEff|NoNewPrivs", "/proc/self/status"]);
    capable.spec.capabilities = Some(agent::protocol::spec::Capabilities {
        bounding: vec!["CAP_SYS_TIME".into()],
        effective: vec!["CAP_SYS_TIME".into()],
        permitted: vec!["CAP_SYS_TIME".into()],
        ..Default::default()
    });
    capable.spec.no_new_privileges = true;
    assert_eq!(guest.run(capable).stdout, "CapEff:\t0000000002000000\nNoNewPrivs:\t1\n");

    guest.kill(init);
}

#[test]
fn several_processes_run_at_once_and_all_end_with_the_first() {
    let Some(harbour) = harbour() else { return };
    let mut guest = harbour.prepared();
    let refused = guest.begin_exec(exec("early", &["true"]));
    assert_eq!(guest.reply(refused.request).unwrap_err().kind, FailureKind::NotRunning);

    let init = guest.start(start(spec(&harbour, IDLE)));
    let names: Vec<String> = (0..8).map(|n| format!("exec{n}")).collect();
    let running: Vec<_> = names.iter().map(|n| guest.begin_exec(exec(n, &["sleep", "1000"]))).collect();
    for one in &running {
        assert_eq!(guest.reply(one.request), Ok(Answer::Done));
    }
    let twice = guest.begin_exec(exec("exec0", &["true"]));
    assert!(guest.reply(twice.request).unwrap_err().text.contains("already"));
    let second = guest.begin(start(spec(&harbour, "true")));
    assert!(guest.reply(second.request).unwrap_err().text.contains("already"));

    let Ok(Answer::Processes(list)) = guest.call(Call::Processes) else { panic!("no list") };
    assert_eq!((list.processes.len(), list.truncated), (9, false));
    assert!(list.processes.iter().all(|p| p.name == "sleep" && p.command == "sleep 1000" && p.uid == 0));
    assert!(
        list.processes.iter().all(|p| matches!(p.state, 'S' | 'R' | 'D')
            && p.tty.is_empty()
            && p.started_ms > 1_600_000_000_000)
    );
    assert_eq!(list.processes.iter().filter(|p| p.inner_pid == 1).count(), 1);

    assert_eq!(guest.call(Call::Signal { process: id("exec3"), signal: 15 }), Ok(Answer::Done));
    let mut running = running;
    assert_eq!(guest.finish(running.remove(3)).code, 128 + 15);

    // SIGKILL to the first process: the others' ends are told before its own.
    assert_eq!(guest.call(Call::Signal { process: id("init"), signal: 9 }), Ok(Answer::Done));
    let mut ends = Vec::new();
    while ends.last().is_none_or(|last| *last != id("init")) {
        if let Message::Exited { process, status, .. } = guest.next_message() {
            assert_eq!(status.code(), 128 + 9);
            ends.push(process);
        }
    }
    assert_eq!(ends.len(), 8);
    drop((init, running));

    let late = guest.begin_exec(exec("late", &["true"]));
    assert_eq!(guest.reply(late.request).unwrap_err().kind, FailureKind::NotRunning);
    let gone = guest.call(Call::Signal { process: id("exec1"), signal: 9 });
    assert_eq!(gone.unwrap_err().kind, FailureKind::NotRunning);
    assert_eq!(guest.call(Call::Processes).unwrap_err().kind, FailureKind::NotRunning);

    // The machine can start the container anew.
    let again = guest.start(start(spec(&harbour, "echo again")));
    assert_eq!(guest.finish(again).stdout, "again\n");
}

#[test]
fn failures_to_execute_are_told_in_dockers_words() {
    let Some(harbour) = harbour() else { return };
    let mut guest = harbour.prepared();
    let init = guest.start(start(spec(&harbour, IDLE)));
    let cases: [(&[&str], FailureKind, &str); 5] = [
        (&["nope"], FailureKind::NotFound, r#"exec: "nope": executable file not found in $PATH"#),
        (&["/nope"], FailureKind::NotFound, r#"exec: "/nope": stat /nope: no such file or directory"#),
        (&["/etc/passwd"], FailureKind::NotExecutable, r#"exec: "/etc/passwd": permission denied"#),
        (&["/etc"], FailureKind::NotExecutable, r#"exec: "/etc": is a directory"#),
        (&[], FailureKind::NotFound, "no command was given"),
    ];
    for (number, (args, kind, text)) in cases.into_iter().enumerate() {
        let failing = guest.begin_exec(exec(&format!("case{number}"), args));
        let failure = guest.reply(failing.request).unwrap_err();
        assert_eq!(failure.kind, kind, "{failure:?}");
        assert!(failure.text.contains(text), "{failure:?}");
    }
    let mut lost = exec("lost", &["true"]);
    lost.spec.cwd = "/no/such".into();
    let failing = guest.begin_exec(lost);
    let failure = guest.reply(failing.request).unwrap_err();
    assert!(failure.text.contains("chdir to cwd"), "{failure:?}");
    let mut nobody = exec("nobody", &["true"]);
    nobody.user = "no-such-user".into();
    let failing = guest.begin_exec(nobody);
    let failure = guest.reply(failing.request).unwrap_err();
    assert!(failure.text.contains("unable to find user no-such-user"), "{failure:?}");
    guest.kill(init);
}

#[test]
fn terminals_are_the_processes_own_and_change_their_size() {
    let Some(harbour) = harbour() else { return };
    let mut guest = harbour.prepared();
    let mut first = start(spec(&harbour, "tty; stty size; sleep 1000"));
    first.terminal = Some(terminal());
    let init = guest.start(first);
    let script = "tty; stty size; read line; stty size; echo $line";
    let mut second = exec("tty", &["sh", "-c", script]);
    second.terminal = Some(terminal());
    second.stdin = true;
    let running = guest.begin_exec(second);
    assert_eq!(guest.reply(running.request), Ok(Answer::Done));
    let size = agent::protocol::TerminalSize { rows: 50, columns: 132 };
    assert_eq!(guest.call(Call::Resize { process: id("tty"), size }), Ok(Answer::Done));
    running.stdin.as_ref().unwrap().write_all(b"typed\n").unwrap();
    let ended = guest.finish(running);
    let lines: Vec<&str> = ended.stdout.lines().map(str::trim).collect();
    assert!(
        lines.contains(&"/dev/pts/1") && lines.contains(&"50 132") && lines.last() == Some(&"typed"),
        "{ended:?}"
    );
    let refused = guest.call(Call::Resize { process: id("nope"), size });
    assert_eq!(refused.unwrap_err().kind, FailureKind::NotRunning);
    assert!(guest.kill(init).stdout.starts_with("/dev/pts/0\r\n24 80"));
}

#[test]
fn init_reaps_passes_signals_on_and_ends_as_its_program() {
    let Some(harbour) = harbour() else { return };
    let mut guest = harbour.prepared();
    // Orphans are reaped, the program is not PID 1, and a signal that nobody handles ends it all the same.
    let script = "(sleep 0 & exec true) & sleep 1; echo $$; ls /proc | grep -c '^[0-9]'; exec sleep 1000";
    let mut request = start(spec(&harbour, script));
    request.init = true;
    let init = guest.start(request);
    let Ok(Answer::Processes(list)) = guest.call(Call::Processes) else { panic!("no list") };
    assert!(list.processes.iter().any(|p| p.inner_pid == 1));
    // Until the program has written its two lines it may not have started sleeping.
    while !guest.shell("cat /proc/2/cmdline | tr '\\0' ' '").starts_with("sleep 1000") {}
    let zombies = guest.shell("grep -l 'State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l");
    assert_eq!(zombies, "0\n");
    assert_eq!(guest.call(Call::Signal { process: id("init"), signal: 15 }), Ok(Answer::Done));
    let ended = guest.finish(init);
    assert_eq!(ended.code, 128 + 15, "{ended:?}");
    assert!(ended.stdout.starts_with("2\n"), "{ended:?}");

    let mut request = start(spec(&harbour, "trap 'exit 9' USR1; while :; do sleep 0.01; done"));
    request.init = true;
    let init = guest.start(request);
    while guest.shell("grep SigCgt /proc/2/status").trim().ends_with("0000000000000000") {}
    assert_eq!(guest.call(Call::Signal { process: id("init"), signal: 10 }), Ok(Answer::Done));
    assert_eq!(guest.finish(init).code, 9);

    let mut request = start(spec(&harbour, "true"));
    request.spec.process.args = vec!["/nope".into()];
    request.init = true;
    let failing = guest.begin(request);
    assert_eq!(guest.reply(failing.request).unwrap_err().kind, FailureKind::NotFound);
}
