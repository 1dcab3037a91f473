//! What is the kernel's path's alone: that it is refused where it cannot be, and that nothing of it stays, whoever is killed.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use bulkhead_tests::processes_with;
use bulkhead_tests::world::FAR;

use crate::basics::fetch;
use crate::names::{GET, serve};
use crate::{Path, Site, on_host};

/// Whether the host's kernel can carry packets for this user, and why not.
pub fn possible() -> Result<(), String> {
    File::options().read(true).write(true).open("/dev/net/tun").map_err(|e| format!("/dev/net/tun: {e}"))?;
    let nft = Command::new("nft").arg("--version").output();
    nft.map(drop).map_err(|error| format!("nft: {error}"))
}

#[test]
fn it_is_refused_by_name_before_anything_is_made() {
    let Some(site) = Site::new(Path::Switch) else { return };
    for path in ["perhaps", ""] {
        site.daemon.fails(
            1,
            &format!("bulkhead.path={path} cannot be done"),
            &["network", "create", "-o", &format!("bulkhead.path={path}"), "no"],
        );
    }
    let ran =
        site.daemon.bulkhead.ran(&["serve", "--network-path", "sideways", "-H", "unix:///nowhere/sock"]);
    assert!(ran.code != 0 && ran.stderr.contains("BULKHEAD_NETWORK_PATH=sideways cannot be done"), "{ran:?}");
    assert!(!site.daemon.ok(&["network", "ls", "-q", "-f", "name=no"]).contains("no"));

    // Somebody who is not root, with a state directory of their own.
    let root = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(root.path(), Some(65_534), Some(65_534)).unwrap();
    let mut command =
        site.daemon.bulkhead.command(&["network", "create", "-o", "bulkhead.path=kernel", "no"]);
    match command.env("BULKHEAD_ROOT", root.path()).uid(65_534).gid(65_534).output() {
        Err(error) => eprintln!("skipped: another user may not run the program: {error}"),
        Ok(output) => {
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success(), "{told}");
            let lines: Vec<&str> = told.lines().collect();
            assert!(lines.len() == 3 && lines[0].contains("bulkhead.path=kernel cannot be done"), "{told}");
            assert!(lines[1].contains("only root") && lines[2].starts_with("next: "), "{told}");
        }
    }
}

/// The processes of a kind that a container has, by its id.
fn killed(site: &Site, container: &str, part: &str) {
    let id = site.daemon.ok(&["inspect", "-f", "{{.Id}}", container]);
    let supervisor = processes_with(&id);
    let supervisor = supervisor.iter().find(|process| process.contains("supervise")).expect("a supervisor");
    let supervisor: i32 = supervisor.split(':').next().unwrap().parse().unwrap();
    let victim = if part == "supervisor" {
        supervisor
    } else {
        let children = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).unwrap();
        let mut children = children.split_whitespace().map(|number| number.parse::<i32>().unwrap());
        children
            .find(|number| {
                fs::read_to_string(format!("/proc/{number}/comm")).is_ok_and(|name| name.contains("vmm"))
            })
            .expect("a VMM")
    };
    // SAFETY: kill takes two numbers; the process is one of this test's own container.
    assert_eq!(unsafe { libc::kill(victim, libc::SIGKILL) }, 0);
    let gone = (0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        site.daemon.ok(&["inspect", "-f", "{{.State.Running}}", container]) == "false"
    });
    assert!(gone, "{container} runs without its {part}");
}

/// What the host has of networks, but for the cable that the test itself laid.
fn left(site: &Site) -> String {
    let (_, tables) = on_host("nft", &["list", "tables"]);
    let (_, links) = on_host("ip", &["-br", "link"]);
    let links: Vec<&str> =
        links.lines().filter(|line| !line.starts_with("lo ") && !line.starts_with("out@")).collect();
    let root = site.daemon.bulkhead.root.path().to_string_lossy().into_owned();
    let processes: Vec<String> = processes_with(&root);
    let processes: Vec<&String> = processes.iter().filter(|process| !process.contains(" serve ")).collect();
    let nothing = tables.is_empty() && links.is_empty() && processes.is_empty();
    if nothing { String::new() } else { format!("{tables} {links:?} {processes:?}") }
}

#[test]
fn nothing_stays_whoever_is_killed() {
    if let Err(why) = possible() {
        return eprintln!("skipped: {why}");
    }
    // The networks say themselves who carries their packets; the one that does not has a switch, beside them.
    let Some(site) = Site::new(Path::Switch) else { return };
    let _ = site.world.resolver(FAR, &[]);
    let before = left(&site);
    assert_eq!(before, "");
    for name in ["front", "back"] {
        let _ = site.daemon.ok(&["network", "create", "-o", "bulkhead.path=kernel", name]);
    }
    serve(&site, "stays", &["--network", "front", "-p", "8080:80"]);
    serve(&site, "dies", &["--network", "front", "-p", "8081:80"]);
    serve(&site, "alone", &["--network", "back", "-p", "8082:80"]);
    serve(&site, "other", &[]);
    let get = |port: u16| site.world.inside(|| fetch(([198, 51, 100, 1], port).into()));
    assert_eq!([8080, 8081, 8082].map(get), ["stays", "dies", "alone"].map(|name| format!("this is {name}")));
    // One of the other kind is no way in: a running machine's cards are what they are.
    site.daemon.fails(1, "its cards are not of that kind", &["network", "connect", "front", "other"]);

    // From its start it may be in both, and its way out is in one of them.
    let _ = site.daemon.ok(&["create", "--name", "both", "busybox", "sleep", "1000"]);
    let _ = site.daemon.ok(&["network", "connect", "front", "both"]);
    let _ = site.daemon.ok(&["start", "both"]);
    assert_eq!(site.exec("both", &format!("NAME=stays; {GET}")), (0, "this is stays".to_owned()));
    let _ = site.daemon.ok(&["rm", "-f", "both"]);

    // A supervisor, and with it the only one who holds the room of its network.
    killed(&site, "alone", "supervisor");
    let rooms = || on_host("ip", &["-br", "link"]).1.lines().filter(|line| line.starts_with("bhk")).count();
    let gone = (0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        rooms() == 1
    });
    assert!(gone, "the room of nobody stays: {}", on_host("ip", &["-br", "link"]).1);
    // One of two: the other does not notice, and the port that the dead one had can be had.
    killed(&site, "dies", "supervisor");
    assert_eq!(get(8080), "this is stays");
    serve(&site, "next", &["--network", "front", "-p", "8081:80"]);
    assert_eq!(get(8081), "this is next");
    assert_eq!(site.exec("next", &format!("NAME=stays; {GET}")), (0, "this is stays".to_owned()));
    // A machine.
    killed(&site, "next", "VMM");
    assert_eq!(get(8080), "this is stays");
    // The switch, which answers for names.
    let switch = site.switch("front");
    // SAFETY: kill takes two numbers; the process is the switch of this test's own network.
    assert_eq!(unsafe { libc::kill(switch, libc::SIGKILL) }, 0);
    let _ = site.daemon.ok(&["start", "next"]);
    assert_eq!(site.exec("next", &format!("NAME=stays; {GET}")), (0, "this is stays".to_owned()));
    assert_eq!([8080, 8081].map(get), ["stays", "next"].map(|name| format!("this is {name}")));

    let _ = site.daemon.ok(&["rm", "-f", "stays", "dies", "alone", "next", "other"]);
    let nothing = (0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        left(&site).is_empty()
    });
    assert!(nothing, "{}", left(&site));
}
