//! The writable disk: a sparse ext4 file, copied from a template that `mkfs.ext4` made once.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{Whence, lseek64};

use crate::EngineError;

/// Size of a container's writable disk in bytes; the file is sparse.
pub const WRITABLE_BYTES: u64 = 10 << 30;
/// Least size that can be asked for, in bytes.
pub const MIN_WRITABLE_BYTES: u64 = 64 << 20;

/// Part of the template's name, so that a change of the options below makes a new one.
const TEMPLATE_VERSION: u32 = 1;
/// Where programs of administrators are looked for, whatever the caller's environment says.
pub(crate) const PROGRAMS: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";
/// Bytes copied at a time.
const COPY: usize = 256 * 1024;

/// Makes a container's writable disk at `path` if it is not there; `bytes`: its size, else [`WRITABLE_BYTES`].
///
/// # Errors
/// As of [`create`].
pub fn ensure(path: &Path, bytes: Option<u64>, cache: &Path) -> Result<(), EngineError> {
    if path.exists() {
        return Ok(());
    }
    // A crash on the way leaves no half disk under the name that counts.
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    create(&temporary, bytes.unwrap_or(WRITABLE_BYTES), cache)?;
    fs::rename(&temporary, path).map_err(EngineError::io("making the container's writable disk"))
}

/// Makes a writable disk of so many bytes at `path`.
///
/// # Errors
/// `mkfs.ext4` is missing or fails, or the disk is full; nothing is left behind then.
pub fn create(path: &Path, bytes: u64, cache: &Path) -> Result<(), EngineError> {
    let template = template(cache, bytes)?;
    copy_sparse(&template, path).map_err(|e| {
        let _ = fs::remove_file(path);
        EngineError::io("making the container's writable disk")(e)
    })
}

/// The template's path; it is made on first use.
fn template(cache: &Path, bytes: u64) -> Result<PathBuf, EngineError> {
    let name = format!("writable-v{TEMPLATE_VERSION}-{bytes}");
    let path = cache.join(format!("{name}.ext4"));
    if path.exists() {
        return Ok(path);
    }
    let temporary = cache.join(format!("{name}.{}.new", std::process::id()));
    let made = make_template(&temporary, bytes).and_then(|()| {
        fs::rename(&temporary, &path).map_err(EngineError::io("storing the template of the writable disk"))
    });
    if made.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    made.map(|()| path)
}

fn make_template(path: &Path, bytes: u64) -> Result<(), EngineError> {
    let action = "making the template of the writable disk";
    let file = File::create(path).map_err(EngineError::io(action))?;
    file.set_len(bytes).map_err(EngineError::io(action))?;
    // Everything that can be left for later is, so that the template holds few blocks; the journal keeps a crash from losing the rest.
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-b", "4096", "-J", "size=8", "-I", "256", "-i", "16384", "-G", "256"])
        .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"])
        .args(["-O", "^resize_inode,^metadata_csum_seed,^orphan_file", "-L", "bulkhead"])
        .arg(path)
        .env("PATH", PROGRAMS)
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => file.sync_all().map_err(EngineError::io(action)),
        Ok(output) => Err(EngineError::io(action)(io::Error::other(format!(
            "mkfs.ext4: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(EngineError::MissingPart {
            part: "program mkfs.ext4",
            path: PathBuf::from("mkfs.ext4"),
            make: "apt install e2fsprogs",
        }),
        Err(e) => Err(EngineError::io(action)(e)),
    }
}

/// Copies only what the source holds; the rest stays a hole.
fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let length = source.metadata()?.len();
    let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    target.set_len(length)?;
    let mut buffer = vec![0u8; COPY];
    let mut position = 0;
    loop {
        let start = match lseek64(&source, position, Whence::SeekData) {
            Ok(start) => start,
            Err(nix::errno::Errno::ENXIO) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let end = lseek64(&source, start, Whence::SeekHole)?;
        let (mut at, end_at) = (u64::try_from(start).unwrap_or(0), u64::try_from(end).unwrap_or(0));
        while at < end_at {
            let want = usize::try_from(end_at - at).unwrap_or(COPY).min(COPY);
            source.read_exact_at(&mut buffer[..want], at)?;
            target.write_all_at(&buffer[..want], at)?;
            at += want as u64;
        }
        position = end;
    }
}

/// Bytes of a file that lie on disk.
///
/// # Errors
/// The file cannot be read.
pub fn allocated(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata(path)?.blocks() * 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writable_disk_is_sparse_clean_and_the_same_as_its_template() {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk");
        create(&disk, WRITABLE_BYTES, directory.path()).unwrap();
        assert_eq!(fs::metadata(&disk).unwrap().len(), WRITABLE_BYTES);
        assert!(allocated(&disk).unwrap() < 4 << 20, "{} bytes", allocated(&disk).unwrap());
        let check =
            Command::new("fsck.ext4").args(["-f", "-n"]).arg(&disk).env("PATH", "/usr/sbin:/sbin").output();
        assert!(check.unwrap().status.success());
        assert!(
            create(&disk, WRITABLE_BYTES, directory.path()).is_err(),
            "an existing disk is never overwritten"
        );
    }
}
