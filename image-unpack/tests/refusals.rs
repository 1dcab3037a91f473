//! Bad and hostile images are refused with the layer, entry and reason, and leave nothing behind.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails fails its test")]

use std::fs;
use std::io::Write;
use std::path::Path;

use bulkhead_fixtures::layout::Layout;
use bulkhead_fixtures::tarfile::{META, Pack, Tar, noise, pack};
use bulkhead_fixtures::tools::{have, is_root, run};
use image_unpack::{Digest, Error, Image, Limits, Platform, Quiet, Registries, Source, Store};

fn ensure_with(source: &Source, work: &Path, limits: Limits) -> Result<Image, Error> {
    let store = Store::open_with(&work.join("store"), limits, Registries::default()).unwrap();
    let result = store.ensure(source, &Platform::host(), &Quiet);
    let left: Vec<_> = fs::read_dir(store.root().join("tmp")).unwrap().collect();
    assert!(left.is_empty(), "unfinished files are left: {left:?}");
    if let Err(error) = &result {
        for dir in ["images", "disks", "refs"] {
            let left: Vec<_> = fs::read_dir(store.root().join(dir)).unwrap().collect();
            assert!(left.is_empty(), "a failed image left something in {dir}");
        }
        assert!(!error.to_string().is_empty() && !error.to_string().contains('\n'));
        assert!(!error.hint().is_empty() && !error.hint().contains('\n'));
    }
    result
}

fn ensure(source: &Source, work: &Path) -> Result<Image, Error> {
    ensure_with(source, work, Limits::default())
}

/// What becomes of an image of one layer.
fn layer(tar: &[u8]) -> Result<Image, Error> {
    layers(&[tar.to_vec()])
}

fn layers(tars: &[Vec<u8>]) -> Result<Image, Error> {
    let work = tempfile::tempdir().unwrap();
    let layout = Layout::new(&work.path().join("oci"));
    layout.image(tars, Pack::Gzip);
    ensure(&layout.source(), work.path())
}

/// The entry and reason of a refused layer.
fn refused(tar: &[u8]) -> (String, String) {
    match layer(tar) {
        Err(Error::BadLayer { layer, entry, reason }) => {
            assert!(layer.starts_with("layer 1 of 1 (sha256:"), "{layer}");
            (entry.unwrap_or_default(), reason)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn entries_that_leave_the_root() {
    for name in ["../evil", "a/../../evil", "/../evil", "./.."] {
        let (entry, reason) = refused(&Tar::default().file(name, b"x").end());
        assert_eq!(entry, name);
        assert!(reason.contains("leaves the image's root"), "{reason}");
    }
    let (entry, reason) = refused(&Tar::default().hardlink("a", "../../etc/shadow").end());
    assert_eq!(entry, "a");
    assert!(reason.contains("link target leaves"), "{reason}");
    // An absolute path is a path in the image.
    assert!(layer(&Tar::default().file("/etc/x", b"x").end()).is_ok());
}

#[test]
fn symlinks_never_lead_to_the_host() {
    let work = tempfile::tempdir().unwrap();
    let outside = work.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let target = outside.to_str().unwrap();
    let up = format!("{}{}", "../".repeat(30), target);
    for link in [target, &up] {
        let tar = Tar::default().symlink("out", link).file("out/evil", b"x").end();
        layer(&tar).unwrap();
        assert!(fs::read_dir(&outside).unwrap().next().is_none());
    }
    let tar = Tar::default().symlink("a", "b").symlink("b", "a").file("a/x", b"").end();
    assert!(refused(&tar).1.contains("loop of symlinks"));
    // Each link doubles the way: bounded steps, not 2^30 of them.
    let mut tar = Tar::default();
    tar.dir("d").symlink("l0", "d");
    for i in 0..38 {
        tar.symlink(&format!("l{}", i + 1), &format!("l{i}/../l{i}"));
    }
    assert!(layer(&tar.file("l38/x", b"").end()).is_err());
}

#[test]
fn links_to_what_is_not_there() {
    let (entry, reason) = refused(&Tar::default().hardlink("a", "missing").end());
    assert_eq!((entry.as_str(), reason.as_str()), ("a", "hardlink to missing `missing`"));
    assert!(refused(&Tar::default().hardlink("a", "a").end()).1.contains("missing"));
    assert!(refused(&Tar::default().dir("d").hardlink("a", "d").end()).1.contains("directory"));
    assert!(refused(&Tar::default().file("f", b"").file("f/x", b"").end()).1.contains("not a directory"));
    let hidden =
        [Tar::default().file("f", b"").end(), Tar::default().file(".wh.f", b"").hardlink("g", "f").end()];
    assert!(
        matches!(layers(&hidden), Err(Error::BadLayer { layer, .. }) if layer.starts_with("layer 2 of 2"))
    );
}

#[test]
fn malformed_tars() {
    assert!(refused(&[b'x'; 1024]).1.contains("checksum"));
    assert!(refused(&Tar::default().raw(b'?', "a", "", &META, 0).end()).1.contains("type `?`"));
    assert!(refused(&Tar::default().file("", b"x").end()).1.contains("root"));
    assert!(refused(&Tar::default().symlink("s", "").end()).1.contains("link target"));
    assert!(refused(&Tar::default().file("a/.wh.", b"").end()).1.contains("whiteout"));
    assert!(refused(&Tar::default().pax(&[("path", b"a\0b")]).file("x", b"").end()).1.contains("NUL"));
    assert!(refused(&Tar::default().pax(&[("uid", b"4294967295")]).file("x", b"").end()).1.contains("owner"));
    let size = u64::MAX.to_string();
    let tar = Tar::default().pax(&[("size", size.as_bytes())]).file("x", b"").end();
    assert!(matches!(layer(&tar), Err(Error::Limit { .. })));
    assert!(refused(&Tar::default().device(b'3', "d", 5000, 1).end()).1.contains("device number"));
    let huge = Tar::default().raw(b'x', "p", "", &META, 1 << 30).end();
    assert!(matches!(layer(&huge), Err(Error::Limit { what: "size of an extension header", .. })));
    for map in ["5,10,0,1", "0,999999999999", "18446744073709551615,2"] {
        let records = [("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.size", &b"100"[..])];
        assert!(refused(&Tar::default().pax(&records).file("x", b"0123456789a").end()).1.contains("sparse"));
    }
}

#[test]
fn truncated_tars() {
    let whole = Tar::default().file("a", b"x").file("dir/cut-here", &[1; 5000]).end();
    for (at, wanted) in [(1024 + 512 + 100, "content"), (1024 + 100, "header")] {
        match layer(&whole[..at]) {
            Err(Error::Truncated { entry, reason, .. }) => {
                assert!(reason.contains(wanted), "{reason}");
                assert_eq!(entry.as_deref(), (wanted == "content").then_some("dir/cut-here"));
            }
            other => panic!("{other:?}"),
        }
    }
    // A compressed stream that ends early, with a digest that says so.
    let work = tempfile::tempdir().unwrap();
    for how in [Pack::Gzip, Pack::Zstd] {
        let layout = Layout::new(&work.path().join("oci"));
        let (bytes, kind) = pack(&whole, how);
        let (digest, size) = layout.blob(&bytes[..bytes.len() - 10]);
        layout.finish(&[(kind.into(), digest, size, Digest::of(&whole))]);
        let result = ensure(&layout.source(), work.path());
        assert!(matches!(result, Err(Error::Truncated { .. })), "{result:?}");
    }
}

#[test]
fn lying_digests_and_sizes() {
    let work = tempfile::tempdir().unwrap();
    let tar = Tar::default().file("a", &vec![3; 500_000]).end();
    let (bytes, kind) = pack(&tar, Pack::Gzip);
    let layout = Layout::new(&work.path().join("oci"));
    let (digest, size) = layout.blob(&bytes);
    let diff_id = Digest::of(&tar);
    let try_one = |layer: (String, Digest, usize, Digest)| {
        layout.finish(&[layer]);
        ensure(&layout.source(), work.path())
    };
    let wrong = Digest::of(b"something else");
    let result = try_one((kind.into(), digest, size, wrong));
    assert!(
        matches!(&result, Err(Error::DigestMismatch { what, expected, found })
            if what.contains("uncompressed") && *expected == wrong && *found == diff_id),
        "{result:?}"
    );
    for bad in [size - 1, size + 1] {
        let result = try_one((kind.into(), digest, bad, diff_id));
        assert!(matches!(result, Err(Error::SizeMismatch { .. })), "{result:?}");
    }
    // One bit of the blob, anywhere: the digest is what is reported, whatever else breaks.
    for at in [0, 20, bytes.len() / 2, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        fs::write(layout.blob_path(digest), &damaged).unwrap();
        let result = try_one((kind.into(), digest, size, diff_id));
        assert!(
            matches!(&result, Err(Error::DigestMismatch { expected, .. }) if *expected == digest),
            "byte {at}: {result:?}"
        );
    }
    fs::write(layout.blob_path(digest), &bytes).unwrap();
    let id = try_one((kind.into(), digest, size, diff_id)).unwrap().id;
    // The configuration and manifest too.
    let other = tempfile::tempdir().unwrap();
    fs::write(layout.blob_path(id), b"{}").unwrap();
    let result = ensure(&layout.source(), other.path());
    assert!(matches!(result, Err(Error::SizeMismatch { .. } | Error::DigestMismatch { .. })), "{result:?}");
}

#[test]
fn bombs() {
    let work = tempfile::tempdir().unwrap();
    let layout = Layout::new(&work.path().join("oci"));
    layout.image(&[Tar::default().file("zeros", &vec![0; 30 << 20]).end()], Pack::Gzip);
    let small = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        ensure_with(&layout.source(), work.path(), limits)
    };
    let limited = |result: Result<Image, Error>, wanted: &str| match result {
        Err(Error::Limit { what, .. }) => assert!(what.contains(wanted), "{what}"),
        other => panic!("{other:?}"),
    };
    limited(small(|l| l.layer_bytes = 10 << 20), "size");
    limited(
        small(|l| {
            l.ratio_floor = 1 << 20;
            l.ratio = 100;
        }),
        "ratio",
    );
    let mut many = Tar::default();
    for i in 0..500 {
        many.file(&format!("f{i}"), b"");
    }
    layout.image(&[many.end()], Pack::Gzip);
    limited(small(|l| l.entries = 400), "number of entries");
    limited(small(|l| l.name_bytes = 1000), "names");
    layout.image(&(0..130_u8).map(|i| Tar::default().file("a", &[i]).end()).collect::<Vec<_>>(), Pack::Plain);
    limited(small(|_| {}), "number of layers");
    // A sparse file that claims eight exbibytes.
    let records = [("GNU.sparse.map", &b""[..]), ("GNU.sparse.size", &b"9223372036854775807"[..])];
    layout.image(&[Tar::default().pax(&records).file("x", b"").end()], Pack::Plain);
    limited(small(|_| {}), "sparse");
    // One whose every byte would take a large chunk.
    let map: Vec<String> = (0..10_000_u64).map(|i| format!("{},1", i << 32)).collect();
    let map = map.join(",");
    let real = (10_001_u64 << 32).to_string();
    let records = [("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.size", real.as_bytes())];
    layout.image(&[Tar::default().pax(&records).file("x", &[1; 10_000]).end()], Pack::Plain);
    limited(small(|_| {}), "size of the layer's files");
}

#[test]
fn documents_that_lie() {
    let work = tempfile::tempdir().unwrap();
    let layout = Layout::new(&work.path().join("oci"));
    layout.image(&[Tar::default().file("a", b"x").end()], Pack::Gzip);
    let index = layout.dir.join("index.json");
    let good = fs::read_to_string(&index).unwrap();
    for bad in [
        "",
        "{",
        "[]",
        "{\"schemaVersion\":1}",
        "{\"schemaVersion\":2}",
        "{\"schemaVersion\":2,\"manifests\":[],\"layers\":[]}",
        "{\"schemaVersion\":2,\"manifests\":[{\"digest\":\"sha256:../../etc/passwd\",\"size\":1}]}",
        "{\"schemaVersion\":2,\"manifests\":{}}",
        &"[".repeat(100_000),
        &good.replace("\"size\":", "\"size\":-"),
    ] {
        fs::write(&index, bad).unwrap();
        let result = ensure(&layout.source(), work.path());
        assert!(
            matches!(result, Err(Error::BadImage { .. } | Error::Unsupported { .. })),
            "{bad:.60}: {result:?}"
        );
    }
    fs::write(&index, vec![b' '; 5 << 20]).unwrap();
    assert!(matches!(ensure(&layout.source(), work.path()), Err(Error::Limit { .. })));
    // Indexes in indexes, deeper than anyone needs.
    let mut inner = r#"{"schemaVersion":2,"manifests":[]}"#.to_owned();
    for _ in 0..6 {
        let (digest, size) = layout.blob(inner.as_bytes());
        inner = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"{digest}","size":{size}}}]}}"#
        );
    }
    fs::write(&index, inner).unwrap();
    let source: Source = format!("oci:{}", layout.dir.display()).parse().unwrap();
    assert!(
        matches!(ensure(&source, work.path()), Err(Error::BadImage { reason, .. }) if reason.contains("nested"))
    );
}

#[test]
fn what_is_not_there() {
    let work = tempfile::tempdir().unwrap();
    let at = |text: &str| -> Source { text.parse().unwrap() };
    for name in ["oci:/no/such/dir", "oci-archive:/no/such.tar", "docker-archive:/no/such.tar"] {
        let result = ensure(&at(name), work.path());
        assert!(matches!(result, Err(Error::NotFound { .. })), "{result:?}");
    }
    let layout = Layout::new(&work.path().join("oci"));
    layout.image(&[Tar::default().file("a", b"x").end()], Pack::Gzip);
    let result = ensure(&at(&format!("oci:{}:nope", layout.dir.display())), work.path());
    assert!(matches!(result, Err(Error::NoSuchTag { have, .. }) if have == ["t"]));
    let store = Store::open(&work.path().join("store")).unwrap();
    let result = store.ensure(&layout.source(), &"linux/s390x".parse().unwrap(), &Quiet);
    assert!(matches!(result, Err(Error::WrongPlatform { have, .. }) if have == ["linux/amd64"]));
    // Nothing listens there.
    let result = ensure(&at("127.0.0.1:1/a/b"), work.path());
    assert!(matches!(result, Err(Error::Unreachable { .. })), "{result:?}");
    assert!(store.lookup(&"127.0.0.1:1/a/b".parse().unwrap()).unwrap().is_none());
}

#[test]
fn truncated_archives() {
    let work = tempfile::tempdir().unwrap();
    let mut inner = Tar::default();
    let layer = Tar::default().file("a", &vec![1; 100_000]).end();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        Digest::of(&layer)
    );
    let name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let manifest = format!(r#"[{{"Config":"{name}","RepoTags":["r:1"],"Layers":["l/layer.tar"]}}]"#);
    let whole = inner
        .file("manifest.json", manifest.as_bytes())
        .file(&name, config.as_bytes())
        .file("l/layer.tar", &layer)
        .end();
    let path = work.path().join("image.tar");
    let source: Source = format!("docker-archive:{}", path.display()).parse().unwrap();
    for length in [whole.len() - 60_000, 700, 100] {
        fs::File::create(&path).unwrap().write_all(&whole[..length]).unwrap();
        let result = ensure(&source, work.path());
        assert!(matches!(result, Err(Error::Truncated { .. })), "{length}: {result:?}");
    }
    fs::write(&path, &whole).unwrap();
    let tagged: Source = format!("docker-archive:{}:r:1", path.display()).parse().unwrap();
    let other: Source = format!("docker-archive:{}:r:2", path.display()).parse().unwrap();
    assert!(matches!(ensure(&other, work.path()), Err(Error::NoSuchTag { .. })));
    let image = ensure(&source, work.path()).unwrap();
    assert_eq!(ensure(&tagged, work.path()).unwrap().id, image.id);
    fs::write(&path, b"").unwrap();
    let result = ensure(&source, &work.path().join("another"));
    assert!(matches!(result, Err(Error::BadImage { .. })), "{result:?}");
}

#[test]
fn a_full_disk() {
    if !is_root() || !have("mount") {
        eprintln!("skipped: a full disk needs root to mount one");
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let small = work.path().join("small");
    fs::create_dir(&small).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=2m", "none", small.to_str().unwrap()]);
    let layout = Layout::new(&work.path().join("oci"));
    layout.image(&[Tar::default().file("big", &noise(3, 8 << 20)).end()], Pack::Gzip);
    let result = ensure(&layout.source(), &small);
    run("umount", &[small.to_str().unwrap()]);
    assert!(matches!(result, Err(Error::DiskFull { .. })), "{result:?}");
}

#[test]
fn a_corrupt_store_heals() {
    let work = tempfile::tempdir().unwrap();
    let layout = Layout::new(&work.path().join("oci"));
    let tar = Tar::default().file("a", &vec![5; 100_000]).end();
    layout.image(std::slice::from_ref(&tar), Pack::Gzip);
    let store = Store::open(&work.path().join("store")).unwrap();
    let image = store.ensure(&layout.source(), &Platform::host(), &Quiet).unwrap();
    assert!(store.cached(&layout.source(), &Platform::host()).unwrap().is_some());
    // The metadata is cut short.
    let meta = &image.disk.extents[0].path;
    let before = fs::read(meta).unwrap();
    fs::write(meta, b"short").unwrap();
    assert!(store.cached(&layout.source(), &Platform::host()).unwrap().is_none());
    let again = store.ensure(&layout.source(), &Platform::host(), &Quiet).unwrap();
    assert_eq!(again.disk, image.disk);
    assert_eq!(fs::read(meta).unwrap(), before);
    // A layer's data is cut short.
    let data = &image.disk.extents[1].path;
    let whole = fs::read(data).unwrap();
    fs::write(data, b"short").unwrap();
    assert!(store.cached(&layout.source(), &Platform::host()).unwrap().is_none());
    store.ensure(&layout.source(), &Platform::host(), &Quiet).unwrap();
    assert!(fs::read(data).unwrap() == whole);
    // The layer is gone, and the blob it came from is damaged: it is fetched again.
    fs::remove_dir_all(store.root().join("layers").join(Digest::of(&tar).hex())).unwrap();
    let blob = pack(&tar, Pack::Gzip).0;
    let path = store.root().join("blobs/sha256").join(Digest::of(&blob).hex());
    let mut damaged = blob.clone();
    damaged[50] ^= 4;
    fs::write(&path, &damaged).unwrap();
    let again = store.ensure(&layout.source(), &Platform::host(), &Quiet).unwrap();
    assert_eq!(again.disk, image.disk);
    assert_eq!(fs::read(&path).unwrap(), blob);
}
