//! What of the host a container is given as a shared folder: found and opened by the engine, so that nobody else opens a path.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::EngineError;
use crate::model::{ContainerConfig, Mount, MountKind};
use crate::paths::Paths;

/// A folder of the host, or one file of it.
#[derive(Debug)]
pub(crate) struct Source {
    /// The folder, opened only to be shared.
    pub(crate) folder: OwnedFd,
    /// The one file of it that is shared.
    pub(crate) file: Option<String>,
}

/// Where on the host a mount's files lie.
pub(crate) fn path(mount: &Mount, paths: &Paths) -> PathBuf {
    match mount.kind {
        MountKind::Bind => PathBuf::from(&mount.source),
        MountKind::Volume => paths.volumes().join(&mount.source).join("_data"),
    }
}

/// The shares that a container's mounts need: each folder once for reading and writing, and once for reading alone.
pub(crate) fn needed(config: &ContainerConfig, paths: &Paths) -> Vec<(PathBuf, bool)> {
    let mut needed = Vec::new();
    for mount in &config.mounts {
        let share = (path(mount, paths), mount.read_only);
        if !needed.contains(&share) {
            needed.push(share);
        }
    }
    needed
}

/// Whether a container's mounts can be had, before anything is created.
///
/// # Errors
/// They are too many, or one is neither folder nor plain file.
pub(crate) fn check(config: &ContainerConfig, paths: &Paths) -> Result<(), EngineError> {
    // A volume that has no name yet is one of its own, as are those that the image wants.
    let nameless = config.mounts.iter().filter(|mount| mount.source.is_empty()).count();
    let covered = |path: &String| {
        config.mounts.iter().any(|mount| mount.target == *path) || config.tmpfs.contains_key(path)
    };
    let wanted = config.volumes.iter().filter(|path| !covered(path)).count();
    let count = needed(config, paths).len() + nameless.saturating_sub(1) + wanted;
    if count > vmm::config::MAX_SHARES {
        return Err(EngineError::Option {
            option: format!("mounting {count} folders"),
            why: format!("a machine has at most {} shared folders", vmm::config::MAX_SHARES),
            next: "mount a folder that holds several of them".to_owned(),
        });
    }
    for mount in config.mounts.iter().filter(|mount| mount.kind == MountKind::Bind) {
        Source::open(Path::new(&mount.source))?;
    }
    Ok(())
}

impl Source {
    /// Opens a path of the host. Links are followed, as whoever names it would expect.
    ///
    /// # Errors
    /// There is no such path, or it is neither folder nor plain file.
    pub(crate) fn open(path: &Path) -> Result<Self, EngineError> {
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => {
                EngineError::Invalid(format!("bind source path does not exist: {}", path.display()))
            }
            _ => EngineError::io(format!("opening {}", path.display()))(e),
        };
        let whole = fs::canonicalize(path).map_err(failed)?;
        let kind = fs::metadata(&whole).map_err(failed)?.file_type();
        if kind.is_dir() {
            return folder(&whole).map(|folder| Self { folder, file: None }).map_err(failed);
        }
        if !kind.is_file() {
            return Err(EngineError::Option {
                option: format!("mounting {}", path.display()),
                why: "sockets, pipes and devices are this host's kernel's, and a machine has another"
                    .to_owned(),
                next: "mount a folder or a plain file".to_owned(),
            });
        }
        let name = whole.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        match (whole.parent(), name) {
            (Some(parent), Some(name)) => {
                folder(parent).map(|folder| Self { folder, file: Some(name) }).map_err(failed)
            }
            _ => Err(failed(io::Error::from(io::ErrorKind::InvalidFilename))),
        }
    }
}

fn folder(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn folders_and_files_are_shared_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("folder")).unwrap();
        fs::write(at("file"), "").unwrap();
        symlink("file", at("link")).unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        assert!(Source::open(&at("folder")).unwrap().file.is_none());
        assert_eq!(Source::open(&at("link")).unwrap().file.as_deref(), Some("file"));
        let refused = Source::open(&at("socket")).unwrap_err();
        assert!(refused.to_string().ends_with("socket cannot be done"), "{refused}");
        assert!(Source::open(Path::new("/dev/null")).unwrap_err().to_string().contains("/dev/null"));
        let missing = Source::open(&at("missing")).unwrap_err();
        assert!(missing.to_string().starts_with("bind source path does not exist"), "{missing}");
    }

    #[test]
    fn one_folder_is_shared_once_each_way() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::at(directory.path().to_owned(), directory.path().to_owned()).unwrap();
        let mount = |source: &str, target: &str, read_only| Mount {
            kind: if source.starts_with('/') { MountKind::Bind } else { MountKind::Volume },
            source: source.to_owned(),
            target: target.to_owned(),
            read_only,
            no_copy: false,
        };
        let mut config = ContainerConfig {
            mounts: vec![
                mount("data", "/a", false),
                mount("data", "/b", false),
                mount("data", "/c", true),
                mount("/", "/d", false),
            ],
            ..ContainerConfig::default()
        };
        let needed = needed(&config, &paths);
        assert_eq!(needed.len(), 3);
        assert_eq!(needed[0], (directory.path().join("volumes/data/_data"), false));
        assert!(check(&config, &paths).is_ok());
        for number in 0..vmm::config::MAX_SHARES {
            config.mounts.push(mount(&format!("v{number}"), &format!("/v{number}"), false));
        }
        assert!(check(&config, &paths).unwrap_err().to_string().contains("folders cannot be done"));
    }
}
