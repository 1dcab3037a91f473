//! Entries to bytes.

use std::io::{self, Read, Write};

use super::{BLOCK, Entry, Kind, XATTR_RECORD, checksum, field, padding};

/// Bytes copied at a time.
const COPY: usize = 64 * 1024;
/// Largest number that a field of seven octal digits holds, and one of eleven.
const SEVEN_DIGITS: u64 = 0o7_777_777;
const ELEVEN_DIGITS: u64 = 0o77_777_777_777;

/// Writes an archive.
pub(in super::super) struct Writer<W> {
    to: W,
}

impl<W: Write> Writer<W> {
    pub(in super::super) fn new(to: W) -> Self {
        Self { to }
    }

    /// Writes an entry and exactly as much content as it announces: a file that shrank meanwhile is filled up with zeroes, one that
    /// grew is cut.
    pub(in super::super) fn entry(&mut self, entry: &Entry, content: &mut dyn Read) -> io::Result<()> {
        let records = records(entry);
        if !records.is_empty() {
            let mut header = Entry::new(Kind::File, b"pax".to_vec());
            header.size = records.len() as u64;
            self.to.write_all(&block(&header, b'x'))?;
            self.to.write_all(&records)?;
            self.pad(header.size)?;
        }
        let kind = match entry.kind {
            Kind::File => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::CharDevice => b'3',
            Kind::BlockDevice => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        };
        self.to.write_all(&block(entry, kind))?;
        let mut left = entry.size;
        let mut buffer = vec![0u8; COPY.min(usize::try_from(left).unwrap_or(COPY))];
        let mut ended = false;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(COPY).min(COPY);
            let mut n = 0;
            if !ended {
                n = content.read(&mut buffer[..want])?;
                ended = n == 0;
            }
            if ended {
                buffer[..want].fill(0);
                n = want;
            }
            self.to.write_all(&buffer[..n])?;
            left -= n as u64;
        }
        self.pad(entry.size)
    }

    /// Writes the archive's end.
    pub(in super::super) fn finish(mut self) -> io::Result<()> {
        self.to.write_all(&[0; 2 * BLOCK])?;
        self.to.flush()
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        self.to.write_all(&[0; BLOCK][..padding(size)])
    }
}

/// One header block. What does not fit is cut; the pax records before it have it whole.
fn block(entry: &Entry, kind: u8) -> [u8; BLOCK] {
    let mut block = [0u8; BLOCK];
    let mut text = |range: std::ops::Range<usize>, text: &[u8]| {
        let length = text.len().min(range.len());
        block[range.start..range.start + length].copy_from_slice(&text[..length]);
    };
    text(field::NAME, &entry.path);
    text(field::LINK, &entry.link);
    text(field::MAGIC, b"ustar\x0000");
    let mut octal = |range: std::ops::Range<usize>, number: u64| {
        let digits = range.len() - 1;
        text(range, format!("{number:0digits$o}").as_bytes());
    };
    octal(field::MODE, u64::from(entry.mode & 0o7777));
    octal(field::UID, u64::from(entry.uid).min(SEVEN_DIGITS));
    octal(field::GID, u64::from(entry.gid).min(SEVEN_DIGITS));
    octal(field::SIZE, entry.size.min(ELEVEN_DIGITS));
    octal(field::MODIFIED, u64::try_from(entry.modified.0).unwrap_or(0).min(ELEVEN_DIGITS));
    octal(field::MAJOR, u64::from(entry.device.0).min(SEVEN_DIGITS));
    octal(field::MINOR, u64::from(entry.device.1).min(SEVEN_DIGITS));
    block[field::KIND] = kind;
    let sum = format!("{:06o}\0 ", checksum(&block));
    block[field::CHECKSUM].copy_from_slice(sum.as_bytes());
    block
}

/// The pax records of what a header cannot hold.
fn records(entry: &Entry) -> Vec<u8> {
    let mut records = Vec::new();
    let mut record = |key: &[u8], value: &[u8]| {
        // The length counts its own digits.
        let rest = key.len() + value.len() + 3;
        let mut length = rest + rest.to_string().len();
        if length.to_string().len() + rest != length {
            length = rest + length.to_string().len();
        }
        records.extend(length.to_string().bytes());
        for part in [b" ", key, b"=", value, b"\n"] {
            records.extend(part);
        }
    };
    let plain = |text: &[u8], range: std::ops::Range<usize>| text.len() <= range.len() && text.is_ascii();
    if !plain(&entry.path, field::NAME) {
        record(b"path", &entry.path);
    }
    if !plain(&entry.link, field::LINK) {
        record(b"linkpath", &entry.link);
    }
    if entry.size > ELEVEN_DIGITS {
        record(b"size", entry.size.to_string().as_bytes());
    }
    for (key, id) in [(&b"uid"[..], entry.uid), (b"gid", entry.gid)] {
        if u64::from(id) > SEVEN_DIGITS {
            record(key, id.to_string().as_bytes());
        }
    }
    let (seconds, nanoseconds) = entry.modified;
    if nanoseconds != 0 || !u64::try_from(seconds).is_ok_and(|s| s <= ELEVEN_DIGITS) {
        record(b"mtime", time(seconds, nanoseconds).as_bytes());
    }
    // An equals sign ends a record's key.
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| !name.contains(&b'=')) {
        record(&[XATTR_RECORD, name].concat(), value);
    }
    records
}

/// A time as a decimal number: a time before 1970 is minus a sum, so its nanoseconds are turned round.
fn time(seconds: i64, nanoseconds: u32) -> String {
    match (seconds, nanoseconds) {
        (s, 0) => s.to_string(),
        (s, n) if s >= 0 => format!("{s}.{n:09}"),
        (s, n) => format!("-{}.{:09}", (s + 1).unsigned_abs(), 1_000_000_000 - n),
    }
}
