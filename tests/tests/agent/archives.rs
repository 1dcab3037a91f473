//! Paths and archives of a running container, and of a stopped one in a helper machine.

use std::collections::BTreeMap;
use std::io::Read;

use agent::protocol::{Answer, ArchivePut, Call, Change, ChangeKind, FailureKind, PathStat};
use bulkhead_tests::guest::{Guest, start};
use bulkhead_tests::image::add_file;

use crate::{IDLE, harbour, spec};

fn stat(guest: &mut Guest, path: &str) -> PathStat {
    match guest.call(Call::StatPath { path: path.into() }) {
        Ok(Answer::PathStat(stat)) => stat,
        other => panic!("{path}: {other:?}"),
    }
}

/// An archive's entries: type, mode, owner, link and content by name.
fn entries(bytes: &[u8]) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(bytes);
    let mut found = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let header = entry.header().clone();
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let link =
            entry.link_name_bytes().map(|l| String::from_utf8_lossy(&l).into_owned()).unwrap_or_default();
        let mut content = String::new();
        if header.size().unwrap() < 100 {
            entry.read_to_string(&mut content).unwrap();
        }
        let kind = char::from(header.entry_type().as_byte());
        let described = format!(
            "{kind} {:o} {}:{} {link}{content}",
            header.mode().unwrap(),
            header.uid().unwrap(),
            header.gid().unwrap()
        );
        assert!(found.insert(name.clone(), described).is_none(), "{name} is there twice");
    }
    found
}

fn get(guest: &mut Guest, path: &str) -> BTreeMap<String, String> {
    let (bytes, result) = guest.download(Call::ArchiveGet { path: path.into() });
    assert_eq!(result, Ok(Answer::Done), "{path}");
    entries(&bytes)
}

fn put(path: &str) -> ArchivePut {
    ArchivePut { path: path.into(), no_overwrite_dir_non_dir: false, owner: None }
}

const FILES: &str = "mkdir -p /data/dir; cd /data; echo one > dir/file; ln dir/file hard; ln -s dir/file soft; \
    ln -s /data/dir abs; mkfifo fifo; mknod null c 1 3; chown 7:8 hard; chmod 4755 hard; touch -d @1000000000 hard; \
    ln -s /../../../../etc out; ln -s loop loop; ln -s /missing/x dangling; \
    touch $(head -c 120 /dev/zero | tr '\\0' n); chmod 1777 dir";

#[test]
fn paths_are_described_and_archived_by_dockers_rules() {
    let Some(harbour) = harbour() else { return };
    let mut guest = harbour.prepared();
    let init = guest.start(start(spec(&harbour, IDLE)));
    guest.shell(FILES);

    let hard = stat(&mut guest, "/data/hard");
    let expected = PathStat {
        name: "hard".into(),
        size: 4,
        mode: 0o104_755,
        modified: 1_000_000_000_000_000_000,
        link_target: String::new(),
    };
    assert_eq!(hard, expected);
    assert_eq!(stat(&mut guest, "data//x/../hard"), expected);
    let link = |guest: &mut Guest, path| {
        let stat = stat(guest, path);
        (stat.mode & 0o170_000, stat.name, stat.link_target)
    };
    assert_eq!(link(&mut guest, "/data/soft"), (0o120_000, "soft".into(), "/data/dir/file".into()));
    assert_eq!(link(&mut guest, "/data/abs/"), (0o040_000, "abs".into(), String::new()));
    assert_eq!(link(&mut guest, "/data/abs/."), (0o040_000, ".".into(), String::new()));
    assert_eq!(link(&mut guest, "/data/out"), (0o120_000, "out".into(), "/etc".into()));
    assert_eq!(link(&mut guest, "/data/dangling"), (0o120_000, "dangling".into(), "/missing/x".into()));
    assert_eq!(link(&mut guest, "/"), (0o040_000, "/".into(), String::new()));
    // The host's files are there, the guest's own are not.
    assert_eq!(stat(&mut guest, "/etc/hostname").size, 8);
    for path in ["/nope", "/run/rootfs", "/data/dangling/", "/data/hard/x", "/init"] {
        let failure = guest.call(Call::StatPath { path: path.into() }).unwrap_err();
        assert!(
            matches!(failure.kind, FailureKind::NoSuchPath | FailureKind::NotADirectory),
            "{path}: {failure:?}"
        );
    }

    let long = "n".repeat(120);
    let data = get(&mut guest, "/data");
    let expected: BTreeMap<String, String> = [
        ("data/", "5 755 0:0 ".to_owned()),
        ("data/abs", "2 777 0:0 /data/dir".into()),
        ("data/dangling", "2 777 0:0 /missing/x".into()),
        ("data/dir/", "5 1777 0:0 ".into()),
        ("data/dir/file", "0 4755 7:8 one\n".into()),
        ("data/fifo", "6 644 0:0 ".into()),
        ("data/hard", "1 4755 7:8 data/dir/file".into()),
        ("data/loop", "2 777 0:0 loop".into()),
        (&format!("data/{long}"), "0 644 0:0 ".into()),
        ("data/null", "3 644 0:0 ".into()),
        ("data/out", "2 777 0:0 /../../../../etc".into()),
        ("data/soft", "2 777 0:0 dir/file".into()),
    ]
    .map(|(name, described)| (name.to_owned(), described))
    .into();
    assert_eq!(data, expected);
    assert_eq!(get(&mut guest, "/data/soft"), [("soft".into(), "2 777 0:0 dir/file".into())].into());
    assert_eq!(get(&mut guest, "/data/abs/.").keys().collect::<Vec<_>>(), ["./", "./file"]);
    assert_eq!(get(&mut guest, "/data/abs/").keys().collect::<Vec<_>>(), ["abs/", "abs/file"]);
    assert_eq!(get(&mut guest, "/etc/hostname"), [("hostname".into(), "0 644 0:0 harbour\n".into())].into());
    let root = get(&mut guest, "/");
    assert!(root.contains_key("/") && root.contains_key("/etc/hostname") && root.contains_key("/data/hard"));
    let (bytes, result) = guest.download(Call::ArchiveGet { path: "/nope".into() });
    assert_eq!((bytes.len(), result.unwrap_err().kind), (0, FailureKind::NoSuchPath));
    guest.kill(init);
}

#[test]
fn archives_are_unpacked_within_the_containers_root() {
    let Some(harbour) = harbour() else { return };
    let mut guest = harbour.prepared();
    let init = guest.start(start(spec(&harbour, IDLE)));
    guest.shell("mkdir -p /dest/existing /target; ln -s /target /dest/link; ln -s /../../../target /dest/up; echo x > /dest/plain");

    let mut builder = tar::Builder::new(Vec::new());
    let entry = |kind, mode: u32, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(5);
        header.set_gid(6);
        header.set_mtime(1_234_567_890);
        header.set_size(size as u64);
        header
    };
    let directory = entry(tar::EntryType::Directory, 0o750, 0);
    builder.append_data(&mut directory.clone(), "new/", &[][..]).unwrap();
    builder.append_data(&mut entry(tar::EntryType::Regular, 0o4711, 5), "new/file", &b"hello"[..]).unwrap();
    builder
        .append_data(&mut entry(tar::EntryType::Regular, 0o644, 2), "implied/deep/file", &b"ok"[..])
        .unwrap();
    builder.append_link(&mut entry(tar::EntryType::Link, 0, 0), "new/hard", "new/file").unwrap();
    builder.append_link(&mut entry(tar::EntryType::Symlink, 0o777, 0), "new/soft", "/etc/passwd").unwrap();
    builder.append_data(&mut entry(tar::EntryType::Fifo, 0o600, 0), "fifo", &[][..]).unwrap();
    builder.append_data(&mut entry(tar::EntryType::Regular, 0o600, 1), "link/through", &b"1"[..]).unwrap();
    builder.append_data(&mut entry(tar::EntryType::Regular, 0o600, 1), "up/through2", &b"2"[..]).unwrap();
    builder.append_data(&mut entry(tar::EntryType::Regular, 0o600, 1), "existing", &b"3"[..]).unwrap();
    let name = "l".repeat(200);
    builder
        .append_data(&mut entry(tar::EntryType::Regular, 0o600, 300_000), &name, &vec![b'z'; 300_000][..])
        .unwrap();
    let archive = builder.into_inner().unwrap();
    assert_eq!(guest.upload(Call::ArchivePut(put("/dest")), &archive), Ok(Answer::Done));
    let listed = guest.shell(
        "cd /dest; stat -c '%n %F %a %u:%g %Y' new new/file new/soft fifo implied/deep existing; cat new/hard; readlink new/soft; \
         ls /target; cat l*l | wc -c; stat -c %h new/file",
    );
    assert_eq!(
        listed,
        "new directory 750 5:6 1234567890\nnew/file regular file 4711 5:6 1234567890\nnew/soft symbolic link 777 5:6 1234567890\n\
         fifo fifo 600 5:6 1234567890\nimplied/deep directory 755 0:0 ".to_owned()
            + listed.lines().nth(4).unwrap().rsplit(' ').next().unwrap()
            + "\nexisting regular file 600 5:6 1234567890\nhello/etc/passwd\nthrough\nthrough2\n300000\n2\n"
    );

    // An owner for everything, by name in the container.
    let owned = ArchivePut { owner: Some("nobody".into()), ..put("/target") };
    assert_eq!(guest.upload(Call::ArchivePut(owned), &archive), Ok(Answer::Done));
    assert_eq!(
        guest
            .shell("stat -c %u:%g /target/new /target/new/file /target/new/soft")
            .matches("65534:65534")
            .count(),
        3
    );

    // Kinds are kept if that is asked for.
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut directory.clone(), "plain/", &[][..]).unwrap();
    let kinds = builder.into_inner().unwrap();
    let keep = ArchivePut { no_overwrite_dir_non_dir: true, ..put("/dest") };
    let refused = guest.upload(Call::ArchivePut(keep), &kinds).unwrap_err();
    assert!(refused.text.contains("cannot overwrite non-directory"), "{refused:?}");
    assert_eq!(guest.upload(Call::ArchivePut(put("/dest")), &kinds), Ok(Answer::Done));
    assert_eq!(guest.shell("stat -c %F /dest/plain"), "directory\n");

    let kind = |result: Result<Answer, agent::protocol::Failure>| result.unwrap_err().kind;
    assert_eq!(kind(guest.upload(Call::ArchivePut(put("/nope")), &archive)), FailureKind::NoSuchPath);
    assert_eq!(kind(guest.upload(Call::ArchivePut(put("/dest/fifo")), &archive)), FailureKind::NotADirectory);
    assert_eq!(kind(guest.upload(Call::ArchivePut(put("/dest")), b"no archive at all")), FailureKind::Other);
    assert_eq!(
        kind(guest.upload(Call::ArchivePut(put("/dest")), &archive[..archive.len() / 2])),
        FailureKind::Other
    );
    // Names that lead out are refused; the header is written by hand, because no library makes one.
    let mut header = entry(tar::EntryType::Regular, 0o644, 4);
    header.as_old_mut().name[..17].copy_from_slice(b"../../run/escaped");
    header.set_cksum();
    let mut evil = header.as_bytes().to_vec();
    evil.extend(b"evil");
    evil.resize(2048, 0);
    let refused = guest.upload(Call::ArchivePut(put("/dest")), &evil).unwrap_err();
    assert!(refused.text.contains("leads out"), "{refused:?}");

    // Into a link that points out of the root: it stays within.
    guest.shell("ln -s ../../../../../../target /dest/outside; rm -rf /target/*");
    assert_eq!(guest.upload(Call::ArchivePut(put("/dest/outside")), &archive), Ok(Answer::Done));
    assert_eq!(guest.shell("cat /target/new/file"), "hello");
    guest.kill(init);
}

fn changes(guest: &mut Guest) -> Vec<String> {
    let (bytes, result) = guest.download(Call::Changes);
    assert_eq!(result, Ok(Answer::Done));
    let lines = String::from_utf8(bytes).unwrap();
    lines
        .lines()
        .map(|line| {
            let change: Change = serde_json::from_str(line).unwrap();
            let letter = match change.kind {
                ChangeKind::Modified => 'C',
                ChangeKind::Added => 'A',
                ChangeKind::Deleted => 'D',
            };
            format!("{letter} {}", change.path)
        })
        .collect()
}

#[test]
fn changes_are_listed_and_made_a_layer_running_or_stopped() {
    let Some(harbour) = harbour() else { return };
    let mut guest = harbour.prepared();
    let init = guest.start(start(spec(&harbour, IDLE)));
    assert_eq!(changes(&mut guest), Vec::<String>::new(), "what the agent made is nobody's change");
    guest.shell(
        "rm /bin/wget; echo more >> /etc/group; mkdir -p /new/dir; echo x > /new/dir/file; ln /new/dir/file /new/hard; \
         rm -rf /usr; mkdir /usr; touch /usr/mine; chmod 700 /root; rm -rf /var",
    );
    let expected = [
        "C /bin",
        "D /bin/wget",
        "C /etc",
        "C /etc/group",
        "A /new",
        "A /new/dir",
        "A /new/dir/file",
        "A /new/hard",
        "C /root",
        "C /usr",
        "A /usr/mine",
        "D /var",
    ];
    assert_eq!(changes(&mut guest), expected);
    let (layer, result) = guest.download(Call::Diff);
    assert_eq!(result, Ok(Answer::Done));
    let live = entries(&layer);
    let of = |name: &str| live.get(name).map(String::as_str);
    assert_eq!(of("bin/.wh.wget"), Some("0 0 0:0 "));
    assert_eq!(of(".wh.var"), Some("0 0 0:0 "));
    assert_eq!(of("new/hard"), Some("1 644 0:0 new/dir/file"));
    assert_eq!(of("root/"), Some("5 700 0:0 "));
    assert_eq!(of("usr/.wh..wh..opq"), Some("0 0 0:0 "));
    assert!(of("etc/group").is_some_and(|g| g.ends_with("more\n")));
    for absent in ["etc/hosts", "etc/hostname", "proc/", "dev/", "sys/", "etc/passwd", "tmp/"] {
        assert_eq!(of(absent), None, "{absent}");
    }
    let (all, result) = guest.download(Call::Export);
    assert_eq!(result, Ok(Answer::Done));
    let all = entries(&all);
    assert!(all.contains_key("bin/busybox") && all.contains_key("new/hard") && all.contains_key("proc/"));
    assert_eq!(
        all.get("etc/hostname").map(String::as_str),
        Some("0 644 0:0 "),
        "the host's files are not exported"
    );
    assert!(!all.keys().any(|name| name.starts_with("proc/") && name != "proc/"));
    guest.kill(init);
    guest.shutdown();

    // The stopped container's disk, in a machine that starts nothing.
    let mut helper = harbour.prepared();
    assert_eq!(changes(&mut helper), expected);
    let (layer, result) = helper.download(Call::Diff);
    assert_eq!((entries(&layer), result), (live, Ok(Answer::Done)));
    assert_eq!(get(&mut helper, "/new/dir/file")["file"], "0 644 0:0 x\n");
    let mut builder = tar::Builder::new(Vec::new());
    add_file(&mut builder, "put", b"while stopped", 0o644);
    let archive = builder.into_inner().unwrap();
    assert_eq!(helper.upload(Call::ArchivePut(put("/new")), &archive), Ok(Answer::Done));
    assert_eq!(helper.call(Call::Stats).unwrap_err().kind, FailureKind::NotRunning);
    helper.shutdown();

    let mut again = harbour.prepared();
    let init = again.start(start(spec(&harbour, "cat /new/put")));
    assert_eq!(again.finish(init).stdout, "while stopped");
}
