//! Files of this host into tar archives and out of them. What comes out of a container is hostile: its names lead nowhere but
//! below the target, and through no link.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use tar::{Archive, Builder, EntryType, Header};

/// Permissions that a file from a container may have here: no set-user-id among them.
const PERMISSIONS: u32 = 0o777;

/// Latest time that a file from a container may have, in seconds since 1970: the year 2500.
const LATEST: u64 = 16_725_225_600;

/// Where an archive's files go: the first part of every name is replaced by this.
#[derive(Debug, Clone)]
pub struct Target {
    /// An existing directory.
    pub directory: PathBuf,
    /// The name in it; `None`: the files below the archive's first part go right into the directory.
    pub name: Option<PathBuf>,
}

/// Unpacks an archive; returns the bytes of its files. `owners`: files belong to whom the archive says.
///
/// # Errors
/// The archive is broken, one of its names leads elsewhere, or the disk is full.
pub fn unpack(archive: impl Read, target: &Target, owners: bool) -> io::Result<u64> {
    let mut archive = Archive::new(archive);
    let mut bytes = 0u64;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let Some(place) = place(&entry.path()?, target)? else { continue };
        let header = entry.header().clone();
        let mode = header.mode()? & PERMISSIONS;
        match header.entry_type() {
            EntryType::Directory => match fs::symlink_metadata(&place) {
                Ok(metadata) if metadata.is_dir() => {}
                Ok(_) => return Err(refused(&place, "it is there and no directory")),
                Err(_) => fs::create_dir(&place)?,
            },
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                clear(&place)?;
                let mut options = OpenOptions::new();
                let mut file = options.write(true).create_new(true).mode(mode).open(&place)?;
                bytes = bytes.saturating_add(io::copy(&mut entry, &mut file)?);
                file.set_modified(UNIX_EPOCH + Duration::from_secs(header.mtime()?.min(LATEST)))?;
            }
            EntryType::Symlink => {
                let to = entry.link_name()?.ok_or_else(|| refused(&place, "a link without a target"))?;
                clear(&place)?;
                std::os::unix::fs::symlink(to, &place)?;
                continue;
            }
            EntryType::Link => {
                let to = entry.link_name()?.ok_or_else(|| refused(&place, "a link without a target"))?;
                let to = self::place(&to, target)?.ok_or_else(|| refused(&place, "a link to the root"))?;
                if !fs::symlink_metadata(&to)?.is_file() {
                    return Err(refused(&place, "a hard link to what is no file"));
                }
                clear(&place)?;
                fs::hard_link(to, &place)?;
                continue;
            }
            _ => {
                eprintln!("bulkhead: {} is no file, directory or link, and was left out", place.display());
                continue;
            }
        }
        // A link cannot be here: what is named was just made, or is a directory.
        fs::set_permissions(&place, fs::Permissions::from_mode(mode))?;
        if owners {
            let number = |id: u64| u32::try_from(id).map_err(io::Error::other);
            std::os::unix::fs::lchown(&place, Some(number(header.uid()?)?), Some(number(header.gid()?)?))?;
        }
    }
    Ok(bytes)
}

/// Where an entry goes; `None` for the archive's first part if that has no name here.
fn place(name: &Path, target: &Target) -> io::Result<Option<PathBuf>> {
    let named = |part: &Component<'_>| !matches!(part, Component::CurDir | Component::RootDir);
    let mut parts = name.components().filter(named).skip(1).peekable();
    let mut place = target.directory.clone();
    if let Some(name) = &target.name {
        place.push(name);
    } else if parts.peek().is_none() {
        return Ok(None);
    }
    for part in parts {
        let Component::Normal(part) = part else { return Err(refused(name, "its name leads elsewhere")) };
        // What is above it must be a directory, not a link to one.
        if fs::symlink_metadata(&place).is_ok_and(|above| !above.is_dir()) {
            return Err(refused(name, "its name leads through a link"));
        }
        place.push(part);
    }
    Ok(Some(place))
}

fn refused(name: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", name.display()))
}

/// Takes away what is in the way of a file, unless it is a directory.
fn clear(place: &Path) -> io::Result<()> {
    match fs::symlink_metadata(place) {
        Ok(metadata) if metadata.is_dir() => Err(refused(place, "a directory is in its place")),
        Ok(_) => fs::remove_file(place),
        Err(_) => Ok(()),
    }
}

/// Writes an archive of a file, or of a directory with everything below it; returns the bytes of its files. In the archive
/// it has the name `name`. `owners`: with whom the files belong to; else they belong to root.
///
/// # Errors
/// Something cannot be read or written.
pub fn pack(source: &Path, name: &Path, owners: bool, to: impl Write) -> io::Result<u64> {
    let mut builder = Builder::new(to);
    let mut bytes = 0u64;
    let mut waiting = vec![(source.to_owned(), name.to_owned())];
    while let Some((path, name)) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path)?;
        let mut header = Header::new_gnu();
        header.set_metadata(&metadata);
        if !owners {
            header.set_uid(0);
            header.set_gid(0);
        }
        let kind = metadata.file_type();
        if kind.is_dir() {
            header.set_size(0);
            builder.append_data(&mut header, directory_name(&name), io::empty())?;
            let mut inside = fs::read_dir(&path)?.collect::<io::Result<Vec<_>>>()?;
            inside.sort_by_key(fs::DirEntry::file_name);
            waiting.extend(inside.iter().rev().map(|entry| (entry.path(), name.join(entry.file_name()))));
        } else if kind.is_file() {
            let file = File::open(&path)?;
            header.set_size(metadata.size());
            bytes = bytes.saturating_add(metadata.size());
            // A file that grows meanwhile is cut; one that shrinks is an error of the builder's.
            builder.append_data(&mut header, &name, file.take(metadata.size()))?;
        } else if kind.is_symlink() {
            header.set_size(0);
            builder.append_link(&mut header, &name, fs::read_link(&path)?)?;
        } else {
            eprintln!("bulkhead: {} is no file, directory or link, and was left out", path.display());
        }
    }
    builder.into_inner()?.flush()?;
    Ok(bytes)
}

/// The name of a directory: with a slash, so that `.` is one, too.
fn directory_name(name: &Path) -> PathBuf {
    let mut name = name.as_os_str().to_owned();
    name.push("/");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(directory: &Path, name: Option<&str>) -> Target {
        Target { directory: directory.to_owned(), name: name.map(PathBuf::from) }
    }

    /// An archive of entries: kind, name, link target or content.
    fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (kind, name, content) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o4755);
            header.set_uid(0);
            header.set_gid(0);
            // As a hostile one writes it: nobody checks the name.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            if kind.is_symlink() || kind.is_hard_link() {
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
                header.set_size(0);
                header.set_cksum();
                builder.append(&header, io::empty()).unwrap();
            } else {
                header.set_size(content.len() as u64);
                header.set_cksum();
                builder.append(&header, content.as_bytes()).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_tree_comes_out_as_it_went_in() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        fs::create_dir_all(source.join("a/b")).unwrap();
        fs::write(source.join("a/b/file"), "text").unwrap();
        std::os::unix::fs::symlink("b/file", source.join("a/link")).unwrap();
        let mut tar = Vec::new();
        assert_eq!(pack(&source, Path::new("any"), false, &mut tar).unwrap(), 4);
        assert_eq!(unpack(tar.as_slice(), &target(directory.path(), Some("copy")), false).unwrap(), 4);
        assert_eq!(fs::read_to_string(directory.path().join("copy/a/link")).unwrap(), "text");
        let into = directory.path().join("into");
        fs::create_dir(&into).unwrap();
        unpack(tar.as_slice(), &target(&into, None), false).unwrap();
        assert_eq!(fs::read_to_string(into.join("a/b/file")).unwrap(), "text");
        // `.` is a name, too: what is in it goes into what is there.
        let mut tar = Vec::new();
        pack(&source, Path::new("."), false, &mut tar).unwrap();
        let names: Vec<_> = Archive::new(tar.as_slice())
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().display().to_string())
            .collect();
        assert!(
            names.contains(&"./a/b/file".to_owned()) || names.contains(&"a/b/file".to_owned()),
            "{names:?}"
        );
    }

    #[test]
    fn nothing_is_written_outside_the_target() {
        use EntryType as E;
        let outside = tempfile::tempdir().unwrap();
        let victim = outside.path().join("victim");
        let link = outside.path().display().to_string();
        let through = victim.display().to_string();
        for entries in [
            vec![(E::Regular, "x/../victim", "bad")],
            vec![(E::Regular, "x/a/../../victim", "bad")],
            vec![
                (E::Directory, "x", ""),
                (E::Symlink, "x/l", link.as_str()),
                (E::Regular, "x/l/victim", "bad"),
            ],
            vec![(E::Symlink, "x", link.as_str()), (E::Regular, "x/victim", "bad")],
            vec![(E::Symlink, "x", link.as_str()), (E::Directory, "x", "")],
            vec![(E::Directory, "x", ""), (E::Symlink, "x/l", through.as_str()), (E::Link, "x/h", "x/l")],
            vec![(E::Directory, "x", ""), (E::Link, "x/h", "x/../../etc/passwd")],
        ] {
            let inside = tempfile::tempdir().unwrap();
            let tar = archive(&entries);
            assert!(unpack(tar.as_slice(), &target(inside.path(), Some("x")), false).is_err(), "{entries:?}");
            assert!(!victim.exists(), "{entries:?}");
        }
        // A link in a file's place is replaced, not followed; set-user-id is gone.
        let inside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(&victim, inside.path().join("f")).unwrap();
        unpack(archive(&[(E::Regular, "x", "good")]).as_slice(), &target(inside.path(), Some("f")), false)
            .unwrap();
        assert!(!victim.exists());
        assert_eq!(fs::metadata(inside.path().join("f")).unwrap().mode() & 0o7777, 0o755);
        // The first part of an absolute name is replaced like any other.
        let absolute = archive(&[(E::Directory, "/etc", ""), (E::Regular, "/etc/x", "good")]);
        unpack(absolute.as_slice(), &target(inside.path(), Some("g")), false).unwrap();
        assert_eq!(fs::read_to_string(inside.path().join("g/x")).unwrap(), "good");
    }
}
