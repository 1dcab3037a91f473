//! `lister ROOT [EXCLUDED...]`: one line for each path below ROOT, with all that can be seen of it: mode, owner, size, time,
//! links, device number, content's SHA-256 or link's target, extended attributes.
//!
//! Mount points and what is below them are not listed but named (`mount PATH`), for they are not the image's; nor are
//! paths that begin with an EXCLUDED one. Attributes of `trusted.` are left out: a container may not see them. Sorted.
//! Static and without configuration, so that it runs in a guest as on the host.

use std::ffi::{CString, OsStr};
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

fn main() -> io::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let root = arguments.next().ok_or_else(|| io::Error::other("usage: lister ROOT [EXCLUDED...]"))?;
    let mut excluded: Vec<PathBuf> = arguments.map(|path| root.join(path)).collect();
    let mut out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    for mount in mounts()?.into_iter().filter(|mount| *mount != root) {
        if let Ok(below) = mount.strip_prefix(&root) {
            writeln!(out, "mount {}", below.as_os_str().as_bytes().escape_ascii())?;
            excluded.push(mount);
        }
    }
    let mut pending = vec![root.clone()];
    while let Some(path) = pending.pop() {
        if excluded.contains(&path) {
            continue;
        }
        let told = describe(&path, &mut pending);
        let line = told.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        let below = path.strip_prefix(&root).unwrap_or(&path);
        writeln!(out, "/{} {line}", below.as_os_str().as_bytes().escape_ascii())?;
    }
    out.flush()
}

/// Mount points, as the kernel writes them: blanks and backslashes as `\ooo`.
fn mounts() -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in fs::read("/proc/self/mountinfo")?.split(|&b| b == b'\n') {
        let Some(escaped) = line.split(|&b| b == b' ').nth(4) else { continue };
        let mut name = Vec::new();
        let mut rest = escaped;
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            let code = rest.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
            match (byte, code.and_then(|digits| u8::from_str_radix(digits, 8).ok())) {
                (b'\\', Some(code)) => {
                    name.push(code);
                    rest = &rest[3..];
                }
                _ => name.push(byte),
            }
        }
        found.push(PathBuf::from(OsStr::from_bytes(&name)));
    }
    Ok(found)
}

fn describe(path: &Path, pending: &mut Vec<PathBuf>) -> io::Result<String> {
    let m = fs::symlink_metadata(path)?;
    let is_dir = m.is_dir();
    // File systems differ in sizes and link counts of directories.
    let (size, links) = if is_dir { (0, 0) } else { (m.size(), m.nlink()) };
    let mut line = format!(
        "{:o} {}:{} size={size} mtime={}.{:09} links={links} rdev={}",
        m.mode(),
        m.uid(),
        m.gid(),
        m.mtime(),
        m.mtime_nsec(),
        m.rdev(),
    );
    content(path, &m, &mut line, pending)?;
    for (name, value) in xattrs(path)? {
        line.push_str(&format!(" {}={}", name.escape_ascii(), value.escape_ascii()));
    }
    Ok(line)
}

fn content(path: &Path, m: &Metadata, line: &mut String, pending: &mut Vec<PathBuf>) -> io::Result<()> {
    if m.is_dir() {
        for entry in fs::read_dir(path)? {
            pending.push(entry?.path());
        }
    } else if m.is_symlink() {
        let target = fs::read_link(path)?;
        line.push_str(&format!(" -> {}", target.as_os_str().as_bytes().escape_ascii()));
    } else if m.is_file() {
        let mut hash = Sha256::new();
        let mut file = File::open(path)?;
        let mut buffer = vec![0; 128 << 10];
        loop {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
        }
        line.push_str(" sha256=");
        for byte in hash.finalize() {
            line.push_str(&format!("{byte:02x}"));
        }
    }
    Ok(())
}

/// Names and values, sorted.
fn xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut names = vec![0_u8; 64 << 10];
    // SAFETY: path and buffer are valid for the length given.
    let n = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let Ok(n) = usize::try_from(n) else {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ENOTSUP) { Ok(Vec::new()) } else { Err(error) };
    };
    let mut out = Vec::new();
    for name in
        names[..n].split(|&b| b == 0).filter(|name| !name.is_empty() && !name.starts_with(b"trusted."))
    {
        let c_name = CString::new(name)?;
        let mut value = vec![0_u8; 64 << 10];
        // SAFETY: path, name and buffer are valid for the length given.
        let n = unsafe {
            libc::lgetxattr(path.as_ptr(), c_name.as_ptr(), value.as_mut_ptr().cast(), value.len())
        };
        value.truncate(usize::try_from(n).map_err(|_| io::Error::last_os_error())?);
        out.push((name.to_vec(), value));
    }
    out.sort();
    Ok(out)
}
