//! The tree that our disk shows, as the kernel sees it, is the tree that `umoci unpack` makes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails fails its test")]

use std::path::Path;

use bulkhead_fixtures::disk::{Mount, flatten, fsck};
use bulkhead_fixtures::layout::Layout;
use bulkhead_fixtures::samples::{changes, everything, many_layers, root, small_files};
use bulkhead_fixtures::tarfile::{Pack, Tar};
use bulkhead_fixtures::tools::{have, is_root, run};
use bulkhead_fixtures::tree::{Seen, Tree, assert_same, snapshot};
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
    if let Some(tree) = check_equal(&many_layers(), Pack::Gzip) {
        assert_eq!(tree.len(), 1 + 1 + 1 + 120 - 12);
    }
}

#[test]
fn ten_thousand_small_files() {
    if let Some(tree) = check_equal(&[small_files(20)], Pack::Gzip) {
        assert_eq!(tree.len(), 1 + 20 + 10_000);
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
    let Ok(given) = std::env::var("BULKHEAD_TEST_LAYOUT") else { return };
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
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/layers");
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
