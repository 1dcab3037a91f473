//! Pulling: manifests, configurations, and layers as streams that take up again where a connection broke.

use std::io::{self, Read};
use std::thread::sleep;

use serde::Deserialize;
use ureq::BodyReader;
use ureq::http::{Method, StatusCode};

use super::Registries;
use super::client::{ATTEMPTS, Client, backoff, header, small};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::manifest::{ACCEPT, Descriptor, Platform};
use crate::progress::{Event, Progress};
use crate::reference::Reference;
use crate::source::{Origin, Resolved, check_document_size, complete, verify, walk_to_manifest};

/// An image in a registry.
pub(crate) struct Remote<'a> {
    reference: &'a Reference,
    registries: &'a Registries,
    progress: &'a dyn Progress,
    /// Mirrors first; the registry itself is last.
    clients: Vec<Client>,
}

impl<'a> Remote<'a> {
    pub(crate) fn new(
        reference: &'a Reference,
        registries: &'a Registries,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let registry = reference.registry();
        let clients = registries
            .endpoints(registry, reference.api_host(), reference.is_loopback())
            .into_iter()
            .map(|(host, plain)| {
                // A mirror has credentials of its own.
                let key = if host == reference.api_host() { registry } else { host.as_str() };
                Client::new(registries, key, &host, plain, reference.repository(), "pull")
            })
            .collect::<Result<_>>()?;
        Ok(Self { reference, registries, progress, clients })
    }

    /// Asks each place in turn; the last one's error is the one that counts.
    fn first<T>(&self, ask: impl Fn(&Client) -> Result<T>) -> Result<T> {
        let (last, mirrors) = match self.clients.split_last() {
            Some(split) => split,
            None => return Err(Error::NotFound { what: self.reference.to_string() }),
        };
        for mirror in mirrors {
            match ask(mirror) {
                Ok(found) => return Ok(found),
                Err(error @ (Error::DiskFull { .. } | Error::Limit { .. })) => return Err(error),
                Err(_) => {}
            }
        }
        ask(last)
    }

    fn document(&self, client: &Client, descriptor: &Descriptor, limits: &Limits) -> Result<Vec<u8>> {
        let what = format!("{} of {}", descriptor.digest, self.reference);
        check_document_size(descriptor, &what, limits)?;
        let is_manifest = descriptor.is_index() || descriptor.is_manifest();
        let kind = if is_manifest { "manifests" } else { "blobs" };
        let url = format!("/v2/{}/{kind}/{}", self.reference.repository(), descriptor.digest);
        let headers = if is_manifest { vec![("Accept", ACCEPT.to_owned())] } else { Vec::new() };
        let response = client.get(&url, &headers, self.progress)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(Error::NotFound { what }),
            _ => return Err(client.refused(&Method::GET, &url, response)),
        }
        let bytes = read_document(response.into_body().into_reader(), client, &what, limits)?;
        verify(&bytes, descriptor, &what)?;
        Ok(bytes)
    }

    /// The manifest or index that the reference names.
    fn start(&self, client: &Client, limits: &Limits) -> Result<(Descriptor, Vec<u8>)> {
        let what = format!("manifest of {}", self.reference);
        let selector = self.reference.selector();
        let url = format!("/v2/{}/manifests/{selector}", self.reference.repository());
        let response = client.get(&url, &[("Accept", ACCEPT.to_owned())], self.progress)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(self.missing(client, limits)),
            _ => return Err(client.refused(&Method::GET, &url, response)),
        }
        let media_type = header(&response, "content-type").unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let named = header(&response, "docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
        let bytes = read_document(response.into_body().into_reader(), client, &what, limits)?;
        let found = Digest::of(&bytes);
        if let Some(expected) = self.reference.digest().or(named)
            && expected != found
        {
            return Err(Error::DigestMismatch { what, expected, found });
        }
        let length = bytes.len() as u64;
        Ok((Descriptor::new(&media_type, found, length), bytes))
    }

    /// The manifest or index that the reference names, and the document that `next` finds in it.
    pub(super) fn look(
        &self,
        limits: &Limits,
        next: &dyn Fn(&[u8]) -> Result<Option<Descriptor>>,
    ) -> Result<(Descriptor, Vec<u8>, Option<Vec<u8>>)> {
        self.first(|client| {
            let (descriptor, bytes) = self.start(client, limits)?;
            let next = next(&bytes)?.map(|next| self.document(client, &next, limits)).transpose()?;
            Ok((descriptor, bytes, next))
        })
    }

    /// Tells a missing tag from a missing repository.
    fn missing(&self, client: &Client, _limits: &Limits) -> Error {
        #[derive(Deserialize)]
        struct Tags {
            tags: Option<Vec<String>>,
        }
        let url = format!("/v2/{}/tags/list?n=20", self.reference.repository());
        let tags = client
            .get(&url, &[], self.progress)
            .ok()
            .filter(|response| response.status() == StatusCode::OK)
            .and_then(|response| serde_json::from_slice::<Tags>(&small(response).ok()?).ok())
            .and_then(|tags| tags.tags);
        let short = |tag: &String| tag.chars().take(128).collect();
        match (tags, self.reference.tag(), self.reference.digest()) {
            (Some(tags), Some(tag), None) => Error::NoSuchTag {
                tag: tag.to_owned(),
                place: format!("{}/{}", self.reference.registry(), self.reference.repository()),
                have: tags.iter().take(20).map(short).collect(),
            },
            _ => Error::NotFound { what: self.reference.to_string() },
        }
    }
}

fn read_document(
    reader: BodyReader<'static>,
    client: &Client,
    what: &str,
    limits: &Limits,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = reader.take(limits.document + 1).read_to_end(&mut bytes);
    read.map_err(|e| Error::Unreachable { registry: client.registry.clone(), reason: e.to_string() })?;
    if bytes.len() as u64 > limits.document {
        return Err(Error::Limit { place: what.to_owned(), what: "size", limit: limits.document });
    }
    Ok(bytes)
}

impl Origin for Remote<'_> {
    fn resolve(&self, platform: &Platform, limits: &Limits) -> Result<Resolved> {
        let place = self.reference.to_string();
        self.first(|client| {
            let (start, first_bytes) = self.start(client, limits)?;
            let first_digest = start.digest;
            let fetch = |descriptor: &Descriptor| {
                if descriptor.digest == first_digest {
                    return Ok(first_bytes.clone());
                }
                self.document(client, descriptor, limits)
            };
            let (bytes, manifest) = walk_to_manifest(start, platform, &place, limits, &fetch)?;
            let mut config = manifest.config.clone();
            // Whatever it is called, it is a blob.
            config.media_type.clear();
            let config = self.document(client, &config, limits)?;
            let resolved = complete(bytes, manifest, config, platform, &place, limits)?;
            Ok(Resolved { named: Some(first_digest), ..resolved })
        })
    }

    fn layer<'a>(&'a self, image: &Resolved, number: usize) -> Result<Box<dyn Read + Send + 'a>> {
        let _ = self.registries;
        let (digest, size) = match image.layers.get(number).map(|layer| (layer.digest, layer.size)) {
            Some((Some(digest), Some(size))) => (digest, size),
            _ => return Err(Error::bad_image(image.place.clone(), "no such layer")),
        };
        self.first(|client| {
            let url = format!("/v2/{}/blobs/{digest}", self.reference.repository());
            let mut blob = Blob { client: self, at: 0, size, url, body: None, failures: 0, place: 0 };
            blob.place = self.clients.iter().position(|c| std::ptr::eq(c, client)).unwrap_or_default();
            blob.body = Some(blob.open()?);
            Ok(Box::new(blob) as Box<dyn Read + Send>)
        })
    }
}

/// A blob as a stream; a broken connection is taken up again at the byte where it broke.
struct Blob<'a> {
    client: &'a Remote<'a>,
    /// Which of the remote's clients serves it.
    place: usize,
    url: String,
    at: u64,
    size: u64,
    body: Option<BodyReader<'static>>,
    /// In a row, without a byte between them.
    failures: u32,
}

impl Blob<'_> {
    fn open(&self) -> Result<BodyReader<'static>> {
        let client = &self.client.clients[self.place];
        let headers = if self.at > 0 { vec![("Range", format!("bytes={}-", self.at))] } else { Vec::new() };
        let response = client.get(&self.url, &headers, self.client.progress)?;
        let skip = match response.status() {
            StatusCode::PARTIAL_CONTENT if self.at > 0 => {
                let range = header(&response, "content-range").unwrap_or_default();
                let wanted = format!("bytes {}-", self.at);
                if !range.starts_with(&wanted) {
                    return Err(client.refused(&Method::GET, &self.url, response));
                }
                0
            }
            // It does not do ranges: what is known already is read again.
            StatusCode::OK => self.at,
            StatusCode::NOT_FOUND => {
                return Err(Error::NotFound { what: format!("a layer of {}", self.client.reference) });
            }
            _ => return Err(client.refused(&Method::GET, &self.url, response)),
        };
        let mut body = response.into_body().into_reader();
        if skip > 0 {
            let skipped = io::copy(&mut (&mut body).take(skip), &mut io::sink());
            skipped.map_err(|e| Error::Unreachable {
                registry: client.registry.clone(),
                reason: e.to_string(),
            })?;
        }
        Ok(body)
    }
}

impl Read for Blob<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let result = match &mut self.body {
                Some(body) => body.read(out),
                None => match self.open() {
                    Ok(body) => {
                        self.body = Some(body);
                        continue;
                    }
                    Err(error) => Err(io::Error::other(error)),
                },
            };
            let error = match result {
                // One byte more than promised is enough to tell a lie.
                Ok(n) if n > 0 || self.at >= self.size => {
                    self.at += n as u64;
                    self.failures = 0;
                    return Ok(n);
                }
                Ok(_) => io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended early"),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            self.body = None;
            self.failures += 1;
            let reason = error.to_string();
            if self.failures >= ATTEMPTS {
                let registry = self.client.clients[self.place].registry.clone();
                return Err(match error.downcast::<Error>() {
                    Ok(error) => io::Error::other(error),
                    Err(_) => io::Error::other(Error::Unreachable { registry, reason }),
                });
            }
            self.client.progress.event(Event::Retry { reason, attempt: self.failures });
            sleep(backoff(self.failures - 1));
        }
    }
}
