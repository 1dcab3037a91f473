//! A layer's index: one record per tar entry, in tar order, in a file beside the layer's data blob. Written in the
//! streaming pass, read when images are merged. Little-endian; private to the store, so its version may change.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

/// First bytes of an index; the last two digits are the version.
const MAGIC: [u8; 8] = *b"BHLIDX02";
/// Bytes before the first record.
const HEADER: u64 = 64;
/// Fixed part of a record.
const FIXED: usize = 64;
/// No record is longer: path, link, attributes and chunk map at their limits.
const RECORD_MAX: usize = 1 << 20;
/// A chunk that is a hole.
pub(crate) const HOLE: u32 = u32::MAX;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub(crate) enum Kind {
    #[default]
    File = 1,
    Directory = 2,
    CharDevice = 3,
    BlockDevice = 4,
    Fifo = 5,
    Symlink = 7,
    Hardlink = 8,
    Whiteout = 9,
    Opaque = 10,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::File,
            2 => Self::Directory,
            3 => Self::CharDevice,
            4 => Self::BlockDevice,
            5 => Self::Fifo,
            7 => Self::Symlink,
            8 => Self::Hardlink,
            9 => Self::Whiteout,
            10 => Self::Opaque,
            _ => return None,
        })
    }
}

/// One entry of a layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub kind: Kind,
    /// Permission, setuid, setgid and sticky bits: at most 0o7777.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of a regular file.
    pub size: u64,
    pub mtime: i64,
    pub mtime_ns: u32,
    /// Device number as Linux encodes it (`new_encode_dev`).
    pub rdev: u32,
    /// First 4 KiB block of the file in the layer's data blob, where it is not sparse.
    pub block: u32,
    /// 0: contiguous; else the file is made of chunks of `1 << chunk_bits` bytes.
    pub chunk_bits: u8,
    /// First block of each chunk in the data blob, or [`HOLE`].
    pub chunks: Vec<u32>,
    /// Canonical path; empty is the root.
    pub path: Vec<u8>,
    /// Symlink target as given, or canonical path of a hardlink's target.
    pub link: Vec<u8>,
    /// Extended attributes as EROFS stores them (entries of 4-byte alignment).
    pub xattrs: Vec<u8>,
}

impl Entry {
    fn encode(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let total = FIXED + self.path.len() + self.link.len() + self.xattrs.len() + self.chunks.len() * 4;
        let too_long = || io::Error::other("entry too long for the index");
        if total > RECORD_MAX {
            return Err(too_long());
        }
        let len16 = |n: usize| u16::try_from(n).map_err(|_| too_long());
        let len32 = |n: usize| u32::try_from(n).map_err(|_| too_long());
        out.clear();
        out.extend_from_slice(&len32(total)?.to_le_bytes());
        out.push(self.kind as u8);
        out.push(self.chunk_bits);
        out.extend_from_slice(&self.mode.to_le_bytes());
        out.extend_from_slice(&self.uid.to_le_bytes());
        out.extend_from_slice(&self.gid.to_le_bytes());
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.mtime.to_le_bytes());
        out.extend_from_slice(&self.mtime_ns.to_le_bytes());
        out.extend_from_slice(&self.rdev.to_le_bytes());
        out.extend_from_slice(&self.block.to_le_bytes());
        out.extend_from_slice(&len32(self.chunks.len())?.to_le_bytes());
        out.extend_from_slice(&len32(self.xattrs.len())?.to_le_bytes());
        out.extend_from_slice(&len16(self.path.len())?.to_le_bytes());
        out.extend_from_slice(&len16(self.link.len())?.to_le_bytes());
        out.resize(FIXED, 0);
        out.extend_from_slice(&self.path);
        out.extend_from_slice(&self.link);
        out.extend_from_slice(&self.xattrs);
        for chunk in &self.chunks {
            out.extend_from_slice(&chunk.to_le_bytes());
        }
        Ok(())
    }

    fn decode(record: &[u8], into: &mut Self) -> Option<()> {
        let u16_at = |at: usize| Some(u16::from_le_bytes(record.get(at..at + 2)?.try_into().ok()?));
        let u32_at = |at: usize| Some(u32::from_le_bytes(record.get(at..at + 4)?.try_into().ok()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(record.get(at..at + 8)?.try_into().ok()?));
        into.kind = Kind::from_byte(*record.get(4)?)?;
        into.chunk_bits = *record.get(5)?;
        into.mode = u16_at(6)?;
        into.uid = u32_at(8)?;
        into.gid = u32_at(12)?;
        into.size = u64_at(16)?;
        into.mtime = u64_at(24)?.cast_signed();
        into.mtime_ns = u32_at(32)?;
        into.rdev = u32_at(36)?;
        into.block = u32_at(40)?;
        let chunks = usize::try_from(u32_at(44)?).ok()?;
        let xattrs = usize::try_from(u32_at(48)?).ok()?;
        let path = usize::from(u16_at(52)?);
        let link = usize::from(u16_at(54)?);
        let mut rest = record.get(FIXED..)?;
        let mut take = |n: usize| -> Option<&[u8]> {
            let (head, tail) = rest.split_at_checked(n)?;
            rest = tail;
            Some(head)
        };
        let mut fill = |field: &mut Vec<u8>, n: usize| -> Option<()> {
            field.clear();
            field.extend_from_slice(take(n)?);
            Some(())
        };
        fill(&mut into.path, path)?;
        fill(&mut into.link, link)?;
        fill(&mut into.xattrs, xattrs)?;
        if rest.len() != chunks.checked_mul(4)? {
            return None;
        }
        into.chunks.clear();
        into.chunks.extend(rest.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        Some(())
    }
}

/// What an index says of its layer as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub entries: u32,
    /// Bytes of the data blob, a multiple of 4096.
    pub data_bytes: u64,
    /// Bytes of the tar stream.
    pub tar_bytes: u64,
    /// Bytes of all regular files, holes included.
    pub content_bytes: u64,
}

/// Writes an index, record by record.
pub(crate) struct IndexWriter<W: Write + Seek> {
    out: BufWriter<W>,
    entries: u32,
    content_bytes: u64,
    record: Vec<u8>,
}

impl<W: Write + Seek> IndexWriter<W> {
    pub(crate) fn new(out: W) -> io::Result<Self> {
        let mut out = BufWriter::with_capacity(256 << 10, out);
        out.write_all(&[0; 64])?;
        Ok(Self { out, entries: 0, content_bytes: 0, record: Vec::new() })
    }

    pub(crate) fn push(&mut self, entry: &Entry) -> io::Result<()> {
        entry.encode(&mut self.record)?;
        self.entries += 1;
        if entry.kind == Kind::File {
            self.content_bytes = self.content_bytes.saturating_add(entry.size);
        }
        self.out.write_all(&self.record)
    }

    pub(crate) fn entries(&self) -> u32 {
        self.entries
    }

    /// Writes the header last: an index without one was not finished.
    pub(crate) fn finish(mut self, data_bytes: u64, tar_bytes: u64) -> io::Result<(W, Summary)> {
        let summary =
            Summary { entries: self.entries, data_bytes, tar_bytes, content_bytes: self.content_bytes };
        let mut header = Vec::with_capacity(40);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&u64::from(summary.entries).to_le_bytes());
        header.extend_from_slice(&data_bytes.to_le_bytes());
        header.extend_from_slice(&tar_bytes.to_le_bytes());
        header.extend_from_slice(&self.content_bytes.to_le_bytes());
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&header)?;
        self.out.flush()?;
        let out = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok((out, summary))
    }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "damaged layer index")
}

/// Reads the summary at an index's beginning.
pub(crate) fn summary(file: &File) -> io::Result<Summary> {
    let mut header = [0; 40];
    file.read_exact_at(&mut header, 0)?;
    let u64_at = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&header[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    if header[..8] != MAGIC {
        return Err(damaged());
    }
    let entries = u32::try_from(u64_at(8)).map_err(|_| damaged())?;
    Ok(Summary { entries, data_bytes: u64_at(16), tar_bytes: u64_at(24), content_bytes: u64_at(32) })
}

/// Reads an index from first record to last.
pub(crate) struct IndexReader<'a> {
    input: BufReader<&'a File>,
    left: u32,
    offset: u64,
    record: Vec<u8>,
}

impl<'a> IndexReader<'a> {
    pub(crate) fn new(file: &'a File) -> io::Result<Self> {
        let left = summary(file)?.entries;
        let mut input = BufReader::with_capacity(128 << 10, file);
        input.seek(SeekFrom::Start(HEADER))?;
        Ok(Self { input, left, offset: HEADER, record: Vec::new() })
    }

    /// The next record, and where it lies for [`EntryWindow::read`].
    pub(crate) fn next(&mut self, entry: &mut Entry) -> io::Result<Option<u64>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let at = self.offset;
        let mut length = [0; 4];
        self.input.read_exact(&mut length)?;
        let length = record_length(length)?;
        self.record.resize(length, 0);
        self.input.read_exact(&mut self.record[4..])?;
        Entry::decode(&self.record, entry).ok_or_else(damaged)?;
        self.offset += length as u64;
        Ok(Some(at))
    }
}

fn record_length(bytes: [u8; 4]) -> io::Result<usize> {
    let length = usize::try_from(u32::from_le_bytes(bytes)).map_err(|_| damaged())?;
    if !(FIXED..=RECORD_MAX).contains(&length) {
        return Err(damaged());
    }
    Ok(length)
}

/// Reads single records, in any order, through a small window: neighbours in the tree are mostly neighbours in the
/// index.
pub(crate) struct EntryWindow {
    file: File,
    start: u64,
    bytes: Vec<u8>,
}

impl EntryWindow {
    const WINDOW: usize = 32 << 10;

    pub(crate) fn new(file: File) -> Self {
        Self { file, start: 0, bytes: Vec::new() }
    }

    pub(crate) fn read(&mut self, at: u64, entry: &mut Entry) -> io::Result<()> {
        let head = self.slice(at, 4)?;
        let length = record_length([head[0], head[1], head[2], head[3]])?;
        Entry::decode(self.slice(at, length)?, entry).ok_or_else(damaged)
    }

    fn slice(&mut self, at: u64, length: usize) -> io::Result<&[u8]> {
        let inside = at
            .checked_sub(self.start)
            .and_then(|offset| usize::try_from(offset).ok())
            .filter(|offset| offset.checked_add(length).is_some_and(|end| end <= self.bytes.len()));
        let offset = match inside {
            Some(offset) => offset,
            None => {
                self.bytes.resize(length.max(Self::WINDOW), 0);
                let mut filled = 0;
                while filled < self.bytes.len() {
                    match self.file.read_at(&mut self.bytes[filled..], at + filled as u64) {
                        Ok(0) => break,
                        Ok(n) => filled += n,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
                self.bytes.truncate(filled);
                self.start = at;
                0
            }
        };
        self.bytes.get(offset..offset + length).ok_or_else(damaged)
    }
}
