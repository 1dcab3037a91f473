//! Bytes to entries. The archive comes from the host's user: every number is checked, nothing is held but one entry's records.

use std::io::{self, Read, Write};

use super::{BLOCK, Entry, Kind, MAX_RECORDS, MAX_XATTRS, XATTR_RECORD, checksum, field, padding};
use crate::protocol::MAX_PATH;

/// Bytes copied at a time.
const COPY: usize = 64 * 1024;
/// Largest content that is believed: ext4's largest file.
const MAX_SIZE: u64 = 16 << 40;

/// Reads an archive.
pub(in super::super) struct Reader<R> {
    from: R,
    /// Content of the last entry that has not been read, and the padding after it.
    left: u64,
    padding: usize,
}

/// What came before an entry's own header.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    modified: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

fn bad(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the archive is damaged: {}", why.into()))
}

impl<R: Read> Reader<R> {
    pub(in super::super) fn new(from: R) -> Self {
        Self { from, left: 0, padding: 0 }
    }

    /// The next entry, or `None` at the archive's end; what was not read of the one before is passed over.
    pub(in super::super) fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        self.copy(&mut io::sink())?;
        let mut extended = Extended::default();
        loop {
            let Some(block) = self.block()? else { return Ok(None) };
            let size = number(&block[field::SIZE])?;
            let kind = match block[field::KIND] {
                0 | b'0' | b'7' => Kind::File,
                b'1' => Kind::HardLink,
                b'2' => Kind::Symlink,
                b'3' => Kind::CharDevice,
                b'4' => Kind::BlockDevice,
                b'5' => Kind::Directory,
                b'6' => Kind::Fifo,
                b'x' => {
                    let records = self.records(size)?;
                    extended.parse(&records)?;
                    continue;
                }
                // Defaults for all entries: nobody writes anything of use there.
                b'g' => {
                    self.records(size)?;
                    continue;
                }
                b'L' => {
                    extended.path = Some(c_text(&self.records(size)?));
                    continue;
                }
                b'K' => {
                    extended.link = Some(c_text(&self.records(size)?));
                    continue;
                }
                b'S' => return Err(bad("it holds a sparse file, which cannot be unpacked")),
                other => {
                    return Err(bad(format!(
                        "it holds an entry of the unknown kind {:?}",
                        char::from(other)
                    )));
                }
            };
            return self.entry(&block, kind, extended).map(Some);
        }
    }

    /// Copies what is left of the entry's content.
    pub(in super::super) fn copy(&mut self, to: &mut dyn Write) -> io::Result<()> {
        let mut buffer = vec![0u8; COPY.min(usize::try_from(self.left).unwrap_or(COPY))];
        while self.left > 0 {
            let want = usize::try_from(self.left).unwrap_or(COPY).min(COPY);
            let n = self.from.read(&mut buffer[..want])?;
            if n == 0 {
                return Err(bad("it ends within a file"));
            }
            to.write_all(&buffer[..n])?;
            self.left -= n as u64;
        }
        let mut rest = [0u8; BLOCK];
        self.from.read_exact(&mut rest[..self.padding]).map_err(|_| bad("it ends within a file"))?;
        self.padding = 0;
        Ok(())
    }

    /// Reads the rest of the stream, at most `most` bytes: archives are filled up beyond their end.
    pub(in super::super) fn drain(&mut self, most: u64) -> io::Result<()> {
        io::copy(&mut (&mut self.from).take(most), &mut io::sink()).map(drop)
    }

    fn entry(&mut self, block: &[u8; BLOCK], kind: Kind, extended: Extended) -> io::Result<Entry> {
        let path = extended.path.unwrap_or_else(|| {
            let (prefix, name) = (c_text(&block[field::PREFIX]), c_text(&block[field::NAME]));
            let ustar = block[field::MAGIC].starts_with(b"ustar\0");
            if ustar && !prefix.is_empty() { [prefix, name].join(&b'/') } else { name }
        });
        let link = extended.link.unwrap_or_else(|| c_text(&block[field::LINK]));
        if path.len() > MAX_PATH || link.len() > MAX_PATH {
            return Err(bad("a name is longer than 4095 bytes"));
        }
        if path.is_empty() || path.contains(&0) || link.contains(&0) {
            return Err(bad("a name is empty or holds a NUL byte"));
        }
        // Archives of the seventh edition mark a directory by its name alone.
        let kind = if kind == Kind::File && path.ends_with(b"/") { Kind::Directory } else { kind };
        let size = match extended.size {
            Some(size) => size,
            None => number(&block[field::SIZE])?,
        };
        if size > MAX_SIZE {
            return Err(bad("a file is larger than 16 TiB"));
        }
        // Only a file has content; what else announces some has its blocks passed over all the same, but not a link's: it repeats its target's size.
        let content = if matches!(kind, Kind::HardLink | Kind::Symlink) { 0 } else { size };
        (self.left, self.padding) = (content, padding(content));
        let small = |range| {
            let n = number(&block[range])?;
            u32::try_from(n).map_err(|_| bad("a number is larger than 32 bits"))
        };
        let device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        Ok(Entry {
            path,
            kind,
            mode: u32::try_from(number(&block[field::MODE])? & 0o7777).unwrap_or(0),
            uid: extended.uid.map_or_else(|| small(field::UID), Ok)?,
            gid: extended.gid.map_or_else(|| small(field::GID), Ok)?,
            size: if kind == Kind::File { size } else { 0 },
            modified: match extended.modified {
                Some(modified) => modified,
                None => (signed(&block[field::MODIFIED])?, 0),
            },
            link: if matches!(kind, Kind::HardLink | Kind::Symlink) { link } else { Vec::new() },
            device: if device { (small(field::MAJOR)?, small(field::MINOR)?) } else { (0, 0) },
            xattrs: extended.xattrs,
        })
    }

    /// Reads a header; `None` at a block of zeroes, or where the stream ends between entries.
    fn block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0u8; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            match self.from.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(bad("it ends within a header")),
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        if number(&block[field::CHECKSUM])? != checksum(&block) {
            return Err(bad("a header's checksum is wrong, or this is no tar archive"));
        }
        Ok(Some(block))
    }

    fn records(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_RECORDS {
            return Err(bad("an entry's records are larger than 1 MiB"));
        }
        let mut bytes = Vec::new();
        (self.left, self.padding) = (size, padding(size));
        self.copy(&mut bytes)?;
        Ok(bytes)
    }
}

impl Extended {
    /// Reads records of the form `LENGTH key=value\n`, where the length counts the whole record.
    fn parse(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let malformed = || bad("its pax records are malformed");
        while !bytes.is_empty() {
            let space = bytes.iter().take(10).position(|b| *b == b' ').ok_or_else(malformed)?;
            let length =
                decimal(&bytes[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(malformed)?;
            let record = bytes.get(space + 1..length).ok_or_else(malformed)?;
            bytes = bytes.get(length..).ok_or_else(malformed)?;
            let record = record.strip_suffix(b"\n").ok_or_else(malformed)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(malformed)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            self.record(key, value)?;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let malformed = || bad(format!("its record {} is malformed", String::from_utf8_lossy(key)));
        let id = || decimal(value).and_then(|n| u32::try_from(n).ok()).ok_or_else(malformed);
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value).ok_or_else(malformed)?),
            b"uid" => self.uid = Some(id()?),
            b"gid" => self.gid = Some(id()?),
            b"mtime" => self.modified = Some(time(value).ok_or_else(malformed)?),
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err(bad("it holds a sparse file, which cannot be unpacked"));
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_RECORD) {
                    if self.xattrs.len() == MAX_XATTRS {
                        return Err(bad("an entry has more than 256 extended attributes"));
                    }
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// A text up to its first NUL byte.
fn c_text(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|b| *b == 0).next().unwrap_or_default().to_vec()
}

fn decimal(bytes: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(bytes).ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok()
}

/// A decimal number of seconds, with a sign and a fraction; digits beyond nanoseconds are dropped.
fn time(bytes: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds = i64::try_from(decimal(whole.as_bytes())?).ok()?;
    let fraction: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds = u32::try_from(decimal(fraction.as_bytes())?).ok()?;
    Some(match (negative, nanoseconds) {
        (false, n) => (seconds, n),
        (true, 0) => (-seconds, 0),
        (true, n) => (-seconds - 1, 1_000_000_000 - n),
    })
}

/// A field of octal digits between spaces and NUL bytes, or GNU's binary number, whose first bit is set.
fn signed(field: &[u8]) -> io::Result<i64> {
    let wrong = || bad("a number in a header is malformed");
    if field.first().is_some_and(|b| b & 0x80 != 0) {
        // Big-endian two's complement without the marking bit.
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (i, byte) in field.iter().enumerate() {
            let byte = if i == 0 && !negative { byte & 0x7f } else { *byte };
            value = (value << 8) | i128::from(byte);
        }
        return i64::try_from(value).map_err(|_| wrong());
    }
    let text = std::str::from_utf8(field).map_err(|_| wrong())?;
    let digits = text.trim_matches(|c| c == ' ' || c == '\0');
    if digits.is_empty() {
        return Ok(0);
    }
    if !digits.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
        return Err(wrong());
    }
    i64::from_str_radix(digits, 8).map_err(|_| wrong())
}

fn number(field: &[u8]) -> io::Result<u64> {
    u64::try_from(signed(field)?).map_err(|_| bad("a number in a header is negative"))
}
