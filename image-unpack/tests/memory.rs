//! Making an image ready takes at most 64 MiB of memory, whatever the image: measured as the peak of a process that does
//! nothing else, for the largest images that the limits admit and for those that they refuse.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails fails its test")]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use bulkhead_fixtures::layout::Layout;
use bulkhead_fixtures::tarfile::{META, Meta, Pack, Tar, noise, pack};
use image_unpack::{Digest, Error, Platform, Quiet, Source, Store};
use sha2::Digest as _;

/// KiB.
const PEAK: u64 = 64 << 10;
const CHILD: &str = "BULKHEAD_TEST_MEMORY_CHILD";

/// Makes one image ready, alone in its process, and tells what it took and how it went.
#[test]
fn child() {
    let Ok(job) = std::env::var(CHILD) else { return };
    let (dir, source) = job.split_once('|').unwrap();
    let dir = Path::new(dir);
    let source: Source = source.parse().unwrap();
    let store = Store::open(&dir.join("store")).unwrap();
    let made = store.ensure(&source, &Platform::host(), &Quiet);
    let said = match &made {
        Ok(image) => {
            // What an API does with it next belongs to it.
            store.inspect(image.id).unwrap();
            store.history(image.id).unwrap();
            store.images().unwrap();
            "ok".to_owned()
        }
        Err(error @ Error::Limit { .. }) => format!("limit {error}"),
        Err(error) => format!("other {error}"),
    };
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak = peak.trim().trim_end_matches(" kB").trim();
    fs::write(dir.join("peak"), format!("{peak} {said}")).unwrap();
}

/// Peak in KiB, and how it went.
fn measure(dir: &Path, source: &Source) -> (u64, String) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("{}|{source}", dir.display()))
        // As `bulkhead` has it for itself.
        .env("MALLOC_ARENA_MAX", "2")
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let text = fs::read_to_string(dir.join("peak")).unwrap();
    let (peak, said) = text.split_once(' ').unwrap();
    (peak.parse().unwrap(), said.to_owned())
}

/// Checks an image that is to be made (`expected` empty) or refused for what `expected` names.
fn check(what: &str, expected: &str, build: impl FnOnce(&Layout)) {
    let work = tempfile::tempdir().unwrap();
    let layout = Layout::new(&work.path().join("oci"));
    build(&layout);
    let (peak, said) = measure(work.path(), &layout.source());
    println!("{what}: {} MiB, {said}", peak >> 10);
    assert!(peak <= PEAK, "{what} took {peak} KiB");
    let good =
        if expected.is_empty() { said == "ok" } else { said.starts_with("limit") && said.contains(expected) };
    assert!(good, "{what}: {said}");
}

/// A gzip layer that is written piece by piece.
struct Stream {
    path: std::path::PathBuf,
    out: flate2::write::GzEncoder<BufWriter<File>>,
    hash: sha2::Sha256,
}

impl Stream {
    fn new(layout: &Layout, number: usize) -> Self {
        Self::packed(layout, number, flate2::Compression::fast())
    }

    fn packed(layout: &Layout, number: usize, level: flate2::Compression) -> Self {
        let path = layout.dir.join(format!("stream-{number}"));
        let file = BufWriter::new(File::create(&path).unwrap());
        let out = flate2::write::GzEncoder::new(file, level);
        Self { path, out, hash: sha2::Sha256::new() }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.out.write_all(bytes).unwrap();
    }

    /// Media type, digest, size and diff id.
    fn finish(mut self, layout: &Layout) -> (String, Digest, usize, Digest) {
        self.put(&[0; 1024]);
        self.out.finish().unwrap().into_inner().unwrap();
        let bytes = fs::read(&self.path).unwrap();
        let (digest, size) = layout.blob(&bytes);
        fs::remove_file(&self.path).unwrap();
        let hex: String = self.hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        ("application/vnd.oci.image.layer.v1.tar+gzip".into(), digest, size, Digest::from_hex(&hex).unwrap())
    }
}

/// Files in directories of a thousand, in so many layers.
fn many_entries(layout: &Layout, layers: usize, files: usize) {
    let layer = |number: usize| {
        let mut stream = Stream::new(layout, number);
        for d in 0..files / 1000 {
            let mut tar = Tar::default();
            tar.dir(&format!("layer-{number}-{d}"));
            for f in 0..1000 {
                tar.file(&format!("layer-{number}-{d}/file-of-some-name-{f}"), b"");
            }
            stream.put(&tar.0);
        }
        stream.finish(layout)
    };
    let layers: Vec<_> = (0..layers).map(layer).collect();
    layout.finish(&layers);
}

#[test]
fn the_largest_images() {
    check("half a million files in ten layers", "", |layout| many_entries(layout, 10, 54_000));
    check("127 layers", "", |layout| {
        let tars: Vec<_> = (0..127_u8)
            .map(|i| Tar::default().file(&format!("f{i}"), &noise(i.into(), 20_000)).file("same", &[i]).end())
            .collect();
        layout.image(&tars, Pack::Gzip);
    });
    check("zstd with the largest window", "", |layout| {
        // Two layers at once, so two windows.
        let layers: Vec<_> = (0..2)
            .map(|i| {
                let tar = Tar::default().file("noise", &noise(i, 24 << 20)).end();
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
                encoder.window_log(24).unwrap();
                encoder.write_all(&tar).unwrap();
                let (digest, size) = layout.blob(&encoder.finish().unwrap());
                ("application/vnd.oci.image.layer.v1.tar+zstd".into(), digest, size, Digest::of(&tar))
            })
            .collect();
        layout.finish(&layers);
    });
    check("the largest extended attributes", "", |layout| {
        let mut stream = Stream::new(layout, 0);
        let value = vec![7; 60_000];
        for i in 0..200 {
            let mut tar = Tar::default();
            tar.pax(&[("SCHILY.xattr.user.large", &value)]).file(&format!("f{i}"), b"x");
            stream.put(&tar.0);
        }
        let layer = stream.finish(layout);
        layout.finish(&[layer]);
    });
    check("sparse files of many pieces", "", |layout| {
        let mut tar = Tar::default();
        for i in 0..20 {
            let map: Vec<String> = (0..30_000_u64).map(|n| format!("{},1", n * 8192)).collect();
            let map = map.join(",");
            let size = (30_000_u64 * 8192).to_string();
            let records = [("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.size", size.as_bytes())];
            tar.pax(&records).file(&format!("sparse{i}"), &[b'x'; 30_000]);
        }
        layout.image(&[tar.end()], Pack::Gzip);
    });
    check("one large file", "", |layout| {
        let mut stream = Stream::new(layout, 0);
        let mut tar = Tar::default();
        tar.raw(b'0', "large", "", &META, 400 << 20);
        stream.put(&tar.0);
        let piece = noise(3, 1 << 20);
        (0..400).for_each(|_| stream.put(&piece));
        let layer = stream.finish(layout);
        layout.finish(&[layer]);
    });
}

#[test]
fn bombs() {
    check("too many entries", "number of", |layout| many_entries(layout, 1, 600_000));
    check("too many entries in all layers together", "number of", |layout| many_entries(layout, 6, 100_000));
    check("names without end", "names", |layout| {
        let mut stream = Stream::new(layout, 0);
        for d in 0..90 {
            let mut tar = Tar::default();
            for f in 0..1000 {
                tar.file(&format!("{d}-{f:0>240}"), b"");
            }
            stream.put(&tar.0);
        }
        let layer = stream.finish(layout);
        layout.finish(&[layer]);
    });
    check("two gigabytes of zeros", "ratio", |layout| {
        let mut stream = Stream::packed(layout, 0, flate2::Compression::new(6));
        let mut tar = Tar::default();
        tar.raw(b'0', "zeros", "", &Meta { ..META }, 2 << 30);
        stream.put(&tar.0);
        let piece = vec![0; 4 << 20];
        (0..512).for_each(|_| stream.put(&piece));
        let layer = stream.finish(layout);
        layout.finish(&[layer]);
    });
    check("an extension header of 100 MB", "extension", |layout| {
        let mut tar = Tar::default();
        tar.raw(b'x', "pax", "", &META, 100 << 20).body(&vec![b'1'; 100 << 20]);
        layout.image(&[tar.end()], Pack::Gzip);
    });
}

/// Replaces the configuration or the index of a layout by another text.
fn with_document(layout: &Layout, config: Option<&str>, index: Option<&str>) {
    let (tar, kind) = pack(&Tar::default().file("f", b"x").end(), Pack::Gzip);
    let diff_id = Digest::of(&Tar::default().file("f", b"x").end());
    let (layer, layer_size) = layout.blob(&tar);
    let config = config.unwrap_or("0");
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"x":{config},"rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#
    );
    let (config, config_size) = layout.blob(config.as_bytes());
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":{config_size}}},"layers":[{{"mediaType":"{kind}","digest":"{layer}","size":{layer_size}}}]}}"#
    );
    let (manifest, size) = layout.blob(manifest.as_bytes());
    let entry = |more: &str| {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{manifest}","size":{size},"annotations":{{"org.opencontainers.image.ref.name":"t"{more}}}}}"#
        )
    };
    let text = match index {
        Some(more) => entry(more),
        None => entry(""),
    };
    fs::write(layout.dir.join("index.json"), format!(r#"{{"schemaVersion":2,"manifests":[{text}]}}"#))
        .unwrap();
}

#[test]
fn documents() {
    // As much structure as fits in as few bytes.
    let nested = |bytes: usize| format!("[{}0]", "[0],".repeat(bytes / 4));
    check("a configuration of small lists", "", |layout| {
        with_document(layout, Some(&nested((1 << 20) - 1000)), None);
    });
    check("a configuration that is too large", "image configuration", |layout| {
        with_document(layout, Some(&nested(2 << 20)), None);
    });
    check("an index of annotations", "", |layout| {
        let many: String = (0..330_000).map(|i| format!(r#","{i:x}":"""#)).collect();
        with_document(layout, None, Some(&many));
    });
    check("an index of many entries", "", |layout| {
        with_document(layout, None, None);
        let path = layout.dir.join("index.json");
        let one = fs::read_to_string(&path).unwrap();
        let other = format!(r#"{{"digest":"{}","size":0}},"#, Digest::of(b"x"));
        fs::write(&path, one.replacen('[', &format!("[{}", other.repeat(40_000)), 1)).unwrap();
    });
}
