//! Ways out of a folder that a guest might try together with somebody who changes the folder meanwhile, or with another share of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use support::*;

/// Rounds of a race, a fraction of a second.
const ROUNDS: usize = 2000;

/// Everything of the host that lies beside the folder.
fn beside(server: &Server) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(server.outside.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() == "folder" {
            continue;
        }
        let meta = fs::symlink_metadata(&path).unwrap();
        all.push(format!("{} {:o} {} {}", path.display(), meta.mode(), meta.len(), meta.nlink()));
        if meta.is_dir() {
            all.extend(tree(&path));
        }
    }
    all.sort();
    all
}

/// What a request that reaches for `name` in `parent` may do to it.
fn reach(server: &mut Server, parent: u64, name: &str) {
    let create = with(&words(&[(libc::O_RDWR | libc::O_TRUNC) as u32, 0o100_644, 0, 0]), &[name]);
    let mut size = words(&[1 << 3, 0]);
    size.extend([0; 80]);
    if let Ok((node, _)) = server.lookup(parent, name) {
        if let Ok(handle) = server.open(node, libc::O_RDWR) {
            let read = server.read(node, handle).unwrap_or_default();
            assert_ne!(read, b"outside", "what lies outside was read");
            let write =
                [&[handle, 0].map(u64::to_le_bytes).concat()[..], &words(&[1, 0, 0, 0, 0, 0]), b"!"].concat();
            let _ = server.call(WRITE, node, &write);
        }
        let _ = server.call(SETATTR, node, &size);
        // As a directory: nothing of what lies outside is found or made there.
        assert!(server.lookup(node, "secret").is_err());
        let _ = server.call(MKDIR, node, &with(&words(&[0o755, 0]), &["made"]));
        let _ = server.call(UNLINK, node, &text(&["secret"]));
        let _ = server.call(LINK, node, &with(&node.to_le_bytes(), &["linked"]));
    }
    let _ = server.call(CREATE, parent, &create);
}

#[test]
fn a_link_that_is_put_in_the_place_of_a_file_while_it_is_opened_leads_nowhere() {
    let mut server = Server::mounted(&PLAIN).unwrap();
    let folder = server.folder();
    fs::create_dir(server.outside.path().join("private")).unwrap();
    fs::write(server.outside.path().join("private/secret"), "outside").unwrap();
    let before = beside(&server);
    // Three things take turns under two names: a plain file, a directory, and links out of the folder.
    let (done, outside) = (AtomicBool::new(false), server.outside.path().to_owned());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let at = |name: &str| folder.join(name);
            for round in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let aside = at("aside");
                let made = match round % 5 {
                    0 => symlink("../secret", &aside),
                    1 => fs::write(&aside, "inside"),
                    2 => symlink(outside.join("private"), &aside),
                    3 => fs::create_dir(&aside),
                    _ => symlink(outside.join("secret"), &aside),
                };
                if made.is_ok() {
                    let place = at(if round % 2 == 0 { "swap" } else { "sub/swap" });
                    // What is there goes away, whatever it is by now.
                    let _ = fs::remove_file(&place).or_else(|_| fs::remove_dir_all(&place));
                    let _ = fs::rename(&aside, &place);
                }
                let _ = fs::remove_file(&aside).or_else(|_| fs::remove_dir_all(&aside));
            }
        });
        let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let (sub, _) = server.lookup(ROOT, "sub").unwrap();
            for _ in 0..ROUNDS {
                reach(&mut server, ROOT, "swap");
                reach(&mut server, sub, "swap");
            }
        }));
        done.store(true, Ordering::Relaxed);
        tried.unwrap();
    });
    assert_eq!(fs::read(server.outside.path().join("secret")).unwrap(), b"outside");
    assert_eq!(fs::read(server.outside.path().join("private/secret")).unwrap(), b"outside");
    assert_eq!(beside(&server), before);
}

#[test]
fn numbers_of_another_share_are_nothing_here() {
    let (mut one, mut other) = (Server::mounted(&PLAIN).unwrap(), Server::mounted(&PLAIN).unwrap());
    fs::write(one.folder().join("file"), "of the one").unwrap();
    fs::write(other.folder().join("file"), "of the other").unwrap();
    // The one has opened much more, so that its numbers mean nothing to the other.
    for index in 0..50 {
        fs::write(one.folder().join(format!("n{index}")), "of the one").unwrap();
        let (node, _) = one.lookup(ROOT, &format!("n{index}")).unwrap();
        one.open(node, libc::O_RDWR).unwrap();
    }
    let (file, _) = one.lookup(ROOT, "file").unwrap();
    let handle = one.open(file, libc::O_RDWR).unwrap();
    assert_eq!(one.read(file, handle).unwrap(), b"of the one");
    let before = tree(other.outside.path());
    assert_eq!(other.open(file, libc::O_RDWR), Err(libc::EBADF));
    assert_eq!(other.read(file, handle), Err(libc::EBADF));
    assert_eq!(other.call(GETATTR, file, &[0; 16]), Err(libc::EBADF));
    // No second name for a file of another share, nor for a link's target, nor in what is no directory.
    assert_eq!(other.call(LINK, ROOT, &with(&file.to_le_bytes(), &["new"])), Err(libc::EBADF));
    assert_eq!(other.call(RENAME, ROOT, &with(&file.to_le_bytes(), &["file", "new"])), Err(libc::EBADF));
    let (own, _) = other.lookup(ROOT, "file").unwrap();
    for name in ["out", "secret"] {
        let (link, _) = other.lookup(ROOT, name).unwrap();
        assert_eq!(other.call(LINK, link, &with(&own.to_le_bytes(), &["new"])), Err(libc::ENOTDIR), "{name}");
        assert_eq!(
            other.call(RENAME, ROOT, &with(&link.to_le_bytes(), &["file", "new"])),
            Err(libc::ENOTDIR)
        );
        // A link may have a second name; its target has not.
        other.call(LINK, ROOT, &with(&link.to_le_bytes(), &["second"])).unwrap();
        assert!(fs::symlink_metadata(other.folder().join("second")).unwrap().is_symlink());
        other.call(UNLINK, ROOT, &text(&["second"])).unwrap();
    }
    // A handle of one file is none of another's.
    let (inner, handle) = (other.lookup(ROOT, "sub").unwrap().0, other.open(own, libc::O_RDONLY).unwrap());
    assert_eq!(other.read(inner, handle), Err(libc::EBADF));
    assert_eq!(tree(other.outside.path()), before);
}

#[test]
fn a_directory_that_the_host_moves_away_takes_nobody_along() {
    let mut server = Server::mounted(&PLAIN).unwrap();
    let (sub, _) = server.lookup(ROOT, "sub").unwrap();
    fs::rename(server.folder().join("sub"), server.outside.path().join("moved")).unwrap();
    // What was shared is still known, as any open directory would be; what lies above and beside it is not.
    server.lookup(sub, "inner").unwrap();
    for name in ["..", "../secret", "../folder"] {
        assert!(server.lookup(sub, name).is_err(), "{name}");
    }
    let rename = with(&sub.to_le_bytes(), &["file", "../file"]);
    assert!(server.call(RENAME, ROOT, &rename).is_err());
    assert!(!server.outside.path().join("file").exists());
}

#[test]
fn attributes_are_the_named_files_whatever_the_folder_holds() {
    let mut server = Server::mounted(&PLAIN).unwrap();
    // The server finds a file by its own /proc; the guest makes one that looks the same.
    let fake = server.folder().join("proc/self/fd");
    fs::create_dir_all(&fake).unwrap();
    for number in 0..200 {
        fs::write(fake.join(number.to_string()), "").unwrap();
    }
    let (file, _) = server.lookup(ROOT, "file").unwrap();
    let set = [&words(&[5, 0])[..], b"user.key\0value"].concat();
    match server.call(SETXATTR, file, &set) {
        Err(libc::EOPNOTSUPP) => return eprintln!("skipped: the temporary directory keeps no attributes"),
        other => drop(other.unwrap()),
    }
    let has = |path: &Path| {
        let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the strings live through the call, which is not to write anything.
        unsafe { libc::getxattr(path.as_ptr(), c"user.key".as_ptr(), std::ptr::null_mut(), 0) == 5 }
    };
    assert!(has(&server.folder().join("file")));
    assert!((0..200).all(|number| !has(&fake.join(number.to_string()))));
}
