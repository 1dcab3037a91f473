//! A tar file as a set of members that can be read in any order. Only its headers are read to find them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::layer::header::{BLOCK, Header};
use crate::layer::path::normalise;
use crate::layer::pax::Pax;
use crate::limits::Limits;

#[derive(Debug, Clone)]
enum Member {
    File {
        offset: u64,
        size: u64,
    },
    /// A link to another member, by canonical path.
    Link(Vec<u8>),
}

/// The members of a tar file.
pub(crate) struct Archive {
    file: File,
    path: PathBuf,
    members: HashMap<Vec<u8>, Member>,
}

impl Archive {
    /// Opens the tar file at `path`, or in its place the one at `spool` that it was unpacked to. Errors name `path`.
    pub(crate) fn open(path: &Path, spool: Option<&Path>, limits: &Limits) -> Result<Self> {
        let file = File::open(spool.unwrap_or(path)).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::NotFound { what: path.display().to_string() },
            _ => Error::io("read", path, e),
        })?;
        let length = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
        let mut archive = Self { file, path: path.to_path_buf(), members: HashMap::new() };
        archive.scan(length, limits)?;
        Ok(archive)
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn scan(&mut self, length: u64, limits: &Limits) -> Result<()> {
        let bad = |reason: String| Error::bad_image(self.path.display().to_string(), reason);
        let cut = |entry: Option<&[u8]>| Error::Truncated {
            layer: self.path.display().to_string(),
            entry: entry.map(|name| String::from_utf8_lossy(name).into_owned()),
            reason: "the archive ends too early".into(),
        };
        let mut members = HashMap::new();
        let (mut at, mut seen) = (0_u64, 0_usize);
        let (mut pax, mut long_name, mut long_link) = (None::<Pax>, None, None);
        while at < length {
            let mut block = [0; BLOCK];
            self.file.read_exact_at(&mut block, at).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => cut(None),
                _ => Error::io("read", &self.path, e),
            })?;
            if block.iter().all(|&b| b == 0) {
                break;
            }
            seen += 1;
            if seen > limits.archive_members {
                let limit = limits.archive_members as u64;
                return Err(Error::Limit { place: self.place(), what: "number of members", limit });
            }
            let header = Header::new(&block).map_err(bad)?;
            let fields = header.fields().map_err(bad)?;
            let declared =
                u64::try_from(fields.size).map_err(|_| bad("a member's size is negative".into()))?;
            let mut name = Vec::new();
            header.name(&mut name);
            let body = at + BLOCK as u64;
            let mut size = declared;
            match fields.kind {
                b'x' | b'L' | b'K' => {
                    let size = usize::try_from(size).ok().filter(|&n| n <= limits.extension);
                    let mut bytes =
                        vec![0; size.ok_or_else(|| bad("an extension header is too large".into()))?];
                    self.file.read_exact_at(&mut bytes, body).map_err(|_| cut(None))?;
                    let text = |bytes: &[u8]| bytes.split(|&b| b == 0).next().unwrap_or_default().to_vec();
                    match fields.kind {
                        b'x' => pax = Some(Pax::parse(&bytes, limits).map_err(bad)?),
                        b'L' => long_name = Some(text(&bytes)),
                        _ => long_link = Some(text(&bytes)),
                    }
                }
                b'g' => {}
                kind => {
                    let pax = pax.take().unwrap_or_default();
                    let name = long_name.take().or(pax.path).unwrap_or(name);
                    let link = long_link.take().or(pax.link).unwrap_or_else(|| header.link().to_vec());
                    let mut canonical = Vec::new();
                    normalise(&name, limits, &mut canonical).map_err(bad)?;
                    match kind {
                        b'0' | 0 | b'7' => {
                            size = pax.size.unwrap_or(declared);
                            if body.checked_add(size).is_none_or(|end| end > length) {
                                return Err(cut(Some(&name)));
                            }
                            members.insert(canonical, Member::File { offset: body, size });
                        }
                        // Old `docker save` links equal layers to each other, relative to the link's directory.
                        b'2' => {
                            let mut full = canonical.clone();
                            full.truncate(canonical.iter().rposition(|&b| b == b'/').unwrap_or(0));
                            full.push(b'/');
                            full.extend_from_slice(&link);
                            let mut target = Vec::new();
                            if normalise(&full, limits, &mut target).is_ok() {
                                members.insert(canonical, Member::Link(target));
                            }
                            size = 0;
                        }
                        b'1' => {
                            let mut target = Vec::new();
                            normalise(&link, limits, &mut target).map_err(bad)?;
                            members.insert(canonical, Member::Link(target));
                            size = 0;
                        }
                        _ => size = 0,
                    }
                }
            }
            at = size
                .checked_next_multiple_of(BLOCK as u64)
                .and_then(|size| body.checked_add(size))
                .ok_or_else(|| bad("a member's size is out of range".into()))?;
        }
        if at > length {
            return Err(cut(None));
        }
        if seen == 0 {
            return Err(Error::bad_image(self.place(), "it is not a tar file, or empty"));
        }
        self.members = members;
        Ok(())
    }

    /// Offset and size of a member, links followed.
    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = name.trim_start_matches("./").as_bytes();
        for _ in 0..8 {
            match self.members.get(name)? {
                Member::File { offset, size } => return Some((*offset, *size)),
                Member::Link(target) => name = target,
            }
        }
        None
    }

    pub(crate) fn size(&self, name: &str) -> Option<u64> {
        self.find(name).map(|(_, size)| size)
    }

    /// A member's content as a stream.
    pub(crate) fn open_member(&self, name: &str) -> Option<impl Read + Send + use<>> {
        let (offset, size) = self.find(name)?;
        let file = self.file.try_clone().ok()?;
        Some(Section { file, offset, end: offset + size })
    }
}

struct Section {
    file: File,
    offset: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
        let length = out.len().min(left);
        let n = self.file.read_at(&mut out[..length], self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}
