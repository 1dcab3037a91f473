//! Many containers at once, and a daemon that dies amid them.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bulkhead_tests::daemon::Daemon;
use bulkhead_tests::{busybox, processes_with};

use crate::Dice;
use crate::client::Stubborn;

/// Containers of the long storm.
const CONTAINERS: usize = 100;
/// How many of them are on their way at a time.
const AT_A_TIME: usize = 8;
/// Lines that each of them prints.
const LINES: usize = 200;
/// Containers that run at the same time.
const AT_ONCE: usize = 20;

/// Prints its lines and waits for its end, which it takes as an occasion to print one more.
fn script() -> String {
    format!(
        "trap 'echo end; exit 7' TERM; n=0; while [ $n -lt {LINES} ]; do echo line $n; n=$((n+1)); done; \
         while :; do sleep 0.05; done"
    )
}

fn whole_log() -> String {
    (0..LINES).map(|n| format!("line {n}\n")).collect::<String>() + "end\n"
}

#[tokio::test(flavor = "local")]
async fn a_hundred_containers_while_the_daemon_dies_again_and_again() {
    let Some(mut daemon) = Daemon::start() else { return };
    let mut dice = Dice::cast();
    let image = pulled(&daemon).await;
    let (client, next) = (Stubborn::new(&daemon), Rc::new(Cell::new(0)));
    let workers: Vec<_> = (0..AT_A_TIME)
        .map(|_| {
            let (client, image, next) = (client.clone(), image.clone(), Rc::clone(&next));
            tokio::task::spawn_local(async move {
                loop {
                    let number = next.replace(next.get() + 1);
                    if number >= CONTAINERS {
                        break;
                    }
                    one_life(&client, &image, &format!("storm{number}")).await;
                }
            })
        })
        .collect();
    while workers.iter().any(|worker| !worker.is_finished()) {
        tokio::time::sleep(Duration::from_millis(500 + dice.below(1000))).await;
        client.crash(&mut daemon);
    }
    for worker in workers {
        worker.await.unwrap();
    }
    let deaths = client.deaths();
    println!("{CONTAINERS} containers, {deaths} deaths of the daemon");
    assert!(deaths > 1);
    assert_eq!(client.list().await, Vec::<serde_json::Value>::new());
    // The next start collects what a crash left.
    client.crash(&mut daemon);
    daemon.end();
    daemon.bulkhead.assert_nothing_left();
}

async fn one_life(client: &Stubborn, image: &str, name: &str) {
    client.create(image, name, &script()).await;
    client.start(name).await;
    assert_eq!(client.exec(name, &["echo", "within", name]).await, format!("within {name}\r\n"));
    client.printed(name, &format!("line {}", LINES - 1)).await;
    client.stop(name).await;
    let state = client.inspect(name).await.unwrap()["State"].clone();
    assert_eq!((&state["Status"], &state["ExitCode"]), (&"exited".into(), &7.into()), "{name}: {state}");
    assert_eq!(client.log(name).await, whole_log(), "{name}");
    client.remove(name).await;
}

#[tokio::test(flavor = "local")]
async fn twenty_containers_run_at_once_and_outlive_their_daemon() {
    let Some(mut daemon) = Daemon::start() else { return };
    let image = pulled(&daemon).await;
    let client = Stubborn::new(&daemon);
    let names: Vec<String> = (0..AT_ONCE).map(|number| format!("crowd{number}")).collect();
    let starts: Vec<_> = names
        .iter()
        .cloned()
        .map(|name| {
            let (client, image) = (client.clone(), image.clone());
            tokio::task::spawn_local(async move {
                client.create(&image, &name, &script()).await;
                client.start(&name).await;
            })
        })
        .collect();
    for start in starts {
        start.await.unwrap();
    }
    let running = async || client.list().await.iter().filter(|one| one["State"] == "running").count();
    assert_eq!(running().await, AT_ONCE);
    client.crash(&mut daemon);
    assert_eq!(running().await, AT_ONCE, "supervisors outlive their daemon");
    for name in &names {
        assert_eq!(client.exec(name, &["hostname"]).await.trim().len(), 12);
        assert!(client.log(name).await.starts_with("line 0\nline 1\n"));
    }
    for name in &names {
        client.remove(name).await;
    }
    daemon.end();
    daemon.bulkhead.assert_nothing_left();
    assert_eq!(processes_with(&daemon.bulkhead.root.path().to_string_lossy()), Vec::<String>::new());
}

/// The small image, in the daemon's store.
pub async fn pulled(daemon: &Daemon) -> String {
    let ran = daemon.bulkhead.run(&[&busybox(), "true"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    busybox()
}
