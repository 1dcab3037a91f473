//! Killed at any moment of a pull or a load, the store opens and is whole, and the same command finishes what was begun
//! without fetching again what was finished.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails fails its test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Instant;

use bulkhead_fixtures::disk::{flatten, fsck};
use bulkhead_fixtures::http::{Answer, Server};
use bulkhead_fixtures::layout::Layout;
use bulkhead_fixtures::registry::Registry;
use bulkhead_fixtures::tarfile::{Pack, Tar, noise, pack};
use image_unpack::{Digest, Platform, Quiet, Reference, Source, Store};

/// A child of this test's own program, which only makes images ready.
const CHILD: &str = "BULKHEAD_TEST_CRASH_CHILD";

#[test]
fn child() {
    let Ok(job) = std::env::var(CHILD) else { return };
    let (store, source) = job.split_once('|').unwrap();
    let store = Store::open(Path::new(store)).unwrap();
    match source.strip_prefix("load:") {
        Some(archive) => drop(store.load_archive(Path::new(archive), &Platform::host(), &Quiet).unwrap()),
        None => drop(store.ensure(&source.parse().unwrap(), &Platform::host(), &Quiet).unwrap()),
    }
}

fn start(store: &Path, source: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env(CHILD, format!("{}|{source}", store.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn list(dir: PathBuf) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path())
}

/// Every published blob and layer is whole.
fn verify(store: &Path) {
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

/// Finished layers, and the inode of the data of each: what is made again has another.
fn finished(store: &Path) -> BTreeMap<PathBuf, u64> {
    let inode = |path: &PathBuf| fs::metadata(path.join("data")).unwrap().ino();
    list(store.join("layers")).map(|path| (path.clone(), inode(&path))).collect()
}

/// Blobs of finished layers.
fn fetched(store: &Path) -> BTreeSet<String> {
    let origin = |layer: PathBuf| -> serde_json::Value {
        serde_json::from_slice(&fs::read(layer.join("origin.json")).unwrap()).unwrap()
    };
    list(store.join("layers")).map(|layer| origin(layer)["digest"].as_str().unwrap().to_owned()).collect()
}

/// Kills the child at so many moments. `ready` tells whether the store has what the command was to bring; `between` is
/// called with what was finished when the next command starts, and once it has ended.
fn kill(
    rounds: u32,
    store: &Path,
    source: &str,
    ready: &dyn Fn(&Store) -> bool,
    between: &dyn Fn(Option<&BTreeSet<String>>),
) {
    // How long it takes undisturbed sets the moments.
    let begun = Instant::now();
    assert!(start(store, source).wait().unwrap().success());
    let whole = begun.elapsed();
    fs::remove_dir_all(store).unwrap();
    let (mut seed, mut killed, mut unfinished) = (12_345_u64, 0, 0);
    let mut before = BTreeMap::new();
    let mut have = BTreeSet::new();
    for _ in 0..rounds {
        between(Some(&have));
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut child = start(store, source);
        sleep(whole.mul_f64((seed >> 40) as f64 / (1_u64 << 24) as f64));
        child.kill().unwrap();
        if !child.wait().unwrap().success() {
            killed += 1;
        }
        between(None);
        if !store.join("version").exists() {
            continue;
        }
        let opened = Store::open(store).unwrap();
        assert!(list(store.join("tmp")).next().is_none(), "leftovers are collected at open");
        verify(store);
        let after = finished(store);
        for (layer, inode) in &before {
            assert_eq!(after.get(layer), Some(inode), "a finished layer is not made again");
        }
        if ready(&opened) {
            fs::remove_dir_all(store).unwrap();
            (before, have) = (BTreeMap::new(), BTreeSet::new());
        } else {
            unfinished += u32::from(!after.is_empty());
            (before, have) = (after, fetched(store));
        }
    }
    assert!(killed >= rounds / 4, "only {killed} of {rounds} were killed in time");
    assert!(unfinished > 0, "none was killed between two layers");
    // What is left undisturbed succeeds.
    between(Some(&have));
    assert!(start(store, source).wait().unwrap().success());
    between(None);
    for (layer, inode) in before {
        assert_eq!(finished(store).get(&layer), Some(&inode), "a finished layer is not made again");
    }
    let opened = Store::open(store).unwrap();
    assert!(ready(&opened));
    assert!(opened.verify().unwrap().is_empty());
}

fn tars() -> Vec<Vec<u8>> {
    let one = |i: u8| {
        let mut tar = Tar::default();
        tar.file(&format!("noise{i}"), &noise(i.into(), (1 << 20) + usize::from(i) * 100_000))
            .file("same", &[i])
            .end()
    };
    (0..5).map(one).collect()
}

#[test]
fn killed_at_a_hundred_moments_of_a_pull() {
    let work = tempfile::tempdir().unwrap();
    let Some(registry) = Registry::start(work.path(), "", "") else { return };
    let layout = Layout::new(&work.path().join("oci"));
    layout.image(&tars(), Pack::Gzip);
    let first = Store::open(&work.path().join("first")).unwrap();
    let image = first.ensure(&layout.source(), &Platform::host(), &Quiet).unwrap();
    let pushed: Reference = format!("{}/crash/image:v1", registry.address).parse().unwrap();
    first.push(image.id, &pushed, &Quiet).unwrap();

    // In front of the registry stands one that knows what is asked for.
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let front = Server::start(Some(&registry.address), move |request| {
        if let Some((_, digest)) = request.target.split_once("/blobs/") {
            seen.lock().unwrap().push(digest.to_owned());
        }
        Answer::Forward
    });
    let name = format!("{}/crash/image:v1", front.address);
    let source: Source = name.parse().unwrap();
    let store = work.path().join("store");
    let have = Mutex::new(BTreeSet::new());
    kill(
        100,
        &store,
        &name,
        &|opened| opened.cached(&source, &Platform::host()).unwrap().is_some(),
        &|finished| match finished {
            Some(finished) => {
                asked.lock().unwrap().clear();
                finished.clone_into(&mut have.lock().unwrap());
            }
            None => {
                let again: Vec<String> = asked.lock().unwrap().drain(..).collect();
                let have = have.lock().unwrap();
                assert!(
                    !again.iter().any(|digest| have.contains(digest)),
                    "fetched again: {again:?} of {have:?}"
                );
            }
        },
    );
    let made = Store::open(&store).unwrap().cached(&source, &Platform::host()).unwrap().unwrap();
    assert_eq!(made.manifest, image.manifest);
    let disk = work.path().join("disk");
    flatten(&made.disk, &disk);
    fsck(&disk);
}

#[test]
fn killed_at_a_hundred_moments_of_a_load() {
    let work = tempfile::tempdir().unwrap();
    let layout = Layout::new(&work.path().join("oci"));
    layout.image(&tars(), Pack::Gzip);
    let first = Store::open(&work.path().join("first")).unwrap();
    let image = first.ensure(&layout.source(), &Platform::host(), &Quiet).unwrap();
    let name: Reference = "loaded:1".parse().unwrap();
    let mut saved = Vec::new();
    first.save(&[(image.id, vec![name.clone()])], &mut saved).unwrap();
    // Compressed: it is unpacked to the store's `tmp` first.
    let archive = work.path().join("saved.tar.gz");
    fs::write(&archive, pack(&saved, Pack::Gzip).0).unwrap();
    let source = format!("load:{}", archive.display());
    let ready = |opened: &Store| opened.lookup(&name).unwrap().is_some_and(|found| found.id == image.id);
    kill(100, &work.path().join("store"), &source, &ready, &|_| {});
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
