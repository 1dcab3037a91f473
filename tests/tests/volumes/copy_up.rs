//! What the image has in a new volume's place, volumes of other containers, and volumes that go away.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use bulkhead_tests::tarfile::{META, Meta, Tar};

use crate::Setup;

/// A file of an image that is copied slowly enough to be interrupted.
const BIG: usize = 24 << 20;

/// Loads an image `seed` with busybox and a folder `/seed` that holds one of everything; `big`: and a large file, which comes last.
fn load(setup: &Setup, big: bool) {
    let mut tar = Tar::default();
    let program = fs::read("/bin/busybox").unwrap();
    tar.file_with("bin/busybox", &program, &Meta { mode: 0o755, ..META });
    for name in ["sh", "cat", "echo", "ls", "true", "stat", "rm", "sleep", "find", "sync"] {
        tar.symlink(&format!("bin/{name}"), "busybox");
    }
    let of = |uid, mode| Meta { uid, gid: uid + 1, mode, mtime: 1_000_000_000 };
    tar.raw(b'5', "seed/", "", &of(70, 0o1770), 0);
    tar.raw(b'5', "seed/dir/", "", &of(0, 0o755), 0);
    tar.pax(&[("SCHILY.xattr.user.note", b"kept")]);
    tar.file_with("seed/dir/text", b"text", &of(71, 0o640));
    tar.hardlink("seed/again", "seed/dir/text");
    tar.symlink("seed/link", "../../../../etc/passwd");
    tar.raw(b'6', "seed/pipe", "", &of(0, 0o600), 0);
    tar.device(b'3', "seed/null", 1, 3);
    if big {
        tar.file("seed/zz-big", &bulkhead_tests::tarfile::noise(7, BIG));
    }
    tar.symlink("place", "seed");
    let name = if big { "seed:big" } else { "seed:latest" };
    let _ = setup.daemon.fed(&["import", "-", name], &tar.end());
    assert!(!setup.daemon.ok(&["images", "-q", name]).is_empty());
}

/// Everything in a volume: names, kinds with permissions, owners, times.
fn listing(volume: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut folders = vec![volume.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(volume).unwrap().display();
            let links = if meta.is_dir() { 0 } else { meta.nlink() };
            lines.push(format!("{name} {:o} {}:{} {links}", meta.mode(), meta.uid(), meta.gid()));
            if meta.is_dir() {
                folders.push(path);
            }
        }
    }
    lines.sort();
    lines
}

#[test]
fn a_new_volume_has_what_the_image_has_in_its_place() {
    let Some(setup) = Setup::new() else { return };
    load(&setup, false);
    let run = |options: &[&str], script: &str| {
        setup.daemon.ok(&[&["run", "--rm"], options, &["seed", "sh", "-c", script]].concat())
    };
    assert_eq!(
        run(&["-v", "data:/seed"], "cat /seed/dir/text /seed/again; stat -c '%u:%g %a' /seed"),
        "texttext70:71 1770"
    );
    let volume = setup.volume("data");
    assert_eq!(
        listing(&volume),
        [
            "again 100640 71:72 2",
            "dir 40755 0:1 0",
            "dir/text 100640 71:72 2",
            "link 120777 0:0 1",
            "pipe 10600 0:1 1"
        ]
    );
    assert_eq!(fs::read_link(volume.join("link")).unwrap(), Path::new("../../../../etc/passwd"));
    assert_eq!(fs::metadata(volume.join("dir/text")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(fs::metadata(&volume).unwrap().mode() & 0o7777, 0o1770);
    assert_eq!(attribute(&volume.join("dir/text")), Some(b"kept".to_vec()));

    // Only a volume that is empty is filled, and only for a new container: what a person removed stays removed.
    assert_eq!(run(&["-v", "data:/bin/nothing"], "ls /bin/nothing"), "again\ndir\nlink\npipe");
    let _ = setup.daemon.ok(&["create", "--name", "box", "-v", "own:/seed", "seed", "ls", "/seed"]);
    assert_eq!(setup.daemon.ok(&["start", "-a", "box"]), "again\ndir\nlink\npipe");
    assert_eq!(run(&["-v", "own:/other"], "rm -r /other/*; ls /other"), "");
    assert_eq!(setup.daemon.ok(&["start", "-a", "box"]), "");

    // A nameless one by a link; one without the copy, binds, and one that is only read.
    assert_eq!(run(&["-v", "/place"], "ls /place/"), "again\ndir\nlink\npipe");
    assert_eq!(run(&["-v", "bare:/seed:nocopy"], "ls /seed"), "");
    assert_eq!(run(&["--mount", "type=volume,dst=/seed,volume-nocopy"], "ls /seed"), "");
    fs::create_dir(setup.at("folder")).unwrap();
    assert_eq!(run(&["-v", &setup.bind("folder", "/seed")], "ls /seed"), "");
    assert_eq!(
        run(&["-v", "closed:/seed:ro"], "ls /seed; rm /seed/again 2>&1; true"),
        "again\ndir\nlink\npipe\nrm: can't remove '/seed/again': Read-only file system"
    );
    assert_eq!(listing(&setup.volume("closed")), listing(&volume));
    // `cp` into a container that never ran finds the volume as it will be.
    let _ = setup.daemon.ok(&["create", "--name", "never", "-v", "early:/seed", "seed", "true"]);
    let _ = setup.daemon.ok(&["cp", "never:/seed/dir/text", setup.at("text").to_str().unwrap()]);
    assert_eq!(fs::read_to_string(setup.at("text")).unwrap(), "text");
}

/// The attribute `user.note`.
fn attribute(path: &Path) -> Option<Vec<u8>> {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let mut value = [0u8; 64];
    // SAFETY: both strings and the buffer, of the size given, live through the call.
    let length = unsafe {
        libc::getxattr(path.as_ptr(), c"user.note".as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    usize::try_from(length).ok().map(|length| value[..length].to_vec())
}

#[test]
fn two_containers_fill_one_volume_once_and_a_copy_that_was_cut_short_is_finished() {
    let Some(setup) = Setup::new() else { return };
    load(&setup, true);
    let daemon = &setup.daemon;
    for name in ["one", "two"] {
        let script = "find /seed -type f | wc -l; stat -c %s /seed/zz-big";
        let _ = daemon.ok(&["create", "--name", name, "-v", "data:/seed", "seed:big", "sh", "-c", script]);
    }
    let both: Vec<_> = ["one", "two"]
        .map(|name| {
            daemon.command(&["start", "-a", name]).stdout(std::process::Stdio::piped()).spawn().unwrap()
        })
        .into();
    for child in both {
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("3\n{BIG}\n"), "{output:?}");
    }
    assert!(!setup.volume("data").parent().unwrap().join("filling").exists());

    // Killed while the last file is being copied: the next container that is made finds the volume whole all the same.
    let id = daemon.ok(&["create", "--name", "cut", "-v", "half:/seed", "seed:big", "true"]);
    let mut start = daemon.command(&["start", "cut"]).spawn().unwrap();
    let volume = setup.volume("half");
    crate::eventually("the copy has begun", || volume.join("dir").exists());
    crate::kill(crate::process_of(&format!("supervise {id}")).pid);
    let _ = start.wait();
    let marked = volume.parent().unwrap().join("filling").exists();
    let whole = |path: &Path| fs::metadata(path.join("zz-big")).is_ok_and(|meta| meta.len() == BIG as u64);
    assert!(marked || whole(&volume), "half a volume without a mark");
    fs::set_permissions(volume.join("dir"), fs::Permissions::from_mode(0o700)).unwrap();
    let script = "stat -c %a /seed/dir; stat -c %s /seed/zz-big";
    let printed = daemon.ok(&["run", "--rm", "-v", "half:/seed", "seed:big", "sh", "-c", script]);
    assert_eq!(printed.lines().last(), Some(BIG.to_string().as_str()), "{printed}");
    if marked {
        assert_eq!(listing(&volume), listing(&setup.volume("data")));
    }
}

#[test]
fn volumes_come_from_other_containers_and_go_when_nobody_has_them() {
    let Some(setup) = Setup::new() else { return };
    let daemon = &setup.daemon;
    let volumes = || daemon.ok(&["volume", "ls", "-q"]).lines().count();
    let script = "echo x >/data/x; echo y >/named/y";
    let _ = daemon.ok(&[
        "run",
        "--name",
        "first",
        "-v",
        "/data",
        "-v",
        "named:/named",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(setup.shell(&["--volumes-from", "first"], "cat /data/x /named/y; echo z >/data/z"), "x\ny");
    assert_eq!(
        setup.shell(&["--volumes-from", "first:ro"], "cat /data/z; rm /data/z 2>&1; true"),
        "z\nrm: can't remove '/data/z': Read-only file system"
    );
    let _ =
        daemon.ok(&["create", "--name", "second", "--volumes-from", "first", "busybox", "cat", "/data/x"]);
    assert_eq!(volumes(), 2);
    // It is still the second's.
    let _ = daemon.ok(&["rm", "-v", "first"]);
    assert_eq!(volumes(), 2);
    assert_eq!(daemon.ok(&["start", "-a", "second"]), "x");
    let _ = daemon.ok(&["rm", "-v", "second"]);
    assert_eq!(daemon.ok(&["volume", "ls", "-q"]), "named");
    // Without -v it stays, and is nobody's.
    let _ = daemon.ok(&["run", "--name", "third", "-v", "/data", "busybox", "true"]);
    let _ = daemon.ok(&["rm", "third"]);
    assert_eq!(volumes(), 2);
    let _ = daemon.ok(&["volume", "prune", "-f"]);
    assert_eq!(daemon.ok(&["volume", "ls", "-q"]), "named");
    assert_eq!(fs::read_to_string(setup.volume("named").join("y")).unwrap(), "y\n");
}
