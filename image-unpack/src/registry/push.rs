//! Pushing (OCI distribution spec, "Push"): blobs that the repository lacks, mounted from another repository of the
//! registry if it has them, else uploaded in chunks; then the manifest.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use ureq::http::{Method, StatusCode};

use super::Registries;
use super::client::{Ask, Client, Send, header};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::progress::Progress;
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
        Ok(Reply { status, location })
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
        let url = format!("/v2/{repository}/blobs/{digest}");
        if self.ask(Method::HEAD, &url, &[], Send::Nothing)?.status == StatusCode::OK {
            return Ok(Outcome::Present);
        }
        let mut url = format!("/v2/{repository}/blobs/uploads/");
        if let Some(from) = from.filter(|from| *from != repository) {
            url = format!("{url}?mount={digest}&from={from}");
        }
        let reply = self.ask(Method::POST, &url, &[], Send::Nothing)?;
        let mut location = match (reply.status, reply.location) {
            (StatusCode::CREATED, _) => return Ok(Outcome::Mounted),
            (StatusCode::ACCEPTED, Some(location)) => location,
            (status, _) => return Err(self.unexpected(status, "POST of an upload")),
        };
        let failed = |e| Error::io("read", "a stored blob", e);
        let size = file.metadata().map_err(failed)?.len();
        let mut at = 0;
        while at < size {
            let length = CHUNK.min(size - at);
            let start = at;
            let open = || -> Result<Box<dyn Read + '_>> {
                // Made anew for every attempt, at the same place.
                let mut part = file.try_clone().map_err(failed)?;
                part.seek(SeekFrom::Start(start)).map_err(failed)?;
                Ok(Box::new(Told { inner: part.take(length), at: start, heard }))
            };
            let headers = [
                ("Content-Type", "application/octet-stream".to_owned()),
                ("Content-Range", format!("{at}-{}", at + length - 1)),
            ];
            let reply = self.ask(Method::PATCH, &location, &headers, Send::Stream(&open, length))?;
            location = match (reply.status, reply.location) {
                (StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::CREATED, Some(location)) => {
                    location
                }
                (status, _) => return Err(self.unexpected(status, "PATCH of an upload")),
            };
            at += length;
        }
        let joint = if location.contains('?') { '&' } else { '?' };
        let reply =
            self.ask(Method::PUT, &format!("{location}{joint}digest={digest}"), &[], Send::Nothing)?;
        match reply.status {
            StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(Outcome::Sent),
            status => Err(self.unexpected(status, "PUT of an upload")),
        }
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
}
