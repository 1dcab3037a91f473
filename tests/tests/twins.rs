//! Two machines restored from one snapshot of a Linux guest with a container: what must not be shared is not, and what may be is. On hosts whose
//! KVM executes guest kernels in software the one boot takes up to a minute; the test binary holds nothing else, so that it runs alone.

#[path = "twins/machine.rs"]
mod machine;

use std::fs::File;
use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent::protocol::spec::Mount;
use agent::protocol::{Answer, Bytes, Call, Restored, Stream};
use bulkhead_tests::guest::{Harbour, exec, id, prepare, start};
use bulkhead_tests::{busybox, copy_sparse};
use engine::model::ContainerConfig;
use machine::{MEMORY_MIB, Machine};

/// Where the container of this test finds the generation: in its /dev, which is a tmpfs, so that no mount point is left on its disk.
const GENERATION: &str = "/dev/bulkhead/generation";
/// How long the snapshot lies before it is restored: a clock that is not set is behind by so much.
const LATER: Duration = Duration::from_secs(4);

/// Runs in the container when the snapshot is taken, waiting for a line of input. Then it must be as unlike its twin as all else. A shell's own
/// commands only: where KVM interprets the guest's kernel, a process costs a second.
const WAITS: &str = "echo begins; read line; read random < /proc/sys/kernel/random/uuid; read told < /dev/bulkhead/generation; \
    echo $line $random $told; read line";
/// Tells all that must differ, a line each, and the time.
const TELLS: &str = "read told < /dev/bulkhead/generation; echo $told; od -An -tx1 -N16 /dev/urandom; \
    read random < /proc/sys/kernel/random/uuid; echo $random; mktemp -u /XXXXXXXXXXXX; date +%s";

fn random<const N: usize>() -> Bytes<N> {
    let mut bytes = [0; N];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    Bytes(bytes)
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

fn restored() -> (Restored, String) {
    let wall_clock = u64::try_from(now().as_nanos()).unwrap();
    let news = Restored { generation: random(), entropy: random(), wall_clock };
    let generation = news.generation.to_string();
    (news, generation)
}

#[test]
fn restored_twins_share_memory_and_no_secrets() {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        eprintln!("skipped: no /dev/kvm ({error})");
        return;
    }
    let Some(harbour) = Harbour::new(&busybox()) else { return };
    let began = Instant::now();
    let mut template = Machine::start(&harbour, &harbour.writable(), None);
    eprintln!("booted: {:?}", began.elapsed());
    template.done(Call::Prepare(Box::new(prepare())));
    let cmd = Some(["sh", "-c", WAITS].map(str::to_owned).to_vec());
    let mut config = ContainerConfig { cmd, ..ContainerConfig::default() };
    engine::spec::merge(&mut config, &harbour.image().config, None).unwrap();
    let mut spec = engine::spec::build(&config, "harbour").unwrap();
    let (destination, kind) = (GENERATION.into(), "generation".to_owned());
    spec.mounts.push(Mount { destination, kind, ..Mount::default() });
    let mut first = start(spec);
    first.stdin = true;
    let streams = [Stream::Stdin, Stream::Stdout, Stream::Stderr];
    let pipes = streams.map(|stream| template.stream(&id("init"), stream));
    template.done(Call::Start(Box::new(first)));
    assert_eq!(template.line(&pipes[1]), "begins");
    let read_only =
        format!("read told < {GENERATION}; echo $told; echo x 2>/dev/null > {GENERATION} || echo refused");
    let told = template.run(exec("before", &["sh", "-c", &read_only]));
    assert_eq!(told, format!("{}\nrefused\n", "0".repeat(32)));
    // Its generator has just been seeded, and would not be again for half a minute: without a word of the host's, both twins would say the same.
    template.done(Call::Restored(Box::new(restored().0)));
    // From here on nothing of the container runs before it is told that it was restored.
    template.done(Call::Pause);
    let snapshot = template.into_snapshot();
    drop(pipes);
    let taken = Instant::now();
    eprintln!("snapshot after {:?}", began.elapsed());

    // Each twin has its own copy of the disk, as it was at that moment.
    let disks = ["one.ext4", "two.ext4"].map(|name| harbour.directory().join(name));
    for disk in &disks {
        copy_sparse(&harbour.writable(), disk);
    }
    thread::sleep(LATER.saturating_sub(taken.elapsed()));
    let mut twins = disks.each_ref().map(|disk| Machine::start(&harbour, disk, Some(&snapshot)));
    let mut told = Vec::new();
    for twin in &mut twins {
        // A host that has not said so gets nothing done.
        let early = [Call::Unpause, Call::Processes, Call::Exec(Box::new(exec("early", &["true"])))];
        for call in early {
            let refused = twin.call(call).unwrap_err();
            assert!(refused.text.contains("first call is `restored`"), "{refused}");
        }
        let (news, generation) = restored();
        twin.done(Call::Restored(Box::new(news)));
        let Ok(Answer::Processes(list)) = twin.call(Call::Processes) else { panic!("no list") };
        assert!(!list.processes.is_empty(), "the container lives on");
        twin.done(Call::Unpause);
        // Its pipes go on with other connections.
        let mut pipes = streams.map(|stream| twin.stream(&id("init"), stream));
        pipes[0].write_all(b"hello\n").unwrap();
        let said = twin.line(&pipes[1]);
        let said: Vec<String> = said.split_ascii_whitespace().map(str::to_owned).collect();
        assert_eq!((said.len(), said[0].as_str(), &said[2]), (3, "hello", &generation), "{said:?}");
        let before = now();
        let lines = twin.run(exec("tells", &["sh", "-c", TELLS]));
        let after = now();
        let lines: Vec<String> = lines.lines().map(|line| line.trim().to_owned()).collect();
        assert_eq!((lines.len(), &lines[0]), (5, &generation), "{lines:?}");
        let clock: u64 = lines[4].parse().unwrap();
        let allowed = before.as_secs() - 1..=after.as_secs() + 1;
        assert!(allowed.contains(&clock), "the clock shows {clock}, the host's {allowed:?}");
        told.push([said, lines].concat());
    }
    eprintln!("{told:#?}");
    let kinds =
        ["a waiting process's randomness", "its generation", "generation", "urandom", "uuid", "getrandom"];
    for (what, (one, two)) in kinds.iter().zip(told[0].iter().zip(&told[1]).skip(1)) {
        assert_ne!(one, two, "{what}");
    }
    let whole = u64::from(MEMORY_MIB) << 10;
    for twin in &twins {
        let (mapped, own) = twin.memory(&snapshot);
        eprintln!("a twin has mapped {mapped} KiB of {whole}, {own} are its own");
        assert!(mapped > own && own > 0 && own < whole / 2, "{mapped} {own}");
    }
    eprintln!("all in {:?}", began.elapsed());
}
