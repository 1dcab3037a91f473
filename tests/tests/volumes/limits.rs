//! How much a container may write, how fast, and what is told of it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Setup;

#[test]
fn the_writable_layer_has_a_size_and_the_host_a_bound() {
    let Some(setup) = Setup::new() else { return };
    let daemon = &setup.daemon;
    let script = "dd if=/dev/zero of=/big bs=64k 2>&1 | grep -o 'No space.*'; sync; rm /big; echo x >/small && cat /small";
    let options = ["run", "--name", "full", "--storage-opt", "size=64m", "busybox", "sh", "-c", script];
    assert_eq!(daemon.ok(&options), "No space left on device\nx");
    let id = daemon.ok(&["inspect", "-f", "{{.Id}}", "full"]);
    let disk = daemon.bulkhead.root.path().join("containers").join(&id).join("writable.ext4");
    let disk = fs::metadata(disk).unwrap();
    assert_eq!(disk.len(), 64 << 20);
    assert!(disk.blocks() * 512 <= 64 << 20);
    assert_eq!(daemon.ok(&["inspect", "-f", "{{.HostConfig.StorageOpt.size}}", "full"]), "67108864");
    daemon.fails(125, "--storage-opt size=", &["run", "--rm", "--storage-opt", "size=1m", "busybox", "true"]);
}

/// Writes so many KiB to the container's own disk and waits for the disk.
fn writes(kib: u32) -> String {
    format!("dd if=/dev/zero of=/f bs=16k count={} conv=fsync 2>/dev/null && echo written", kib / 16)
}

#[test]
fn rates_hold_at_the_start_and_when_they_are_changed() {
    let Some(setup) = Setup::new() else { return };
    let daemon = &setup.daemon;
    // Only that it takes as long as it must: how much longer is the host's business.
    let began = Instant::now();
    assert_eq!(setup.shell(&["--device-write-bps", "/dev/vdb:1mb"], &writes(3072)), "written");
    assert!(began.elapsed() >= Duration::from_millis(2500), "{:?}", began.elapsed());
    let rates = ["--device-read-iops", "/dev/vdb:1000", "--device-read-bps", "/dev/vdb:100mb"];
    let _ = daemon.ok(&[&["run", "-d", "--name", "box"], &rates[..], &["busybox", "sleep", "1000"]].concat());
    assert_eq!(daemon.ok(&["exec", "box", "sh", "-c", &writes(1024)]), "written");
    let body = r#"{"BlkioDeviceWriteBps":[{"Path":"/dev/vdb","Rate":262144}]}"#;
    let changed = Command::new("curl")
        .args(["-sS", "--fail-with-body", "--unix-socket"])
        .arg(daemon.socket())
        .args(["-H", "Content-Type: application/json", "-d", body, "http://d/containers/box/update"])
        .output()
        .unwrap();
    assert!(changed.status.success(), "{changed:?}");
    let began = Instant::now();
    assert_eq!(daemon.ok(&["exec", "box", "sh", "-c", &writes(768)]), "written");
    assert!(began.elapsed() >= Duration::from_millis(2000), "{:?}", began.elapsed());
    let told = daemon.ok(&[
        "inspect",
        "-f",
        "{{(index .HostConfig.BlkioDeviceWriteBps 0).Rate}} {{(index .HostConfig.BlkioDeviceReadIOps 0).Rate}}",
        "box",
    ]);
    assert_eq!(told, "262144 1000");
    for option in ["--blkio-weight=100", "--blkio-weight-device=/dev/vdb:100"] {
        daemon.fails(125, "weights need several containers", &["run", "--rm", option, "busybox", "true"]);
    }
}

#[test]
fn volumes_tell_what_they_hold() {
    let Some(setup) = Setup::new() else { return };
    let daemon = &setup.daemon;
    let _ = daemon.ok(&[
        "run",
        "--name",
        "box",
        "-v",
        "data:/v",
        "busybox",
        "dd",
        "if=/dev/zero",
        "of=/v/f",
        "bs=1M",
        "count=3",
    ]);
    let format = "{{range .Volumes}}{{.Name}} {{.Links}} {{.Size}}{{end}}";
    let told = daemon.ok(&["system", "df", "-v", "--format", format]);
    assert!(told.starts_with("data 1 3.1"), "{told}");
    let _ = daemon.ok(&["rm", "box"]);
    assert!(daemon.ok(&["system", "df", "-v", "--format", format]).starts_with("data 0 3.1"));
    assert!(daemon.ok(&["volume", "prune", "-af"]).contains("Total reclaimed space: 3.1"));
}

/// A small file system over a part of the state directory, for as long as it is kept.
struct Small(std::path::PathBuf);

impl Small {
    /// `None` (said loudly) where nobody may mount.
    fn new(path: std::path::PathBuf) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=12m", "small"])
            .arg(&path)
            .output()
            .unwrap();
        if !mounted.status.success() {
            eprintln!(
                "skipped: no small disk can be mounted: {}",
                String::from_utf8_lossy(&mounted.stderr).trim()
            );
            return None;
        }
        Some(Self(path))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_of_the_host_is_survived() {
    let Some(setup) = Setup::new() else { return };
    let daemon = &setup.daemon;
    let root = daemon.bulkhead.root.path();
    let Some(small) = Small::new(root.join("containers")) else { return };
    // The container sees its disk fail, ends, and its end is told.
    let script = "dd if=/dev/zero of=/big bs=64k count=400 conv=fsync 2>/dev/null; echo $?; exit 3";
    let ran = daemon.docker(&["run", "--name", "full", "busybox", "sh", "-c", script]);
    assert_eq!((ran.code, ran.stdout.as_str()), (3, "1\n"), "{ran:?}");
    assert_eq!(daemon.ok(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "full"]), "exited 3");
    fs::write(small.0.join("rest"), vec![0; 12 << 20]).unwrap_err();
    daemon.fails(125, "no space left", &["run", "--rm", "busybox", "true"]);
    // With room, everything goes on.
    fs::remove_file(small.0.join("rest")).unwrap();
    let _ = daemon.ok(&["rm", "full"]);
    assert_eq!(setup.shell(&[], "echo again"), "again");
    drop(small);
    // A volume on a full disk says so to who writes.
    let _ = daemon.ok(&["volume", "create", "data"]);
    let Some(_small) = Small::new(setup.volume("data")) else { return };
    let script = "dd if=/dev/zero of=/v/big bs=64k count=400 2>&1 | grep -o 'No space.*'; rm /v/big; echo x >/v/x; cat /v/x";
    assert_eq!(setup.shell(&["-v", "data:/v"], script), "No space left on device\nx");
}
