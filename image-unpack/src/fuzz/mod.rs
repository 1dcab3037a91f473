//! What hostile bytes reach first, as functions of bytes: none may panic, outgrow its bounds, or accept what breaks a
//! rule checked here. `make fuzz` gives them to libFuzzer (the programs in `fuzz/`); `cargo test` mutates the kept
//! corpus for a moment.

#[cfg(test)]
mod tests;
mod tree;
mod walk;

use std::fs::File;
use std::io::{Cursor, Write};

use crate::digest::Digest;
use crate::erofs::writer;
use crate::layer::data::Sink;
use crate::layer::index::{Entry, EntryWindow, IndexReader, Kind, Summary};
use crate::layer::{pass, pipe};
use crate::limits::Limits;
use crate::manifest::{Platform, parse_config, parse_document};
use crate::merge::{LayerIndex, merge};
use crate::reference::{Reference, Source};

pub use tree::trees;

/// Separates the layers of one input.
pub const SPLIT: &[u8] = b"BHSPLIT\n";

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

/// Makes the checksums of all header blocks right, so that mutations reach what is behind them.
fn fix_checksums(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// The parts of an input, at most four.
fn split(data: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    let mut rest = data;
    while parts.len() < 3
        && let Some(at) = rest.windows(SPLIT.len()).position(|window| window == SPLIT)
    {
        parts.push(rest[..at].to_vec());
        rest = &rest[at + SPLIT.len()..];
    }
    parts.push(rest.to_vec());
    parts
}

/// Tar streams through the pass, the merge and the EROFS writer; true if they made an image.
pub fn layers(data: &[u8]) -> bool {
    let mut tars = split(data);
    for tar in &tars {
        // As it is: most are refused at the door, and that must hold too.
        let _ = pass::run(&tar[..], Measured::default(), Cursor::new(Vec::new()), &limits());
    }
    for tar in &mut tars {
        fix_checksums(tar);
    }
    let mut made = Vec::new();
    for tar in &tars {
        let Ok((_, index, summary)) =
            pass::run(&tar[..], Measured::default(), Cursor::new(Vec::new()), &limits())
        else {
            return false;
        };
        assert!(summary.data_bytes <= limits().layer_bytes + 4096 * u64::from(limits().entries));
        made.push((index.into_inner(), summary));
    }
    indexes_to_disk(&made)
}

/// Checks what an index promises: canonical paths, data within the blob.
fn check_entry(entry: &Entry, blocks: u64) {
    for path in [&entry.path, &entry.link].into_iter().take(if entry.kind == Kind::Hardlink { 2 } else { 1 })
    {
        let good = |name: &[u8]| {
            !name.is_empty() && name != b"." && name != b".." && name.len() <= 255 && !name.contains(&0)
        };
        assert!(path.is_empty() || path.split(|&b| b == b'/').all(good), "{path:?}");
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

/// Indexes through the merge and the writer; the image is read again and compared with the merged tree.
fn indexes_to_disk(indexes: &[(Vec<u8>, Summary)]) -> bool {
    let mut files = Vec::new();
    let (mut bases, mut data_blocks) = (Vec::new(), 0);
    for (bytes, summary) in indexes {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(bytes).expect("a temporary file");
        let mut reader = IndexReader::new(&file).expect("an index that was just written");
        let mut entry = Entry::default();
        while reader.next(&mut entry).expect("an index that was just written").is_some() {
            check_entry(&entry, summary.data_bytes / 4096);
        }
        bases.push(data_blocks);
        data_blocks += u32::try_from(summary.data_bytes / 4096).expect("bounded by the limits");
        files.push(file);
    }
    let place = std::path::Path::new("index");
    let layer = |file: &File| LayerIndex {
        label: "layer".into(),
        path: place,
        file: file.try_clone().expect("a temporary file"),
    };
    let layers: Vec<LayerIndex<'_>> = files.iter().map(layer).collect();
    let Ok((mut tree, mut windows)) = merge(&layers, &limits()) else { return false };
    let windows: &mut Vec<EntryWindow> = &mut windows;
    let plan = writer::plan(&mut tree, windows).expect("a tree that was merged");
    let meta = u32::try_from(plan.size / 4096).expect("bounded by the limits");
    let bases: Vec<u32> = bases.iter().map(|base| base + meta).collect();
    let mut image = Vec::new();
    writer::write(&plan, &tree, windows, &bases, meta + data_blocks, [1; 16], &mut image)
        .expect("a vector takes everything");
    assert_eq!(image.len() as u64, plan.size);
    walk::check(&image, meta + data_blocks, &tree);
    true
}

/// Manifests, indexes and configurations.
pub fn documents(data: &[u8]) {
    let _ = parse_document(data, "x", &limits());
    for layers in 0..2 {
        if let Ok((config, diff_ids)) = parse_config(data, "x", layers, &Platform::host(), &limits()) {
            assert_eq!(diff_ids.len(), layers);
            assert_eq!(config.rootfs().diff_ids().len(), layers);
        }
    }
}

/// References, sources, platforms and changes.
pub fn references(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = text.parse::<Source>();
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse::<Platform>().expect("its own text"), platform);
    }
    if let Ok(change) = text.parse::<crate::Change>() {
        assert_eq!(change.to_string().parse::<crate::Change>().expect("its own text"), change);
        let _ = crate::Change::apply_all(&[change], &mut serde_json::Map::new());
    }
    if let Ok(reference) = text.parse::<Reference>() {
        // Normal forms are fixed points, and safe in URLs.
        for again in [reference.to_string(), reference.familiar()] {
            assert_eq!(again.parse::<Reference>().expect("its own text"), reference);
        }
        let safe = |b: u8| b.is_ascii_alphanumeric() || b"._-/".contains(&b);
        assert!(reference.repository().bytes().all(safe) && !reference.repository().contains(".."));
    }
}

/// Compressed streams through the whole pipeline. Nothing hashes to what is asked for, so all must be refused.
pub fn streams(data: &[u8]) {
    let file = || tempfile::tempfile().expect("a temporary file");
    let result = pipe::run(pipe::Job {
        label: "layer",
        input: Box::new(data),
        size: None,
        digest: None,
        diff_id: Some(Digest::of(b"never")),
        keep: None,
        data: file(),
        index: file(),
        place: "layer".into(),
        limits: &limits(),
        charge: &|_| Ok(()),
        heard: &|_| {},
    });
    assert!(result.is_err());
}
