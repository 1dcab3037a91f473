//! Pushing (OCI distribution spec, "Push"): blobs that the repository lacks, mounted from another repository of the
//! registry if it has them, else uploaded in chunks; then the manifest.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::thread::sleep;

use ureq::http::{Method, StatusCode};

use super::Registries;
use super::client::{ATTEMPTS, Ask, Client, Send, backoff, header, transient};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::progress::{Event, Progress};
use crate::reference::Reference;

/// Bytes of one chunk of an upload: what a broken connection costs at most.
const CHUNK: u64 = 32 << 20;

/// A repository to push to.
pub(crate) struct Target<'a> {
    client: Client,
    reference: &'a Reference,
    progress: &'a dyn Progress,
}

impl<'a> Target<'a> {
    pub(crate) fn new(
        reference: &'a Reference,
        registries: &Registries,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let registry = reference.registry();
        let plain = registries.is_plain(registry, reference.is_loopback());
        let host = reference.api_host();
        let client = Client::new(registries, registry, host, plain, reference.repository(), "pull,push")?;
        Ok(Self { client, reference, progress })
    }

    fn ask(&self, method: Method, url: &str, headers: &[(&str, String)], body: Send<'_>) -> Result<Reply> {
        let shown = method.clone();
        let response = self.client.ask(&Ask { method, url, headers, body }, self.progress)?;
        let status = response.status();
        if status.is_client_error() && status != StatusCode::NOT_FOUND {
            return Err(self.client.refused(&shown, url, response));
        }
        let location = header(&response, "location").map(str::to_owned);
        let range = header(&response, "range").map(str::to_owned);
        Ok(Reply { status, location, range })
    }

    fn unexpected(&self, status: StatusCode, what: &str) -> Error {
        Error::Registry {
            registry: self.client.registry.clone(),
            status: status.as_u16(),
            request: what.to_owned(),
            reason: "an answer that the protocol does not have".into(),
        }
    }

    /// Makes sure the repository has a blob. `from` is a repository of the same registry that may have it; `heard` hears
    /// the bytes sent so far.
    pub(crate) fn blob(
        &self,
        digest: Digest,
        file: &File,
        from: Option<&str>,
        heard: &dyn Fn(u64),
    ) -> Result<Outcome> {
        let repository = self.reference.repository();
        if self.has(digest)? {
            return Ok(Outcome::Present);
        }
        let mut url = format!("/v2/{repository}/blobs/uploads/");
        if let Some(from) = from.filter(|from| *from != repository) {
            url = format!("{url}?mount={digest}&from={from}");
        }
        let begun = match self.ask(Method::POST, &url, &[], Send::Nothing) {
            // Who may push here need not be allowed to read there.
            Err(Error::AuthNeeded { .. }) if from.is_some() => None,
            reply => Some(reply?),
        };
        let location = match begun {
            Some(Reply { status: StatusCode::CREATED, .. }) => return Ok(Outcome::Mounted),
            Some(Reply { status: StatusCode::ACCEPTED, location: Some(location), .. }) => location,
            Some(reply) => return Err(self.unexpected(reply.status, "POST of an upload")),
            None => self.begin()?,
        };
        self.upload(digest, file, location, heard)?;
        Ok(Outcome::Sent)
    }

    /// Begins an upload; where it goes.
    fn begin(&self) -> Result<String> {
        let url = format!("/v2/{}/blobs/uploads/", self.reference.repository());
        match self.ask(Method::POST, &url, &[], Send::Nothing)? {
            Reply { status: StatusCode::ACCEPTED, location: Some(location), .. } => Ok(location),
            reply => Err(self.unexpected(reply.status, "POST of an upload")),
        }
    }

    /// Sends a blob in chunks. A chunk that breaks is taken up where the registry says it has come to, or from the
    /// beginning if it does not say.
    fn upload(&self, digest: Digest, file: &File, location: String, heard: &dyn Fn(u64)) -> Result<()> {
        let size = file.metadata().map_err(|e| Error::io("read", "a stored blob", e))?.len();
        let (mut at, mut location, mut failures) = (0, location, 0);
        while at < size {
            let length = CHUNK.min(size - at);
            match self.chunk(file, &location, at, length, heard) {
                Ok(next) => {
                    location = next;
                    at += length;
                    failures = 0;
                }
                Err(error) if failures + 1 < ATTEMPTS && is_broken(&error) => {
                    failures += 1;
                    let reason = error.to_string();
                    self.progress.event(Event::Retry { reason, attempt: failures });
                    sleep(backoff(failures - 1));
                    (location, at) = match self.progress_of(&location) {
                        Some(known) if known.1 <= size => known,
                        _ => (self.begin()?, 0),
                    };
                }
                Err(error) => return Err(error),
            }
        }
        let joint = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{joint}digest={digest}");
        match self.ask(Method::PUT, &url, &[], Send::Nothing) {
            Ok(Reply { status: StatusCode::CREATED | StatusCode::NO_CONTENT, .. }) => Ok(()),
            // The answer to a first attempt may have been lost.
            Ok(_) | Err(Error::Unreachable { .. } | Error::Registry { .. }) if self.has(digest)? => Ok(()),
            Ok(reply) => Err(self.unexpected(reply.status, "PUT of an upload")),
            Err(error) => Err(error),
        }
    }

    fn has(&self, digest: Digest) -> Result<bool> {
        let url = format!("/v2/{}/blobs/{digest}", self.reference.repository());
        Ok(self.ask(Method::HEAD, &url, &[], Send::Nothing)?.status == StatusCode::OK)
    }

    /// Sends one chunk; where the next one goes.
    fn chunk(
        &self,
        file: &File,
        location: &str,
        at: u64,
        length: u64,
        heard: &dyn Fn(u64),
    ) -> Result<String> {
        let failed = |e| Error::io("read", "a stored blob", e);
        let open = || -> Result<Box<dyn Read + '_>> {
            // Made anew for every attempt, at the same place.
            let mut part = file.try_clone().map_err(failed)?;
            part.seek(SeekFrom::Start(at)).map_err(failed)?;
            Ok(Box::new(Told { inner: part.take(length), at, heard }))
        };
        let headers = [
            ("Content-Type", "application/octet-stream".to_owned()),
            ("Content-Range", format!("{at}-{}", at + length - 1)),
        ];
        let reply = self.ask(Method::PATCH, location, &headers, Send::Stream(&open, length))?;
        match (reply.status, reply.location) {
            (StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::CREATED, Some(location)) => {
                Ok(location)
            }
            (status, _) => Err(self.unexpected(status, "PATCH of an upload")),
        }
    }

    /// How far the registry says an upload is, and where it goes on.
    fn progress_of(&self, location: &str) -> Option<(String, u64)> {
        let reply = self.ask(Method::GET, location, &[], Send::Nothing).ok()?;
        let last = reply.range?.split_once('-')?.1.parse::<u64>().ok()?;
        // "0-0" is nothing as well as one byte: from the beginning, then, at a new place.
        (reply.status == StatusCode::NO_CONTENT && last > 0).then_some(())?;
        Some((reply.location?, last.checked_add(1)?))
    }

    /// Publishes the manifest under the reference's tag.
    pub(crate) fn manifest(&self, bytes: &[u8], media_type: &str) -> Result<()> {
        let name = match self.reference.tag() {
            Some(tag) => tag.to_owned(),
            None => Digest::of(bytes).to_string(),
        };
        let url = format!("/v2/{}/manifests/{name}", self.reference.repository());
        let headers = [("Content-Type", media_type.to_owned())];
        match self.ask(Method::PUT, &url, &headers, Send::Bytes(bytes))?.status {
            StatusCode::CREATED | StatusCode::OK => Ok(()),
            status => Err(self.unexpected(status, "PUT of a manifest")),
        }
    }
}

/// How a repository came to have a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It had it.
    Present,
    /// The registry took it from the other repository.
    Mounted,
    /// It was sent.
    Sent,
}

/// A stream that tells how far it was read.
struct Told<'a, R> {
    inner: R,
    at: u64,
    heard: &'a dyn Fn(u64),
}

impl<R: Read> Read for Told<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(out)?;
        self.at += n as u64;
        (self.heard)(self.at);
        Ok(n)
    }
}

struct Reply {
    status: StatusCode,
    location: Option<String>,
    range: Option<String>,
}

/// Whether an upload may go better next time.
fn is_broken(error: &Error) -> bool {
    match error {
        Error::Unreachable { .. } => transient(error),
        Error::Registry { status, .. } => matches!(status, 404 | 408 | 416 | 500..),
        _ => false,
    }
}
