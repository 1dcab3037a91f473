//! Tar archives with every header dialect at hand, well formed or not.

use std::io::Write;

/// Appends tar entries, with every header dialect at hand.
#[derive(Default)]
pub struct Tar(
    /// The archive so far.
    pub Vec<u8>,
);

/// What an entry has beside its name.
#[derive(Clone)]
pub struct Meta {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Unix time, seconds.
    pub mtime: u64,
}

/// What is usual.
pub const META: Meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime: 1_700_000_000 };

impl Tar {
    /// A bare header.
    pub fn raw(&mut self, kind: u8, name: &str, link: &str, meta: &Meta, size: u64) -> &mut Self {
        let mut header = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        let name = name.as_bytes();
        let link = link.as_bytes();
        if name.len() > 100 || link.len() > 100 {
            let mut pax = Vec::new();
            if name.len() > 100 {
                pax.extend(pax_record("path", name));
            }
            if link.len() > 100 {
                pax.extend(pax_record("linkpath", link));
            }
            self.pax_raw(&pax);
        }
        put(0, &name[..name.len().min(100)]);
        put(100, format!("{:07o}\0", meta.mode).as_bytes());
        put(108, format!("{:07o}\0", meta.uid & 0o7_777_777).as_bytes());
        put(116, format!("{:07o}\0", meta.gid & 0o7_777_777).as_bytes());
        put(124, format!("{size:011o}\0").as_bytes());
        put(136, format!("{:011o}\0", meta.mtime).as_bytes());
        put(156, &[kind]);
        put(157, &link[..link.len().min(100)]);
        put(257, b"ustar\x0000");
        self.seal(header);
        self
    }

    fn seal(&mut self, mut header: [u8; 512]) {
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
    }

    fn pax_raw(&mut self, body: &[u8]) {
        let size = body.len() as u64;
        self.raw(b'x', "PaxHeaders/x", "", &META, size).body(body);
    }

    /// A PAX header for the next entry.
    pub fn pax(&mut self, records: &[(&str, &[u8])]) -> &mut Self {
        let body: Vec<u8> = records.iter().flat_map(|(k, v)| pax_record(k, v)).collect();
        self.pax_raw(&body);
        self
    }

    /// Content, padded to whole blocks.
    pub fn body(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// A regular file.
    pub fn file(&mut self, name: &str, content: &[u8]) -> &mut Self {
        self.raw(b'0', name, "", &META, content.len() as u64).body(content)
    }

    /// A regular file with another owner, mode or time.
    pub fn file_with(&mut self, name: &str, content: &[u8], meta: &Meta) -> &mut Self {
        self.raw(b'0', name, "", meta, content.len() as u64).body(content)
    }

    /// A directory.
    pub fn dir(&mut self, name: &str) -> &mut Self {
        self.raw(b'5', name, "", &Meta { mode: 0o755, ..META }, 0)
    }

    /// A symbolic link.
    pub fn symlink(&mut self, name: &str, target: &str) -> &mut Self {
        self.raw(b'2', name, target, &Meta { mode: 0o777, ..META }, 0)
    }

    /// A hard link.
    pub fn hardlink(&mut self, name: &str, target: &str) -> &mut Self {
        self.raw(b'1', name, target, &META, 0)
    }

    /// A device (`b'3'` character, `b'4'` block) or FIFO (`b'6'`).
    pub fn device(&mut self, kind: u8, name: &str, major: u32, minor: u32) -> &mut Self {
        self.raw(kind, name, "", &META, 0);
        let start = self.0.len() - 512;
        let mut header = [0; 512];
        header.copy_from_slice(&self.0[start..]);
        self.0.truncate(start);
        header[329..337].copy_from_slice(format!("{major:07o}\0").as_bytes());
        header[337..345].copy_from_slice(format!("{minor:07o}\0").as_bytes());
        self.seal(header);
        self
    }

    /// The archive, ended.
    pub fn end(&mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        std::mem::take(&mut self.0)
    }
}

fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let payload = key.len() + value.len() + 3;
    let mut length = payload + 1;
    while payload + length.to_string().len() != length {
        length += 1;
    }
    let mut out = format!("{length} {key}=").into_bytes();
    out.extend_from_slice(value);
    out.push(b'\n');
    out
}

/// How layers are packed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pack {
    /// Not at all.
    Plain,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// Packs a tar; its bytes and their media type.
#[must_use]
pub fn pack(tar: &[u8], how: Pack) -> (Vec<u8>, &'static str) {
    match how {
        Pack::Plain => (tar.to_vec(), "application/vnd.oci.image.layer.v1.tar"),
        Pack::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(tar).unwrap();
            (out.finish().unwrap(), "application/vnd.oci.image.layer.v1.tar+gzip")
        }
        Pack::Zstd => (zstd::encode_all(tar, 1).unwrap(), "application/vnd.oci.image.layer.v1.tar+zstd"),
    }
}

/// Bytes that do not compress, the same for the same seed.
#[must_use]
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}
