//! Where the content of a sparse file goes: EROFS stores such a file in chunks of one size, each of them either whole
//! in the data blob or a hole.

use super::pass::Why;
use crate::limits::Limits;

/// More chunks than this make the chunks larger: it bounds the index record and the inode.
const CHUNKS_MAX: u64 = 1 << 15;
const BLOCK_BITS: u8 = 12;
/// Segments of one file.
const SEGMENTS_MAX: usize = 1 << 16;

/// A file's sparse map: offset and length of each stretch of data.
pub(crate) struct Segments {
    list: Vec<(u64, u64)>,
    max: usize,
}

impl Segments {
    pub(crate) fn new(_limits: &Limits) -> Self {
        Self { list: Vec::new(), max: SEGMENTS_MAX }
    }

    pub(crate) fn raw(&mut self) -> &mut Vec<(u64, u64)> {
        &mut self.list
    }

    pub(crate) fn check_count(&self) -> Result<(), Why> {
        if self.list.len() > self.max {
            return Err(Why::Limit("number of segments of a sparse file", self.max as u64));
        }
        Ok(())
    }
}

/// One chunk that has data.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub chunk: usize,
    /// Its offset from the file's first byte in the data blob.
    pub data: u64,
}

/// Content to be copied from the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Offset from the file's first byte in the data blob.
    pub data: u64,
    pub length: u64,
}

pub(crate) struct Plan {
    pub chunk_bits: u8,
    /// Chunks of the file, holes included.
    pub chunks: usize,
    pub runs: Vec<Run>,
    /// Bytes that the file takes in the data blob.
    pub data_bytes: u64,
}

/// Lays out a sparse file of `real` bytes of which `stored` are in the stream.
pub(crate) fn plan(segments: &Segments, real: u64, stored: u64) -> Result<Plan, Why> {
    segments.check_count()?;
    let mut end = 0;
    let mut total = 0_u64;
    for &(offset, length) in &segments.list {
        let next = offset.checked_add(length).filter(|&next| offset >= end && next <= real);
        end = next.ok_or("its sparse map is not in order, overlaps, or exceeds the file")?;
        total += length;
    }
    if total != stored {
        return Err("its sparse map does not match its content".into());
    }
    // EROFS sizes are signed 64-bit in the kernel's page cache.
    if real > 1 << 47 {
        return Err(Why::Limit("size of a sparse file", 1 << 47));
    }
    let mut chunk_bits = BLOCK_BITS;
    while real.div_ceil(1 << chunk_bits) > CHUNKS_MAX {
        chunk_bits += 1;
    }
    let chunks = usize::try_from(real.div_ceil(1 << chunk_bits)).map_err(|_| "its size is out of range")?;
    let mut runs: Vec<Run> = Vec::new();
    let mut data_bytes = 0;
    for &(offset, length) in segments.list.iter().filter(|(_, length)| *length > 0) {
        for chunk in offset >> chunk_bits..=(offset + length - 1) >> chunk_bits {
            let number = usize::try_from(chunk).map_err(|_| "its size is out of range")?;
            if runs.last().is_some_and(|run| run.chunk == number) {
                continue;
            }
            runs.push(Run { chunk: number, data: data_bytes });
            let in_chunk = (real - (chunk << chunk_bits)).min(1 << chunk_bits);
            data_bytes += in_chunk.next_multiple_of(1 << BLOCK_BITS);
        }
    }
    Ok(Plan { chunk_bits, chunks, runs, data_bytes })
}

impl Plan {
    /// The segments, cut at chunk boundaries, with their places in the data blob.
    pub(crate) fn pieces(&self, segments: &Segments) -> impl Iterator<Item = Piece> {
        let bits = self.chunk_bits;
        let runs = &self.runs;
        segments.list.iter().filter(|(_, length)| *length > 0).flat_map(move |&(offset, length)| {
            let first = offset >> bits;
            let last = (offset + length - 1) >> bits;
            (first..=last).filter_map(move |chunk| {
                let start = offset.max(chunk << bits);
                let end = (offset + length).min((chunk + 1) << bits);
                let at = runs.binary_search_by_key(&chunk, |run| run.chunk as u64).ok()?;
                Some(Piece { data: runs[at].data + (start - (chunk << bits)), length: end - start })
            })
        })
    }
}
