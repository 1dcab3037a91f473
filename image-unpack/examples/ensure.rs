//! `ensure STORE SOURCE [DISK]`: makes an image ready, says how long it took and how much memory, and writes its disk
//! to one file if asked. For benches, and for looking at disks with other tools.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Instant;

use image_unpack::{Platform, Quiet, Source, Store};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, source, rest @ ..] = arguments.as_slice() else {
        return Err("usage: ensure STORE SOURCE [DISK]".into());
    };
    let source: Source = source.parse()?;
    let start = Instant::now();
    let store = Store::open(Path::new(store))?;
    let cached = store.cached(&source, &Platform::host())?;
    let looked = start.elapsed();
    let was_cached = cached.is_some();
    let image = match cached {
        Some(image) => image,
        None => store.ensure(&source, &Platform::host(), &Quiet).map_err(|e| format!("{e}\n{}", e.hint()))?,
    };
    let took = start.elapsed();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("?").trim();
    println!(
        "{} {} looked up in {looked:.2?}, ready in {took:.2?}, peak {peak}, {} extents, {} bytes",
        image.id,
        if was_cached { "cached" } else { "made" },
        image.disk.extents.len(),
        image.disk.size,
    );
    if let Some(out) = rest.first() {
        let mut out = File::create(out)?;
        for extent in &image.disk.extents {
            let mut file = File::open(&extent.path)?;
            file.seek(SeekFrom::Start(extent.offset))?;
            std::io::copy(&mut file.take(extent.length), &mut out)?;
        }
        out.flush()?;
    }
    Ok(())
}
