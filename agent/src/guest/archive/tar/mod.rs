//! The tar format as archives of containers need it: ustar headers (POSIX 1003.1-1988), pax records (POSIX 1003.1-2001) for what does not
//! fit into them, and GNU's long names and binary numbers when reading.

mod reader;
mod writer;

pub(super) use reader::Reader;
pub(super) use writer::Writer;

/// Bytes of a block: headers are one, contents are padded to whole ones.
const BLOCK: usize = 512;
/// Most bytes of one entry's pax records or long name. Names have 4096 at most; extended attributes fill the rest.
const MAX_RECORDS: u64 = 1 << 20;
/// Most extended attributes of one entry.
const MAX_XATTRS: usize = 256;
/// Prefix of the pax records that hold extended attributes.
const XATTR_RECORD: &[u8] = b"SCHILY.xattr.";

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    /// Another name of an entry before it.
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The name as it is in the archive.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    /// Permissions and the three bits above them.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Bytes of content; zero for all but files.
    pub(super) size: u64,
    /// Seconds since 1970, and nanoseconds.
    pub(super) modified: (i64, u32),
    /// Where a link of either kind leads.
    pub(super) link: Vec<u8>,
    /// Major and minor number of a device.
    pub(super) device: (u32, u32),
    /// Extended attributes: name and value.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// An entry of this kind and name, with nothing else known.
    pub(super) fn new(kind: Kind, path: Vec<u8>) -> Self {
        Self {
            path,
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            modified: (0, 0),
            link: Vec::new(),
            device: (0, 0),
            xattrs: Vec::new(),
        }
    }
}

/// Position and length of the header's fields.
mod field {
    use std::ops::Range;

    pub(super) const NAME: Range<usize> = 0..100;
    pub(super) const MODE: Range<usize> = 100..108;
    pub(super) const UID: Range<usize> = 108..116;
    pub(super) const GID: Range<usize> = 116..124;
    pub(super) const SIZE: Range<usize> = 124..136;
    pub(super) const MODIFIED: Range<usize> = 136..148;
    pub(super) const CHECKSUM: Range<usize> = 148..156;
    pub(super) const KIND: usize = 156;
    pub(super) const LINK: Range<usize> = 157..257;
    pub(super) const MAGIC: Range<usize> = 257..265;
    pub(super) const MAJOR: Range<usize> = 329..337;
    pub(super) const MINOR: Range<usize> = 337..345;
    pub(super) const PREFIX: Range<usize> = 345..500;
}

/// Sum of a header's bytes, its checksum field counted as spaces.
fn checksum(block: &[u8; BLOCK]) -> u64 {
    let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
    let own: u64 = block[field::CHECKSUM].iter().map(|b| u64::from(*b)).sum();
    sum - own + 8 * u64::from(b' ')
}

/// Bytes after a content of this size up to the next whole block.
fn padding(size: u64) -> usize {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    (BLOCK - over) % BLOCK
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries with everything that a header cannot hold, written and read back.
    #[test]
    fn what_is_written_is_read_back() {
        let plain = |kind, path: &[u8]| Entry {
            mode: 0o644,
            uid: 1000,
            gid: 50,
            modified: (1_700_000_000, 0),
            ..Entry::new(kind, path.to_vec())
        };
        let entries = [
            (plain(Kind::Directory, b"dir/"), &b""[..]),
            (Entry { size: 5, ..plain(Kind::File, b"dir/file") }, b"hello"),
            (Entry { size: 512, modified: (1, 5), ..plain(Kind::File, &[b'n'; 300]) }, &[7; 512]),
            (Entry { link: b"dir/file".to_vec(), ..plain(Kind::HardLink, b"dir/hard") }, b""),
            (Entry { link: [b't'; 200].to_vec(), ..plain(Kind::Symlink, b"dir/soft") }, b""),
            (Entry { device: (1, 3), mode: 0o4666, ..plain(Kind::CharDevice, b"null") }, b""),
            (Entry { device: (254, 17), ..plain(Kind::BlockDevice, b"vdb1") }, b""),
            (Entry { uid: u32::MAX - 1, gid: 3_000_000, ..plain(Kind::Fifo, b"fifo") }, b""),
            (Entry { modified: (-5, 999_999_999), ..plain(Kind::File, "naïve".as_bytes()) }, b""),
            (
                Entry {
                    xattrs: vec![
                        (b"user.a=b".to_vec(), b"x\n=\0".to_vec()),
                        (b"security.capability".to_vec(), vec![1, 0, 0, 2]),
                    ],
                    ..plain(Kind::File, b"attributes")
                },
                b"",
            ),
        ];
        let mut archive = Vec::new();
        let mut writer = Writer::new(&mut archive);
        for (entry, content) in &entries {
            writer.entry(entry, &mut &content[..]).unwrap();
        }
        writer.finish().unwrap();
        assert_eq!(archive.len() % BLOCK, 0);

        let mut reader = Reader::new(&archive[..]);
        for (entry, content) in &entries {
            let read = reader.next_entry().unwrap().unwrap();
            // A name with an equals sign cannot be told from its value; it loses that attribute alone.
            let mut expected = entry.clone();
            expected.xattrs.retain(|(name, _)| !name.contains(&b'='));
            assert_eq!(read, expected);
            let mut bytes = Vec::new();
            reader.copy(&mut bytes).unwrap();
            assert_eq!(bytes, *content);
        }
        assert!(reader.next_entry().unwrap().is_none());
    }

    /// The system's own tar agrees, in both directions.
    #[test]
    fn gnu_tar_reads_and_writes_the_same() {
        use std::io::Write;
        use std::process::{Command, Stdio};
        let mut archive = Vec::new();
        let mut writer = Writer::new(&mut archive);
        let long = [b'd'; 150];
        let entry = Entry {
            size: 3,
            mode: 0o600,
            modified: (1_700_000_000, 25),
            ..Entry::new(Kind::File, long.to_vec())
        };
        writer.entry(&entry, &mut &b"abc"[..]).unwrap();
        writer.finish().unwrap();
        let Ok(mut tar) = Command::new("tar")
            .args(["-tvf", "-", "--full-time"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            eprintln!("skipped: there is no tar here");
            return;
        };
        tar.stdin.take().unwrap().write_all(&archive).unwrap();
        let output = tar.wait_with_output().unwrap();
        let list = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && list.contains(&"d".repeat(150)) && list.contains("-rw-------"),
            "{list}"
        );

        let directory = std::env::temp_dir().join(format!("bulkhead-tar-{}", std::process::id()));
        let name = "x".repeat(180);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(&name), b"content").unwrap();
        for format in ["gnu", "posix", "ustar", "v7"] {
            let name = if matches!(format, "gnu" | "posix") { name.as_str() } else { "short" };
            std::fs::write(directory.join(name), b"content").unwrap();
            let output = Command::new("tar")
                .arg("-C")
                .arg(&directory)
                .args(["--format", format, "-cf", "-", name])
                .output();
            let archive = output.unwrap().stdout;
            let mut reader = Reader::new(&archive[..]);
            let entry = reader.next_entry().unwrap().unwrap();
            assert_eq!(
                (entry.path.as_slice(), entry.size, entry.kind),
                (name.as_bytes(), 7, Kind::File),
                "{format}"
            );
            let mut bytes = Vec::new();
            reader.copy(&mut bytes).unwrap();
            assert_eq!(bytes, b"content");
            assert!(reader.next_entry().unwrap().is_none());
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }

    /// Every byte string is refused or read, never a panic, and never more memory than the bound of the records.
    #[test]
    fn damaged_archives_never_panic() {
        let mut archive = Vec::new();
        let mut writer = Writer::new(&mut archive);
        let entry = Entry {
            size: 3,
            modified: (5, 5),
            link: vec![b'l'; 120],
            ..Entry::new(Kind::File, vec![b'n'; 200])
        };
        writer.entry(&entry, &mut &b"abc"[..]).unwrap();
        writer.finish().unwrap();
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for round in 0..20_000usize {
            let mut bytes = archive.clone();
            for _ in 0..=round % 4 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = usize::from(u16::from_le_bytes([state.to_le_bytes()[5], state.to_le_bytes()[6]]))
                    % bytes.len();
                bytes[at] = state.to_le_bytes()[3];
            }
            // The checksums are mended, so that what they guard is reached.
            for start in (0..bytes.len()).step_by(BLOCK) {
                let mut block = [0u8; BLOCK];
                block.copy_from_slice(&bytes[start..start + BLOCK]);
                if block[field::MAGIC].starts_with(b"ustar") {
                    let sum = format!("{:06o}\0 ", checksum(&block));
                    bytes[start + 148..start + 156].copy_from_slice(sum.as_bytes());
                }
            }
            let mut reader = Reader::new(&bytes[..]);
            while let Ok(Some(_)) = reader.next_entry() {
                let _ = reader.copy(&mut std::io::sink());
            }
        }
    }
}
