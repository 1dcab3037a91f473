//! What the tests share: images made from real tars, disks looked at through the kernel, and tools that may be
//! absent.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails fails its test")]

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use image_unpack::{Digest, RootfsDisk};

/// Whether a program is installed; says loudly that a test is skipped if not.
pub fn have(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()));
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Runs a program; its output, or a panic with its words.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

/// Appends tar entries, with every header dialect at hand.
#[derive(Default)]
pub struct Tar(pub Vec<u8>);

#[derive(Clone)]
pub struct Meta {
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
}

pub const META: Meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime: 1_700_000_000 };

impl Tar {
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

    pub fn body(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(&mut self, name: &str, content: &[u8]) -> &mut Self {
        self.raw(b'0', name, "", &META, content.len() as u64).body(content)
    }

    pub fn file_with(&mut self, name: &str, content: &[u8], meta: &Meta) -> &mut Self {
        self.raw(b'0', name, "", meta, content.len() as u64).body(content)
    }

    pub fn dir(&mut self, name: &str) -> &mut Self {
        self.raw(b'5', name, "", &Meta { mode: 0o755, ..META }, 0)
    }

    pub fn symlink(&mut self, name: &str, target: &str) -> &mut Self {
        self.raw(b'2', name, target, &Meta { mode: 0o777, ..META }, 0)
    }

    pub fn hardlink(&mut self, name: &str, target: &str) -> &mut Self {
        self.raw(b'1', name, target, &META, 0)
    }

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
    Plain,
    Gzip,
    Zstd,
}

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

/// An OCI layout in the making.
pub struct Layout {
    pub dir: PathBuf,
}

impl Layout {
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir: dir.to_path_buf() }
    }

    pub fn blob(&self, bytes: &[u8]) -> (Digest, usize) {
        let digest = Digest::of(bytes);
        fs::write(self.blob_path(digest), bytes).unwrap();
        (digest, bytes.len())
    }

    pub fn blob_path(&self, digest: Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    /// Writes the documents for layers that are blobs already: media type, digest, size and diff id of each.
    pub fn finish(&self, layers: &[(String, Digest, usize, Digest)]) -> Digest {
        let diff_ids: Vec<String> = layers.iter().map(|l| l.3.to_string()).collect();
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Env": ["A=b"], "Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let (config, config_size) = self.blob(config.to_string().as_bytes());
        let descriptors: Vec<_> = layers
            .iter()
            .map(|(kind, digest, size, _)| {
                serde_json::json!({"mediaType": kind, "digest": digest.to_string(), "size": size})
            })
            .collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                       "digest": config.to_string(), "size": config_size},
            "layers": descriptors,
        });
        let (manifest, size) = self.blob(manifest.to_string().as_bytes());
        let index = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": manifest.to_string(), "size": size,
                "annotations": {"org.opencontainers.image.ref.name": "t"}}],
        });
        fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
        config
    }

    /// An image of these tars.
    pub fn image(&self, tars: &[Vec<u8>], how: Pack) -> Digest {
        let layers: Vec<_> = tars
            .iter()
            .map(|tar| {
                let (bytes, kind) = pack(tar, how);
                let (digest, size) = self.blob(&bytes);
                (kind.to_owned(), digest, size, Digest::of(tar))
            })
            .collect();
        self.finish(&layers)
    }

    pub fn source(&self) -> image_unpack::Source {
        format!("oci:{}:t", self.dir.display()).parse().unwrap()
    }
}

/// The disk as one file, as a machine sees it.
pub fn flatten(disk: &RootfsDisk, path: &Path) {
    let mut out = File::create(path).unwrap();
    let mut total = 0;
    for extent in &disk.extents {
        assert_eq!(extent.offset % 4096, 0);
        assert_eq!(extent.length % 4096, 0);
        assert!(extent.length > 0);
        let file = File::open(&extent.path).unwrap();
        total += std::io::copy(&mut file.take(extent.length), &mut out).unwrap();
    }
    assert_eq!(total, disk.size);
}

/// A disk mounted read-only; unmounted when dropped.
pub struct Mount {
    pub at: PathBuf,
}

impl Mount {
    /// Mounts an EROFS image, if this machine can; says loudly if not.
    pub fn erofs(image: &Path, at: &Path) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        if !is_root() {
            eprintln!("skipped: mounting needs root");
            return None;
        }
        let output = Command::new("mount")
            .args(["-t", "erofs", "-o", "loop,ro,acl,user_xattr"])
            .args([image, at])
            .output()
            .unwrap();
        if !output.status.success() {
            let known = fs::read_to_string("/proc/filesystems").unwrap_or_default().contains("erofs");
            assert!(!known, "mount: {}", String::from_utf8_lossy(&output.stderr));
            eprintln!("skipped: this kernel has no EROFS");
            return None;
        }
        Some(Self { at: at.to_path_buf() })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.at).status();
    }
}

/// `fsck.erofs` finds nothing to say about the image.
pub fn fsck(image: &Path) {
    if have("fsck.erofs") {
        let text = run("fsck.erofs", &[image.to_str().unwrap()]);
        assert!(!text.contains("rror") && !text.contains("orrupt"), "{text}");
    }
}

/// All that can be seen of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of what is not a directory.
    pub size: u64,
    pub mtime: (i64, i64),
    pub nlink: u64,
    pub rdev: u64,
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// Digest of a file's content, target of a symlink.
    pub content: String,
}

pub type Tree = BTreeMap<PathBuf, Seen>;

/// Looks at everything below `root`.
pub fn snapshot(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(path) = pending.pop() {
        let m = fs::symlink_metadata(&path).unwrap();
        let kind = m.file_type();
        let mut content = String::new();
        if kind.is_file() {
            let mut hash = Vec::new();
            File::open(&path).unwrap().read_to_end(&mut hash).unwrap();
            content = Digest::of(&hash).to_string();
        } else if kind.is_symlink() {
            content = fs::read_link(&path).unwrap().to_string_lossy().into_owned();
        } else if kind.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let is_dir = kind.is_dir();
        let seen = Seen {
            mode: m.mode(),
            uid: m.uid(),
            gid: m.gid(),
            size: if is_dir { 0 } else { m.size() },
            mtime: (m.mtime(), m.mtime_nsec()),
            // File systems differ in how they count directories.
            nlink: if is_dir { 0 } else { m.nlink() },
            rdev: m.rdev(),
            xattrs: xattrs(&path),
            content,
        };
        tree.insert(path.strip_prefix(root).unwrap().to_path_buf(), seen);
    }
    tree
}

fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut names = vec![0_u8; 1 << 16];
    // SAFETY: path and buffer are valid for the length given.
    let n = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let n = usize::try_from(n).unwrap_or(0);
    let mut out = BTreeMap::new();
    for name in names[..n].split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let c_name = CString::new(name).unwrap();
        let mut value = vec![0_u8; 1 << 16];
        // SAFETY: path, name and buffer are valid for the length given.
        let n = unsafe {
            libc::lgetxattr(path.as_ptr(), c_name.as_ptr(), value.as_mut_ptr().cast(), value.len())
        };
        value.truncate(usize::try_from(n).unwrap());
        out.insert(OsString::from_vec(name.to_vec()), value);
    }
    out
}

/// Panics with the first differences of two trees.
pub fn assert_same(ours: &Tree, theirs: &Tree, who: &str) {
    let mut differences = Vec::new();
    for path in ours.keys().chain(theirs.keys().filter(|path| !ours.contains_key(*path))) {
        if ours.get(path) != theirs.get(path) {
            differences.push(format!(
                "{path:?}\n  ours  {:?}\n  {who} {:?}",
                ours.get(path),
                theirs.get(path)
            ));
        }
    }
    let shown = differences.len().min(10);
    assert!(differences.is_empty(), "{} differ\n{}", differences.len(), differences[..shown].join("\n"));
    assert!(!ours.is_empty());
}

/// A registry of Debian's `docker-registry` on loopback; ends when dropped.
pub struct Registry {
    child: Child,
    pub address: String,
}

impl Registry {
    /// Starts one with `extra` lines of YAML under `http:` and at top level.
    pub fn start(dir: &Path, http: &str, top: &str) -> Option<Self> {
        if !have("docker-registry") {
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let config = dir.join("registry.yml");
        let data = dir.join("registry");
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             http:\n  addr: {address}\n{http}{top}",
            data.display()
        );
        fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { child, address };
        for _ in 0..200 {
            if TcpStream::connect(&registry.address).is_ok() {
                return Some(registry);
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        panic!("docker-registry does not listen");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes that do not compress, the same for the same seed.
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
