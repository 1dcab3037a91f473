//! The tree of files that a container sees is the tree that `umoci unpack` makes of the same image: names, modes, owners,
//! sizes, times to the nanosecond, links, devices, extended attributes and content. The same program lists both.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use bulkhead_tests::disk::{flatten, fsck};
use bulkhead_tests::layout::Layout;
use bulkhead_tests::tarfile::{META, Meta, Pack, Tar};
use bulkhead_tests::tools::{have, is_root, run};
use bulkhead_tests::{Bulkhead, samples, script};
use image_unpack::{Platform, Store};

const LISTER: &str = ".bulkhead-lister";

/// Paths that the added layer brings, or that a machine mounts something on: not the image's.
const OWN: [&str; 7] = [LISTER, "dev", "proc", "sys", "etc/hostname", "etc/hosts", "etc/resolv.conf"];

/// Builds the lister; `None` (said loudly) where it or its reference cannot be had.
fn lister() -> Option<Vec<u8>> {
    if !have("umoci") || !is_root() {
        eprintln!("skipped: comparing with umoci needs umoci and root");
        return None;
    }
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("lister/build.sh");
    Some(fs::read(run(build.to_str().unwrap(), &[]).trim()).unwrap())
}

/// The layer with the lister, and with everything that a machine needs a place for: without it those places would be
/// made in the container's own layer, and change the times of their directories.
fn added(program: &[u8]) -> Vec<u8> {
    let mut tar = Tar::default();
    tar.file_with(LISTER, program, &Meta { mode: 0o755, ..META });
    tar.dir("dev").dir("proc").dir("sys");
    tar.file("etc/hostname", b"").file("etc/hosts", b"").file("etc/resolv.conf", b"");
    tar.end()
}

/// Lines by path; mount points apart.
fn parse(listing: &str) -> (BTreeMap<String, String>, Vec<String>) {
    let (mut lines, mut mounts) = (BTreeMap::new(), Vec::new());
    for line in listing.lines() {
        match (line.strip_prefix("mount "), line.strip_prefix('/')) {
            (Some(path), _) => mounts.push(path.to_owned()),
            (None, Some(rest)) => {
                let (path, told) = rest.split_once(' ').unwrap();
                // The root of an overlay is the container's own directory: its time is when the container was made.
                let told = if path.is_empty() { told.split(" mtime=").next().unwrap() } else { told };
                assert!(lines.insert(path.to_owned(), told.to_owned()).is_none(), "{path} is listed twice");
            }
            _ => panic!("not a line of the lister: {line}"),
        }
    }
    (lines, mounts)
}

/// Compares an image of these layers, packed so; the number of paths compared.
fn check(bulkhead: &Bulkhead, program: &[u8], tars: &[Vec<u8>], pack: Pack) -> usize {
    let work = tempfile::tempdir().unwrap();
    // umoci knows no zstd: it gets the same layers in gzip.
    let theirs = Layout::new(&work.path().join("theirs"));
    theirs.image(tars, Pack::Gzip);
    let bundle = work.path().join("bundle");
    run("umoci", &["unpack", "--image", &format!("{}:t", theirs.dir.display()), bundle.to_str().unwrap()]);
    let root = bundle.join("rootfs");
    let mut excluded: Vec<&str> = OWN.to_vec();
    if !root.join("etc").exists() {
        excluded.push("etc");
    }

    let ours = Layout::new(&work.path().join("ours"));
    ours.image(&[tars, &[added(program)]].concat(), pack);
    let source = ours.source();
    let ran = bulkhead.run(&[&[&source.to_string(), "/.bulkhead-lister", "/"], &excluded[..]].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let (inside, mounts) = parse(&ran.stdout);
    for mount in &mounts {
        let own = excluded.iter().any(|own| Path::new(mount).starts_with(own));
        assert!(own, "a machine mounts something on {mount}: the added layer lacks a place for it");
    }

    let listed = work.path().join("lister");
    fs::write(&listed, program).unwrap();
    run("chmod", &["755", listed.to_str().unwrap()]);
    let output = Command::new(&listed).arg(&root).args(&excluded).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (outside, _) = parse(&String::from_utf8(output.stdout).unwrap());

    let different: Vec<String> = inside
        .keys()
        .chain(outside.keys().filter(|path| !inside.contains_key(*path)))
        .filter(|path| inside.get(*path) != outside.get(*path))
        .map(|path| format!("/{path}\n  inside {:?}\n  umoci  {:?}", inside.get(path), outside.get(path)))
        .collect();
    let shown = different.len().min(10);
    assert!(different.is_empty(), "{} paths differ\n{}", different.len(), different[..shown].join("\n"));

    let store = Store::open(&bulkhead.root.path().join("images")).unwrap();
    let image = store.cached(&source, &Platform::host()).unwrap().expect("it was just run");
    let disk = work.path().join("disk");
    flatten(&image.disk, &disk);
    fsck(&disk);
    bulkhead.assert_nothing_left();
    inside.len()
}

/// The layers of an OCI layout's only image, unpacked.
fn layers_of(layout: &Path) -> Vec<Vec<u8>> {
    let blob = |descriptor: &serde_json::Value| {
        let digest = descriptor["digest"].as_str().unwrap().trim_start_matches("sha256:");
        fs::read(layout.join("blobs/sha256").join(digest)).unwrap()
    };
    let json = |bytes: &[u8]| -> serde_json::Value { serde_json::from_slice(bytes).unwrap() };
    let index = json(&fs::read(layout.join("index.json")).unwrap());
    let manifest = json(&blob(&index["manifests"][0]));
    let unpack = |layer: &serde_json::Value| {
        let mut tar = Vec::new();
        flate2::read::MultiGzDecoder::new(&blob(layer)[..]).read_to_end(&mut tar).unwrap();
        tar
    };
    manifest["layers"].as_array().unwrap().iter().map(unpack).collect()
}

#[test]
fn busybox() {
    let (Some(bulkhead), Some(program)) = (Bulkhead::new(), lister()) else { return };
    let layout = script("busybox.sh").expect("busybox.sh");
    assert!(check(&bulkhead, &program, &layers_of(Path::new(&layout)), Pack::Gzip) > 200);
}

#[test]
fn debian_minbase_and_python() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    if !Path::new("/usr/sbin/debootstrap").exists() {
        eprintln!("skipped: debootstrap is not installed");
        return;
    }
    let Some(program) = lister() else { return };
    let layout = script("debian-python.sh").expect("debian-python.sh");
    let layers = layers_of(Path::new(&layout));
    // The first layer is debootstrap's minbase alone.
    assert!(check(&bulkhead, &program, &layers[..1], Pack::Gzip) > 5_000);
    assert!(check(&bulkhead, &program, &layers, Pack::Gzip) > 5_000);
}

#[test]
fn a_hundred_and_twenty_layers() {
    let (Some(bulkhead), Some(program)) = (Bulkhead::new(), lister()) else { return };
    assert_eq!(check(&bulkhead, &program, &samples::many_layers(), Pack::Gzip), 1 + 1 + 1 + 120 - 12);
}

#[test]
fn fifty_thousand_small_files() {
    let (Some(bulkhead), Some(program)) = (Bulkhead::new(), lister()) else { return };
    let tar = samples::small_files(100);
    assert_eq!(check(&bulkhead, &program, &[tar], Pack::Gzip), 1 + 100 + 50_000);
}

#[test]
fn every_kind_of_entry_and_change() {
    let (Some(bulkhead), Some(program)) = (Bulkhead::new(), lister()) else { return };
    let tars = [samples::everything(), samples::changes()];
    assert!(check(&bulkhead, &program, &tars, Pack::Gzip) > 800);
}

#[test]
fn zstd() {
    let (Some(bulkhead), Some(program)) = (Bulkhead::new(), lister()) else { return };
    let tars = [samples::everything(), samples::changes()];
    assert!(check(&bulkhead, &program, &tars, Pack::Zstd) > 800);
}
