//! A layer's pipeline: read, keep and hash the compressed bytes | inflate | hash the tar stream | tar to data blob
//! and index. Each stage is a thread; what waits between them is bounded.

use std::fs::File;
use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, ScopedJoinHandle};

use super::chunk::{Chunk, ChunkReader, Message, Pool, UpstreamFailed};
use super::data::Sink;
use super::index::Summary;
use super::pass::{self, PassError, Why};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::manifest::Compression;

/// Chunks that may wait between two stages.
const DEPTH: usize = 12;
/// A layer whose content is refused is still read to its end if at most this much is left, so that a damaged
/// download is told as such.
const READ_ON: u64 = 256 << 20;
/// The largest zstd window (log2) that is accepted: what `zstd -19` makes takes 23.
const ZSTD_WINDOW: u32 = 24;

/// What goes in.
pub(crate) struct Job<'a> {
    /// For errors: "layer 2 of 4 (sha256:...)".
    pub label: &'a str,
    pub input: Box<dyn Read + Send + 'a>,
    /// Compressed bytes to come; `None` if the source does not say.
    pub size: Option<u64>,
    /// Digest of the compressed bytes, if the source names one.
    pub digest: Option<Digest>,
    /// Digest of the tar stream, if it is known.
    pub diff_id: Option<Digest>,
    /// Where the compressed bytes are kept, if they are not yet.
    pub keep: Option<File>,
    pub data: File,
    pub index: File,
    /// The directory of these files, for errors.
    pub place: PathBuf,
    pub limits: &'a Limits,
    /// Asked before bytes are written; its refusal ends the layer.
    pub charge: &'a (dyn Fn(u64) -> Result<()> + Sync),
    /// Hears how far it is.
    pub heard: &'a (dyn Fn(Heard) + Sync),
}

/// How far a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Compressed bytes read so far.
    Read(u64),
    /// All of them are here.
    Ended,
    /// And they are what was asked for; so many.
    Fetched(u64),
}

/// What comes out, all of it on disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done {
    pub digest: Digest,
    pub diff_id: Digest,
    pub size: u64,
    pub compression: Compression,
}

/// What the reading stage saw: nothing if it stopped early because a later stage failed.
type Read1 = Result<Option<(Digest, u64)>>;

enum InflateError {
    /// The stage before or after failed, and tells why.
    Elsewhere,
    Stream(io::Error),
    Limit(&'static str, u64),
}

/// Runs a layer through. On success everything is verified and fsynced; on failure the files are worthless.
pub(crate) fn run(mut job: Job<'_>) -> Result<Done> {
    let pool = Arc::new(Pool::default());
    let mut first = Chunk::take(&pool);
    let ended = first.fill(&mut *job.input).map_err(|e| read_error(&job, e))?;
    let compression = Compression::of_bytes(first.bytes());
    let dup = |file: &File| file.try_clone().map_err(|e| Error::io("write", &job.place, e));
    let (data, index) = (dup(&job.data)?, dup(&job.index)?);
    let data = Charged { file: data, charge: job.charge };
    let limits = job.limits;
    let stop = &AtomicBool::new(false);
    thread::scope(|scope| {
        let place = job.place.clone();
        let no_thread = |e| Error::io("start a thread for", &place, e);
        let spawn = |name: &str| thread::Builder::new().name(name.into());
        let (to_tar, input) = sync_channel(DEPTH);
        let tar = spawn("layer-tar")
            .spawn_scoped(scope, move || tar_stage(input, data, index, limits, stop))
            .map_err(no_thread)?;
        let (sender, inflating) = if compression == Compression::None {
            (to_tar, None)
        } else {
            let (to_hash, hash_input) = sync_channel(DEPTH);
            let (to_inflate, inflate_input) = sync_channel(DEPTH);
            let hash = spawn("layer-hash")
                .spawn_scoped(scope, move || hash_stage(&hash_input))
                .map_err(no_thread)?;
            let inflate = spawn("layer-inflate")
                .spawn_scoped(scope, move || {
                    let input = ChunkReader::new(inflate_input);
                    let result = inflate_stage(compression, input, [&to_hash, &to_tar], limits);
                    if result.is_err() {
                        let _ = to_hash.send(Err(UpstreamFailed));
                        let _ = to_tar.send(Err(UpstreamFailed));
                    }
                    result
                })
                .map_err(no_thread)?;
            (to_inflate, Some((inflate, hash)))
        };
        let read = read_stage(&mut job, first, ended, &pool, &sender, stop);
        if read.is_err() {
            let _ = sender.send(Err(UpstreamFailed));
        }
        drop(sender);
        let tar = join(tar);
        let inflating = inflating.map(|(inflate, hash)| (join(inflate), join(hash)));
        let summary = conclude_tar(&job, tar);
        // A full disk matters more than what it kept from being read.
        if let Err(error @ (Error::DiskFull { .. } | Error::Quota { .. } | Error::Io { .. })) = summary {
            return Err(error);
        }
        let read = read?;
        if let Some((digest, size)) = read {
            check_blob(&job, digest, size)?;
        }
        let diff_id = match inflating {
            Some((inflate, hash)) => {
                conclude_inflate(&job, inflate)?;
                hash
            }
            None => read.map(|(digest, _)| digest),
        };
        summary?;
        let (Some((digest, size)), Some(diff_id)) = (read, diff_id) else {
            return Err(bad(&job, None, "its content could not be read to the end"));
        };
        if let Some(expected) = job.diff_id.filter(|&expected| expected != diff_id) {
            let what = format!("{}: uncompressed content", job.label);
            return Err(Error::DigestMismatch { what, expected, found: diff_id });
        }
        Ok(Done { digest, diff_id, size, compression })
    })
}

/// A stage that panicked is a bug: it goes on in the caller.
fn join<T>(handle: ScopedJoinHandle<'_, T>) -> T {
    handle.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
}

fn bad(job: &Job<'_>, entry: Option<String>, reason: impl Into<String>) -> Error {
    Error::BadLayer { layer: job.label.to_owned(), entry, reason: reason.into() }
}

/// An error of the source; sources put the crate's own errors inside.
fn read_error(job: &Job<'_>, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Error::Io { doing: "read", path: job.label.into(), source: error },
    }
}

fn check_blob(job: &Job<'_>, digest: Digest, size: u64) -> Result<()> {
    if let Some(expected) = job.size.filter(|&expected| expected != size) {
        return Err(Error::SizeMismatch { what: job.label.to_owned(), expected, found: size });
    }
    match job.digest {
        Some(expected) if expected != digest => {
            Err(Error::DigestMismatch { what: job.label.to_owned(), expected, found: digest })
        }
        _ => Ok(()),
    }
}

fn conclude_inflate(job: &Job<'_>, result: Result<(), InflateError>) -> Result<()> {
    match result {
        Ok(()) | Err(InflateError::Elsewhere) => Ok(()),
        Err(InflateError::Limit(what, limit)) => {
            Err(Error::Limit { place: job.label.to_owned(), what, limit })
        }
        Err(InflateError::Stream(error)) if error.kind() == ErrorKind::UnexpectedEof => {
            Err(Error::Truncated {
                layer: job.label.to_owned(),
                entry: None,
                reason: "in the middle of its compressed stream".into(),
            })
        }
        Err(InflateError::Stream(error)) => {
            Err(bad(job, None, format!("it cannot be decompressed: {error}")))
        }
    }
}

fn conclude_tar(job: &Job<'_>, result: Result<Summary, PassError>) -> Result<Summary> {
    let PassError { entry, why } = match result {
        Ok(summary) => return Ok(summary),
        Err(error) => error,
    };
    Err(match why {
        Why::Write(error) => Error::io("write", &job.place, error),
        Why::Truncated(reason) => {
            Error::Truncated { layer: job.label.to_owned(), entry, reason: reason.to_owned() }
        }
        Why::Limit(what, limit) => {
            let place = match entry {
                Some(entry) => format!("{}: entry `{entry}`", job.label),
                None => job.label.to_owned(),
            };
            Error::Limit { place, what, limit }
        }
        Why::Bad(reason) => bad(job, entry, reason),
        Why::Read(error) => bad(job, entry, error.to_string()),
    })
}

/// Reads, keeps, hashes and passes on.
fn read_stage(
    job: &mut Job<'_>,
    first: Chunk,
    mut ended: bool,
    pool: &Arc<Pool>,
    out: &SyncSender<Message>,
    stop: &AtomicBool,
) -> Read1 {
    let mut hasher = Hasher::default();
    let mut size = 0_u64;
    let mut chunk = first;
    let mut listening = true;
    loop {
        size += chunk.bytes().len() as u64;
        if let Some(expected) = job.size.filter(|&expected| size > expected) {
            return Err(Error::SizeMismatch { what: job.label.to_owned(), expected, found: size });
        }
        if size > job.limits.layer_bytes {
            let place = job.label.to_owned();
            return Err(Error::Limit { place, what: "size", limit: job.limits.layer_bytes });
        }
        let chunk_ref = Arc::new(chunk);
        if listening {
            listening = out.send(Ok(Arc::clone(&chunk_ref))).is_ok();
        }
        if !listening {
            let left = job.size.unwrap_or(u64::MAX).saturating_sub(size);
            if stop.load(Ordering::Relaxed) || left > READ_ON {
                return Ok(None);
            }
        }
        hasher.update(chunk_ref.bytes());
        if let Some(keep) = &mut job.keep {
            (job.charge)(chunk_ref.bytes().len() as u64)?;
            keep.write_all(chunk_ref.bytes()).map_err(|e| Error::io("write", &job.place, e))?;
        }
        (job.heard)(Heard::Read(size));
        drop(chunk_ref);
        if ended {
            break;
        }
        chunk = Chunk::take(pool);
        ended = chunk.fill(&mut *job.input).map_err(|e| read_error(job, e))?;
    }
    if listening && let Some(keep) = &job.keep {
        keep.sync_all().map_err(|e| Error::io("write", &job.place, e))?;
    }
    (job.heard)(Heard::Ended);
    let digest = hasher.finish();
    if job.size.is_none_or(|expected| expected == size)
        && job.digest.is_none_or(|expected| expected == digest)
    {
        (job.heard)(Heard::Fetched(size));
    }
    Ok(Some((digest, size)))
}

fn inflate_stage(
    compression: Compression,
    mut input: ChunkReader,
    out: [&SyncSender<Message>; 2],
    limits: &Limits,
) -> Result<(), InflateError> {
    let pool = Arc::new(Pool::default());
    match compression {
        Compression::Gzip => {
            let mut decoder = flate2::bufread::MultiGzDecoder::new(input);
            pump(&mut decoder, |decoder| decoder.get_ref().consumed(), out, &pool, limits)
        }
        Compression::Zstd => {
            let mut decoder =
                zstd::stream::read::Decoder::with_buffer(input).map_err(InflateError::Stream)?;
            decoder.window_log_max(ZSTD_WINDOW).map_err(InflateError::Stream)?;
            pump(&mut decoder, |decoder| decoder.get_ref().consumed(), out, &pool, limits)
        }
        Compression::None => pump(&mut input, ChunkReader::consumed, out, &pool, limits),
    }
}

/// Fills buffers from a decoder and sends each to both stages after it.
fn pump<D: Read>(
    decoder: &mut D,
    consumed: impl Fn(&D) -> u64,
    out: [&SyncSender<Message>; 2],
    pool: &Arc<Pool>,
    limits: &Limits,
) -> Result<(), InflateError> {
    let mut produced = 0_u64;
    loop {
        let mut chunk = Chunk::take(pool);
        let ended = chunk.fill(decoder).map_err(|error| {
            let upstream = error.get_ref().is_some_and(|inner| inner.is::<UpstreamFailed>());
            if upstream { InflateError::Elsewhere } else { InflateError::Stream(error) }
        })?;
        produced += chunk.bytes().len() as u64;
        if produced > limits.layer_bytes {
            return Err(InflateError::Limit("uncompressed size", limits.layer_bytes));
        }
        if produced > limits.ratio_floor && produced / limits.ratio > consumed(decoder) {
            return Err(InflateError::Limit("compression ratio", limits.ratio));
        }
        let chunk = Arc::new(chunk);
        for out in out {
            out.send(Ok(Arc::clone(&chunk))).map_err(|_| InflateError::Elsewhere)?;
        }
        if ended {
            return Ok(());
        }
    }
}

/// The digest of a stream, if it came to its end.
fn hash_stage(input: &Receiver<Message>) -> Option<Digest> {
    let mut hasher = Hasher::default();
    while let Ok(message) = input.recv() {
        hasher.update(message.ok()?.bytes());
    }
    Some(hasher.finish())
}

/// A data blob whose growth is asked for.
struct Charged<'a> {
    file: File,
    charge: &'a (dyn Fn(u64) -> Result<()> + Sync),
}

impl Sink for Charged<'_> {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        (self.charge)(bytes.len() as u64).map_err(io::Error::other)?;
        self.file.write_at(bytes, offset)
    }
}

fn tar_stage(
    input: Receiver<Message>,
    data: Charged<'_>,
    index: File,
    limits: &Limits,
    stop: &AtomicBool,
) -> Result<Summary, PassError> {
    let mut input = ChunkReader::new(input);
    let written = |e| {
        stop.store(true, Ordering::Relaxed);
        PassError { entry: None, why: Why::Write(e) }
    };
    let result = pass::run(&mut input, data, index, limits);
    if let Err(PassError { why: Why::Write(_), .. }) = &result {
        stop.store(true, Ordering::Relaxed);
    }
    let (data, index, summary) = result?;
    // What follows the end of the archive is hashed like the rest, but says nothing.
    loop {
        let length = match input.fill_buf() {
            Ok([]) => break,
            Ok(bytes) => bytes.len(),
            Err(error) => return Err(PassError { entry: None, why: Why::Read(error) }),
        };
        input.consume(length);
    }
    // Holes at the end of the last file were never written.
    data.file.set_len(summary.data_bytes).map_err(written)?;
    data.file.sync_all().map_err(written)?;
    index.sync_all().map_err(written)?;
    Ok(summary)
}
