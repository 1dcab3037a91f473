//! Killed at any moment, the store opens, and the same command finishes what was begun.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails fails its test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Instant;

use bulkhead_tests::disk::{flatten, fsck};
use bulkhead_tests::layout::Layout;
use bulkhead_tests::tarfile::{Pack, Tar, noise};
use image_unpack::{Digest, Platform, Quiet, Store};

/// A child of this test's own program, which only makes an image ready.
const CHILD: &str = "BULKHEAD_TEST_CRASH_CHILD";

#[test]
fn child() {
    let Ok(job) = std::env::var(CHILD) else { return };
    let (store, source) = job.split_once('|').unwrap();
    let store = Store::open(Path::new(store)).unwrap();
    store.ensure(&source.parse().unwrap(), &Platform::host(), &Quiet).unwrap();
}

fn start(store: &Path, source: &str) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env(CHILD, format!("{}|{source}", store.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Every published blob and layer is whole.
fn verify(store: &Path) {
    let list = |dir: PathBuf| fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    for blob in list(store.join("blobs/sha256")) {
        let name = blob.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(Digest::of(&fs::read(&blob).unwrap()).hex(), name);
    }
    for layer in list(store.join("layers")) {
        for file in ["data", "index", "origin.json"] {
            assert!(layer.join(file).exists());
        }
    }
}

#[test]
fn killed_at_a_hundred_moments() {
    let work = tempfile::tempdir().unwrap();
    let layout = Layout::new(&work.path().join("oci"));
    let tars: Vec<_> = (0..4_u8)
        .map(|i| {
            Tar::default().file(&format!("noise{i}"), &noise(i.into(), 2 << 20)).file("same", &[i]).end()
        })
        .collect();
    layout.image(&tars, Pack::Gzip);
    let source = layout.source().to_string();
    let store = work.path().join("store");
    // How long it takes undisturbed sets the moments.
    let begun = Instant::now();
    assert!(start(&store, &source).wait().unwrap().success());
    let whole = begun.elapsed();
    let mut seed = 12_345_u64;
    let mut killed = 0;
    fs::remove_dir_all(&store).unwrap();
    for _ in 0..100 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut child = start(&store, &source);
        let fraction = (seed >> 40) as f64 / (1_u64 << 24) as f64;
        sleep(whole.mul_f64(fraction));
        child.kill().unwrap();
        if !child.wait().unwrap().success() {
            killed += 1;
        }
        if !store.join("version").exists() {
            continue;
        }
        let opened = Store::open(&store).unwrap();
        assert!(fs::read_dir(store.join("tmp")).unwrap().next().is_none(), "leftovers are collected at open");
        verify(&store);
        if opened.cached(&layout.source(), &Platform::host()).unwrap().is_some() {
            fs::remove_dir_all(&store).unwrap();
        }
    }
    assert!(killed >= 30, "only {killed} were killed in time");
    let opened = Store::open(&store).unwrap();
    let layers = || fs::read_dir(store.join("layers")).unwrap().map(|e| e.unwrap().path());
    let inode =
        |path: &PathBuf| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path.join("data")).unwrap());
    let before: Vec<_> = layers().map(|path| (inode(&path), path)).collect();
    let image = opened.ensure(&layout.source(), &Platform::host(), &Quiet).unwrap();
    for (number, path) in before {
        assert_eq!(inode(&path), number, "a finished layer is not made again");
    }
    let disk = work.path().join("disk");
    flatten(&image.disk, &disk);
    fsck(&disk);
}

#[test]
fn many_processes_at_once() {
    let work = tempfile::tempdir().unwrap();
    let layout = Layout::new(&work.path().join("oci"));
    layout.image(&[Tar::default().file("noise", &noise(9, 2 << 20)).end()], Pack::Gzip);
    let source = layout.source().to_string();
    let store = work.path().join("store");
    let children: Vec<_> = (0..8).map(|_| start(&store, &source)).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    verify(&store);
    let opened = Store::open(&store).unwrap();
    assert!(opened.cached(&layout.source(), &Platform::host()).unwrap().is_some());
    assert!(fs::read_dir(store.join("tmp")).unwrap().next().is_none());
}
