//! Archives that are compressed, come through a pipe, or both; and those that lie.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails fails its test")]

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::thread;

use bulkhead_fixtures::layout::Layout;
use bulkhead_fixtures::tarfile::{Pack, Tar, noise, pack};
use bulkhead_fixtures::tools::{have, run};
use image_unpack::{Digest, Error, Limits, Platform, Quiet, Reference, Source, Store};

/// An image, and the archive that `save` makes of it under the name `saved:1`.
fn saved(dir: &Path) -> (Digest, Vec<u8>) {
    let layout = Layout::new(&dir.join("oci"));
    let tars = [
        Tar::default().dir("etc").file("noise", &noise(1, 300_000)).end(),
        Tar::default().file("b", b"b").end(),
    ];
    layout.image(&tars, Pack::Gzip);
    let store = Store::open(&dir.join("first")).unwrap();
    let image = store.ensure(&layout.source(), &Platform::host(), &Quiet).unwrap();
    let mut out = Vec::new();
    store
        .save(&[(image.id, vec!["saved:1".parse().unwrap(), "saved:more".parse().unwrap()])], &mut out)
        .unwrap();
    (image.id, out)
}

fn nothing_left(store: &Store) {
    assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
}

#[test]
fn compressed_archives_load() {
    let work = tempfile::tempdir().unwrap();
    let (id, archive) = saved(work.path());
    let name: Reference = "saved:1".parse().unwrap();
    for (how, file) in [(Pack::Plain, "a.tar"), (Pack::Gzip, "a.tar.gz"), (Pack::Zstd, "a.tar.zst")] {
        let path = work.path().join(file);
        fs::write(&path, pack(&archive, how).0).unwrap();
        let store = Store::open(&work.path().join(format!("store-{file}"))).unwrap();
        let loaded = store.load_archive(&path, &Platform::host(), &Quiet).unwrap();
        assert_eq!(loaded.iter().map(|image| image.id).collect::<Vec<_>>(), [id, id], "once for each name");
        assert_eq!(store.lookup(&name).unwrap().unwrap().id, id);
        nothing_left(&store);
        // The same as a source: without and with the store knowing it.
        for kind in ["docker-archive", "oci-archive"] {
            let source: Source = format!("{kind}:{}", path.display()).parse().unwrap();
            assert_eq!(store.cached(&source, &Platform::host()).unwrap().unwrap().id, id);
            let other = Store::open(&work.path().join(format!("{kind}-{file}"))).unwrap();
            assert!(other.cached(&source, &Platform::host()).unwrap().is_none());
            assert_eq!(other.ensure(&source, &Platform::host(), &Quiet).unwrap().id, id);
            nothing_left(&other);
        }
    }
}

#[test]
fn streams_load() {
    let work = tempfile::tempdir().unwrap();
    let (id, archive) = saved(work.path());
    for how in [Pack::Plain, Pack::Gzip, Pack::Zstd] {
        let store = Store::open(&work.path().join(format!("store-{}", how as u8))).unwrap();
        // A pipe: it cannot be read twice, and comes in pieces.
        let (reader, mut writer) = std::io::pipe().unwrap();
        let bytes = pack(&archive, how).0;
        let sender = thread::spawn(move || bytes.chunks(777).try_for_each(|piece| writer.write_all(piece)));
        let loaded = store.load_stream(reader, &Platform::host(), &Quiet).unwrap();
        sender.join().unwrap().unwrap();
        assert_eq!((loaded.len(), loaded[0].id), (2, id));
        assert_eq!(loaded[0].reference.as_ref().unwrap().to_string(), "docker.io/library/saved:1");
        nothing_left(&store);
    }
}

#[test]
fn what_others_write_loads() {
    let work = tempfile::tempdir().unwrap();
    if !have("skopeo") {
        return;
    }
    let (id, archive) = saved(work.path());
    let ours = work.path().join("ours.tar");
    fs::write(&ours, archive).unwrap();
    let from = format!("oci-archive:{}:1", ours.display());
    for kind in ["docker-archive", "oci-archive"] {
        let path = work.path().join(kind);
        run("skopeo", &["copy", &from, &format!("{kind}:{}:other:2", path.display())]);
        let bytes = pack(&fs::read(&path).unwrap(), Pack::Gzip).0;
        let store = Store::open(&work.path().join(format!("store-{kind}"))).unwrap();
        let loaded = store.load_stream(&bytes[..], &Platform::host(), &Quiet).unwrap();
        assert_eq!(loaded[0].id, id);
    }
}

/// Writes the bytes to a file and loads them from there and from a stream; both must be refused with this.
fn refused(work: &Path, limits: &Limits, bytes: &[u8], expected: fn(&Error) -> bool) {
    let path: PathBuf = work.join("bad");
    fs::write(&path, bytes).unwrap();
    let store = Store::open_with(&work.join("bad-store"), limits.clone(), Default::default()).unwrap();
    let from_file = store.load_archive(&path, &Platform::host(), &Quiet).unwrap_err();
    assert!(expected(&from_file), "{from_file:?}");
    let from_stream = store.load_stream(bytes, &Platform::host(), &Quiet).unwrap_err();
    assert!(expected(&from_stream), "{from_stream:?}");
    nothing_left(&store);
    assert!(store.images().unwrap().is_empty());
}

#[test]
fn archives_that_lie_are_refused() {
    let work = tempfile::tempdir().unwrap();
    let (_, archive) = saved(work.path());
    let limits = Limits::default();
    for how in [Pack::Gzip, Pack::Zstd] {
        let whole = pack(&archive, how).0;
        refused(work.path(), &limits, &whole[..whole.len() / 2], |e| matches!(e, Error::Truncated { .. }));
        let mut damaged = whole.clone();
        let middle = damaged.len() / 2;
        damaged[middle..middle + 64].fill(0xff);
        refused(work.path(), &limits, &damaged, |e| {
            matches!(
                e,
                Error::BadImage { .. }
                    | Error::Truncated { .. }
                    | Error::DigestMismatch { .. }
                    | Error::BadLayer { .. }
            )
        });
    }
    refused(
        work.path(),
        &limits,
        b"\xfd7zXZ\0\0\x04",
        |e| matches!(e, Error::Unsupported { what } if what.contains("xz")),
    );
    refused(
        work.path(),
        &limits,
        b"BZh91AY&SY",
        |e| matches!(e, Error::Unsupported { what } if what.contains("bzip2")),
    );
    refused(work.path(), &limits, &pack(b"no archive", Pack::Gzip).0, |e| {
        matches!(e, Error::BadImage { .. } | Error::Truncated { .. })
    });
    // Bombs: by size, and by ratio.
    let small = Limits { archive_bytes: 1 << 20, ..Limits::default() };
    let mut zeros = Vec::new();
    std::io::repeat(0).take(2 << 20).read_to_end(&mut zeros).unwrap();
    let bomb = pack(&zeros, Pack::Zstd).0;
    refused(work.path(), &small, &bomb, |e| matches!(e, Error::Limit { what: "size", .. }));
    let steep = Limits { ratio_floor: 1 << 20, ..Limits::default() };
    refused(work.path(), &steep, &bomb, |e| matches!(e, Error::Limit { what: "compression ratio", .. }));
}
