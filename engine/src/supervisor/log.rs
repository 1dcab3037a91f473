//! A container's log: one JSON object a line, `{"log":…,"stream":…,"time":…}`, as Docker's json-file driver writes them,
//! in files that are rotated.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::model::{LogConfig, LogDriver, now};
use crate::time;

/// Longest part of a line in one object, in bytes; a longer line is several objects, of which only the last ends in a newline.
const MAX_LINE: usize = 16 * 1024;

/// A log that is written.
pub(super) struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    max_size: u64,
    max_files: u32,
    /// What has come of a line of each stream: output, errors.
    partial: [Vec<u8>; 2],
    /// The disk refused a line: told once.
    failed: bool,
}

impl Log {
    /// Opens the log at `path` for more.
    pub(super) fn open(path: &Path, config: &LogConfig) -> io::Result<Self> {
        let file = match config.driver {
            LogDriver::None => None,
            LogDriver::JsonFile => Some(append(path)?),
        };
        let size = file.as_ref().map_or(Ok(0), |file| file.metadata().map(|m| m.len()))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
            max_size: config.max_size,
            max_files: config.max_files.max(1),
            partial: [Vec::new(), Vec::new()],
            failed: false,
        })
    }

    /// Writes output down, line by line.
    pub(super) fn write(&mut self, stderr: bool, mut data: &[u8]) {
        if self.file.is_none() {
            return;
        }
        let mut objects = Vec::with_capacity(data.len() + data.len() / 2);
        let index = usize::from(stderr);
        while !data.is_empty() {
            let room = MAX_LINE - self.partial[index].len();
            let window = &data[..data.len().min(room)];
            let end = window.iter().position(|b| *b == b'\n').map(|at| at + 1);
            let taken = end.unwrap_or(window.len());
            let (now, rest) = data.split_at(taken);
            data = rest;
            self.partial[index].extend_from_slice(now);
            if end.is_some() || self.partial[index].len() == MAX_LINE {
                object(&mut objects, stderr, &self.partial[index]);
                self.partial[index].clear();
            }
        }
        self.put(&objects);
    }

    /// Writes down what is left of a stream that has ended.
    pub(super) fn end(&mut self, stderr: bool) {
        let line = std::mem::take(&mut self.partial[usize::from(stderr)]);
        if !line.is_empty() && self.file.is_some() {
            let mut objects = Vec::new();
            object(&mut objects, stderr, &line);
            self.put(&objects);
        }
    }

    fn put(&mut self, objects: &[u8]) {
        if objects.is_empty() {
            return;
        }
        let length = objects.len() as u64;
        let full = self.max_size > 0 && self.size > 0 && self.size + length > self.max_size;
        let written = if full { self.rotate() } else { Ok(()) }
            .and_then(|()| self.file.as_mut().map_or(Ok(()), |file| file.write_all(objects)));
        match written {
            Ok(()) => {
                self.size += length;
                self.failed = false;
            }
            // The container goes on without its log; a line in the supervisor's own tells of it.
            Err(e) if !self.failed => {
                tracing::error!(error = %e, path = %self.path.display(), "the log cannot be written");
                self.failed = true;
            }
            Err(_) => {}
        }
    }

    /// Makes room: every file moves one place on, and the oldest goes.
    fn rotate(&mut self) -> io::Result<()> {
        let name = |n: u32| rotated(&self.path, n);
        if self.max_files == 1 {
            self.file = Some(OpenOptions::new().write(true).truncate(true).mode(0o640).open(&self.path)?);
        } else {
            for n in (1..self.max_files - 1).rev() {
                if name(n).exists() {
                    fs::rename(name(n), name(n + 1))?;
                }
            }
            fs::rename(&self.path, name(1))?;
            self.file = Some(append(&self.path)?);
        }
        self.size = 0;
        Ok(())
    }
}

/// The name of an older log file: 1 is the last but one.
pub(crate) fn rotated(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    PathBuf::from(name)
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

fn object(out: &mut Vec<u8>, stderr: bool, line: &[u8]) {
    out.extend_from_slice(b"{\"log\":");
    let text = String::from_utf8_lossy(line);
    // Text becomes JSON without fail.
    let _ = serde_json::to_writer(&mut *out, &text);
    out.extend_from_slice(if stderr { b",\"stream\":\"stderr\"" } else { b",\"stream\":\"stdout\"" });
    out.extend_from_slice(format!(",\"time\":\"{}\"}}\n", time::rfc3339(now())).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(max_size: u64, max_files: u32) -> LogConfig {
        LogConfig { driver: LogDriver::JsonFile, max_size, max_files }
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn lines_are_whole_whatever_pieces_they_come_in() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = Log::open(&path, &config(0, 1)).unwrap();
        for piece in ["he", "llo\nwor", "ld\n\n"] {
            log.write(false, piece.as_bytes());
        }
        log.write(true, b"an error without end \xff\"\\");
        log.write(false, "x".repeat(MAX_LINE + 3).as_bytes());
        log.end(true);
        log.end(false);
        let lines = lines(&path);
        let text: Vec<_> = lines.iter().map(|l| l["log"].as_str().unwrap()).collect();
        assert_eq!(text[..3], ["hello\n", "world\n", "\n"]);
        assert_eq!((text[3].len(), text[5]), (MAX_LINE, "xxx"));
        assert_eq!(
            (text[4], lines[4]["stream"].as_str().unwrap()),
            ("an error without end \u{fffd}\"\\", "stderr")
        );
        assert!(lines[0]["time"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn files_are_rotated_and_the_oldest_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = Log::open(&path, &config(1000, 3)).unwrap();
        for n in 0..100 {
            log.write(false, format!("line {n}\n").as_bytes());
        }
        assert!(!rotated(&path, 3).exists());
        let all: Vec<_> =
            [rotated(&path, 2), rotated(&path, 1), path.clone()].iter().flat_map(|p| lines(p)).collect();
        assert!(all.len() < 60);
        assert_eq!(all.last().unwrap()["log"], "line 99\n");
        assert!(fs::metadata(&path).unwrap().len() <= 1000);
        let mut one = Log::open(&directory.path().join("one"), &config(300, 1)).unwrap();
        (0..50).for_each(|n| one.write(true, format!("{n}\n").as_bytes()));
        assert!(fs::metadata(directory.path().join("one")).unwrap().len() <= 300);
        let none = LogConfig { driver: LogDriver::None, ..config(0, 1) };
        Log::open(&directory.path().join("none"), &none).unwrap().write(false, b"x\n");
        assert!(!directory.path().join("none").exists());
    }
}
