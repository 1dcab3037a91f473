//! Accounts, pauses, limits that change, and memory that runs out.

use agent::protocol::spec::{Cpu, Memory, Pids, Resources};
use agent::protocol::{Answer, Call, FailureKind, Message, Stats};
use bulkhead_tests::guest::{Guest, exec, start};

use crate::{IDLE, harbour, spec};

fn stats(guest: &mut Guest) -> Stats {
    match guest.call(Call::Stats) {
        Ok(Answer::Stats(stats)) => *stats,
        other => panic!("no stats: {other:?}"),
    }
}

#[test]
fn accounts_count_what_the_container_does() {
    let Some(harbour) = harbour() else { return };
    let mut guest = harbour.prepared();
    assert_eq!(guest.call(Call::Stats).unwrap_err().kind, FailureKind::NotRunning);
    let mut spec = spec(&harbour, IDLE);
    spec.linux.resources = Resources {
        memory: Memory { limit: 96 << 20, ..Memory::default() },
        pids: Pids { limit: 50 },
        ..Resources::default()
    };
    let init = guest.start(start(spec));
    let before = stats(&mut guest);
    assert_eq!((before.memory.limit, before.pids.limit, before.pids.current), (Some(96 << 20), Some(50), 1));
    assert_eq!(before.cpu.online, 1);
    assert!(before.memory.machine > 128 << 20 && before.memory.current > 0);
    assert!(before.wall_clock > 1_600_000_000_000_000_000);
    assert_eq!(before.networks.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["lo"]);

    guest.shell("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; head -c 8388608 /dev/zero > /big; sync");
    guest.shell("(echo x | nc -l -p 4000 >/dev/null) & sleep 0.2; echo ping | nc -w 1 127.0.0.1 4000 >/dev/null; wait");
    let after = stats(&mut guest);
    assert!(after.cpu.usage > before.cpu.usage, "{:?} {:?}", before.cpu, after.cpu);
    assert!(after.cpu.user + after.cpu.system > before.cpu.user + before.cpu.system);
    assert!(after.cpu.machine > before.cpu.machine && after.monotonic > before.monotonic);
    assert!(after.memory.stat.get("file").is_some_and(|n| *n >= 8 << 20), "{:?}", after.memory.stat);
    assert!(after.memory.peak >= after.memory.stat["file"]);
    let written: u64 = after.io.iter().map(|io| io.write_bytes).sum();
    assert!(written >= 8 << 20, "{:?}", after.io);
    assert!(after.networks[0].rx_packets > 0 && after.networks[0].tx_bytes > 0, "{:?}", after.networks);
    guest.kill(init);
}

#[test]
fn a_paused_container_does_nothing_until_it_goes_on() {
    let Some(harbour) = harbour() else { return };
    let mut guest = harbour.prepared();
    assert_eq!(guest.call(Call::Pause).unwrap_err().kind, FailureKind::NotRunning);
    let init = guest.start(start(spec(&harbour, "while :; do :; done")));
    assert_eq!(guest.call(Call::Pause), Ok(Answer::Done));
    assert_eq!(guest.call(Call::Pause), Ok(Answer::Done), "once more is no failure");
    let usage = stats(&mut guest).cpu.usage;
    let refused = guest.begin_exec(exec("refused", &["true"]));
    assert_eq!(guest.reply(refused.request).unwrap_err().kind, FailureKind::Paused);
    // What works on files goes on.
    assert!(matches!(guest.call(Call::StatPath { path: "/etc/passwd".into() }), Ok(Answer::PathStat(_))));
    assert_eq!(stats(&mut guest).cpu.usage, usage, "it used the CPU while it was frozen");
    assert_eq!(guest.call(Call::Unpause), Ok(Answer::Done));
    assert_eq!(guest.shell("echo on"), "on\n");
    assert!(stats(&mut guest).cpu.usage > usage);
    // A paused container can be killed.
    assert_eq!(guest.call(Call::Pause), Ok(Answer::Done));
    assert_eq!(guest.kill(init).code, 137);
}

#[test]
fn limits_change_while_the_container_runs() {
    let Some(harbour) = harbour() else { return };
    let mut guest = harbour.prepared();
    let init = guest.start(start(spec(&harbour, IDLE)));
    let update = |resources| Call::Update(Box::new(resources));
    let all = Resources {
        memory: Memory { limit: 64 << 20, reservation: 16 << 20 },
        cpu: Cpu { quota: 20_000, shares: 512, ..Cpu::default() },
        pids: Pids { limit: 4 },
    };
    assert_eq!(guest.call(update(all)), Ok(Answer::Done));
    let files = "cd /sys/fs/cgroup; cat memory.max memory.low cpu.max cpu.weight pids.max";
    assert_eq!(guest.shell(files), "67108864\n16777216\n20000 100000\n20\n4\n");
    let limits = stats(&mut guest);
    assert_eq!((limits.memory.limit, limits.pids.limit), (Some(64 << 20), Some(4)));
    // The limit on processes holds.
    let many = guest.run(exec("many", &["sh", "-c", "sleep 5 & sleep 5 & sleep 5 & sleep 5 & wait"]));
    assert!(many.code != 0 || many.stderr.contains("fork"), "{many:?}");
    // Zero leaves, a negative number lifts.
    let lift = Resources { pids: Pids { limit: -1 }, ..Resources::default() };
    assert_eq!(guest.call(update(lift)), Ok(Answer::Done));
    assert_eq!(guest.shell(files), "67108864\n16777216\n20000 100000\n20\nmax\n");
    let wrong = Resources { cpu: Cpu { shares: 1, ..Cpu::default() }, ..Resources::default() };
    assert_eq!(guest.call(update(wrong)).unwrap_err().kind, FailureKind::Unsupported);
    guest.kill(init);
}

#[test]
fn memory_that_runs_out_is_told_at_once_and_at_the_end() {
    let Some(harbour) = harbour() else { return };
    let mut guest = harbour.prepared();
    let mut spec = spec(&harbour, IDLE);
    spec.linux.resources.memory.limit = 24 << 20;
    let init = guest.start(start(spec));
    // tail keeps everything that comes without a line's end.
    let hungry =
        guest.begin_exec(exec("hungry", &["sh", "-c", "head -c 64000000 /dev/zero | tail > /dev/null"]));
    let kills = guest.wait_for(|m| if let Message::Oom { kills } = m { Some(*kills) } else { None });
    assert_eq!(kills, 1);
    let ended = guest.finish(hungry);
    assert!(ended.oom_killed && ended.code == 137, "{ended:?}");
    assert_eq!(stats(&mut guest).memory.events["oom_kill"], 1);
    let ended = guest.kill(init);
    assert!(ended.oom_killed, "{ended:?}");
}
