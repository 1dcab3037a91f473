//! Names, lists, removal and garbage.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails fails its test")]

use std::fs;

use bulkhead_fixtures::layout::Layout;
use bulkhead_fixtures::tarfile::{Pack, Tar, noise};
use bulkhead_fixtures::tools::{have, run};
use image_unpack::{Digest, Error, Platform, Quiet, Reference, Store};

#[test]
fn names_keep_images_and_images_keep_layers() {
    let work = tempfile::tempdir().unwrap();
    let shared = Tar::default().file("shared", &noise(1, 300_000)).end();
    let store = Store::open(&work.path().join("store")).unwrap();
    let make = |name: &str, own: u64| {
        let layout = Layout::new(&work.path().join(name));
        layout.image(&[shared.clone(), Tar::default().file("own", &noise(own, 200_000)).end()], Pack::Gzip);
        (store.ensure(&layout.source(), &Platform::host(), &Quiet).unwrap(), layout)
    };
    let (a, _) = make("a", 2);
    let (b, layout_b) = make("b", 3);
    let name = |text: &str| -> Reference { text.parse().unwrap() };
    store.tag(a.id, &name("one")).unwrap();
    store.tag(a.id, &name("one:more")).unwrap();
    store.tag(b.id, &name("two")).unwrap();
    assert_eq!(store.lookup(&name("one:more")).unwrap().unwrap().id, a.id);
    let list = store.images().unwrap();
    assert_eq!(list.len(), 2);
    let of_a = list.iter().find(|i| i.id == a.id).unwrap();
    assert_eq!(of_a.names, [name("one"), name("one:more")]);
    assert_eq!(of_a.content_bytes, 500_000);
    assert_eq!(store.usage().unwrap().reclaimable, 0);
    let usage = store.usage().unwrap();
    assert!((700_000..1_200_000).contains(&usage.layers), "the shared layer counts once: {usage:?}");
    assert!(matches!(store.remove(a.id, false), Err(Error::InUse { .. })));
    assert!(store.untag(&name("one")).unwrap().deleted.is_empty());
    let removed = store.remove(a.id, false).unwrap();
    assert_eq!(removed.deleted, [a.id]);
    assert!(removed.freed > 200_000);
    assert!(store.by_id(a.id).unwrap().is_none());
    let left = store.by_id(b.id).unwrap().unwrap();
    assert!(left.disk.extents.iter().all(|e| e.path.exists()), "the shared layer stays");
    assert!(matches!(store.untag(&name("nope")), Err(Error::NotFound { .. })));
    assert_eq!(store.untag(&name("two")).unwrap().deleted, [b.id]);
    let (b, _) = make("c", 3);
    assert!(store.prune(false).unwrap().deleted.is_empty(), "an image that never had a name is kept");
    assert_eq!(store.prune(true).unwrap().deleted, [b.id]);
    for dir in ["blobs/sha256", "layers", "disks", "images", "refs"] {
        assert_eq!(fs::read_dir(store.root().join(dir)).unwrap().count(), 0, "{dir}");
    }
    store.ensure(&layout_b.source(), &Platform::host(), &Quiet).unwrap();
}

#[test]
fn saved_images_load_everywhere() {
    let work = tempfile::tempdir().unwrap();
    let shared = Tar::default().file("shared", &noise(1, 300_000)).end();
    let first = Store::open(&work.path().join("first")).unwrap();
    let mut chosen = Vec::new();
    for (dir, own, name) in [("a", 2, "one:1"), ("b", 3, "localhost:5000/two:2")] {
        let layout = Layout::new(&work.path().join(dir));
        layout.image(&[shared.clone(), Tar::default().file("own", &noise(own, 9000)).end()], Pack::Gzip);
        let image = first.ensure(&layout.source(), &Platform::host(), &Quiet).unwrap();
        let name: Reference = name.parse().unwrap();
        first.tag(image.id, &name).unwrap();
        chosen.push((image.id, vec![name]));
    }
    let save = |store: &Store, images: &[(Digest, Vec<Reference>)]| {
        let mut out = Vec::new();
        store.save(images, &mut out).unwrap();
        out
    };
    let bytes = save(&first, &chosen);
    let path = work.path().join("saved.tar");
    fs::write(&path, &bytes).unwrap();
    let second = Store::open(&work.path().join("second")).unwrap();
    let loaded = second.load_archive(&path, &Platform::host(), &Quiet).unwrap();
    assert_eq!(loaded.iter().map(|i| i.id).collect::<Vec<_>>(), [chosen[0].0, chosen[1].0]);
    assert_eq!(second.lookup(&chosen[1].1[0]).unwrap().unwrap().id, chosen[1].0);
    assert_eq!(save(&first, &chosen), bytes, "the same images give the same bytes");
    assert_eq!(save(&second, &chosen), bytes, "and after a load too");
    if have("skopeo") {
        let one = work.path().join("one.tar");
        fs::write(&one, save(&first, &chosen[..1])).unwrap();
        for (kind, tag) in [("docker-archive", "docker.io/library/one:1"), ("oci-archive", "1")] {
            let to = format!("oci:{}:t", work.path().join(kind).display());
            run("skopeo", &["copy", &format!("{kind}:{}:{tag}", one.display()), &to]);
        }
    }
}

#[test]
fn damage_is_found_and_mended() {
    let work = tempfile::tempdir().unwrap();
    let layout = Layout::new(&work.path().join("oci"));
    layout.image(&[Tar::default().file("f", &noise(5, 100_000)).end()], Pack::Gzip);
    let store = Store::open(&work.path().join("store")).unwrap();
    let image = store.ensure(&layout.source(), &Platform::host(), &Quiet).unwrap();
    assert!(store.verify().unwrap().is_empty());
    let blobs = store.root().join("blobs/sha256");
    let largest =
        fs::read_dir(&blobs).unwrap().map(|e| e.unwrap()).max_by_key(|e| e.metadata().unwrap().len());
    let path = largest.unwrap().path();
    let mut bytes = fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    fs::write(&path, bytes).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    assert_eq!(store.verify().unwrap(), [Digest::from_hex(name).unwrap()]);
    assert!(store.by_id(image.id).unwrap().is_none());
    let again = store.ensure(&layout.source(), &Platform::host(), &Quiet).unwrap();
    assert_eq!(again.disk, image.disk);
    assert!(path.exists(), "the blob came back too");
}

#[test]
fn what_is_held_stays() {
    let work = tempfile::tempdir().unwrap();
    let store = Store::open(&work.path().join("store")).unwrap();
    let layout = Layout::new(&work.path().join("oci"));
    layout.image(&[Tar::default().file("f", &noise(5, 100_000)).end()], Pack::Gzip);
    let image = store.ensure(&layout.source(), &Platform::host(), &Quiet).unwrap();
    let name: Reference = "held".parse().unwrap();
    store.tag(image.id, &name).unwrap();
    assert!(store.holds().unwrap().is_empty());
    store.release("nobody").unwrap();
    store.hold(image.id, "container-1").unwrap();
    store.hold(image.id, "container-2").unwrap();
    assert_eq!(store.holds().unwrap().len(), 2);
    assert!(
        matches!(store.remove(image.id, false), Err(Error::InUse { by, .. }) if by == "container-1, container-2")
    );
    let whole = || {
        let image = store.by_id(image.id).unwrap().unwrap();
        assert!(image.disk.extents.iter().all(|e| e.path.exists()));
    };
    assert!(store.untag(&name).unwrap().deleted.is_empty());
    whole();
    store.tag(image.id, &name).unwrap();
    let removed = store.remove(image.id, true).unwrap();
    assert_eq!((removed.untagged.len(), removed.deleted.len()), (1, 0));
    assert!(store.prune(true).unwrap().deleted.is_empty());
    whole();
    store.release("container-1").unwrap();
    assert!(store.prune(true).unwrap().deleted.is_empty());
    store.release("container-2").unwrap();
    assert_eq!(store.prune(true).unwrap().deleted, [image.id]);
    assert!(matches!(store.hold(image.id, "container-1"), Err(Error::NotFound { .. })));
    for holder in ["", "../x", ".x", "a/b", &"x".repeat(129)] {
        assert!(matches!(store.hold(image.id, holder), Err(Error::Invalid { .. })), "{holder}");
    }
}
