//! Volumes with a size: an exact bound, shared by all that have the volume, and nothing of the host's left over.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bulkhead_tests::daemon::Daemon;

use crate::{Setup, eventually, kill, process_of};

/// A daemon with the volume `small` of 64 MiB; `None` (said loudly) where the host has no loop devices.
fn small() -> Option<(Setup, PathBuf)> {
    let setup = Setup::new()?;
    let made = setup.daemon.docker(&["volume", "create", "-o", "size=64m", "small"]);
    if made.code != 0 && made.stderr.contains("no loop devices") {
        eprintln!("skipped: {}", made.stderr.trim());
        return None;
    }
    assert_eq!((made.code, made.stdout.trim()), (0, "small"), "{made:?}");
    let disk = setup.volume("small").with_file_name("disk.ext4");
    Some((setup, disk))
}

/// How many loop devices show this file.
fn loops(disk: &Path) -> usize {
    let shows = |device: &Path| {
        fs::read_to_string(device.join("loop/backing_file")).is_ok_and(|file| Path::new(file.trim()) == disk)
    };
    fs::read_dir("/sys/block").unwrap().flatten().filter(|device| shows(&device.path())).count()
}

/// KiB that the host keeps of a file.
fn kept(disk: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(disk).unwrap().blocks() / 2
}

/// Writes this many MiB to a file of the volume, and says how it went.
fn write(daemon: &Daemon, container: &str, file: &str, mib: u32) -> String {
    let script = format!(
        "dd if=/dev/zero of=/v/{file} bs=1M count={mib} conv=fsync 2>&1 | grep -o 'No space.*'; echo done"
    );
    daemon.ok(&["exec", container, "sh", "-c", &script])
}

#[test]
fn a_volume_with_a_size_holds_no_more_whoever_writes() {
    let Some((setup, disk)) = small() else { return };
    let daemon = &setup.daemon;
    assert_eq!(daemon.ok(&["volume", "inspect", "-f", "{{.Options.size}}", "small"]), "64m");
    assert_eq!(loops(&disk), 0, "nobody has it yet");
    for name in ["one", "two"] {
        let _ = daemon.ok(&["run", "-d", "--name", name, "-v", "small:/v", "busybox", "sleep", "1000"]);
    }
    assert_eq!(loops(&disk), 1, "one file system for both");
    assert_eq!(daemon.ok(&["exec", "one", "ls", "-A", "/v"]), "", "a new volume is empty");
    // Both write into the same room.
    assert_eq!(write(daemon, "one", "a", 30), "done");
    assert_eq!(write(daemon, "two", "b", 40), "No space left on device\ndone");
    assert!(daemon.ok(&["exec", "two", "stat", "-c", "%s", "/v/a"]).starts_with("31457280"));
    // The container is told how much there is.
    let told = daemon.ok(&["exec", "one", "sh", "-c", "df -k /v | tail -1"]);
    let total: u64 = told.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((40 << 10..=64 << 10).contains(&total), "{told}");
    // What another container has looked at keeps its room until that one lets go of it.
    let _ = daemon.ok(&["rm", "-f", "two"]);
    // A file that is gone but still open takes its room until it is closed; a hole takes none.
    let script = "exec 3</v/a; rm /v/a /v/b; dd if=/dev/zero of=/v/c bs=1M count=40 conv=fsync 2>&1 | grep -o 'No space.*'; \
                  exec 3<&-; until dd if=/dev/zero of=/v/c bs=1M count=40 conv=fsync 2>/dev/null; do sleep 0.1; done; \
                  truncate -s 1G /v/hole && echo fits";
    assert_eq!(daemon.ok(&["exec", "one", "sh", "-c", script]), "No space left on device\nfits");
    // The host's disk never holds more than the size, and is given back what is removed.
    assert!((40 << 10..=64 << 10).contains(&kept(&disk)), "{} KiB", kept(&disk));
    assert_eq!(daemon.ok(&["exec", "one", "sh", "-c", "rm /v/c; sync; echo x >/v/x; sync; cat /v/x"]), "x");
    let format = "{{range .Volumes}}{{.Name}} {{.Links}} {{.Size}}{{end}}";
    eventually("removed files are given back", || {
        let _ = daemon.ok(&["exec", "one", "sh", "-c", "echo y >>/v/x; sync"]);
        kept(&disk) < 20 << 10
    });
    assert!(daemon.ok(&["system", "df", "-v", "--format", format]).starts_with("small 1 "));
    // Nothing of it is seen by the host, whose folder in its place is empty.
    assert_eq!(fs::read_dir(setup.volume("small")).unwrap().count(), 0);
    let _ = daemon.ok(&["rm", "-f", "one"]);
    eventually("the loop device is free", || loops(&disk) == 0);
    assert_eq!(
        setup.shell(&["-v", "small:/v:ro"], "head -1 /v/x; touch /v/y 2>/dev/null || echo read-only"),
        "x\nread-only"
    );
    let checked: Output = Command::new("fsck.ext4")
        .args(["-f", "-n"])
        .arg(&disk)
        .env("PATH", "/usr/sbin:/sbin")
        .output()
        .unwrap();
    // Without its lost+found, which is no user's business, and otherwise as it should be.
    let words = String::from_utf8_lossy(&checked.stdout);
    assert!(!words.contains("Pass 5 errors") && words.matches("? no").count() <= 1, "{words}");
    let _ = daemon.ok(&["volume", "rm", "small"]);
    assert!(!disk.exists());
}

#[test]
fn nothing_of_a_volume_with_a_size_outlives_its_killed_supervisor_but_what_was_synced() {
    let Some((setup, disk)) = small() else { return };
    let daemon = &setup.daemon;
    let script = "echo kept >/v/kept; sync; echo told; while :; do echo more >>/v/more; sleep 0.01; done";
    for _ in 0..3 {
        let id = daemon.ok(&["run", "-d", "--name", "box", "-v", "small:/v", "busybox", "sh", "-c", script]);
        eventually("it has synced", || daemon.ok(&["logs", "box"]) == "told");
        assert_eq!(loops(&disk), 1);
        kill(process_of(&format!("supervise {id}")).pid);
        eventually("the loop device is free", || loops(&disk) == 0);
        assert_eq!(daemon.ok(&["wait", "box"]), "137");
        assert_eq!(setup.shell(&["-v", "small:/v"], "cat /v/kept; rm /v/kept /v/more"), "kept");
        let _ = daemon.ok(&["rm", "box"]);
    }
    // What a copy into a stopped container's volume writes is in it, too.
    let _ = daemon.ok(&["create", "--name", "still", "-v", "small:/v", "busybox", "cat", "/v/hosts"]);
    let _ = daemon.ok(&["cp", "/etc/hostname", "still:/v/hosts"]);
    assert_eq!(daemon.ok(&["start", "-a", "still"]), fs::read_to_string("/etc/hostname").unwrap().trim_end());
}

#[test]
fn sizes_that_cannot_be_had_are_refused_before_anything_is_created() {
    let Some((setup, disk)) = small() else { return };
    let daemon = &setup.daemon;
    for (option, word) in [
        ("size=1k", "between 64 MiB and 16 TiB"),
        ("size=100t", "between 64 MiB and 16 TiB"),
        ("size=much", "volume option size"),
        ("type=nfs", "--opt type=nfs cannot be done"),
    ] {
        daemon.fails(1, word, &["volume", "create", "-o", option, "other"]);
    }
    assert_eq!(daemon.ok(&["volume", "ls", "-q"]), "small");
    assert!(!setup.volume("other").parent().unwrap().exists());
    // The volume that is there stays as it is.
    let _ = daemon.ok(&["volume", "create", "-o", "size=1g", "small"]);
    assert_eq!(fs::metadata(&disk).unwrap().len(), 64 << 20);
    assert_eq!(daemon.ok(&["volume", "inspect", "-f", "{{.Options.size}}", "small"]), "64m");
    // A disk that was lost is told by name, and its container can be removed.
    let _ = daemon.ok(&["create", "--name", "box", "-v", "small:/v", "busybox", "true"]);
    fs::remove_file(&disk).unwrap();
    daemon.fails(1, "mounting the disk of the volume small", &["start", "box"]);
    let _ = daemon.ok(&["rm", "box"]);
}
