//! Images made here: import, commit, changes; and what is told about images: inspect, history, df.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails fails its test")]

use std::fs;
use std::io::Write;

use bulkhead_fixtures::disk::{Mount, flatten, fsck};
use bulkhead_fixtures::layout::Layout;
use bulkhead_fixtures::tarfile::{Pack, Tar, noise, pack};
use bulkhead_fixtures::tools::{have, run};
use bulkhead_fixtures::tree::snapshot;
use image_unpack::{Change, CommitOptions, Digest, Error, ImportOptions, Platform, Quiet, Reference, Store};
use serde_json::json;

fn changes(list: &[&str]) -> Vec<Change> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

fn name(text: &str) -> Reference {
    text.parse().unwrap()
}

fn root_tar() -> Vec<u8> {
    Tar::default().dir("etc").file("etc/a", b"a").file("big", &noise(1, 100_000)).end()
}

#[test]
fn import_takes_every_packing_and_changes() {
    let work = tempfile::tempdir().unwrap();
    let store = Store::open(&work.path().join("store")).unwrap();
    let tar = root_tar();
    let options = ImportOptions {
        changes: changes(&["CMD [\"/bin/sh\"]", "ENV A=b", "WORKDIR /etc", "EXPOSE 80", "LABEL x=y"]),
        message: Some("from a test".into()),
        name: Some(name("imported:1")),
        created: Some(1_706_702_400),
        ..ImportOptions::default()
    };
    let plain = store.import(&tar[..], &options).unwrap();
    assert_eq!(store.import(&tar[..], &options).unwrap().id, plain.id, "the same in, the same out");
    for how in [Pack::Gzip, Pack::Zstd] {
        // The configuration names the uncompressed stream.
        assert_eq!(store.import(&pack(&tar, how).0[..], &options).unwrap().id, plain.id);
    }
    let inspect = store.inspect(plain.id).unwrap();
    assert_eq!(inspect.repo_tags, ["imported:1"]);
    assert_eq!((inspect.os.as_str(), inspect.comment.as_str()), ("linux", "from a test"));
    assert_eq!(inspect.root_fs.layers, [Digest::of(&tar)]);
    assert_eq!(inspect.size, 100_001);
    let config = json!({"Cmd": ["/bin/sh"], "Env": ["A=b"], "WorkingDir": "/etc", "ExposedPorts": {"80/tcp": {}},
        "Labels": {"x": "y"}});
    assert_eq!(serde_json::Value::Object(inspect.config.clone()), config);
    let json = serde_json::to_value(&inspect).unwrap();
    assert_eq!(json["Created"], "2024-01-31T12:00:00Z");
    assert_eq!(json["RootFS"]["Type"], "layers");
    assert!(json["Id"].as_str().unwrap().starts_with("sha256:"));
    assert_eq!(store.images().unwrap()[0].labels["x"], "y");
    for (bytes, why) in [
        (&b"BZh91AY&SY"[..], "bzip2"),
        (&b"\xfd7zXZ\0\0"[..], "xz"),
        (&b"this is no tar file, whatever it is"[..], "trunc"),
    ] {
        let error = store.import(bytes, &options).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
    let disk = work.path().join("disk");
    flatten(&plain.disk, &disk);
    fsck(&disk);
}

#[test]
fn commit_adds_a_layer_to_a_base() {
    let work = tempfile::tempdir().unwrap();
    let store = Store::open(&work.path().join("store")).unwrap();
    let base = store
        .import(
            &root_tar()[..],
            &ImportOptions { changes: changes(&["CMD old", "ENV A=1"]), ..Default::default() },
        )
        .unwrap();
    let layer = Tar::default().file("etc/.wh.a", b"").file("etc/b", b"bb").end();
    let options = CommitOptions {
        changes: changes(&["ENTRYPOINT [\"/b\"]", "ENV A=2 C=3"]),
        created_by: Some("sh -c 'make b'".into()),
        comment: Some("b for a".into()),
        author: Some("Ann".into()),
        name: Some(name("committed")),
        created: Some(1_706_702_400),
        ..CommitOptions::default()
    };
    let made = store.commit(Some(base.id), Some(Box::new(&layer[..])), &options).unwrap();
    let config = made.config.config().clone().unwrap();
    assert_eq!(config.entrypoint().as_deref(), Some(&["/b".to_owned()][..]));
    assert_eq!(config.cmd(), &None, "an entrypoint forgets the base's command");
    assert_eq!(config.env().as_deref(), Some(&["A=2".to_owned(), "C=3".into()][..]));
    let history = store.history(made.id).unwrap();
    assert_eq!(history.len(), 2);
    assert_eq!((history[0].created_by.as_str(), history[0].size), ("sh -c 'make b'", 2));
    assert_eq!((history[0].created, history[0].comment.as_str()), (1_706_702_400, "b for a"));
    assert_eq!(history[0].tags.as_deref(), Some(&["committed:latest".to_owned()][..]));
    assert_eq!((history[1].id.as_str(), history[1].size), ("<missing>", 100_001));
    assert_eq!(store.inspect(made.id).unwrap().author, "Ann");
    assert_eq!(store.find("committed").unwrap().id, made.id);
    // Only another configuration, and a layer of nothing: no layer is added.
    for layer in [None, Some(Box::new(&[0_u8; 1024][..]) as Box<dyn std::io::Read + Send>)] {
        let again = CommitOptions { changes: changes(&["USER 7"]), name: None, ..options.clone() };
        let image = store.commit(Some(made.id), layer, &again).unwrap();
        assert_eq!(image.config.rootfs().diff_ids().len(), 2);
        assert!(store.history(image.id).unwrap()[0].empty_layer);
        assert_eq!(image.disk, made.disk, "the same layers are the same disk");
    }
    let absent = store.commit(Some(Digest::of(b"x")), None, &options);
    assert!(matches!(absent, Err(Error::NotFound { .. })));
    // A whole configuration in place of the base's; fields that nobody here knows stay.
    let whole = json!({"Cmd": ["/x"], "Healthcheck": {"Test": ["CMD", "true"]}, "Shell": ["/bin/bash"]});
    let own = CommitOptions { config: whole.as_object().cloned(), ..CommitOptions::default() };
    let image = store.commit(Some(made.id), None, &own).unwrap();
    assert_eq!(serde_json::Value::Object(store.inspect(image.id).unwrap().config), whole);
    let wrong = CommitOptions { config: json!({"Cmd": 7}).as_object().cloned(), ..CommitOptions::default() };
    assert!(matches!(store.commit(Some(made.id), None, &wrong), Err(Error::Invalid { .. })));
    // The tree is what the layers say, and others read what is saved.
    let (disk, at) = (work.path().join("disk"), work.path().join("mnt"));
    flatten(&made.disk, &disk);
    fsck(&disk);
    if let Some(mount) = Mount::erofs(&disk, &at) {
        let tree = snapshot(&mount.at);
        assert!(tree.contains_key(std::path::Path::new("etc/b")));
        assert!(!tree.contains_key(std::path::Path::new("etc/a")));
    }
    if have("skopeo") && have("umoci") {
        let tar = work.path().join("saved.tar");
        store.save(&[(made.id, vec![name("committed")])], fs::File::create(&tar).unwrap()).unwrap();
        let copy = work.path().join("copy");
        let from = format!("docker-archive:{}", tar.display());
        run("skopeo", &["copy", &from, &format!("oci:{}:t", copy.display())]);
        let bundle = work.path().join("bundle");
        run("umoci", &["unpack", "--image", &format!("{}:t", copy.display()), bundle.to_str().unwrap()]);
        assert!(bundle.join("rootfs/etc/b").exists() && !bundle.join("rootfs/etc/a").exists());
    }
}

#[test]
fn the_layers_limit_holds_for_commits() {
    let work = tempfile::tempdir().unwrap();
    let limits = image_unpack::Limits { layers: 2, ..Default::default() };
    let store = Store::open_with(&work.path().join("store"), limits, Default::default()).unwrap();
    let layer = |i: u8| Tar::default().file(&format!("f{i}"), &[i]).end();
    let commit = |base: Option<Digest>, i: u8| {
        store.commit(base, Some(Box::new(&layer(i)[..])), &CommitOptions::default())
    };
    let one = commit(None, 1).unwrap();
    let two = commit(Some(one.id), 2).unwrap();
    assert!(matches!(commit(Some(two.id), 3), Err(Error::Limit { what: "number of layers", .. })));
}

#[test]
fn names_ids_and_beginnings_of_ids_find_images() {
    let work = tempfile::tempdir().unwrap();
    let store = Store::open(&work.path().join("store")).unwrap();
    let ids: Vec<Digest> = (0..40_u8)
        .map(|i| {
            let tar = Tar::default().file("f", &[i]).end();
            let options = ImportOptions { name: Some(name(&format!("x:{i}"))), ..Default::default() };
            store.import(&tar[..], &options).unwrap().id
        })
        .collect();
    assert_eq!(store.find("x:3").unwrap().id, ids[3]);
    assert_eq!(store.find(&ids[4].to_string()).unwrap().id, ids[4]);
    assert_eq!(store.find(&ids[5].hex()[..12]).unwrap().id, ids[5]);
    assert_eq!(store.find(&format!("sha256:{}", &ids[6].hex()[..12])).unwrap().id, ids[6]);
    // 40 ids and 16 first digits: two begin alike.
    let first = |digit: &str| ids.iter().filter(|id| id.hex().starts_with(digit)).count();
    let digit = ids.iter().map(|id| id.hex()[..1].to_owned()).find(|digit| first(digit) > 1).unwrap();
    assert!(
        matches!(store.find(&digit), Err(Error::Ambiguous { matches, .. }) if matches.len() == first(&digit))
    );
    for absent in ["x", "x:99", "nope", &"0".repeat(64), "sha256:"] {
        assert!(
            matches!(store.find(absent), Err(Error::NotFound { .. } | Error::Invalid { .. })),
            "{absent}"
        );
    }
    assert!(matches!(store.find("UPPER case"), Err(Error::Invalid { .. })));
}

#[test]
fn df_adds_up() {
    let work = tempfile::tempdir().unwrap();
    let store = Store::open(&work.path().join("store")).unwrap();
    assert_eq!(store.df().unwrap().images, []);
    let shared = Tar::default().file("shared", &noise(1, 300_000)).end();
    let mut ids = Vec::new();
    for own in [2, 3] {
        let layout = Layout::new(&work.path().join(format!("oci{own}")));
        layout.image(&[shared.clone(), Tar::default().file("own", &noise(own, 200_000)).end()], Pack::Gzip);
        ids.push(store.ensure(&layout.source(), &Platform::host(), &Quiet).unwrap().id);
    }
    let df = store.df().unwrap();
    assert_eq!((df.images.len(), df.layers.len()), (2, 3));
    assert_eq!(df.layers[0].images, 2);
    for image in &df.images {
        assert_eq!(image.size, image.shared_size + image.unique_size);
        assert!((600_000..650_000).contains(&image.shared_size), "packed and unpacked: {image:?}");
        assert!((400_000..450_000).contains(&image.unique_size), "{image:?}");
    }
    let unique: u64 = df.images.iter().map(|image| image.unique_size).sum();
    assert_eq!(df.layers_size, unique + df.images[0].shared_size);
    assert!(df.total >= df.layers_size);
    assert_eq!((df.reclaimable, df.temporary > 0), (0, true));
    let gone = df.images.iter().find(|image| image.id == ids[0]).unwrap();
    let freed = store.remove(ids[0], false).unwrap().freed;
    // The record goes with the image; what is freed is the rest.
    assert!(freed <= gone.unique_size && gone.unique_size - freed <= 4096, "{freed} of {gone:?}");
    assert!(serde_json::to_string(&store.df().unwrap()).unwrap().contains("\"SharedSize\":0"));
}

#[test]
fn a_quota_refuses_and_leaves_nothing() {
    let work = tempfile::tempdir().unwrap();
    let open = |quota: u64| Store::open(&work.path().join("store")).unwrap().with_quota(Some(quota));
    let layout = Layout::new(&work.path().join("oci"));
    // The small layer is done when the large one finds no room; zeros hide what they will take.
    let mut zeros = vec![0_u8; 3 << 20];
    zeros.write_all(b"x").unwrap();
    let small = Tar::default().file("small", &noise(1, 10_000)).end();
    layout.image(&[small, Tar::default().file("zeros", &zeros).end()], Pack::Gzip);
    let ensure = |store: &Store| store.ensure(&layout.source(), &Platform::host(), &Quiet);
    let before = open(1 << 20).df().unwrap().total;
    let error = ensure(&open(1 << 20)).unwrap_err();
    assert!(matches!(error, Error::Quota { quota: 1_048_576, .. }), "{error:?}");
    assert!(error.hint().contains("prune"));
    let after = open(1 << 20).df().unwrap();
    assert_eq!((after.reclaimable, after.images.len()), (0, 0));
    assert!(after.total <= before + 16_384, "{before} before, {} after", after.total);
    // Refused before a byte is read, if the sizes tell.
    let large = Layout::new(&work.path().join("large"));
    large.image(&[Tar::default().file("noise", &noise(9, 2 << 20)).end()], Pack::Gzip);
    let events = std::sync::atomic::AtomicU32::new(0);
    let heard = |event: image_unpack::Event| {
        if matches!(event, image_unpack::Event::LayerBytes { .. }) {
            events.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    };
    let refused = open(1 << 20).ensure(&large.source(), &Platform::host(), &heard);
    assert!(matches!(refused, Err(Error::Quota { .. })));
    assert_eq!(events.into_inner(), 0);
    // Imports and streams are held to it as well.
    let tar = Tar::default().file("noise", &noise(9, 2 << 20)).end();
    assert!(matches!(open(1 << 20).import(&tar[..], &ImportOptions::default()), Err(Error::Quota { .. })));
    let stream = open(1 << 20).load_stream(&tar[..], &Platform::host(), &Quiet);
    assert!(matches!(stream, Err(Error::Quota { .. })));
    assert_eq!(fs::read_dir(work.path().join("store/tmp")).unwrap().count(), 0);
    ensure(&open(64 << 20)).unwrap();
}
