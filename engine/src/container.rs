//! A container on disk: one directory with its lock, its description, its state and its writable disk.
//!
//! Whoever owns a running container holds its lock; a lock that can be taken means that the owner is gone, so the state file
//! is corrected, and what was meant to be temporary is removed, by whoever comes next. No daemon is needed for that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::EngineError;

/// Most bytes of a state file.
const MAX_STATE: u64 = 1 << 20;
/// Hexadecimal digits of an id, as Docker's.
const ID_DIGITS: usize = 64;
/// Name of the lock of all containers, beside their directories.
const REGISTRY_LOCK: &str = ".lock";
/// Hexadecimal digits that people see.
const SHORT_ID: usize = 12;

/// What is known of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// 64 hexadecimal digits.
    pub id: String,
    /// The image as it was named.
    pub image: String,
    /// The command line.
    pub command: Vec<String>,
    /// Seconds since 1970.
    pub created: u64,
    /// Remove it when it ends.
    pub auto_remove: bool,
    /// `kvm` or `uml`.
    pub accelerator: String,
    /// What stands between guest and host, for people.
    pub boundary: String,
    /// Process that owns it while it runs. It takes SIGTERM as the wish to stop.
    pub supervisor: u32,
    /// Where it is in its life.
    pub state: State,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "status")]
pub enum State {
    /// Its machine is being started.
    Created,
    /// Its process runs.
    Running,
    /// It ended.
    Exited {
        /// The exit code of its process, or 128 plus the signal; 137 if its owner died.
        code: u8,
        /// Seconds since 1970.
        finished: u64,
        /// The guest's kernel killed a process for lack of memory.
        oom_killed: bool,
    },
}

/// All containers of one state directory.
#[derive(Debug, Clone)]
pub struct Containers(PathBuf);

/// A container that this process owns: it holds the lock.
#[derive(Debug)]
pub struct Owned {
    directory: PathBuf,
    /// What is known of it; [`Owned::save`] writes it down.
    pub description: Description,
    _lock: Flock<File>,
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl Description {
    /// The id as people see it.
    #[must_use]
    pub fn short_id(&self) -> &str {
        &self.id[..SHORT_ID.min(self.id.len())]
    }
}

impl Containers {
    /// The containers in a directory, which is made.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        let _ = fs::create_dir_all(&directory);
        Self(directory)
    }

    /// Makes a container's directory and takes its lock.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn create(&self, describe: impl FnOnce(String) -> Description) -> Result<Owned, EngineError> {
        let id = random_id().map_err(EngineError::io("reading random bytes"))?;
        // Nobody may take a directory for a dead owner's before it is locked.
        let _registry = self.registry(FlockArg::LockExclusive)?;
        let directory = self.0.join(&id);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(EngineError::io(format!("making the directory {}", directory.display())))?;
        let lock = lock(&directory)?.ok_or_else(|| {
            EngineError::io("locking the new container")(io::Error::from(io::ErrorKind::WouldBlock))
        })?;
        let owned = Owned { directory, description: describe(id), _lock: lock };
        owned.save()?;
        Ok(owned)
    }

    /// Every container, newest first, each with the truth about its state.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<Vec<Description>, EngineError> {
        let _registry = self.registry(FlockArg::LockShared)?;
        let mut all: Vec<Description> = self.directories()?.iter().filter_map(|d| correct(d)).collect();
        all.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        Ok(all)
    }

    /// Corrects the state of containers whose owner is gone and removes the temporary ones.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn collect(&self) -> Result<(), EngineError> {
        let _registry = self.registry(FlockArg::LockShared)?;
        self.directories()?.iter().for_each(|d| drop(correct(d)));
        Ok(())
    }

    /// Removes a container that does not run, by id or unambiguous beginning of it. Returns its id.
    ///
    /// # Errors
    /// There is no such container, several, or it runs.
    pub fn remove(&self, name: &str) -> Result<String, EngineError> {
        let _registry = self.registry(FlockArg::LockShared)?;
        let directory = self.find(name)?;
        let Some(_lock) = lock(&directory)? else {
            return Err(EngineError::Option {
                option: format!("rm {name}"),
                why: "the container is running".to_owned(),
                next: format!("bulkhead stop {name}"),
            });
        };
        remove_directory(&directory)?;
        Ok(directory.file_name().map(|f| f.to_string_lossy().into_owned()).unwrap_or_default())
    }

    /// The owner of a running container, or `None` if it does not run.
    ///
    /// # Errors
    /// There is no such container, or several.
    pub fn supervisor(&self, name: &str) -> Result<Option<Pid>, EngineError> {
        let _registry = self.registry(FlockArg::LockShared)?;
        let directory = self.find(name)?;
        // Who holds the lock lives, so its number is still its own.
        let running = lock(&directory)?.is_none();
        let pid = load(&directory).and_then(|d| i32::try_from(d.supervisor).ok()).filter(|pid| *pid > 1);
        Ok(pid.filter(|_| running).map(Pid::from_raw))
    }

    /// The directory of a container, by id or unambiguous beginning of it.
    fn find(&self, name: &str) -> Result<PathBuf, EngineError> {
        let matches = |path: &Path| path.file_name().is_some_and(|f| f.to_string_lossy().starts_with(name));
        let mut found = self.directories()?.into_iter().filter(|d| !name.is_empty() && matches(d));
        match (found.next(), found.next()) {
            (Some(directory), None) => Ok(directory),
            _ => Err(EngineError::NoContainer(name.to_owned())),
        }
    }

    /// The lock of all containers: exclusive while one is being made, shared while they are looked at.
    fn registry(&self, how: FlockArg) -> Result<Flock<File>, EngineError> {
        let file = open_lock(&self.0.join(REGISTRY_LOCK))?;
        Flock::lock(file, how).map_err(|(_, e)| EngineError::io("locking the containers")(e.into()))
    }

    fn directories(&self) -> Result<Vec<PathBuf>, EngineError> {
        let read = || -> io::Result<Vec<PathBuf>> {
            let all = fs::read_dir(&self.0)?.map(|entry| entry.map(|e| e.path()));
            all.filter(|path| path.as_ref().map_or(true, |p| !p.ends_with(REGISTRY_LOCK))).collect()
        };
        read().map_err(EngineError::io(format!("reading the directory {}", self.0.display())))
    }
}

impl Owned {
    /// The container's directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes the description down, whole or not at all.
    ///
    /// # Errors
    /// The disk is full or broken.
    pub fn save(&self) -> Result<(), EngineError> {
        save(&self.directory, &self.description).map_err(EngineError::io("writing the container's state"))
    }

    /// Removes the container and everything in it.
    ///
    /// # Errors
    /// The directory cannot be removed.
    pub fn remove(self) -> Result<(), EngineError> {
        remove_directory(&self.directory)
    }
}

/// Removes the description last, so that a crash on the way leaves something that is still recognised.
fn remove_directory(directory: &Path) -> Result<(), EngineError> {
    fs::remove_dir_all(directory).map_err(EngineError::io(format!("removing {}", directory.display())))
}

fn open_lock(path: &Path) -> Result<File, EngineError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(EngineError::io(format!("opening {}", path.display())))
}

/// Takes the lock of a container, or tells that somebody holds it.
fn lock(directory: &Path) -> Result<Option<Flock<File>>, EngineError> {
    let path = directory.join("lock");
    let file = open_lock(&path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, e)) => Err(EngineError::io(format!("locking {}", path.display()))(e.into())),
    }
}

fn save(directory: &Path, description: &Description) -> io::Result<()> {
    let temporary = directory.join("state.json.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec(description)?)?;
    // A temporary container does not survive its owner anyway; the others must survive a crash of the host.
    if !description.auto_remove {
        file.sync_data()?;
    }
    fs::rename(&temporary, directory.join("state.json"))
}

fn load(directory: &Path) -> Option<Description> {
    let mut text = String::new();
    File::open(directory.join("state.json")).ok()?.take(MAX_STATE).read_to_string(&mut text).ok()?;
    let description: Description = serde_json::from_str(&text).ok()?;
    let id_fits = directory.file_name().is_some_and(|name| name.to_string_lossy() == description.id);
    id_fits.then_some(description)
}

/// The truth about one container: if nobody owns it, it does not run, whatever its file says.
fn correct(directory: &Path) -> Option<Description> {
    let Ok(Some(_lock)) = lock(directory) else { return load(directory) };
    let Some(mut description) = load(directory) else {
        // Its owner died before it was described: nothing of worth is in it.
        let _ = fs::remove_dir_all(directory);
        return None;
    };
    if matches!(description.state, State::Exited { .. }) && !description.auto_remove {
        return Some(description);
    }
    if description.auto_remove {
        let _ = fs::remove_dir_all(directory);
        return None;
    }
    description.state = State::Exited { code: 137, finished: now(), oom_killed: false };
    let _ = save(directory, &description);
    Some(description)
}

fn random_id() -> io::Result<String> {
    let mut bytes = [0u8; ID_DIGITS / 2];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(auto_remove: bool) -> impl FnOnce(String) -> Description {
        move |id| Description {
            id,
            image: "busybox".into(),
            command: vec!["true".into()],
            created: now(),
            auto_remove,
            accelerator: "uml".into(),
            boundary: "user-space kernel".into(),
            supervisor: std::process::id(),
            state: State::Running,
        }
    }

    #[test]
    fn a_dead_owner_is_found_out_and_temporary_containers_are_collected() {
        let directory = tempfile::tempdir().unwrap();
        let containers = Containers::new(directory.path().to_owned());
        let kept = containers.create(describe(false)).unwrap();
        let temporary = containers.create(describe(true)).unwrap();
        assert_eq!(containers.list().unwrap().len(), 2);
        assert!(containers.list().unwrap().iter().all(|c| c.state == State::Running));
        assert!(matches!(containers.remove(&kept.description.id), Err(EngineError::Option { .. })));
        assert_eq!(containers.supervisor(&kept.description.id).unwrap(), Some(Pid::this()));

        // Their owner dies: the locks are gone, the files are not.
        let id = kept.description.id.clone();
        drop((kept, temporary));
        fs::create_dir(directory.path().join("never-described")).unwrap();
        let list = containers.list().unwrap();
        assert_eq!(list.len(), 1);
        assert!(matches!(list[0].state, State::Exited { code: 137, .. }));
        assert_eq!(containers.supervisor(&id).unwrap(), None);
        assert_eq!(containers.remove(&id[..12]).unwrap(), id);
        assert!(containers.directories().unwrap().is_empty());
        assert!(matches!(containers.remove(&id), Err(EngineError::NoContainer(_))));
        assert!(matches!(containers.remove(""), Err(EngineError::NoContainer(_))));
    }
}
