//! What becomes of files when a process of the host is killed.

use std::fs;

use crate::{Setup, descendants, eventually, kill, process_of};

/// Writes and syncs a line, tells so, and goes on writing without a sync.
const WRITER: &str =
    "echo kept >/v/kept && sync && echo told; while :; do echo more >>/v/more; sleep 0.01; done";

#[test]
fn a_file_server_that_dies_is_buried_and_leaves_errors() {
    let Some(setup) = Setup::new() else { return };
    let daemon = &setup.daemon;
    let id = daemon.ok(&["run", "-d", "--name", "box", "-v", "data:/v", "busybox", "sleep", "1000"]);
    assert_eq!(daemon.ok(&["exec", "box", "sh", "-c", "echo x >/v/x; cat /v/x"]), "x");
    let supervisor = process_of(&format!("supervise {id}")).pid;
    let servers = |zombies: bool| {
        descendants(supervisor)
            .into_iter()
            .filter(|p| p.command.contains("bulkhead-fs") || p.zombie && zombies)
            .count()
    };
    assert_eq!(servers(true), 2, "{:?}", descendants(supervisor));
    let outer = descendants(supervisor)
        .into_iter()
        .find(|p| p.parent == supervisor && p.command.contains("bulkhead-fs"));
    kill(outer.unwrap().pid);
    eventually("server and shadow are gone", || servers(true) == 0);
    // The container lives; what is in the volume cannot be reached.
    let failed = daemon.docker(&["exec", "box", "sh", "-c", "echo y >/v/y"]);
    assert!(failed.code == 1 && failed.stderr.contains("not connected"), "{failed:?}");
    assert_eq!(daemon.ok(&["exec", "box", "echo", "alive"]), "alive");
    // The next start has a server again.
    let _ = daemon.ok(&["restart", "-t", "0", "box"]);
    assert_eq!(daemon.ok(&["exec", "box", "cat", "/v/x"]), "x");
    let _ = daemon.ok(&["rm", "-f", "box"]);
    eventually("nothing is left", || bulkhead_tests::processes_with(&id).is_empty());
}

#[test]
fn what_was_synced_survives_the_death_of_vmm_and_supervisor() {
    let Some(setup) = Setup::new() else { return };
    let daemon = &setup.daemon;
    for victim in ["bulkhead-vmm", "supervise"] {
        let id = daemon.ok(&["run", "-d", "--name", "box", "-v", "data:/v", "busybox", "sh", "-c", WRITER]);
        eventually("it has synced", || daemon.ok(&["logs", "box"]) == "told");
        let supervisor = process_of(&format!("supervise {id}")).pid;
        let family = descendants(supervisor);
        let pid = match victim {
            "supervise" => supervisor,
            part => family.iter().find(|p| p.parent == supervisor && p.command.contains(part)).unwrap().pid,
        };
        kill(pid);
        // Everything of the machine ends: VMM, guest kernel and file servers.
        eventually("the family is gone", || {
            family.iter().all(|p| {
                !fs::read_to_string(format!("/proc/{}/cmdline", p.pid))
                    .is_ok_and(|c| c.replace('\0', " ") == p.command && !c.is_empty())
            })
        });
        assert_ne!(daemon.ok(&["wait", "box"]), "0", "{victim}");
        let volume = setup.volume("data");
        assert_eq!(fs::read_to_string(volume.join("kept")).unwrap(), "kept\n", "{victim}");
        // A new container, and one that is started again, find what was there.
        assert_eq!(setup.shell(&["-v", "data:/v"], "cat /v/kept; rm /v/kept /v/more"), "kept");
        let _ = daemon.ok(&["rm", "box"]);
    }
    assert_eq!(daemon.ok(&["volume", "rm", "data"]), "data");
    assert!(!setup.volume("data").exists());
}
