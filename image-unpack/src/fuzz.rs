//! Fuzzing in `cargo test`: a kept corpus, a seeded generator and a few seconds. The targets are those that hostile
//! bytes reach first; none may panic, outgrow its bounds, or accept what breaks a rule checked here.

use std::io::{Cursor, Write};

use crate::digest::Digest;
use crate::erofs::writer;
use crate::layer::data::Sink;
use crate::layer::index::{Entry, EntryWindow, IndexReader, Kind};
use crate::layer::pass;
use crate::limits::Limits;
use crate::manifest::{Platform, parse_config, parse_document};
use crate::merge::{LayerIndex, merge};
use crate::reference::{Reference, Source};

/// Rounds per target; more with `BULKHEAD_FUZZ_ROUNDS`.
fn rounds(usual: u64) -> u64 {
    std::env::var("BULKHEAD_FUZZ_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % (n.max(1) as u64)).unwrap()
    }
}

/// Flips, overwrites, cuts, doubles and splices; numbers that matter are favoured.
fn mutate(rng: &mut Rng, seed: &[u8], other: &[u8], fix: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = seed.to_vec();
    for _ in 0..=rng.below(6) {
        let at = rng.below(out.len());
        match rng.below(8) {
            0 if !out.is_empty() => out[at] ^= 1 << rng.below(8),
            1 if !out.is_empty() => out[at] = [0, 0xff, 0x80, b'7', b'/', b'.', b'9', b'-'][rng.below(8)],
            2 => out.truncate(at),
            3 => {
                let end = (at + rng.below(600)).min(out.len());
                let piece = out[at..end].to_vec();
                out.splice(at..at, piece);
            }
            4 => {
                let from = rng.below(other.len());
                let end = (from + rng.below(1200)).min(other.len());
                out.splice(at..at, other[from..end].iter().copied());
            }
            5 => {
                let end = (at + rng.below(600)).min(out.len());
                out.drain(at..end);
            }
            // Whole tar blocks, so that the stream stays in step.
            6 if out.len() > 1024 => {
                let block = rng.below(out.len() / 512) * 512;
                let target = rng.below(out.len() / 512) * 512;
                let piece = out[block..block + 512].to_vec();
                out.splice(target..target, piece);
            }
            _ if !out.is_empty() => {
                let digits = ["0", "1", "-1", "9223372036854775807", "18446744073709551615", "777777777777"];
                let text = digits[rng.below(digits.len())].as_bytes();
                let end = (at + text.len()).min(out.len());
                out[at..end].copy_from_slice(&text[..end - at]);
            }
            _ => {}
        }
    }
    fix(&mut out);
    out
}

/// Makes the checksums of all header blocks right, so that mutations reach what is behind them.
fn fix_checksums(tar: &mut [u8]) {
    let mut at = 0;
    while at + 512 <= tar.len() {
        let block = &mut tar[at..at + 512];
        if block[257..262] == *b"ustar" {
            block[148..156].copy_from_slice(b"        ");
            let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        at += 512;
    }
}

/// A data blob that is only measured.
#[derive(Default)]
struct Measured(u64);

impl Sink for Measured {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.0 = self.0.max(offset + bytes.len() as u64);
        Ok(())
    }
}

fn limits() -> Limits {
    Limits {
        layer_bytes: 32 << 20,
        entries: 2_000,
        name_bytes: 1 << 20,
        extension: 1 << 16,
        ..Limits::default()
    }
}

/// Tars in the tests' corpus.
fn corpus() -> Vec<Vec<u8>> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/layer");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(corpus.len() >= 4);
    corpus
}

/// Checks what the index promises: canonical paths, data within the blob.
fn check_entry(entry: &Entry, blocks: u64) {
    for path in [&entry.path, &entry.link].into_iter().take(if entry.kind == Kind::Hardlink { 2 } else { 1 })
    {
        if path.is_empty() {
            continue;
        }
        for name in path.split(|&b| b == b'/') {
            assert!(
                !name.is_empty() && name != b"." && name != b".." && name.len() <= 255 && !name.contains(&0)
            );
        }
    }
    assert!(entry.mode <= 0o7777);
    if entry.kind == Kind::File && entry.chunk_bits == 0 {
        assert!(u64::from(entry.block) + entry.size.div_ceil(4096) <= blocks);
    }
    for (i, &chunk) in entry.chunks.iter().enumerate() {
        if chunk != u32::MAX {
            let length = (entry.size - ((i as u64) << entry.chunk_bits)).min(1 << entry.chunk_bits);
            assert!(u64::from(chunk) + length.div_ceil(4096) <= blocks);
        }
    }
}

/// One layer or two through pass, merge and writer; the image's own structure is walked afterwards.
fn layers_to_disk(tars: &[Vec<u8>], dir: &std::path::Path) -> bool {
    let limits = limits();
    let mut files = Vec::new();
    let mut bases = Vec::new();
    let mut data_blocks = 0;
    for (i, tar) in tars.iter().enumerate() {
        let path = dir.join(format!("index{i}"));
        let Ok((_, index, summary)) =
            pass::run(&tar[..], Measured::default(), Cursor::new(Vec::new()), &limits)
        else {
            return false;
        };
        assert!(summary.data_bytes <= limits.layer_bytes + 4096 * u64::from(limits.entries));
        std::fs::write(&path, index.into_inner()).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let mut reader = IndexReader::new(&file).unwrap();
        let mut entry = Entry::default();
        while reader.next(&mut entry).unwrap().is_some() {
            check_entry(&entry, summary.data_bytes / 4096);
        }
        bases.push(u32::try_from(data_blocks).unwrap());
        data_blocks += summary.data_bytes / 4096;
        files.push((path, file));
    }
    let layers: Vec<LayerIndex<'_>> = files
        .iter()
        .map(|(path, file)| LayerIndex { label: "layer".into(), path, file: file.try_clone().unwrap() })
        .collect();
    let Ok((mut tree, mut windows)) = merge(&layers, &limits) else { return false };
    let windows: &mut Vec<EntryWindow> = &mut windows;
    let plan = writer::plan(&mut tree, windows).unwrap();
    let meta = u32::try_from(plan.size / 4096).unwrap();
    let bases: Vec<u32> = bases.iter().map(|base| base + meta).collect();
    let blocks = meta + u32::try_from(data_blocks).unwrap();
    let mut image = Vec::new();
    writer::write(&plan, &tree, windows, &bases, blocks, [1; 16], &mut image).unwrap();
    assert_eq!(image.len() as u64, plan.size);
    std::fs::write(dir.join("image"), &image).unwrap();
    true
}

#[test]
fn layers() {
    let corpus = corpus();
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng(0x5eed_0001);
    let mut accepted = 0;
    let rounds = rounds(4_000);
    for seed in &corpus {
        assert!(layers_to_disk(std::slice::from_ref(seed), dir.path()), "the corpus itself is good");
    }
    for _ in 0..rounds {
        let pick = |rng: &mut Rng| corpus[rng.below(corpus.len())].clone();
        let (seed, other) = (pick(&mut rng), pick(&mut rng));
        let mut tars = vec![mutate(&mut rng, &seed, &other, |tar| fix_checksums(tar))];
        if rng.below(2) == 0 {
            tars.insert(0, other);
        }
        accepted += u64::from(layers_to_disk(&tars, dir.path()));
    }
    // A fuzzer whose every input is refused at the door tests the door only.
    assert!(accepted > rounds / 50, "only {accepted} of {rounds} were accepted");
}

#[test]
fn documents() {
    let digest = Digest::of(b"x");
    let seeds = [
        format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":7}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":3,"annotations":{{"a":"b"}}}}]}}"#
        ),
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":7,"platform":{{"os":"linux","architecture":"amd64","variant":"v2"}}}}]}}"#
        ),
        format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Env":["A=b"],"Cmd":null,"ExposedPorts":{{"80/tcp":{{}}}},"Volumes":{{}}}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}},"history":[{{"created":"2024-01-01T00:00:00Z"}}]}}"#
        ),
    ];
    let mut rng = Rng(0x5eed_0002);
    for _ in 0..rounds(60_000) {
        let (a, b) = (rng.below(3), rng.below(3));
        let bytes = mutate(&mut rng, seeds[a].as_bytes(), seeds[b].as_bytes(), |_| {});
        let _ = parse_document(&bytes, "x", &Limits::default());
        let _ = parse_config(&bytes, "x", 1, &Platform::host(), &Limits::default());
    }
}

#[test]
fn references() {
    let seeds = [
        "docker.io/library/python:3",
        "localhost:5000/a/b__c--d.e:V-1.2_3",
        "[::1]:5000/x@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "oci-archive:/a/b.tar:tag",
    ];
    let mut rng = Rng(0x5eed_0003);
    for _ in 0..rounds(100_000) {
        let (a, b) = (rng.below(seeds.len()), rng.below(seeds.len()));
        let bytes = mutate(&mut rng, seeds[a].as_bytes(), seeds[b].as_bytes(), |_| {});
        let text = String::from_utf8_lossy(&bytes);
        let _ = text.parse::<Source>();
        if let Ok(reference) = text.parse::<Reference>() {
            // Normal forms are fixed points, and safe in URLs.
            assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            assert_eq!(reference.familiar().parse::<Reference>().unwrap(), reference);
            let safe = |b: u8| b.is_ascii_alphanumeric() || b"._-/".contains(&b);
            assert!(reference.repository().bytes().all(safe) && !reference.repository().contains(".."));
        }
    }
}

#[test]
fn streams() {
    // What decompressors are given, cut and mutated, through the whole pipeline's readers.
    let plain = corpus().concat();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let packed = [gzip.finish().unwrap(), zstd::encode_all(&plain[..], 1).unwrap()];
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng(0x5eed_0004);
    for round in 0..rounds(150) {
        let seed = &packed[usize::from(round % 2 == 0)];
        let bytes = mutate(&mut rng, seed, seed, |_| {});
        let file = |name: &str| {
            let mut options = std::fs::OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true).open(dir.path().join(name)).unwrap()
        };
        let result = crate::layer::pipe::run(crate::layer::pipe::Job {
            label: "layer",
            input: Box::new(&bytes[..]),
            size: None,
            digest: None,
            diff_id: Some(Digest::of(b"never")),
            keep: None,
            data: file("data"),
            index: file("index"),
            place: dir.path().to_path_buf(),
            limits: &limits(),
            charge: &|_| Ok(()),
            heard: &|_| {},
        });
        assert!(result.is_err());
    }
}
