//! The one pass over a layer: tar stream in, data blob and index out. No path of the layer ever reaches the host's
//! file system, nothing is held but one entry, and every quantity is bounded before it is spent.

use std::io::{self, BufRead, ErrorKind, Seek, Write};

use super::data::{BLOCK as DATA_BLOCK, DataWriter, Sink};
use super::header::{BLOCK, Fields, Header, old_sparse};
use super::index::{Entry, IndexWriter, Kind, Summary};
use super::path::{self, Meaning};
use super::pax::{self, Pax};
use super::sparse::{self, Segments};
use super::xattr;
use crate::limits::Limits;

/// Why a pass stopped.
#[derive(Debug)]
pub(crate) struct PassError {
    /// The entry at fault, lossily as text.
    pub entry: Option<String>,
    pub why: Why,
}

#[derive(Debug)]
pub(crate) enum Why {
    /// The stream ended in the middle of something.
    Truncated(&'static str),
    /// Malformed or hostile.
    Bad(String),
    /// Too much of something.
    Limit(&'static str, u64),
    /// The stream failed.
    Read(io::Error),
    /// The data blob or index could not be written.
    Write(io::Error),
}

impl From<String> for Why {
    fn from(reason: String) -> Self {
        Self::Bad(reason)
    }
}

impl From<&str> for Why {
    fn from(reason: &str) -> Self {
        Self::Bad(reason.to_owned())
    }
}

/// Reads the tar stream `input` to its end-of-archive mark (what follows is the caller's to drain), writes file
/// content to `data` and records to `index`.
pub(crate) fn run<R: BufRead, S: Sink, W: Write + Seek>(
    input: R,
    data: S,
    index: W,
    limits: &Limits,
) -> Result<(S, W, Summary), PassError> {
    let index = IndexWriter::new(index).map_err(|e| PassError { entry: None, why: Why::Write(e) })?;
    let mut pass = Pass {
        input: Input { inner: input, consumed: 0, limit: limits.layer_bytes },
        data: DataWriter::new(data),
        index,
        limits,
        entry: Entry::default(),
        name: Vec::new(),
    };
    match pass.entries() {
        Ok(()) => pass.finish().map_err(|why| PassError { entry: None, why }),
        Err(why) => {
            let name = if pass.name.is_empty() {
                None
            } else {
                Some(String::from_utf8_lossy(&pass.name[..pass.name.len().min(512)]).into_owned())
            };
            Err(PassError { entry: name, why })
        }
    }
}

struct Pass<'a, R, S: Sink, W: Write + Seek> {
    input: Input<R>,
    data: DataWriter<S>,
    index: IndexWriter<W>,
    limits: &'a Limits,
    entry: Entry,
    /// The raw name of the entry in hand, for errors.
    name: Vec<u8>,
}

/// Extension headers that apply to the next entry.
#[derive(Default)]
struct Extensions {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: BufRead, S: Sink, W: Write + Seek> Pass<'_, R, S, W> {
    fn entries(&mut self) -> Result<(), Why> {
        let mut ext = Extensions::default();
        let mut block = [0; BLOCK];
        loop {
            self.name.clear();
            if !self.input.block_or_end(&mut block)? || block.iter().all(|&b| b == 0) {
                // One zero block ends the archive, as do two, or the stream's end between entries.
                if ext.pax.is_some() || ext.long_name.is_some() || ext.long_link.is_some() {
                    return Err(Why::Truncated("after an extension header"));
                }
                return Ok(());
            }
            let header = Header::new(&block)?;
            let fields = header.fields()?;
            match fields.kind {
                b'x' | b'X' => {
                    let body = self.extension(fields.size)?;
                    ext.pax = Some(Pax::parse(&body, self.limits)?);
                }
                b'L' => ext.long_name = Some(nul_ended(self.extension(fields.size)?)),
                b'K' => ext.long_link = Some(nul_ended(self.extension(fields.size)?)),
                // Global headers hold nothing an image needs (git writes its commit there); volume labels likewise.
                b'g' | b'V' => {
                    self.extension(fields.size)?;
                }
                _ => {
                    let ext = std::mem::take(&mut ext);
                    self.one(&header, fields, ext)?;
                }
            }
        }
    }

    /// An extension header's body.
    fn extension(&mut self, size: i64) -> Result<Vec<u8>, Why> {
        let limit = self.limits.extension;
        let size = usize::try_from(size)
            .ok()
            .filter(|&size| size <= limit)
            .ok_or(Why::Limit("size of an extension header", limit as u64))?;
        let mut body = Vec::new();
        self.input.read_padded(size as u64, |bytes| {
            body.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(body)
    }

    fn one(&mut self, header: &Header<'_>, fields: Fields, ext: Extensions) -> Result<(), Why> {
        let mut pax = ext.pax.unwrap_or_default();
        let long_name = ext.long_name.or(pax.sparse.name.take()).or(pax.path.take());
        match long_name {
            Some(name) => self.name = name,
            None => header.name(&mut self.name),
        }
        let link = ext.long_link.or(pax.link.take()).unwrap_or_else(|| header.link().to_vec());
        let size = match pax.size {
            Some(size) => size,
            None => u64::try_from(fields.size).map_err(|_| "its size is negative")?,
        };
        if self.index.entries() >= self.limits.entries {
            return Err(Why::Limit("number of entries", u64::from(self.limits.entries)));
        }
        // V7 tars mark directories by a trailing slash only.
        let kind = match fields.kind {
            b'0' | 0 if self.name.ends_with(b"/") => b'5',
            kind => kind,
        };
        let is_file = matches!(kind, b'0' | 0 | b'7' | b'S');
        let mut path = std::mem::take(&mut self.entry.path);
        path::normalise(&self.name, self.limits, &mut path)?;
        let meaning = path::classify(&mut path)?;
        let id = |number: Option<u64>, field: i64, what: &str| {
            let number = number.map_or(Some(field), |n| i64::try_from(n).ok());
            number
                .and_then(|n| u32::try_from(n).ok())
                .filter(|&n| n != u32::MAX)
                .ok_or_else(|| format!("its {what} is out of range"))
        };
        let (mtime, mtime_ns) = pax.mtime.unwrap_or((fields.mtime, 0));
        let mut xattrs = std::mem::take(&mut self.entry.xattrs);
        xattr::encode(&pax.xattrs, &mut xattrs)?;
        self.entry = Entry {
            path,
            xattrs,
            mtime,
            mtime_ns,
            uid: id(pax.uid, fields.uid, "owner")?,
            gid: id(pax.gid, fields.gid, "group")?,
            // The upper bits repeat the kind.
            mode: u16::try_from(fields.mode & 0o7777).unwrap_or_default(),
            ..Entry::default()
        };
        if meaning != Meaning::Object {
            // Whatever body a whiteout has says nothing.
            let body = if is_file { size } else { 0 };
            self.input.read_padded(body, |_| Ok(()))?;
            self.entry.kind = match meaning {
                Meaning::Whiteout => Kind::Whiteout,
                Meaning::Opaque => Kind::Opaque,
                Meaning::Object | Meaning::Ignored => return Ok(()),
            };
            return self.index.push(&self.entry).map_err(Why::Write);
        }
        if self.entry.path.is_empty() && kind != b'5' {
            return Err("the root can only be a directory".into());
        }
        match kind {
            b'0' | 0 | b'7' => {
                self.entry.kind = Kind::File;
                self.file(size, pax)?;
            }
            b'S' => {
                self.entry.kind = Kind::File;
                let mut segments = Segments::new(self.limits);
                let (mut more, real) = header.sparse(segments.raw())?;
                while more {
                    let mut block = [0; BLOCK];
                    self.input.block(&mut block)?;
                    old_sparse(&block[..504], segments.raw())?;
                    segments.check_count()?;
                    more = block[504] != 0;
                }
                self.sparse_file(&segments, real, size)?;
            }
            b'1' => {
                self.entry.kind = Kind::Hardlink;
                let mut target = std::mem::take(&mut self.entry.link);
                path::normalise(&link, self.limits, &mut target)
                    .map_err(|reason| reason.replace("its path", "its link target"))?;
                if target.is_empty() {
                    return Err("a hardlink to the root".into());
                }
                self.entry.link = target;
            }
            b'2' => {
                self.entry.kind = Kind::Symlink;
                if link.is_empty() || link.len() > self.limits.path_len || link.contains(&0) {
                    return Err("its link target is empty, too long or contains a NUL byte".into());
                }
                self.entry.link = link;
            }
            b'3' | b'4' => {
                self.entry.kind = if kind == b'3' { Kind::CharDevice } else { Kind::BlockDevice };
                let (major, minor) = header.device()?;
                self.entry.rdev = encode_dev(major, minor).ok_or("its device number is out of range")?;
            }
            b'5' => self.entry.kind = Kind::Directory,
            b'6' => self.entry.kind = Kind::Fifo,
            other => {
                return Err(
                    format!("tar entries of type `{}` are not supported", other.escape_ascii()).into()
                );
            }
        }
        self.index.push(&self.entry).map_err(Why::Write)
    }

    fn file(&mut self, size: u64, pax: Pax) -> Result<(), Why> {
        if pax.sparse.map_in_data {
            let real = pax.sparse.real_size.ok_or("a sparse file without its real size")?;
            let mut segments = Segments::new(self.limits);
            let map_bytes = self.sparse_map(&mut segments, size)?;
            let data = size.checked_sub(map_bytes).ok_or("its sparse map is longer than its content")?;
            return self.sparse_file(&segments, real, data);
        }
        if let Some(list) = pax.sparse.segments {
            let real = pax.sparse.real_size.ok_or("a sparse file without its real size")?;
            let mut segments = Segments::new(self.limits);
            *segments.raw() = list;
            return self.sparse_file(&segments, real, size);
        }
        self.reserve(size)?;
        self.entry.size = size;
        self.entry.block = self.data.block().ok_or(Why::Limit("data", u64::from(u32::MAX) * DATA_BLOCK))?;
        let data = &mut self.data;
        self.input.read_padded(size, |bytes| data.write(bytes).map_err(Why::Write))?;
        self.data.align();
        Ok(())
    }

    /// Refuses a file before its first byte, if the blob would outgrow its limit.
    fn reserve(&self, bytes: u64) -> Result<(), Why> {
        let limit = self.limits.layer_bytes;
        match self.data.position().checked_add(bytes) {
            Some(end) if end <= limit => Ok(()),
            _ => Err(Why::Limit("size of the layer's files", limit)),
        }
    }

    /// GNU sparse 1.0: decimal lines at the beginning of the content, padded to a block. The bytes it took.
    fn sparse_map(&mut self, segments: &mut Segments, size: u64) -> Result<u64, Why> {
        let mut taken = 0;
        let mut digits = Vec::new();
        let mut count = None;
        let mut offset = None;
        let mut block = [0; BLOCK];
        while count != Some(0) {
            if taken + BLOCK as u64 > size {
                return Err("its sparse map is cut short".into());
            }
            self.input.block(&mut block)?;
            taken += BLOCK as u64;
            for &byte in &block {
                if count == Some(0) {
                    break;
                }
                if byte != b'\n' {
                    digits.push(byte);
                    if digits.len() > 20 {
                        return Err("its sparse map is not made of numbers".into());
                    }
                    continue;
                }
                let value = pax::decimal(&digits).ok_or("its sparse map is not made of numbers")?;
                digits.clear();
                match (&mut count, offset.take()) {
                    (None, _) => count = Some(value),
                    (Some(_), None) => offset = Some(value),
                    (Some(left), Some(offset)) => {
                        segments.raw().push((offset, value));
                        segments.check_count()?;
                        *left -= 1;
                    }
                }
            }
        }
        Ok(taken)
    }

    fn sparse_file(&mut self, segments: &Segments, real: u64, stored: u64) -> Result<(), Why> {
        let plan = sparse::plan(segments, real, stored)?;
        self.reserve(plan.data_bytes)?;
        self.entry.size = real;
        self.entry.chunk_bits = plan.chunk_bits;
        self.entry.chunks = vec![super::index::HOLE; plan.chunks];
        let base = self.data.position();
        for run in &plan.runs {
            let block = u32::try_from((base + run.data) / DATA_BLOCK)
                .ok()
                .filter(|&b| b != u32::MAX)
                .ok_or(Why::Limit("data", u64::from(u32::MAX) * DATA_BLOCK))?;
            self.entry.chunks[run.chunk] = block;
        }
        // Content arrives in segment order, which is file order, which is chunk order.
        let (data, input) = (&mut self.data, &mut self.input);
        for piece in plan.pieces(segments) {
            let here = data.position() - base;
            data.skip(piece.data - here).map_err(Why::Write)?;
            input.read(piece.length, |bytes| data.write(bytes).map_err(Why::Write))?;
        }
        let here = data.position() - base;
        data.skip(plan.data_bytes - here).map_err(Why::Write)?;
        input.skip_padding(stored)?;
        data.align();
        Ok(())
    }

    fn finish(self) -> Result<(S, W, Summary), Why> {
        let tar_bytes = self.input.consumed;
        let (sink, length) = self.data.finish().map_err(Why::Write)?;
        let (index, summary) = self.index.finish(length, tar_bytes).map_err(Why::Write)?;
        Ok((sink, index, summary))
    }
}

fn nul_ended(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|&b| b == 0) {
        text.truncate(end);
    }
    text
}

/// Linux's 32-bit device number: 12 bits of major, 20 of minor.
fn encode_dev(major: i64, minor: i64) -> Option<u32> {
    let major = u32::try_from(major).ok().filter(|&n| n < 1 << 12)?;
    let minor = u32::try_from(minor).ok().filter(|&n| n < 1 << 20)?;
    Some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// The stream, counted.
struct Input<R> {
    inner: R,
    consumed: u64,
    limit: u64,
}

impl<R: BufRead> Input<R> {
    /// Hands `length` bytes on, in the pieces they arrive in.
    fn read(&mut self, length: u64, mut each: impl FnMut(&[u8]) -> Result<(), Why>) -> Result<(), Why> {
        if self.consumed.checked_add(length).is_none_or(|end| end > self.limit) {
            return Err(Why::Limit("size of the layer", self.limit));
        }
        let mut left = length;
        while left > 0 {
            let bytes = match self.inner.fill_buf() {
                Ok([]) => return Err(Why::Truncated("in the content of an entry")),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Why::Read(error)),
            };
            let now = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
            each(&bytes[..now])?;
            self.inner.consume(now);
            self.consumed += now as u64;
            left -= now as u64;
        }
        Ok(())
    }

    fn read_padded(&mut self, length: u64, each: impl FnMut(&[u8]) -> Result<(), Why>) -> Result<(), Why> {
        self.read(length, each)?;
        self.skip_padding(length)
    }

    fn skip_padding(&mut self, length: u64) -> Result<(), Why> {
        self.read((BLOCK as u64 - length % BLOCK as u64) % BLOCK as u64, |_| Ok(()))
    }

    /// One block, or false at the end of the stream.
    fn block_or_end(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, Why> {
        loop {
            match self.inner.fill_buf() {
                Ok([]) => return Ok(false),
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Why::Read(error)),
            }
        }
        let mut filled = 0;
        let done = self.read(BLOCK as u64, |bytes| {
            block[filled..filled + bytes.len()].copy_from_slice(bytes);
            filled += bytes.len();
            Ok(())
        });
        match done {
            Err(Why::Truncated(_)) => Err(Why::Truncated("in the header of an entry")),
            done => done.map(|()| true),
        }
    }

    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<(), Why> {
        if self.block_or_end(block)? { Ok(()) } else { Err(Why::Truncated("in a sparse map")) }
    }
}
