//! Archives that cannot be read in any order, because they are compressed or come through a pipe, are first unpacked to
//! a file in the store's own `tmp`.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;

use super::{Store, Temporary, create};
use crate::error::{Error, Result};
use crate::manifest::Compression;
use crate::reference::Source;

/// The largest zstd window (log2) of an archive: as for layers.
const ZSTD_WINDOW: u32 = 24;

/// An unpacked archive; goes when dropped.
pub(super) struct Spool {
    _temporary: Temporary,
    pub file: PathBuf,
}

/// Counts the bytes that were read.
struct Counted<R> {
    inner: R,
    count: u64,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.count += n as u64;
        Ok(n)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.count += amount as u64;
        self.inner.consume(amount);
    }
}

enum Unpacker<R: BufRead> {
    Plain(R),
    Gzip(Box<flate2::bufread::MultiGzDecoder<R>>),
    Zstd(zstd::stream::read::Decoder<'static, R>),
}

impl<R: BufRead> Unpacker<R> {
    fn new(input: R, compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::Plain(input),
            Compression::Gzip => Self::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(input))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(ZSTD_WINDOW)?;
                Self::Zstd(decoder)
            }
        })
    }

    fn input(&self) -> &R {
        match self {
            Self::Plain(input) => input,
            Self::Gzip(decoder) => decoder.get_ref(),
            Self::Zstd(decoder) => decoder.get_ref(),
        }
    }
}

impl<R: BufRead> Read for Unpacker<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(out),
            Self::Gzip(decoder) => decoder.read(out),
            Self::Zstd(decoder) => decoder.read(out),
        }
    }
}

/// How a stream is packed, by its first bytes (at least six, if there are so many).
///
/// # Errors
/// [`Error::Unsupported`] for xz and bzip2, by name.
pub(super) fn packing(head: &[u8], shown: &str) -> Result<Compression> {
    let unsupported = |name: &str| Err(Error::Unsupported { what: format!("{shown}: {name} compression") });
    match head {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => unsupported("xz"),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => unsupported("bzip2"),
        _ => Ok(Compression::of_bytes(head)),
    }
}

impl Store {
    /// The archive that `source` names, unpacked if it is compressed.
    pub(super) fn spool_if_packed(&self, source: &Source) -> Result<Option<Spool>> {
        let (Source::LayoutArchive { path, .. } | Source::DockerArchive { path, .. }) = source else {
            return Ok(None);
        };
        // What cannot be opened is told by whoever reads it next.
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => {}
            // A pipe can be read once, but a source is: it is looked up first, and then made ready.
            Ok(_) => {
                return Err(Error::Unsupported {
                    what: format!("{}: a source that is not a file", path.display()),
                });
            }
            Err(_) => return Ok(None),
        }
        let Ok(mut file) = File::open(path) else { return Ok(None) };
        let mut head = [0; 6];
        let failed = |e| Error::io("read", path, e);
        let n = (&mut file).take(6).read(&mut head).map_err(failed)?;
        if packing(&head[..n], &path.display().to_string())? == Compression::None {
            return Ok(None);
        }
        let file = File::open(path).map_err(failed)?;
        self.spool(file, &path.display().to_string()).map(Some)
    }

    /// Unpacks a stream to a file. `shown` names it in errors.
    pub(super) fn spool(&self, input: impl Read, shown: &str) -> Result<Spool> {
        let budget = self.budget();
        let temporary = self.temporary()?;
        let path = temporary.path.join("archive");
        let mut out = create(&path)?;
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof => Error::Truncated {
                layer: shown.to_owned(),
                entry: None,
                reason: "in the middle of its compressed stream".into(),
            },
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other => {
                Error::bad_image(shown, format!("it cannot be decompressed: {e}"))
            }
            _ => Error::io("read", shown, e),
        };
        let mut input = Counted { inner: BufReader::with_capacity(256 << 10, input), count: 0 };
        let compression = packing(input.fill_buf().map_err(|e| Error::io("read", shown, e))?, shown)?;
        let mut unpacker = Unpacker::new(input, compression).map_err(failed)?;
        let mut buffer = vec![0; 256 << 10];
        let mut produced = 0_u64;
        let limit = |what, limit| Err(Error::Limit { place: shown.to_owned(), what, limit });
        loop {
            let n = match unpacker.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(failed(e)),
            };
            produced += n as u64;
            if produced > self.limits.archive_bytes {
                return limit("size", self.limits.archive_bytes);
            }
            if produced > self.limits.ratio_floor && produced / self.limits.ratio > unpacker.input().count {
                return limit("compression ratio", self.limits.ratio);
            }
            budget.charge(n as u64)?;
            out.write_all(&buffer[..n]).map_err(|e| Error::io("write", &path, e))?;
        }
        Ok(Spool { _temporary: temporary, file: path })
    }
}
