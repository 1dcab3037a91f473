//! Volumes and folders of the host, as people use them through Docker's command line; and as a hostile container would.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

mod copy_up;
mod deaths;
mod limits;
mod mounts;
mod posix;
mod sizes;

use std::fs;
use std::path::{Path, PathBuf};

use bulkhead_tests::daemon::Daemon;
use tempfile::TempDir;

/// A daemon, and a folder of the host to share.
pub struct Setup {
    /// What docker talks to.
    pub daemon: Daemon,
    folder: TempDir,
}

impl Setup {
    /// `None` (said loudly) where `make test` has not prepared one.
    pub fn new() -> Option<Self> {
        let daemon = Daemon::with_docker()?;
        let folder = tempfile::Builder::new().prefix("bulkhead-folder-").tempdir().unwrap();
        Some(Self { daemon, folder })
    }

    /// A path in the folder.
    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `/path/of/the/host:target`.
    pub fn bind(&self, name: &str, target: &str) -> String {
        format!("{}:{target}", self.at(name).display())
    }

    /// What a shell command prints in a new container with these options.
    pub fn shell(&self, options: &[&str], script: &str) -> String {
        self.daemon.ok(&[&["run", "--rm"], options, &["busybox", "sh", "-c", script]].concat())
    }

    /// Where a volume's files are on the host.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.daemon.bulkhead.root.path().join("volumes").join(name).join("_data")
    }
}

/// A process of the host.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// Its words.
    pub command: String,
    /// It has ended, and nobody has asked how.
    pub zombie: bool,
}

/// All processes that descend from this one.
pub fn descendants(of: i32) -> Vec<Process> {
    let mut all: Vec<Process> =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|e| process(&e.path())).collect();
    let (mut found, mut parents) = (Vec::new(), vec![of]);
    while let Some(parent) = parents.pop() {
        let (children, rest) = all.into_iter().partition(|p: &Process| p.parent == parent);
        all = rest;
        parents.extend(children.iter().map(|p: &Process| p.pid));
        found.extend::<Vec<Process>>(children);
    }
    found
}

fn process(path: &Path) -> Option<Process> {
    let pid = path.file_name()?.to_str()?.parse().ok()?;
    let stat = fs::read_to_string(path.join("stat")).ok()?;
    // The name is in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let zombie = fields.next()? == "Z";
    let parent = fields.next()?.parse().ok()?;
    let command = fs::read(path.join("cmdline")).ok()?;
    Some(Process { pid, parent, command: String::from_utf8_lossy(&command).replace('\0', " "), zombie })
}

/// The process whose command line holds these words.
pub fn process_of(words: &str) -> Process {
    let all = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| process(&entry.path()));
    let mut found: Vec<_> = all.filter(|process| process.command.contains(words)).collect();
    assert_eq!(found.len(), 1, "{words}: {found:?}");
    found.remove(0)
}

/// Ends a process at once.
pub fn kill(pid: i32) {
    // SAFETY: kill takes two numbers; the process is a test's own.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
}

/// Waits until something holds; a generous guard ends a wait for ever.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !holds() {
        assert!(began.elapsed().as_secs() < 60, "never: {what}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
