//! A server in its jail, spoken to as a guest's kernel speaks, and as one that would like to get out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

mod support;

use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};

use support::*;

#[test]
fn files_are_read_written_made_and_removed() {
    let mut server = Server::mounted(&PLAIN).unwrap();
    let folder = server.folder();
    let (file, inode) = server.lookup(ROOT, "file").unwrap();
    assert_eq!(inode, fs::metadata(folder.join("file")).unwrap().ino());
    let handle = server.open(file, libc::O_RDWR).unwrap();
    assert_eq!(server.read(file, handle).unwrap(), b"content");
    let mut write = [handle, 3].map(u64::to_le_bytes).concat();
    write.extend(words(&[5, 0, 0, 0, 0, 0]));
    write.extend(b"write");
    assert_eq!(word(&server.call(WRITE, file, &write).unwrap(), 0), 5);
    assert_eq!(fs::read(folder.join("file")).unwrap(), b"conwrite");

    // As another user than root, if we are root: then the file is that user's.
    server.uid = if nix::unistd::geteuid().is_root() { 1000 } else { 0 };
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    let create = with(&words(&[libc::O_RDWR as u32, 0o100_644, 0, 0]), &["made"]);
    server.call(CREATE, ROOT, &create).unwrap();
    server.call(MKDIR, ROOT, &with(&words(&[0o755, 0]), &["directory"])).unwrap();
    server.call(SYMLINK, ROOT, &text(&["link", "file"])).unwrap();
    if server.uid == 1000 {
        assert_eq!(fs::metadata(folder.join("made")).unwrap().uid(), 1000);
        assert_eq!(fs::metadata(folder.join("directory")).unwrap().gid(), 1000);
    }
    assert_eq!(fs::read_link(folder.join("link")).unwrap(), Path::new("file"));
    server.uid = 0;
    let rename = with(&ROOT.to_le_bytes(), &["made", "renamed"]);
    server.call(RENAME, ROOT, &rename).unwrap();
    server.call(LINK, ROOT, &with(&file.to_le_bytes(), &["second"])).unwrap();
    assert_eq!(fs::metadata(folder.join("file")).unwrap().nlink(), 2);
    server.call(UNLINK, ROOT, &text(&["renamed"])).unwrap();
    server.call(RMDIR, ROOT, &text(&["directory"])).unwrap();
    assert!(!folder.join("renamed").exists() && !folder.join("directory").exists());

    // FORGET has no answer; the next request is answered all the same.
    server.send(FORGET, file, &1u64.to_le_bytes());
    assert_eq!(server.call(LOCK, ROOT, &[0; 48]), Err(libc::ENOSYS));
    let handle = double(&server.call(OPENDIR, ROOT, &words(&[0, 0])).unwrap(), 0);
    let mut read = [handle, 0].map(u64::to_le_bytes).concat();
    read.extend(words(&[4096, 0, 0, 0, 0, 0]));
    let listing = server.call(READDIR, ROOT, &read).unwrap();
    assert!(listing.windows(6).any(|part| part == b"second"));
    // An unmount is answered, and another mount may follow.
    server.call(DESTROY, ROOT, &[]).unwrap();
    server.lookup(ROOT, "file").unwrap();
}

#[test]
fn no_name_leads_out() {
    let mut server = Server::mounted(&PLAIN).unwrap();
    let before = tree(server.outside.path());
    let (sub, _) = server.lookup(ROOT, "sub").unwrap();
    // A guest's kernel keeps its own tree: nobody needs to ask for what is above.
    for parent in [ROOT, sub] {
        for dots in ["..", "."] {
            assert_eq!(server.lookup(parent, dots), Err(libc::EINVAL));
        }
    }
    let bad =
        ["..", ".", "../secret", "../new", "/etc/passwd", "/", "sub/inner", "sub/../../secret", "a/b", ""];
    for name in bad {
        for (operation, head) in [
            (MKDIR, words(&[0o755, 0])),
            (MKNOD, words(&[0o100_644, 0, 0, 0])),
            (CREATE, words(&[libc::O_RDWR as u32, 0o100_644, 0, 0])),
            (UNLINK, vec![]),
            (RMDIR, vec![]),
        ] {
            assert!(server.call(operation, ROOT, &with(&head, &[name])).is_err(), "{operation} {name:?}");
        }
        let pairs = [[name, "new"], ["file", name]];
        for pair in pairs {
            let rename = with(&ROOT.to_le_bytes(), &pair);
            assert!(server.call(RENAME, ROOT, &rename).is_err(), "rename {pair:?}");
        }
        let (file, _) = server.lookup(ROOT, "file").unwrap();
        assert!(server.call(LINK, ROOT, &with(&file.to_le_bytes(), &[name])).is_err(), "link {name:?}");
        assert!(server.call(SYMLINK, ROOT, &text(&[name, "target"])).is_err(), "symlink {name:?}");
        if name.contains('/') {
            assert!(server.lookup(ROOT, name).is_err(), "{name:?}");
        }
    }
    // A name without its end, and one with the end too early.
    for body in [&b"noend"[..], b"", b"\0\0\0", b"fi\0le\0"] {
        let _ = server.call(LOOKUP, ROOT, body);
        let _ = server.call(UNLINK, ROOT, body);
    }
    assert_eq!(tree(server.outside.path()), before);
}

#[test]
fn symbolic_links_are_not_followed() {
    let mut server = Server::mounted(&PLAIN).unwrap();
    let before = tree(server.outside.path());
    for (name, target) in [("out", server.outside.path().to_owned()), ("secret", "../secret".into())] {
        let (link, _) = server.lookup(ROOT, name).unwrap();
        let told = server.call(READLINK, link, &[]).unwrap();
        assert_eq!(told, target.to_str().unwrap().as_bytes());
        assert!(server.open(link, libc::O_RDONLY).is_err());
        assert!(server.open(link, libc::O_RDWR | libc::O_TRUNC).is_err());
        assert!(server.call(OPENDIR, link, &words(&[0, 0])).is_err());
        assert!(server.lookup(link, "secret").is_err());
        let create = with(&words(&[libc::O_RDWR as u32, 0o100_644, 0, 0]), &["new"]);
        assert!(server.call(CREATE, link, &create).is_err());
        assert!(server.call(UNLINK, link, &text(&["secret"])).is_err());
        // Creating over one does not write through it.
        let over = with(&words(&[(libc::O_RDWR | libc::O_TRUNC) as u32, 0o100_644, 0, 0]), &[name]);
        let _ = server.call(CREATE, ROOT, &over);
        // Truncating it neither: valid is SIZE.
        let mut size = words(&[1 << 3, 0]);
        size.extend([0; 80]);
        let _ = server.call(SETATTR, link, &size);
    }
    assert_eq!(fs::read(server.outside.path().join("secret")).unwrap(), b"outside");
    assert_eq!(tree(server.outside.path()), before);
}

#[test]
fn devices_are_not_made_and_special_files_not_opened() {
    let mut server = Server::mounted(&PLAIN).unwrap();
    for kind in [libc::S_IFCHR, libc::S_IFBLK] {
        // Major 1, minor 3.
        let mknod = with(&words(&[kind | 0o666, 0x103, 0, 0]), &["device"]);
        assert_eq!(server.call(MKNOD, ROOT, &mknod), Err(libc::EPERM));
    }
    let (fifo, _) = server.lookup(ROOT, "fifo").unwrap();
    // Opening it as files are opened would wait for a writer for ever.
    assert!(server.open(fifo, libc::O_RDONLY).is_err());
    // One that the host has put there is not opened either.
    let device = server.folder().join("null");
    let path = CString::new(device.to_str().unwrap()).unwrap();
    // SAFETY: the path is ours.
    if unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(1, 3)) } == 0 {
        assert!(fs::metadata(&device).unwrap().file_type().is_char_device());
        let (node, _) = server.lookup(ROOT, "null").unwrap();
        assert!(server.open(node, libc::O_RDWR).is_err());
    }
    assert!(!server.folder().join("device").exists());
}

#[test]
fn a_read_only_folder_stays_as_it_is() {
    let mut server = Server::mounted(&Options { read_only: true, ..PLAIN }).unwrap();
    let before = tree(server.outside.path());
    let (file, _) = server.lookup(ROOT, "file").unwrap();
    assert_eq!(server.open(file, libc::O_RDWR), Err(libc::EROFS));
    let handle = server.open(file, libc::O_RDONLY).unwrap();
    assert_eq!(server.read(file, handle).unwrap(), b"content");
    let mut write = [handle, 0].map(u64::to_le_bytes).concat();
    write.extend(words(&[1, 0, 0, 0, 0, 0]));
    write.push(b'x');
    assert!(server.call(WRITE, file, &write).is_err());
    // Valid: MODE, SIZE.
    for valid in [1, 1 << 3] {
        let mut attributes = words(&[valid, 0]);
        attributes.extend([0; 80]);
        assert!(server.call(SETATTR, file, &attributes).is_err(), "{valid}");
    }
    for (operation, body) in [
        (MKDIR, with(&words(&[0o755, 0]), &["new"])),
        (MKNOD, with(&words(&[0o100_644, 0, 0, 0]), &["new"])),
        (CREATE, with(&words(&[libc::O_RDWR as u32, 0o100_644, 0, 0]), &["new"])),
        (UNLINK, text(&["file"])),
        (RMDIR, text(&["sub"])),
        (RENAME, with(&ROOT.to_le_bytes(), &["file", "new"])),
        (LINK, with(&file.to_le_bytes(), &["new"])),
        (SYMLINK, text(&["new", "file"])),
    ] {
        assert_eq!(server.call(operation, ROOT, &body), Err(libc::EROFS), "{operation}");
    }
    assert_eq!(tree(server.outside.path()), before);
}

#[test]
fn the_server_has_nothing_but_the_folder() {
    let mut server = Server::mounted(&PLAIN).unwrap();
    server.lookup(ROOT, "file").unwrap();
    let pid = server.pid();
    assert_eq!((server.status("NoNewPrivs"), server.status("Seccomp")), ("1".into(), "2".into()));
    if nix::unistd::geteuid().is_root() {
        // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID, in a namespace that is not the host's.
        for set in ["CapEff", "CapPrm"] {
            assert_eq!(server.status(set), "00000000000000df", "{set}");
        }
    }
    for set in ["CapInh", "CapAmb", "CapBnd"] {
        assert_eq!(server.status(set), "0000000000000000", "{set}");
    }
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{kind}");
    }
    // Its root is empty but for its own /proc; the folder hangs nowhere.
    let root: Vec<_> = fs::read_dir(format!("/proc/{pid}/root/")).unwrap().collect();
    assert_eq!(root.len(), 1, "{root:?}");
    assert_eq!(root[0].as_ref().unwrap().file_name(), "proc");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    let mut kinds: Vec<_> = mounts.lines().map(|line| line.split(' ').nth(2).unwrap()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["proc", "tmpfs"], "{mounts}");
    for line in mounts.lines() {
        for part in ["nosuid", "nodev", "noexec"] {
            assert!(line.contains(part), "{mounts}");
        }
    }
    assert!(mounts.contains("tmpfs / tmpfs ro,"), "{mounts}");
}

#[test]
fn a_single_file_is_shared_without_what_lies_beside_it() {
    for read_only in [false, true] {
        let mut server = Server::mounted(&Options { file: Some("file"), read_only, ..PLAIN }).unwrap();
        let folder = server.folder();
        let before = tree(server.outside.path());
        let (file, inode) = server.lookup(ROOT, "file").unwrap();
        assert_eq!(inode, fs::metadata(folder.join("file")).unwrap().ino());
        for name in ["sub", "out", "secret", "fifo", "folder"] {
            assert_eq!(server.lookup(ROOT, name), Err(libc::ENOENT), "{name}");
        }
        // It cannot be replaced, removed or given a second name, nor can anything be put beside it.
        for (operation, body) in [
            (CREATE, with(&words(&[libc::O_RDWR as u32, 0o100_644, 0, 0]), &["new"])),
            (MKDIR, with(&words(&[0o755, 0]), &["new"])),
            (UNLINK, text(&["file"])),
            (RENAME, with(&ROOT.to_le_bytes(), &["file", "new"])),
            (LINK, with(&file.to_le_bytes(), &["new"])),
        ] {
            assert!(server.call(operation, ROOT, &body).is_err(), "{operation}");
        }
        assert_eq!(tree(server.outside.path()), before);
        let opened = server.open(file, libc::O_RDWR);
        assert_eq!(opened.is_err(), read_only);
        let handle = opened.or_else(|_| server.open(file, libc::O_RDONLY)).unwrap();
        assert_eq!(server.read(file, handle).unwrap(), b"content");
        let mut write = [handle, 0].map(u64::to_le_bytes).concat();
        write.extend(words(&[1, 0, 0, 0, 0, 0]));
        write.push(b'C');
        assert_eq!(server.call(WRITE, file, &write).is_err(), read_only);
        let now = if read_only { "content" } else { "Content" };
        assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), now);
    }
    // What is no plain file is none; a link is not followed.
    for file in ["sub", "out", "secret", "fifo", "missing"] {
        let mut server = Server::new(&Options { file: Some(file), ..PLAIN });
        assert!(!server.child.wait().unwrap().success(), "{file}");
    }
}

#[test]
fn attributes_of_the_users_own_are_kept_and_others_refused() {
    let mut server = Server::mounted(&PLAIN).unwrap();
    let (file, _) = server.lookup(ROOT, "file").unwrap();
    let set = |name: &str| [&words(&[5, 0])[..], name.as_bytes(), b"\0value"].concat();
    match server.call(SETXATTR, file, &set("user.key")) {
        Err(libc::EOPNOTSUPP) => return eprintln!("skipped: the temporary directory keeps no attributes"),
        other => drop(other.unwrap()),
    }
    let get = |name: &str| with(&words(&[64, 0]), &[name]);
    assert_eq!(server.call(GETXATTR, file, &get("user.key")).unwrap(), b"value");
    assert_eq!(server.call(LISTXATTR, file, &words(&[64, 0])).unwrap(), b"user.key\0");
    for name in
        ["trusted.x", "security.capability", "system.posix_acl_access", "security.selinux", "", "user"]
    {
        assert_eq!(server.call(SETXATTR, file, &set(name)), Err(libc::EOPNOTSUPP), "{name}");
        assert_eq!(server.call(REMOVEXATTR, file, &text(&[name])), Err(libc::EOPNOTSUPP), "{name}");
    }
    server.call(REMOVEXATTR, file, &text(&["user.key"])).unwrap();
    assert_eq!(server.call(GETXATTR, file, &get("user.key")), Err(libc::ENODATA));
}

#[test]
fn what_the_guest_has_allowed_is_not_checked_again() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: only root serves several users");
    }
    // A directory that user 1000 may write to by a group of theirs that a request does not tell.
    let mut server = Server::mounted(&PLAIN).unwrap();
    let sub = server.folder().join("sub");
    std::os::unix::fs::chown(&sub, Some(0), Some(2000)).unwrap();
    fs::set_permissions(&sub, fs::Permissions::from_mode(0o770)).unwrap();
    let (node, _) = server.lookup(ROOT, "sub").unwrap();
    server.uid = 1000;
    let create = with(&words(&[libc::O_RDWR as u32, 0o100_600, 0, 0]), &["made"]);
    server.call(CREATE, node, &create).unwrap();
    assert_eq!(fs::metadata(sub.join("made")).unwrap().uid(), 1000);
}

#[test]
fn known_inodes_are_bounded() {
    let mut server = Server::mounted(&Options { files: Some(200), ..PLAIN }).unwrap();
    for index in 0..400 {
        fs::write(server.folder().join(format!("n{index}")), "").unwrap();
    }
    let outcomes: Vec<_> = (0..400).map(|index| server.lookup(ROOT, &format!("n{index}"))).collect();
    assert!(outcomes[..100].iter().all(Result::is_ok));
    assert_eq!(outcomes[399], Err(libc::EMFILE));
    // What is forgotten makes room again.
    for (node, _) in outcomes.into_iter().flatten() {
        server.send(FORGET, node, &1u64.to_le_bytes());
    }
    // Four threads serve: a forget may still be under way.
    for _ in 0..1000 {
        if server.lookup(ROOT, "n399").is_ok() {
            return;
        }
    }
    panic!("no room again");
}

#[test]
fn ten_thousand_random_requests_leave_the_server_alive_and_small() {
    let mut server = Server::mounted(&PLAIN).unwrap();
    let outside = fs::read(server.outside.path().join("secret")).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let names: [&[u8]; 7] = [b"file\0", b"sub\0", b"out\0", b"..\0", b"../secret\0", b"x\0y\0", b"\xff"];
    let mut answer = vec![0; 1 << 18];
    for _ in 0..10_000 {
        let r = random();
        let mut body = Vec::new();
        for _ in 0..r >> 60 {
            body.extend((random() >> (random() % 64)).to_le_bytes());
        }
        body.extend(names[(r >> 8) as usize % names.len()]);
        // Never CREATE and such with random names for ever: the folder is small, so that they mostly exist already.
        let operation = (r >> 16) as u32 % 54;
        let node = if r & 7 == 0 { random() } else { 1 + (r >> 24) % 6 };
        let mut request = words(&[40 + body.len() as u32, operation]);
        request.extend(1u64.to_le_bytes());
        request.extend(node.to_le_bytes());
        request.extend([0; 16]);
        request.extend(body);
        if r >> 32 & 31 == 0 {
            request.truncate((r >> 40) as usize % request.len() + 1);
        }
        server.send_raw(&request);
        while recv(server.socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT).is_ok_and(|n| n > 0) {}
    }
    server.next = 1 << 40;
    let id = server.send(GETATTR, ROOT, &[0; 16]);
    loop {
        let length = recv(server.socket.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
        assert!(length >= 16, "the server is gone");
        if double(&answer, 8) == id {
            break;
        }
    }
    let resident: u64 = server.status("VmHWM").trim_end_matches(" kB").parse().unwrap();
    assert!(resident < 64 << 10, "{resident} KiB");
    assert_eq!(fs::read(server.outside.path().join("secret")).unwrap(), outside);
    assert!(server.child.try_wait().unwrap().is_none());
}

#[test]
fn an_ordinary_user_can_share_what_is_its_own() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: only root can become another user");
    }
    let Some(mut server) = Server::mounted(&Options { user: Some(12_345), ..PLAIN }) else {
        return eprintln!("skipped: this host's users may not have namespaces");
    };
    // Whoever the guest says that it is, it is that user here.
    server.uid = 1000;
    let create = with(&words(&[libc::O_RDWR as u32, 0o100_644, 0, 0]), &["made"]);
    server.call(CREATE, ROOT, &create).unwrap();
    assert_eq!(fs::metadata(server.folder().join("made")).unwrap().uid(), 12_345);
    assert_eq!(server.status("CapEff"), "0000000000000000");
}

#[test]
fn the_server_ends_with_its_socket_and_with_its_parent() {
    let mut server = Server::mounted(&PLAIN).unwrap();
    let (spare, _) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    server.socket = spare;
    assert!(server.child.wait().unwrap().success());

    let mut server = Server::mounted(&PLAIN).unwrap();
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    // The inner one had the other end of the socket.
    let mut byte = [0; 16];
    assert!(recv(server.socket.as_raw_fd(), &mut byte, MsgFlags::empty()).is_ok_and(|length| length == 0));
}

#[test]
fn a_listing_is_whole_while_other_requests_forget_what_is_in_it() {
    let mut server = Server::mounted(&PLAIN).unwrap();
    let handle = double(&server.call(OPENDIR, ROOT, &words(&[0, 0])).unwrap(), 0);
    let mut read = [handle, 0].map(u64::to_le_bytes).concat();
    read.extend(words(&[4096, 0, 0, 0, 0, 0]));
    let mut known: Vec<u64> = Vec::new();
    for round in 0..3000 {
        // Four threads serve: all of this is under way at the same time.
        for node in known.drain(..) {
            server.send(FORGET, node, &1u64.to_le_bytes());
        }
        let listing = server.call(READDIRPLUS, ROOT, &read).unwrap();
        let mut at = 0;
        while at < listing.len() {
            known.push(double(&listing, at));
            let name = word(&listing, at + 128 + 16) as usize;
            at += (128 + 24 + name).next_multiple_of(8);
        }
        assert_eq!(known.len(), 5, "round {round}");
    }
}
