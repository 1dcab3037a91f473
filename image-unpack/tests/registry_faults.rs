//! Registries and networks that misbehave: broken downloads and uploads, overload, expired tokens, missing mirrors.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails fails its test")]

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bulkhead_fixtures::http::{Answer, Request, Server};
use bulkhead_fixtures::layout::Layout;
use bulkhead_fixtures::registry::Registry;
use bulkhead_fixtures::tarfile::{Pack, Tar, noise};
use bulkhead_fixtures::tools::{have, run};
use image_unpack::{Error, Event, Image, Limits, Platform, Quiet, Reference, Registries, Source, Store};

fn registries(dir: &Path) -> Registries {
    Registries { certificates: Vec::new(), ..Registries::default() }
        .with_docker_config(&dir.join("config.json"))
}

fn store(dir: &Path, name: &str) -> Store {
    Store::open_with(&dir.join(name), Limits::default(), registries(dir)).unwrap()
}

/// A store with an image of one layer of noise and one small layer.
fn stored(dir: &Path, bytes: usize) -> (Store, Image) {
    let layout = Layout::new(&dir.join("oci"));
    let base = Tar::default().dir("etc").file("noise", &noise(1, bytes)).end();
    layout.image(&[base, Tar::default().file("etc/y", b"y").end()], Pack::Plain);
    let store = store(dir, "first");
    let image = store.ensure(&layout.source(), &Platform::host(), &Quiet).unwrap();
    (store, image)
}

fn pull(store: &Store, name: &str, heard: &dyn image_unpack::Progress) -> Result<Image, Error> {
    store.ensure(&name.parse::<Source>().unwrap(), &Platform::host(), heard)
}

fn reference(address: &str, rest: &str) -> Reference {
    format!("{address}/{rest}").parse().unwrap()
}

/// Events of one run.
#[derive(Default)]
struct Heard(Mutex<Vec<Event>>);

impl image_unpack::Progress for Heard {
    fn event(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

impl Heard {
    fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.0.lock().unwrap().iter().filter(|event| wanted(event)).count()
    }

    fn retries(&self) -> usize {
        self.count(|event| matches!(event, Event::Retry { .. }))
    }
}

fn is_blob(request: &Request) -> bool {
    request.method == "GET" && request.target.contains("/blobs/sha256:")
}

#[test]
fn broken_downloads_go_on_where_they_broke() {
    let work = tempfile::tempdir().unwrap();
    let Some(registry) = Registry::start(work.path(), "", "") else { return };
    let (first, image) = stored(work.path(), 3 << 20);
    first.push(image.id, &reference(&registry.address, "broken/image:v1"), &Quiet).unwrap();
    // Every connection breaks after a million bytes.
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&ranges);
    let front = Server::start(Some(&registry.address), move |request| {
        if is_blob(request) {
            seen.lock().unwrap().push(request.header("range").unwrap_or_default().to_owned());
        }
        Answer::Cut(1_000_000)
    });
    let heard = Heard::default();
    let back =
        pull(&store(work.path(), "second"), &format!("{}/broken/image:v1", front.address), &heard).unwrap();
    assert_eq!(back.id, image.id);
    assert!(heard.retries() >= 3, "the layer is larger than three connections may carry");
    let ranges = ranges.lock().unwrap();
    let mut starts: Vec<u64> = ranges
        .iter()
        .filter_map(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
        .collect();
    starts.sort_unstable();
    assert!(starts.len() >= 3 && starts[2] > 2_500_000, "nothing is read twice: {starts:?}");
}

#[test]
fn a_registry_without_ranges() {
    let work = tempfile::tempdir().unwrap();
    let Some(registry) = Registry::start(work.path(), "", "") else { return };
    let (first, image) = stored(work.path(), 1 << 20);
    first.push(image.id, &reference(&registry.address, "whole/image:v1"), &Quiet).unwrap();
    // The first answer breaks; the second is whole whatever was asked for, as from a server that does no ranges.
    let (address, known) = (registry.address.clone(), Mutex::new(std::collections::BTreeSet::new()));
    let front = Server::start(Some(&registry.address), move |request| {
        if !is_blob(request) {
            return Answer::Forward;
        }
        if known.lock().unwrap().insert(request.target.clone()) {
            return Answer::Cut(400_000);
        }
        let url = format!("http://{address}{}", request.target);
        let output = std::process::Command::new("curl").args(["-s", &url]).output().unwrap();
        Answer::Say(200, Vec::new(), output.stdout)
    });
    if !have("curl") {
        return;
    }
    let heard = Heard::default();
    let back =
        pull(&store(work.path(), "second"), &format!("{}/whole/image:v1", front.address), &heard).unwrap();
    assert_eq!((back.id, heard.retries()), (image.id, 1));
}

#[test]
fn overload_is_waited_for() {
    let work = tempfile::tempdir().unwrap();
    let Some(registry) = Registry::start(work.path(), "", "") else { return };
    let (first, image) = stored(work.path(), 100_000);
    first.push(image.id, &reference(&registry.address, "busy/image:v1"), &Quiet).unwrap();
    // Every path is refused twice, in two ways, before it is served.
    let refused = Arc::new(Mutex::new(std::collections::BTreeMap::<String, u32>::new()));
    let counts = Arc::clone(&refused);
    let front = Server::start(Some(&registry.address), move |request| {
        let mut counts = counts.lock().unwrap();
        let count = counts.entry(format!("{} {}", request.method, request.target)).or_default();
        *count += 1;
        match *count {
            1 => Answer::Say(429, vec!["Retry-After: 0".into()], Vec::new()),
            2 => Answer::Say(503, Vec::new(), b"no JSON".to_vec()),
            _ => Answer::Forward,
        }
    });
    let name = format!("{}/busy/image:v1", front.address);
    assert_eq!(pull(&store(work.path(), "second"), &name, &Quiet).unwrap().id, image.id);
    let asked = refused.lock().unwrap().len();
    assert!(asked >= 4, "manifest, configuration and two layers: {asked}");

    // One that is never well again is told as what it is.
    let (count, why) =
        (Arc::new(AtomicU32::new(0)), r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#);
    let seen = Arc::clone(&count);
    let front = Server::start(None, move |_| {
        seen.fetch_add(1, Ordering::Relaxed);
        Answer::Say(429, vec!["Retry-After: 0".into()], why.into())
    });
    let error =
        pull(&store(work.path(), "third"), &format!("{}/busy/image:v1", front.address), &Quiet).unwrap_err();
    assert!(
        matches!(&error, Error::Registry { status: 429, .. }) && error.to_string().contains("slow down"),
        "{error:?}"
    );
    assert_eq!(count.load(Ordering::Relaxed), 4, "four attempts, not more");
}

#[test]
fn a_token_that_ends_during_a_pull() {
    let work = tempfile::tempdir().unwrap();
    let Some(registry) = Registry::start(work.path(), "", "") else { return };
    let (first, image) = stored(work.path(), 100_000);
    first.push(image.id, &reference(&registry.address, "ended/image:v1"), &Quiet).unwrap();
    // Every token is good for two requests.
    let given = Arc::new(AtomicU32::new(0));
    let tokens = Arc::clone(&given);
    let server = Server::start(None, move |_| {
        let number = tokens.fetch_add(1, Ordering::Relaxed) + 1;
        Answer::Say(200, Vec::new(), format!(r#"{{"token":"t{number}"}}"#).into_bytes())
    });
    let (realm, used) = (server.address.clone(), Mutex::new((0, String::new())));
    let front = Server::start(Some(&registry.address), move |request| {
        let mut used = used.lock().unwrap();
        let token = request.header("authorization").unwrap_or_default().to_owned();
        if used.1 != token {
            *used = (0, token.clone());
        }
        used.0 += 1;
        if token.is_empty() || used.0 > 2 {
            let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{realm}/token\",service=\"s\"");
            return Answer::Say(401, vec![challenge], Vec::new());
        }
        Answer::Forward
    });
    let name = format!("{}/ended/image:v1", front.address);
    assert_eq!(pull(&store(work.path(), "second"), &name, &Quiet).unwrap().id, image.id);
    assert!(given.load(Ordering::Relaxed) >= 2);
}

#[test]
fn broken_uploads_are_taken_up_again() {
    let work = tempfile::tempdir().unwrap();
    let Some(registry) = Registry::start(work.path(), "", "") else { return };
    // Two chunks of 32 MiB and a rest.
    let (first, image) = stored(work.path(), 70 << 20);
    let (patches, counts) = (Arc::new(Mutex::new(Vec::new())), AtomicU32::new(0));
    let seen = Arc::clone(&patches);
    let front = Server::start(Some(&registry.address), move |request| {
        if request.method != "PATCH" {
            return Answer::Forward;
        }
        seen.lock().unwrap().push(request.header("content-range").unwrap_or_default().to_owned());
        // The second chunk breaks in its middle.
        if counts.fetch_add(1, Ordering::Relaxed) == 1 {
            Answer::CutUpload(10 << 20)
        } else {
            Answer::Forward
        }
    });
    let heard = Heard::default();
    let target = reference(&front.address, "large/image:v1");
    assert_eq!(first.push(image.id, &target, &heard).unwrap(), image.manifest);
    assert_eq!(heard.retries(), 1);
    assert_eq!(heard.count(|event| matches!(event, Event::PushDone { .. })), 2);
    assert!(
        heard.count(|event| matches!(event, Event::Pushed { digest, .. } if *digest == image.manifest)) == 1
    );
    let patches = patches.lock().unwrap();
    assert!(patches.len() >= 4, "{patches:?}");
    assert_eq!(patches[..2], ["0-33554431", "33554432-67108863"]);
    let back = pull(&store(work.path(), "second"), &target.to_string(), &Quiet).unwrap();
    assert_eq!((back.id, back.manifest), (image.id, image.manifest));
    if have("skopeo") {
        let from = format!("docker://{}/large/image:v1", registry.address);
        run("skopeo", &["inspect", "--tls-verify=false", &from]);
    }
}

#[test]
fn what_is_told_of_a_pull_and_a_push() {
    let work = tempfile::tempdir().unwrap();
    let Some(registry) = Registry::start(work.path(), "", "") else { return };
    let (first, image) = stored(work.path(), 3 << 20);
    let target = reference(&registry.address, "told/image:v1");
    let lines = |heard: &Heard, digest: image_unpack::Digest| -> Vec<String> {
        let id = digest.hex()[..12].to_owned();
        let events = heard.0.lock().unwrap();
        let lines = events.iter().filter_map(Event::status_line).filter(|line| line.id.as_ref() == Some(&id));
        let mut words: Vec<String> = lines.map(|line| line.status).collect();
        words.dedup();
        words
    };
    let layers = |heard: &Heard| -> Vec<image_unpack::Digest> {
        let events = heard.0.lock().unwrap();
        let digest = |event: &Event| match event {
            Event::LayerPending { digest, .. } | Event::PushPreparing { digest, .. } => Some(*digest),
            _ => None,
        };
        events.iter().filter_map(digest).collect()
    };
    let push = Heard::default();
    first.push(image.id, &target, &push).unwrap();
    let sent = layers(&push);
    assert_eq!(lines(&push, sent[0]), ["Preparing", "Pushing", "Pushed"]);
    assert_eq!(lines(&push, sent[1]), ["Preparing", "Waiting", "Pushing", "Pushed"]);
    let last = push.0.lock().unwrap().last().and_then(Event::status_line).unwrap().status;
    assert!(last.starts_with(&format!("v1: digest: {} size: ", image.manifest)), "{last}");
    let again = Heard::default();
    first.push(image.id, &target, &again).unwrap();
    assert_eq!(lines(&again, sent[0]), ["Preparing", "Layer already exists"]);

    let second = store(work.path(), "second");
    let heard = Heard::default();
    pull(&second, &target.to_string(), &heard).unwrap();
    let steps = [
        "Pulling fs layer",
        "Downloading",
        "Verifying Checksum",
        "Download complete",
        "Extracting",
        "Pull complete",
    ];
    for digest in layers(&heard) {
        assert_eq!(lines(&heard, digest), steps);
    }
    let named = |heard: &Heard, fresh: bool| {
        heard.count(|event| matches!(event, Event::Resolved { digest: Some(d), .. } if *d == image.manifest))
            == 1
            && heard.count(|event| matches!(event, Event::Ready { fresh: f, .. } if *f == fresh)) == 1
    };
    assert!(named(&heard, true));
    let again = Heard::default();
    pull(&second, &target.to_string(), &again).unwrap();
    assert!(named(&again, false), "the second pull finds the image up to date");
    assert_eq!(lines(&again, sent[0]), ["Already exists"]);
    let inspect = second.inspect(image.id).unwrap();
    assert_eq!(inspect.repo_tags, [target.to_string()]);
    assert_eq!(inspect.repo_digests, [target.with_digest(image.manifest).to_string()]);
    assert_eq!(second.find(&inspect.repo_digests[0]).unwrap().id, image.id);
}
