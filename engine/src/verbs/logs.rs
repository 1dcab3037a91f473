//! `logs`: what a container has written, from its log files, and what it goes on to write.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::directory::Directory;
use crate::model::LogDriver;
use crate::supervisor::log::rotated;
use crate::{Engine, EngineError, time};

/// How often a log is looked at that is followed.
const INTERVAL: Duration = Duration::from_millis(25);
/// Longest line of a log file in bytes; a longer one is damaged.
const MAX_LINE: u64 = 1 << 20;
/// Bytes read at a time when the end of a log is looked for.
const CHUNK: usize = 64 * 1024;

/// Which lines are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Go on until the container ends.
    pub follow: bool,
    /// Not before this time; 0: from the beginning.
    pub since: i64,
    /// Not after this time; 0: to the end.
    pub until: i64,
    /// Only so many of the last lines.
    pub tail: Option<usize>,
}

/// A line, or a part of a very long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When it was written.
    pub time: i64,
    /// It came on standard error.
    pub stderr: bool,
    /// Its text, with the newline if it ends in one.
    pub text: Vec<u8>,
}

/// The lines of a log, in order.
pub struct LogStream {
    engine: Engine,
    id: String,
    tty: bool,
    path: PathBuf,
    options: LogOptions,
    current: Option<BufReader<File>>,
    later: Vec<File>,
    /// A line that is not whole yet.
    partial: Vec<u8>,
    /// The container has ended: what is there now is all.
    ended: bool,
}

#[derive(Deserialize)]
struct Written<'a> {
    #[serde(borrow)]
    log: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    stream: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    time: std::borrow::Cow<'a, str>,
}

impl Engine {
    /// The log of a container, whether it runs or not.
    ///
    /// # Errors
    /// It keeps no log.
    pub async fn logs(&self, name: &str, options: LogOptions) -> Result<LogStream, EngineError> {
        let container = self.container(name)?;
        if container.config.log.driver == LogDriver::None {
            return Err(EngineError::Conflict(
                "configured logging driver does not support reading".to_owned(),
            ));
        }
        let path = Directory::new(&self.paths().containers(), &container.id).log();
        let open = || -> io::Result<Vec<File>> {
            let most = container.config.log.max_files.max(1);
            let names = (1..most).rev().map(|n| rotated(&path, n)).chain([path.clone()]);
            let mut files =
                names.filter(|name| name.exists()).map(File::open).collect::<io::Result<Vec<_>>>()?;
            if let Some(lines) = options.tail {
                keep_last(&mut files, lines)?;
            }
            Ok(files)
        };
        let mut later = open().map_err(EngineError::io("reading the container's log"))?;
        later.reverse();
        let ended = !options.follow || !container.state.status.is_running();
        Ok(LogStream {
            engine: self.clone(),
            id: container.id,
            tty: container.config.tty,
            path,
            options,
            current: later.pop().map(BufReader::new),
            later,
            partial: Vec::new(),
            ended,
        })
    }
}

impl LogStream {
    /// Whether the container has a terminal, so that its lines are not framed.
    #[must_use]
    pub fn tty(&self) -> bool {
        self.tty
    }

    /// The next line; `None` at the end. Who follows waits for it.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn next(&mut self) -> Option<Result<LogLine, EngineError>> {
        loop {
            match self.read_line() {
                Ok(true) => {
                    let line = parse(&self.partial);
                    self.partial.clear();
                    // A line that a crash tore is left out.
                    let Some(line) = line else { continue };
                    if self.options.until != 0 && line.time > self.options.until {
                        return None;
                    }
                    let wanted = if line.stderr { self.options.stderr } else { self.options.stdout };
                    if wanted && line.time >= self.options.since {
                        return Some(Ok(line));
                    }
                }
                Ok(false) => match self.more() {
                    Ok(true) => {}
                    Ok(false) if self.ended => return None,
                    Ok(false) => {
                        tokio::time::sleep(INTERVAL).await;
                        let running = self.engine.container(&self.id).map(|c| c.state.status.is_running());
                        self.ended = !running.unwrap_or(false);
                    }
                    Err(e) => return Some(Err(EngineError::io("reading the container's log")(e))),
                },
                Err(e) => return Some(Err(EngineError::io("reading the container's log")(e))),
            }
        }
    }

    /// Reads on; true when a line is whole.
    fn read_line(&mut self) -> io::Result<bool> {
        let Some(reader) = &mut self.current else { return Ok(false) };
        let room = MAX_LINE.saturating_sub(self.partial.len() as u64);
        reader.take(room).read_until(b'\n', &mut self.partial)?;
        Ok(self.partial.last() == Some(&b'\n') || self.partial.len() as u64 >= MAX_LINE)
    }

    /// Goes on to the next file; true if there is one.
    fn more(&mut self) -> io::Result<bool> {
        if let Some(next) = self.later.pop() {
            self.partial.clear();
            self.current = Some(BufReader::new(next));
            return Ok(true);
        }
        if !self.options.follow {
            return Ok(false);
        }
        // Rotation puts another file under the name, or makes this one short again.
        let newest = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        let replaced = match &mut self.current {
            None => true,
            Some(reader) => {
                let (ours, theirs) = (reader.get_ref().metadata()?, newest.metadata()?);
                ours.ino() != theirs.ino() || theirs.len() < reader.stream_position()?
            }
        };
        if replaced {
            self.partial.clear();
            self.current = Some(BufReader::new(newest));
        }
        Ok(replaced)
    }
}

fn parse(line: &[u8]) -> Option<LogLine> {
    let written: Written<'_> = serde_json::from_slice(line).ok()?;
    Some(LogLine {
        time: time::parse_rfc3339(&written.time)?,
        stderr: written.stream == "stderr",
        text: written.log.as_bytes().to_vec(),
    })
}

/// Skips all but the last lines of files that belong together, without reading the rest.
fn keep_last(files: &mut Vec<File>, lines: usize) -> io::Result<()> {
    let mut missing = lines;
    for at in (0..files.len()).rev() {
        let length = files[at].metadata()?.len();
        match last_lines(&files[at], length, missing)? {
            Ok(offset) => {
                files[at].seek(SeekFrom::Start(offset))?;
                files.drain(..at);
                return Ok(());
            }
            Err(found) => missing -= found,
        }
    }
    Ok(())
}

/// Where the last `lines` lines of a file begin, or how many it has if they are fewer.
fn last_lines(file: &File, length: u64, lines: usize) -> io::Result<Result<u64, usize>> {
    if lines == 0 {
        return Ok(Ok(length));
    }
    let mut found = 0;
    let mut end = length;
    let mut buffer = vec![0u8; CHUNK];
    while end > 0 {
        let start = end.saturating_sub(CHUNK as u64);
        let size = usize::try_from(end - start).unwrap_or(CHUNK);
        file.read_exact_at(&mut buffer[..size], start)?;
        for at in (0..size).rev().filter(|at| buffer[*at] == b'\n') {
            let after = start + at as u64 + 1;
            // The newline at the very end closes the last line; it begins none.
            if after < length {
                found += 1;
                if found == lines {
                    return Ok(Ok(after));
                }
            }
        }
        end = start;
    }
    let first = usize::from(length > 0);
    if found + first == lines { Ok(Ok(0)) } else { Ok(Err(found + first)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_last_lines_are_found_across_files() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, lines: std::ops::Range<u32>| {
            let path = directory.path().join(name);
            let mut file = File::create(&path).unwrap();
            lines.for_each(|n| writeln!(file, "{n} {}", "x".repeat(40_000)).unwrap());
            File::open(path).unwrap()
        };
        for (lines, first) in
            [(0, None), (1, Some(9)), (4, Some(6)), (5, Some(5)), (7, Some(3)), (10, Some(0)), (99, Some(0))]
        {
            let mut files = vec![file("a", 0..6), file("b", 6..10)];
            keep_last(&mut files, lines).unwrap();
            let mut text = String::new();
            for file in &mut files {
                file.read_to_string(&mut text).unwrap();
            }
            let numbers: Vec<u32> =
                text.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
            assert_eq!(numbers.first().copied(), first, "{lines}");
            assert_eq!(numbers.len(), lines.min(10));
        }
        let mut empty = vec![file("c", 0..0)];
        keep_last(&mut empty, 3).unwrap();
        assert_eq!(empty.len(), 1);
    }

    #[test]
    fn what_is_no_line_is_left_out() {
        let line = br#"{"log":"a \"b\"\n","stream":"stderr","time":"1970-01-01T00:00:00.000000007Z"}"#;
        let parsed = parse(line).unwrap();
        assert_eq!((parsed.time, parsed.stderr, parsed.text.as_slice()), (7, true, &b"a \"b\"\n"[..]));
        for bad in [&b"{"[..], b"", b"{}", br#"{"log":"","stream":"","time":"now"}"#] {
            assert!(parse(bad).is_none());
        }
    }
}
