//! What is mounted, where, and for whom.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use crate::Setup;

#[test]
fn folders_files_and_volumes_are_the_hosts() {
    let Some(setup) = Setup::new() else { return };
    fs::create_dir(setup.at("folder")).unwrap();
    fs::write(setup.at("folder/text"), "from the host\n").unwrap();
    symlink("text", setup.at("folder/link")).unwrap();
    fs::write(setup.at("config"), "one file\n").unwrap();
    fs::write(setup.at("beside"), "not shared").unwrap();
    let (folder, file) = (setup.bind("folder", "/folder"), setup.bind("config", "/etc/app/config"));
    let options = ["-v", &folder, "-v", &file, "-v", "named:/named", "-v", "/nameless"];
    let printed = setup.shell(
        &options,
        "cat /folder/link /etc/app/config; ls /etc/app; echo new >/folder/made; echo more >>/etc/app/config
         echo kept >/named/data; echo gone >/nameless/data; rm /folder/text; ls -A /folder; rm /etc/app/config 2>&1; true",
    );
    assert_eq!(
        printed,
        "from the host\none file\nconfig\nlink\nmade\nrm: can't remove '/etc/app/config': Device or resource busy",
        "{printed}"
    );
    assert_eq!(fs::read_to_string(setup.at("folder/made")).unwrap(), "new\n");
    assert_eq!(fs::read_to_string(setup.at("config")).unwrap(), "one file\nmore\n");
    assert!(!setup.at("folder/text").exists());
    // The named one outlives its container; the nameless one went away with it.
    assert_eq!(setup.daemon.ok(&["volume", "ls", "-q"]), "named");
    assert_eq!(fs::read_to_string(setup.volume("named").join("data")).unwrap(), "kept\n");
    assert_eq!(setup.shell(&["--mount", "type=volume,src=named,dst=/again"], "cat /again/data"), "kept");
}

#[test]
fn read_only_is_the_servers_word_not_the_guests() {
    let Some(setup) = Setup::new() else { return };
    fs::create_dir(setup.at("folder")).unwrap();
    fs::write(setup.at("folder/text"), "text").unwrap();
    fs::write(setup.at("config"), "config").unwrap();
    let folder = setup.bind("folder", "/folder:ro");
    let file = setup.bind("config", "/config:ro");
    let source = setup.at("folder").display().to_string();
    let long = format!("type=bind,src={source},dst=/other,readonly");
    // With the right to mount, the container mounts the very devices again (in whatever order docker named the folders).
    let printed = setup.shell(
        &["--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined", "-v", &folder, "-v", &file, "--mount", &long, "-v", "work:/work"],
        "touch /work/mine; mkdir /m; for tag in share0 share1 share2; do mount -t virtiofs $tag /m; mount -o remount,rw /m
         ls -A /m; [ -e /m/mine ] || echo x >/m/new; echo x >/m/text; echo x >/m/file; rm /m/text; mkdir /m/d; ln /m/text /m/e; umount /m; done 2>/dev/null | sort
         for f in /folder /other /config; do mount -o remount,rw,bind $f 2>/dev/null; mount -o remount,rw $f 2>/dev/null; done
         (echo x >/folder/text; echo x >/other/new; echo x >>/config; chmod 777 /folder; touch /folder/text; mv /folder/text /folder/t) 2>&1 | grep -vc 'Read-only file system'
         echo yes >/work/can",
    );
    assert_eq!(printed, "file\nmine\ntext\n0", "{printed}");
    assert_eq!(fs::read_to_string(setup.at("folder/text")).unwrap(), "text");
    assert_eq!(fs::read_to_string(setup.at("config")).unwrap(), "config");
    assert_eq!(fs::read_dir(setup.at("folder")).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(setup.volume("work").join("can")).unwrap(), "yes\n");
}

#[test]
fn users_are_the_same_numbers_in_container_and_host() {
    let Some(setup) = Setup::new() else { return };
    // SAFETY: it asks for a number.
    if unsafe { libc::geteuid() } != 0 {
        return eprintln!("skipped: only root's containers have files of several users");
    }
    fs::create_dir(setup.at("folder")).unwrap();
    fs::write(setup.at("folder/private"), "of 4321").unwrap();
    fs::set_permissions(setup.at("folder/private"), fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(setup.at("folder/private"), Some(4321), Some(4321)).unwrap();
    fs::create_dir(setup.at("folder/shared")).unwrap();
    std::os::unix::fs::chown(setup.at("folder/shared"), Some(0), Some(7000)).unwrap();
    fs::set_permissions(setup.at("folder/shared"), fs::Permissions::from_mode(0o2770)).unwrap();
    let folder = setup.bind("folder", "/folder");
    let printed = setup.shell(
        &["-v", &folder],
        "touch /folder/roots; chown 1000:2000 /folder/roots; stat -c '%u:%g %a' /folder/private /folder/roots",
    );
    assert_eq!(printed, "4321:4321 600\n1000:2000 644");
    let roots = fs::metadata(setup.at("folder/roots")).unwrap();
    assert_eq!((roots.uid(), roots.gid()), (1000, 2000));
    // Another user is kept out by the same permissions, and let in by a further group.
    let printed = setup.shell(
        &["-u", "1234:5678", "--group-add", "7000", "-v", &folder],
        "cat /folder/private 2>&1; touch /folder/no 2>&1; chown 1234 /folder/roots 2>&1; echo in >/folder/shared/made
         stat -c '%u:%g' /folder/shared/made",
    );
    assert_eq!(
        printed,
        "cat: can't open '/folder/private': Permission denied\ntouch: /folder/no: Permission denied\n\
         chown: /folder/roots: Operation not permitted\n1234:7000"
    );
    assert_eq!(fs::metadata(setup.at("folder/shared/made")).unwrap().uid(), 1234);
}

#[test]
fn what_cannot_be_mounted_is_refused_before_anything_is_created() {
    let Some(setup) = Setup::new() else { return };
    let daemon = &setup.daemon;
    // As Docker: -v makes the folder, --mount does not.
    assert_eq!(setup.shell(&["-v", &setup.bind("made/deep", "/d")], "ls -A /d; echo x >/d/x"), "");
    assert_eq!(fs::read_to_string(setup.at("made/deep/x")).unwrap(), "x\n");
    let missing = format!("type=bind,src={},dst=/d", setup.at("missing").display());
    daemon.fails(
        125,
        "bind source path does not exist",
        &["run", "--rm", "--mount", &missing, "busybox", "true"],
    );
    assert!(!setup.at("missing").exists());
    let socket = setup.at("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for source in [socket.display().to_string(), "/dev/null".to_owned()] {
        let bind = format!("{source}:/s");
        let words = format!("mounting {source} cannot be done");
        daemon.fails(125, &words, &["run", "--rm", "-v", &bind, "busybox", "true"]);
    }
    let many: Vec<String> = (0..13).map(|n| format!("v{n:02}:/v{n}")).collect();
    let many: Vec<&str> = many.iter().flat_map(|bind| ["-v", bind]).collect();
    daemon.fails(
        125,
        "mounting 13 folders cannot be done",
        &[&["run", "--rm"], &many[..], &["busybox", "true"]].concat(),
    );
    assert_eq!(daemon.ok(&["volume", "ls", "-q"]), "");
    assert_eq!(daemon.ok(&["ps", "-aq"]), "");
    // One that goes away between creation and start is named, and may come back.
    fs::create_dir(setup.at("coming")).unwrap();
    let bind = format!("type=bind,src={},dst=/d", setup.at("coming").display());
    let _ = daemon.ok(&["create", "--name", "late", "--mount", &bind, "busybox", "ls", "/d"]);
    fs::remove_dir(setup.at("coming")).unwrap();
    daemon.fails(1, "bind source path does not exist", &["start", "-a", "late"]);
    fs::create_dir(setup.at("coming")).unwrap();
    fs::write(setup.at("coming/back"), "").unwrap();
    assert_eq!(daemon.ok(&["start", "-a", "late"]), "back");
}

#[test]
fn inner_mounts_lie_in_outer_ones() {
    let Some(setup) = Setup::new() else { return };
    fs::create_dir(setup.at("folder")).unwrap();
    fs::write(setup.at("folder/text"), "text").unwrap();
    let folder = setup.bind("folder", "/a/b/c");
    let printed = setup.shell(
        &["-v", &folder, "--tmpfs", "/a/b", "--mount", "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=0700", "-v", "outer:/a"],
        "ls -A /a /a/b; cat /a/b/c/text; echo; stat -c %a /t; dd if=/dev/zero of=/t/big bs=64k count=32 2>&1 | grep -o 'No space.*'
         grep ' /a' /proc/mounts | cut -d' ' -f2,3 | sort",
    );
    assert_eq!(
        printed,
        "/a:\nb\n\n/a/b:\nc\ntext\n700\nNo space left on device\n/a virtiofs\n/a/b tmpfs\n/a/b/c virtiofs"
    );
}

#[test]
fn several_containers_share_a_volume_at_the_same_time() {
    let Some(setup) = Setup::new() else { return };
    let daemon = &setup.daemon;
    let script = "echo $0 >/v/$0; while [ ! -e /v/go ]; do sleep 0.05; done
                  for n in $(seq 100); do echo $0 $n >>/v/log; done; echo done >/v/$0.done; sync";
    for name in ["one", "two", "three"] {
        let _ =
            daemon.ok(&["run", "-d", "--name", name, "-v", "data:/v", "busybox", "sh", "-c", script, name]);
    }
    let volume = setup.volume("data");
    crate::eventually("all have begun", || {
        ["one", "two", "three"].iter().all(|name| volume.join(name).exists())
    });
    fs::write(volume.join("go"), "").unwrap();
    assert_eq!(daemon.ok(&["wait", "one", "two", "three"]), "0\n0\n0");
    let log = fs::read_to_string(volume.join("log")).unwrap();
    for name in ["one", "two", "three"] {
        let own: Vec<_> = log.lines().filter(|line| line.starts_with(&format!("{name} "))).collect();
        let expected: Vec<_> = (1..=100).map(|n| format!("{name} {n}")).collect();
        assert_eq!(own, expected, "appended lines are whole and in order");
    }
    assert_eq!(log.lines().count(), 300);
}

#[test]
fn cp_and_archives_see_volumes_whether_the_container_runs_or_not() {
    let Some(setup) = Setup::new() else { return };
    let daemon = &setup.daemon;
    fs::create_dir(setup.at("folder")).unwrap();
    fs::write(setup.at("folder/text"), "text").unwrap();
    fs::write(setup.at("in"), "put in").unwrap();
    let (folder, closed) = (setup.bind("folder", "/folder"), setup.bind("folder", "/closed:ro"));
    let _ = daemon.ok(&[
        "create",
        "--name",
        "box",
        "-v",
        &folder,
        "-v",
        &closed,
        "-v",
        "data:/data",
        "busybox",
        "sleep",
        "1000",
    ]);
    let from = setup.at("in").display().to_string();
    for (state, name) in [("created", "first"), ("running", "second"), ("exited", "third")] {
        if state == "running" {
            let _ = daemon.ok(&["start", "box"]);
        } else if state == "exited" {
            let _ = daemon.ok(&["kill", "box"]);
            let _ = daemon.ok(&["wait", "box"]);
        }
        assert_eq!(daemon.ok(&["inspect", "-f", "{{.State.Status}}", "box"]), state);
        let _ = daemon.ok(&["cp", &from, &format!("box:/data/{name}")]);
        assert_eq!(fs::read_to_string(setup.volume("data").join(name)).unwrap(), "put in", "{state}");
        let to = setup.at(&format!("out-{name}")).display().to_string();
        let _ = daemon.ok(&["cp", "box:/folder/text", &to]);
        assert_eq!(fs::read_to_string(&to).unwrap(), "text", "{state}");
        daemon.fails(1, "Read-only file system", &["cp", &from, "box:/closed/no"]);
    }
    assert_eq!(fs::read_dir(setup.at("folder")).unwrap().count(), 1);
    // An export has the places, but not what is mounted there.
    let tar = setup.at("export.tar");
    let _ = daemon.ok(&["export", "-o", tar.to_str().unwrap(), "box"]);
    let mut tar = tar::Archive::new(fs::File::open(tar).unwrap());
    let paths: Vec<String> =
        tar.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
    assert!(paths.iter().any(|path| path == "data/") && !paths.iter().any(|path| path.starts_with("data/f")));
}
