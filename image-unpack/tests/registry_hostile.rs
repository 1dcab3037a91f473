//! Registries that lie, never end, or lead elsewhere.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails fails its test")]

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bulkhead_fixtures::http::{Answer, Request, Server};
use bulkhead_fixtures::layout::Layout;
use bulkhead_fixtures::tarfile::{Pack, Tar, noise};
use image_unpack::{Credentials, Digest, Error, Image, Limits, Platform, Quiet, Registries, Source, Store};

/// A layout, served as a registry would: `/v2/any/thing/manifests/...` and `/v2/any/thing/blobs/...`.
struct Served {
    dir: std::path::PathBuf,
    manifest: Digest,
}

impl Served {
    fn new(dir: &Path) -> Self {
        let layout = Layout::new(dir);
        layout.image(&[Tar::default().file("noise", &noise(1, 50_000)).end()], Pack::Gzip);
        let index = std::fs::read(dir.join("index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        let manifest = index["manifests"][0]["digest"].as_str().unwrap().parse().unwrap();
        Self { dir: dir.to_path_buf(), manifest }
    }

    fn bytes(&self, request: &Request) -> Vec<u8> {
        let digest =
            request.target.rsplit('/').next().and_then(|name| name.parse().ok()).unwrap_or(self.manifest);
        std::fs::read(self.dir.join("blobs/sha256").join(digest.hex())).unwrap()
    }

    fn answer(&self, request: &Request) -> Answer {
        let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
        Answer::Say(200, vec![kind.into()], self.bytes(request))
    }
}

fn is_layer(request: &Request, served: &Served) -> bool {
    request.target.contains("/blobs/") && served.bytes(request).len() > 10_000
}

fn registries(dir: &Path) -> Registries {
    Registries::default().with_docker_config(&dir.join("config.json"))
}

fn pull(dir: &Path, registries: Registries, address: &str) -> Result<Image, Error> {
    let store = Store::open_with(&dir.join("store"), Limits::default(), registries).unwrap();
    let source: Source = format!("{address}/any/thing:v1").parse().unwrap();
    let result = store.ensure(&source, &Platform::host(), &Quiet);
    assert_eq!(std::fs::read_dir(store.root().join("tmp")).unwrap().count(), 0, "nothing unfinished is left");
    if result.is_err() {
        assert!(store.images().unwrap().is_empty());
        assert_eq!(std::fs::read_dir(store.root().join("layers")).unwrap().count(), 0);
    }
    result
}

/// Pulls from a registry that answers so.
fn ask(answer: impl Fn(&Served, &Request) -> Answer + Send + Sync + 'static) -> Result<Image, Error> {
    let work = tempfile::tempdir().unwrap();
    let served = Served::new(&work.path().join("oci"));
    let server = Server::start(None, move |request| answer(&served, request));
    pull(work.path(), registries(work.path()), &server.address)
}

#[test]
fn an_honest_one_is_believed() {
    ask(|served, request| served.answer(request)).unwrap();
}

#[test]
fn lies_are_found_out() {
    // A manifest that is not what its header says.
    let result = ask(|served, request| {
        let header = format!("Docker-Content-Digest: {}", Digest::of(b"other"));
        Answer::Say(200, vec![header], served.bytes(request))
    });
    assert!(matches!(result, Err(Error::DigestMismatch { .. })), "{result:?}");
    // Other bytes of the same length, in a layer and in a configuration.
    for layers in [true, false] {
        let result = ask(move |served, request| {
            let mut bytes = served.bytes(request);
            if request.target.contains("/blobs/") && is_layer(request, served) == layers {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }
            Answer::Say(200, Vec::new(), bytes)
        });
        assert!(matches!(result, Err(Error::DigestMismatch { .. })), "{result:?}");
    }
    // More bytes than promised, and fewer.
    let result = ask(|served, request| {
        let mut bytes = served.bytes(request);
        if is_layer(request, served) {
            bytes.extend([0; 1000]);
        }
        Answer::Say(200, Vec::new(), bytes)
    });
    assert!(matches!(result, Err(Error::SizeMismatch { .. })), "{result:?}");
    let result = ask(|served, request| {
        let mut bytes = served.bytes(request);
        if is_layer(request, served) {
            bytes.truncate(1000);
        }
        Answer::Say(if request.header("range").is_some() { 416 } else { 200 }, Vec::new(), bytes)
    });
    assert!(matches!(result, Err(Error::Registry { status: 416, .. })), "{result:?}");
    // The wrong part of a layer.
    let result = ask(|served, request| {
        let bytes = served.bytes(request);
        if !is_layer(request, served) {
            return Answer::Say(200, Vec::new(), bytes);
        }
        match request.header("range") {
            None => Answer::Say(200, Vec::new(), bytes[..1000].to_vec()),
            Some(_) => {
                Answer::Say(206, vec!["Content-Range: bytes 0-999/50000".into()], bytes[..1000].to_vec())
            }
        }
    });
    assert!(matches!(result, Err(Error::Registry { status: 206, .. })), "{result:?}");
}

#[test]
fn what_does_not_end_is_ended() {
    let result = ask(|_, _| Answer::Say(200, Vec::new(), vec![b' '; 5 << 20]));
    assert!(matches!(result, Err(Error::Limit { .. })), "{result:?}");
    let count = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&count);
    let result = ask(move |_, request| {
        seen.fetch_add(1, Ordering::Relaxed);
        Answer::Say(307, vec![format!("Location: {}", request.target)], Vec::new())
    });
    assert!(result.is_err());
    assert!(count.load(Ordering::Relaxed) < 100, "redirected for ever");
    let result = ask(|_, _| {
        let challenge = "WWW-Authenticate: Bearer realm=\"http://127.0.0.1:1/token\",service=\"s\"";
        Answer::Say(401, vec![challenge.into()], Vec::new())
    });
    assert!(matches!(result, Err(Error::Unreachable { .. })), "{result:?}");
    let result = ask(|_, _| Answer::Say(401, vec!["WWW-Authenticate: Basic realm=\"".into()], Vec::new()));
    assert!(matches!(result, Err(Error::AuthNeeded { .. })), "{result:?}");
    let result = ask(|_, _| Answer::Say(418, Vec::new(), b"\x1b[31m{".repeat(1000)));
    assert!(matches!(&result, Err(Error::Registry { status: 418, .. })), "{result:?}");
    assert!(!result.unwrap_err().to_string().contains('\x1b'));
}

#[test]
fn credentials_do_not_follow_a_redirect() {
    let work = tempfile::tempdir().unwrap();
    let served = Arc::new(Served::new(&work.path().join("oci")));
    // Layers lie elsewhere, as with most registries.
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (elsewhere, told) = (Arc::clone(&served), Arc::clone(&seen));
    let storage = Server::start(None, move |request| {
        told.lock().unwrap().push(request.header("authorization").map(str::to_owned));
        Answer::Say(200, Vec::new(), elsewhere.bytes(request))
    });
    // By another name: what is on the same host may be trusted as much.
    let other = storage.address.replace("127.0.0.1", "localhost");
    let server = Server::start(None, move |request| {
        if request.header("authorization").is_none() {
            return Answer::Say(401, vec!["WWW-Authenticate: Basic realm=\"r\"".into()], Vec::new());
        }
        if is_layer(request, &served) {
            return Answer::Say(307, vec![format!("Location: http://{other}{}", request.target)], Vec::new());
        }
        served.answer(request)
    });
    let secret = Credentials::Password { user: "ann".into(), password: "secret".into() };
    let registries = registries(work.path()).with_credentials(&server.address, secret);
    pull(work.path(), registries, &server.address).unwrap();
    assert_eq!(*seen.lock().unwrap(), [None]);
}
