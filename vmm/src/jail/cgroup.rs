//! The host's control groups that a machine is put into, all given as descriptors: nothing is opened here.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;

use super::{At, Step, StepError, sys};

/// A machine's control groups.
#[derive(Debug, Default)]
pub struct Cgroup {
    /// The directory of one of version 2.
    pub directory: Option<File>,
    /// `cgroup.procs` of each of version 1, open for writing.
    pub processes: Vec<File>,
    /// `memory.events` (version 2) or `memory.oom_control` (version 1), open for reading.
    pub events: Option<File>,
}

impl Cgroup {
    /// Moves this process into the groups of version 1; what it starts is in them as well.
    ///
    /// # Errors
    /// The host refused.
    pub fn enter(&self) -> Result<(), StepError> {
        for group in &self.processes {
            sys::write(group.as_raw_fd(), b"0").at(Step::Cgroup)?;
        }
        Ok(())
    }

    /// The directory for processes to be started in.
    #[must_use]
    pub fn directory(&self) -> Option<RawFd> {
        self.directory.as_ref().map(AsRawFd::as_raw_fd)
    }
}

/// Notices that the host's kernel killed something in the group for lack of memory.
#[derive(Debug, Default)]
pub struct OutOfMemory {
    events: Option<File>,
    before: u64,
}

impl OutOfMemory {
    /// Counts from now on.
    #[must_use]
    pub fn new(events: Option<File>) -> Self {
        let before = events.as_ref().map_or(0, kills);
        Self { events, before }
    }

    /// Whether it happened since.
    #[must_use]
    pub fn happened(&self) -> bool {
        self.events.as_ref().is_some_and(|events| kills(events) > self.before)
    }

    /// The descriptor that is read.
    #[must_use]
    pub fn descriptor(&self) -> Option<RawFd> {
        self.events.as_ref().map(AsRawFd::as_raw_fd)
    }
}

/// Both versions have a line "oom_kill N".
fn kills(events: &File) -> u64 {
    let mut text = [0; 512];
    let length = events.read_at(&mut text, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(&text[..length]);
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn counts_the_kills_of_both_versions() {
        for text in
            ["low 0\noom 3\noom_kill 2\noom_group_kill 0\n", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"]
        {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            let watch = OutOfMemory::new(Some(file.try_clone().unwrap()));
            assert!(!watch.happened());
            let at = text.find("oom_kill 2").unwrap() as u64;
            file.write_all_at(b"oom_kill 3", at).unwrap();
            assert!(watch.happened());
        }
        assert!(!OutOfMemory::new(None).happened());
    }
}
