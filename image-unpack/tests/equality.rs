//! The tree that our disk shows, as the kernel sees it, is the tree that `umoci unpack` makes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails fails its test")]

mod common;

use std::path::Path;

use common::{
    Layout, META, Meta, Mount, Pack, Seen, Tar, Tree, assert_same, flatten, fsck, have, is_root, run,
    snapshot,
};
use image_unpack::{Platform, Quiet, Source, Store};

/// Our tree of an image, if this machine can mount it. The disk is checked by `fsck.erofs` in any case.
fn ours(source: &Source, work: &Path, name: &str) -> Option<Tree> {
    let store = Store::open(&work.join("store")).unwrap();
    let image = store.ensure(source, &Platform::host(), &Quiet).unwrap();
    let disk = work.join(format!("{name}.disk"));
    flatten(&image.disk, &disk);
    fsck(&disk);
    let mount = Mount::erofs(&disk, &work.join(format!("{name}.mnt")))?;
    Some(snapshot(&mount.at))
}

fn umoci(layout: &Layout, work: &Path) -> Option<Tree> {
    if !have("umoci") || !is_root() {
        eprintln!("skipped: comparing with umoci needs umoci and root");
        return None;
    }
    let bundle = work.join("umoci");
    run("umoci", &["unpack", "--image", &format!("{}:t", layout.dir.display()), bundle.to_str().unwrap()]);
    Some(snapshot(&bundle.join("rootfs")))
}

fn check_equal(tars: &[Vec<u8>], pack: Pack) -> Option<Tree> {
    let work = tempfile::tempdir().unwrap();
    let layout = Layout::new(&work.path().join("oci"));
    layout.image(tars, pack);
    let ours = ours(&layout.source(), work.path(), "ours")?;
    if let Some(theirs) = umoci(&layout, work.path()) {
        assert_same(&ours, &theirs, "umoci");
    }
    Some(ours)
}

fn root(tar: &mut Tar) {
    tar.dir("./");
}

/// One of everything that a tar can hold.
fn everything() -> Vec<u8> {
    let mut tar = Tar::default();
    root(&mut tar);
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // user::rw-, user:1000:r--, group::r--, mask::r--, other::r--
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in
        [(1_u16, 6_u16, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 4, u32::MAX)]
    {
        acl.extend(tag.to_le_bytes());
        acl.extend(perm.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    tar.dir("etc").dir("usr").dir("usr/bin").dir("usr/lib").dir("var").dir("var/empty").dir("dev");
    tar.file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n");
    tar.file("empty", b"");
    tar.file("block", &[7; 4096]).file("block+1", &[8; 4097]).file("big", &vec![9; 3_000_001]);
    tar.file_with("usr/bin/su", b"suid", &Meta { mode: 0o4755, ..META });
    tar.file_with("usr/bin/wall", b"sgid", &Meta { mode: 0o2755, gid: 5, ..META });
    tar.raw(b'5', "tmp/", "", &Meta { mode: 0o1777, ..META }, 0);
    tar.file_with("owned", b"x", &Meta { uid: 1000, gid: 65_534, ..META });
    tar.pax(&[("uid", b"3000000000"), ("gid", b"70000")]).file("pax-owner", b"big id");
    tar.pax(&[("mtime", b"1350244992.023960108")]).file("pax-time", b"ns");
    tar.pax(&[("mtime", b"-1.5")]).file("before-1970", b"old");
    tar.pax(&[("SCHILY.xattr.security.capability", &capability)]).file("usr/bin/ping", b"cap");
    tar.pax(&[("SCHILY.xattr.user.one", b"1"), ("SCHILY.xattr.user.two", &[0, 255, 10])])
        .file("xattrs", b"x");
    tar.pax(&[("SCHILY.xattr.trusted.md5", b"t")]).dir("xattr-dir");
    tar.pax(&[("SCHILY.xattr.system.posix_acl_access", &acl)]).file("acl", b"acl");
    tar.symlink("bin", "usr/bin").symlink("lib", "/usr/lib").symlink("dangling", "no/where");
    tar.symlink("loop-a", "loop-b").symlink("loop-b", "loop-a").symlink("long-link", &"x/".repeat(1000));
    tar.hardlink("etc/passwd-", "etc/passwd")
        .hardlink("link2", "./etc/passwd")
        .hardlink("dead-link", "dangling");
    tar.device(b'3', "dev/null", 1, 3).device(b'4', "dev/sda", 8, 0).device(b'3', "dev/high", 511, 300_000);
    tar.raw(b'6', "fifo", "", &META, 0);
    tar.file(&"n".repeat(255), b"longest name").file("naïve-ünïcode-文件-🦀", b"utf-8");
    let deep = "d/".repeat(120);
    for depth in 1..=120 {
        tar.dir(&deep[..depth * 2]);
    }
    tar.file(&format!("{deep}leaf"), b"deep");
    tar.file("!before-dot", b"!").file("-also", b"-").file(".hidden", b".").file("...", b"...");
    tar.dir("many");
    for i in 0..700 {
        tar.file(&format!("many/{i:04}-{}", "x".repeat(i % 97)), format!("{i}").as_bytes());
    }
    tar.dir("swap-to-file").file("swap-to-file/inside", b"gone").file("swap-to-dir", b"gone");
    tar.dir("opaque").file("opaque/old", b"gone").dir("opaque/sub").file("opaque/sub/old", b"gone");
    tar.dir("kept").file("kept/a", b"a").file("kept/b", b"b").file("removed", b"gone");
    tar.dir("removed-dir").file("removed-dir/x", b"gone");
    tar.file("replaced", b"first").hardlink("replaced-link", "replaced");
    tar.file("twice", b"first").file("twice", b"second, longer");
    tar.end()
}

fn changes() -> Vec<u8> {
    let mut tar = Tar::default();
    root(&mut tar);
    tar.file("swap-to-file", b"file now");
    tar.dir("swap-to-dir").file("swap-to-dir/inside", b"new");
    tar.dir("opaque").file("opaque/.wh..wh..opq", b"").file("opaque/new", b"new");
    tar.dir("kept").file("kept/.wh.a", b"").file("kept/c", b"c");
    tar.file(".wh.removed", b"").file(".wh.removed-dir", b"").file(".wh.never-was", b"");
    tar.file("replaced", b"second");
    tar.hardlink("across", "etc/passwd");
    tar.raw(b'5', "var", "", &Meta { mode: 0o700, uid: 7, ..META }, 0);
    // Through symlinks of the layer below, relative and absolute.
    tar.file("bin/through-relative", b"1").file("lib/through-absolute", b"2");
    tar.end()
}

#[test]
fn every_kind_of_entry_and_change() {
    let Some(tree) = check_equal(&[everything(), changes()], Pack::Gzip) else { return };
    let at = |path: &str| -> &Seen { &tree[Path::new(path)] };
    // What umoci was agreed with about, said once more in our own words.
    assert!(tree.contains_key(Path::new("usr/bin/through-relative")));
    assert!(tree.contains_key(Path::new("usr/lib/through-absolute")));
    assert!(!tree.contains_key(Path::new("removed")) && !tree.contains_key(Path::new("kept/a")));
    assert!(!tree.contains_key(Path::new("opaque/old")) && tree.contains_key(Path::new("opaque/new")));
    assert_eq!(at("etc/passwd").nlink, 4);
    assert_eq!(at("replaced-link").nlink, 1);
    assert_eq!(at("usr/bin/su").mode & 0o7777, 0o4755);
    assert_eq!(at("before-1970").mtime, (-2, 500_000_000));
    assert_eq!(at("pax-owner").uid, 3_000_000_000);
}

#[test]
fn the_same_in_every_packing() {
    let tars = [everything(), changes()];
    let work = tempfile::tempdir().unwrap();
    let mut disks = Vec::new();
    for (pack, name) in [(Pack::Plain, "plain"), (Pack::Gzip, "gzip"), (Pack::Zstd, "zstd")] {
        let layout = Layout::new(&work.path().join(name));
        layout.image(&tars, pack);
        // A store each, so that nothing is shared: the same layers must give the same bytes.
        let store = Store::open(&work.path().join(format!("{name}-store"))).unwrap();
        let image = store.ensure(&layout.source(), &Platform::host(), &Quiet).unwrap();
        let path = work.path().join(format!("{name}.disk"));
        flatten(&image.disk, &path);
        fsck(&path);
        disks.push(std::fs::read(path).unwrap());
    }
    assert!(disks[0] == disks[1] && disks[1] == disks[2], "same layers, same disk");
}

#[test]
fn more_than_a_hundred_layers() {
    let tars: Vec<Vec<u8>> = (0..120)
        .map(|i| {
            let mut tar = Tar::default();
            root(&mut tar);
            tar.dir("l").file(&format!("l/{i}"), format!("layer {i}").as_bytes());
            tar.file("counter", format!("{i}").as_bytes());
            if i % 10 == 9 {
                tar.file(&format!("l/.wh.{}", i - 5), b"");
            }
            tar.end()
        })
        .collect();
    if let Some(tree) = check_equal(&tars, Pack::Gzip) {
        assert_eq!(tree.len(), 1 + 1 + 1 + 120 - 12);
    }
}

#[test]
fn fifty_thousand_small_files() {
    let mut tar = Tar::default();
    root(&mut tar);
    for d in 0..100 {
        tar.dir(&format!("d{d}"));
        for f in 0..500 {
            tar.file(&format!("d{d}/file-{f}"), format!("{d}/{f}").as_bytes());
        }
    }
    if let Some(tree) = check_equal(&[tar.end()], Pack::Gzip) {
        assert_eq!(tree.len(), 1 + 100 + 50_000);
    }
}

#[test]
fn one_directory_of_many_blocks() {
    let mut tar = Tar::default();
    root(&mut tar);
    for i in 0..5_000 {
        tar.file(&format!("{i}-{}", "y".repeat(i % 200)), b"");
    }
    check_equal(&[tar.end()], Pack::Plain);
}

#[test]
fn sparse_files_of_gnu_tar() {
    if !have("tar") {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let tree = work.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    for (name, size, writes) in [
        ("holes", 10_000_000_u64, &[(0_u64, 100_usize), (5_000_000, 5000), (9_999_000, 1000)][..]),
        ("all-hole", 1_000_000, &[]),
        ("huge", 40_000_000_000, &[(123_456, 10), (20_000_000_123, 70_000)]),
        ("tail", 70_001, &[(70_000, 1)]),
    ] {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::create(tree.join(name)).unwrap();
        file.set_len(size).unwrap();
        for &(offset, length) in writes {
            file.write_all_at(&vec![b'a'; length], offset).unwrap();
        }
    }
    for (format, version) in [("gnu", ""), ("pax", "0.0"), ("pax", "0.1"), ("pax", "1.0")] {
        let archive = work.path().join(format!("{format}{version}.tar"));
        let mut arguments = vec!["-C", tree.to_str().unwrap(), "--sparse", "-cf", archive.to_str().unwrap()];
        let format_argument = format!("--format={format}");
        let version_argument = format!("--sparse-version={version}");
        arguments.push(&format_argument);
        if !version.is_empty() {
            arguments.push(&version_argument);
        }
        arguments.push(".");
        run("tar", &arguments);
        let layout = Layout::new(&work.path().join(format!("oci{format}{version}")));
        layout.image(&[std::fs::read(&archive).unwrap()], Pack::Plain);
        let store = Store::open(&work.path().join(format!("store{format}{version}"))).unwrap();
        let image = store.ensure(&layout.source(), &Platform::host(), &Quiet).unwrap();
        let disk = work.path().join("disk");
        flatten(&image.disk, &disk);
        fsck(&disk);
        let Some(mount) = Mount::erofs(&disk, &work.path().join("mnt")) else { continue };
        for name in ["holes", "all-hole", "tail"] {
            let (a, b) =
                (std::fs::read(tree.join(name)).unwrap(), std::fs::read(mount.at.join(name)).unwrap());
            assert!(a == b, "{name} in {format} {version}");
        }
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::open(mount.at.join("huge")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 40_000_000_000);
        let mut bytes = [0; 20];
        file.read_exact_at(&mut bytes, 123_450).unwrap();
        assert_eq!(&bytes, b"\0\0\0\0\0\0aaaaaaaaaa\0\0\0\0");
        file.read_exact_at(&mut bytes, 20_000_000_120).unwrap();
        assert_eq!(&bytes[..6], b"\0\0\0aaa");
    }
}

/// `BULKHEAD_TEST_LAYOUT=DIR:TAG` compares a real image.
#[test]
fn a_given_image() {
    let Ok(given) = std::env::var("BULKHEAD_TEST_LAYOUT") else {
        eprintln!("skipped: BULKHEAD_TEST_LAYOUT names no image");
        return;
    };
    let work = tempfile::tempdir().unwrap();
    let Some(ours) = ours(&format!("oci:{given}").parse().unwrap(), work.path(), "given") else { return };
    let bundle = work.path().join("umoci");
    run("umoci", &["unpack", "--image", &given, bundle.to_str().unwrap()]);
    assert_same(&ours, &snapshot(&bundle.join("rootfs")), "umoci");
}

/// Writes the corpus of the fuzzers anew, from the tars of these tests: `BULKHEAD_WRITE_CORPUS=1`.
#[test]
fn corpus_of_the_fuzzers() {
    if std::env::var_os("BULKHEAD_WRITE_CORPUS").is_none() {
        return;
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/layer");
    let write = |name: &str, tar: &mut Tar| std::fs::write(dir.join(name), tar.end()).unwrap();
    let mut tar = Tar::default();
    root(&mut tar);
    tar.dir("a").file("a/f", b"hello").symlink("s", "a").file("s/through", b"x").hardlink("h", "a/f");
    write("links.tar", &mut tar);
    let mut tar = Tar::default();
    tar.dir("a")
        .file("a/.wh.f", b"")
        .file("b/.wh..wh..opq", b"")
        .file("a/new", b"new")
        .device(b'3', "d", 1, 3);
    write("whiteouts.tar", &mut tar);
    let mut tar = Tar::default();
    tar.pax(&[("mtime", b"1350244992.02"), ("SCHILY.xattr.user.k", b"v"), ("uid", b"70000")])
        .file("p", b"pax");
    tar.file(&"n".repeat(150), b"long").symlink("ls", &"t/".repeat(80));
    write("pax.tar", &mut tar);
    let mut tar = Tar::default();
    let records = [("GNU.sparse.map", &b"0,5,100000,6"[..]), ("GNU.sparse.size", b"200000")];
    tar.pax(&records).file("sparse", b"hello world").file("after", b"x");
    write("sparse.tar", &mut tar);
    let mut tar = Tar::default();
    let records = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse1"),
        ("GNU.sparse.realsize", b"50000"),
    ];
    let mut body = b"1\n40000\n3\n".to_vec();
    body.resize(512, 0);
    body.extend(b"abc");
    tar.pax(&records).file("GNUSparseFile.0/sparse1", &body);
    write("sparse1.tar", &mut tar);
}
