//! Every process that has to do with a container is killed at a random moment, a hundred times: the list tells the truth
//! afterwards, the next start works, and nothing is left.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use bulkhead_tests::daemon::Daemon;
use bulkhead_tests::processes_with;
use serde_json::Value;

use crate::Dice;
use crate::client::Stubborn;
use crate::many::pulled;

const ROUNDS: u64 = 100;
/// A start and a short life take about as long here; the moment of the kill is drawn from it.
const LIFE: Duration = Duration::from_millis(250);
/// How long the truth may take to come out.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    CommandLine,
    Daemon,
    Supervisor,
    Vmm,
    Accelerator,
}

const VICTIMS: [Victim; 5] =
    [Victim::CommandLine, Victim::Daemon, Victim::Supervisor, Victim::Vmm, Victim::Accelerator];

#[tokio::test(flavor = "local")]
async fn a_hundred_kills_at_any_moment() {
    let Some(mut daemon) = Daemon::start() else { return };
    let mut dice = Dice::cast();
    let image = pulled(&daemon).await;
    let client = Stubborn::new(&daemon);
    let mut hit = BTreeSet::new();
    for round in 0..ROUNDS {
        let victim = VICTIMS[usize::try_from(round).unwrap() % VICTIMS.len()];
        let name = format!("victim{round}");
        let moment = Duration::from_micros(dice.below(u64::try_from(LIFE.as_micros()).unwrap()));
        let what = format!("round {round}: {victim:?} after {moment:?}");
        let mut command = None;
        let mut starting = None;
        if victim == Victim::CommandLine {
            command = Some(run(&daemon, &image, &name));
        } else {
            client.create(&image, &name, "echo up; sleep 0.1; echo down").await;
            let (client, name) = (client.clone(), name.clone());
            starting = Some(tokio::task::spawn_local(async move { client.start_or_fail(&name).await }));
        }
        tokio::time::sleep(moment).await;
        let killed = match (&mut command, victim) {
            (Some(child), _) => child.kill().is_ok(),
            (None, Victim::Daemon) => {
                client.crash(&mut daemon);
                true
            }
            (None, victim) => kill(&daemon, victim),
        };
        if killed {
            hit.insert(victim);
        }
        if let Some(mut child) = command {
            child.wait().unwrap();
        }
        if let Some(starting) = starting {
            starting.await.unwrap();
        }
        tells_the_truth(&client, &daemon, &what).await;
        // What was created can be started again, and taken away.
        for container in client.list().await {
            let id = container["Id"].as_str().unwrap();
            client.start(id).await;
            client.remove(id).await;
        }
    }
    assert_eq!(hit, BTreeSet::from(VICTIMS), "each was hit at least once");
    // The next starts collect what a crash left: of the daemon, and of a command line.
    client.crash(&mut daemon);
    pulled(&daemon).await;
    daemon.end();
    daemon.bulkhead.assert_nothing_left();
    let root = daemon.bulkhead.root.path().to_string_lossy().into_owned();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&root), "mounts are left: {mounts}");
}

fn run(daemon: &Daemon, image: &str, name: &str) -> Child {
    let script = "echo up; sleep 0.1; echo down";
    let mut command = daemon.bulkhead.command(&["run", "--rm", "--accel", "uml", "--hostname", name, image]);
    command.args(["sh", "-c", script]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Kills the process of this kind that the container has, if it has one at the moment.
fn kill(daemon: &Daemon, victim: Victim) -> bool {
    let root = daemon.bulkhead.root.path().to_string_lossy().into_owned();
    let mut all = Vec::new();
    for process in processes_with(&root) {
        let Some((number, line)) = process.split_once(": ") else { continue };
        let (Ok(number), line) = (number.parse::<i32>(), line.trim()) else { continue };
        let kind = if line.contains(" supervise ") {
            Victim::Supervisor
        } else if line.contains("bulkhead-vmm") {
            Victim::Vmm
        } else if line.contains(" serve ") || line.contains("cargo") {
            continue;
        } else {
            Victim::Accelerator
        };
        all.push((kind, number));
        all.extend(children(number).into_iter().map(|(child, name)| {
            (if name.contains("vmm") { Victim::Vmm } else { Victim::Accelerator }, child)
        }));
    }
    let Some((_, number)) = all.into_iter().find(|(kind, _)| *kind == victim) else { return false };
    // SAFETY: kill takes two numbers. The process was the container's a moment ago; numbers are not used again so soon.
    unsafe { libc::kill(number, libc::SIGKILL) == 0 }
}

/// The descendants of a process, with their names.
fn children(of: i32) -> Vec<(i32, String)> {
    let Ok(list) = fs::read_to_string(format!("/proc/{of}/task/{of}/children")) else { return Vec::new() };
    let mut found = Vec::new();
    for child in list.split_whitespace().filter_map(|number| number.parse().ok()) {
        found.push((child, fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default()));
        found.extend(children(child));
    }
    found
}

/// Waits until every container that is said to run has a process, and every other one has none.
async fn tells_the_truth(client: &Stubborn, daemon: &Daemon, what: &str) {
    let root = daemon.bulkhead.root.path().to_string_lossy().into_owned();
    let began = Instant::now();
    loop {
        let containers = client.list().await;
        let processes = processes_with(&root);
        let lies: Vec<&Value> = containers.iter().filter(|one| !is_true(one, &processes)).collect();
        if lies.is_empty() {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{what}: {lies:?} {processes:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn is_true(container: &Value, processes: &[String]) -> bool {
    let id = container["Id"].as_str().unwrap();
    let running = container["State"] == "running";
    let supervised = processes.iter().any(|process| process.contains(" supervise ") && process.contains(id));
    // A supervisor of one that has ended may be on its way out, or wait for the next start.
    !running || supervised
}
