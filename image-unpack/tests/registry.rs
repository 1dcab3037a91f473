//! Against Debian's `docker-registry` on loopback: plain, with passwords, on TLS, and through connections that break.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails fails its test")]

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use bulkhead_fixtures::layout::Layout;
use bulkhead_fixtures::registry::Registry;
use bulkhead_fixtures::tarfile::{Pack, Tar, noise};
use bulkhead_fixtures::tools::{have, is_root, run};
use image_unpack::{
    CommitOptions, Digest, Error, Event, ImportOptions, Limits, Platform, Quiet, Reference, Registries,
    Source, Store,
};
use serde_json::json;

fn image(dir: &Path) -> Layout {
    let layout = Layout::new(&dir.join("oci"));
    let base = Tar::default().dir("etc").file("etc/x", b"x").file("noise", &noise(1, 3 << 20)).end();
    let top = Tar::default().file("etc/.wh.x", b"").file("etc/y", b"y").end();
    layout.image(&[base, top], Pack::Gzip);
    layout
}

fn skopeo(layout: &Layout, target: &str, more: &[&str]) {
    let from = format!("oci:{}:t", layout.dir.display());
    let to = format!("docker://{target}");
    let mut arguments = vec!["copy", "--dest-tls-verify=false"];
    arguments.extend(more);
    arguments.extend([from.as_str(), to.as_str()]);
    run("skopeo", &arguments);
}

fn store(dir: &Path, registries: Registries) -> Store {
    Store::open_with(dir, Limits::default(), registries).unwrap()
}

fn no_credentials(dir: &Path) -> Registries {
    Registries { certificates: vec![dir.join("certs.d")], ..Registries::default() }
        .with_docker_config(&dir.join("config.json"))
}

#[test]
fn pulls_by_tag_and_digest() {
    let work = tempfile::tempdir().unwrap();
    if !have("skopeo") {
        return;
    }
    let Some(registry) = Registry::start(work.path(), "", "") else { return };
    let layout = image(work.path());
    let name = format!("{}/some/image:v1", registry.address);
    skopeo(&layout, &name, &[]);
    let local = store(&work.path().join("a"), Registries::default());
    let here = local.ensure(&layout.source(), &Platform::host(), &Quiet).unwrap();
    let remote = store(&work.path().join("b"), no_credentials(work.path()));
    let reference: Reference = name.parse().unwrap();
    assert!(remote.lookup(&reference).unwrap().is_none());
    let pulled = remote.ensure(&Source::Registry(reference.clone()), &Platform::host(), &Quiet).unwrap();
    assert_eq!(pulled.id, here.id);
    assert_eq!(pulled.disk.size, here.disk.size);
    assert_eq!(
        fs::read(&pulled.disk.extents[0].path).unwrap(),
        fs::read(&here.disk.extents[0].path).unwrap(),
        "the same layers give the same disk, wherever they come from"
    );
    let found = remote.lookup(&reference).unwrap().unwrap();
    assert_eq!((found.id, found.disk.clone()), (pulled.id, pulled.disk.clone()));
    assert_eq!(found.manifest, pulled.manifest);
    let pinned: Source = format!("{}/some/image@{}", registry.address, pulled.manifest).parse().unwrap();
    assert_eq!(remote.ensure(&pinned, &Platform::host(), &Quiet).unwrap().id, here.id);
    assert!(remote.cached(&pinned, &Platform::host()).unwrap().is_some());
    assert!(remote.cached(&pinned, &"linux/arm64".parse().unwrap()).unwrap().is_none());
    let ask = |name: &str| {
        let source: Source = format!("{}/{name}", registry.address).parse().unwrap();
        remote.ensure(&source, &Platform::host(), &Quiet)
    };
    assert!(matches!(ask("some/image:v2"), Err(Error::NoSuchTag { have, .. }) if have == ["v1"]));
    assert!(matches!(ask("other/image:v1"), Err(Error::NotFound { .. })));
    let absent = format!("some/image@sha256:{}", "0".repeat(64));
    assert!(matches!(ask(&absent), Err(Error::NotFound { .. })));
}

#[test]
fn mirrors_come_first_and_may_fail() {
    let work = tempfile::tempdir().unwrap();
    if !have("skopeo") {
        return;
    }
    let Some(registry) = Registry::start(work.path(), "", "") else { return };
    let layout = image(work.path());
    skopeo(&layout, &format!("{}/m/image:v1", registry.address), &[]);
    let mut registries = no_credentials(work.path());
    // Nothing answers at the first; the second has what the registry of that name would have.
    let mirrors = vec!["http://127.0.0.1:1".to_owned(), format!("http://{}", registry.address)];
    registries.mirrors.insert("registry.invalid".into(), mirrors);
    let store = store(&work.path().join("store"), registries);
    let source: Source = "registry.invalid/m/image:v1".parse().unwrap();
    let image = store.ensure(&source, &Platform::host(), &Quiet).unwrap();
    assert_eq!(image.reference.unwrap().to_string(), "registry.invalid/m/image:v1");
}

#[test]
fn pushes_what_others_accept() {
    let work = tempfile::tempdir().unwrap();
    if !have("skopeo") {
        return;
    }
    let Some(registry) = Registry::start(work.path(), "", "") else { return };
    let layout = image(work.path());
    let first = store(&work.path().join("a"), no_credentials(work.path()));
    let here = first.ensure(&layout.source(), &Platform::host(), &Quiet).unwrap();
    let target: Reference = format!("{}/pushed/image:v1", registry.address).parse().unwrap();
    let sent = AtomicU32::new(0);
    let heard = |event: Event| {
        if matches!(event, Event::PushDone { .. }) {
            sent.fetch_add(1, Ordering::Relaxed);
        }
    };
    assert_eq!(first.push(here.id, &target, &heard).unwrap(), here.manifest);
    assert_eq!(sent.swap(0, Ordering::Relaxed), 2, "two layers");
    first.push(here.id, &target, &heard).unwrap();
    assert_eq!(sent.load(Ordering::Relaxed), 0, "what is there is not sent again");
    // To another repository of the registry: mounted, not sent.
    first.tag(here.id, &target).unwrap();
    let other: Reference = format!("{}/other/image:v2", registry.address).parse().unwrap();
    first.push(here.id, &other, &heard).unwrap();
    assert_eq!(sent.load(Ordering::Relaxed), 0, "blobs are mounted across repositories");
    // Pulled back, by us and by skopeo.
    let second = store(&work.path().join("b"), no_credentials(work.path()));
    let back = second.ensure(&Source::Registry(other.clone()), &Platform::host(), &Quiet).unwrap();
    assert_eq!((back.id, back.manifest), (here.id, here.manifest));
    let copy = work.path().join("copy");
    let to = format!("oci:{}:t", copy.display());
    run("skopeo", &["copy", "--src-tls-verify=false", &format!("docker://{other}"), &to]);
    if have("umoci") {
        run("umoci", &["stat", "--image", &format!("{}:t", copy.display())]);
    }
}

/// An index of two platforms, each with an image of its own, as a layout.
fn two_platforms(dir: &Path) -> Layout {
    let layout = Layout::new(dir);
    let manifest = |architecture: &str, variant: Option<&str>| {
        let tar = Tar::default().file("architecture", architecture.as_bytes()).end();
        // Foreign and empty layers are layers like others.
        let empty = Tar::default().end();
        let layers: Vec<_> = [(&tar, "nondistributable.v1.tar"), (&empty, "v1.tar")]
            .map(|(tar, kind)| {
                let (digest, size) = layout.blob(tar);
                json!({"mediaType": format!("application/vnd.oci.image.layer.{kind}"), "digest": digest, "size": size})
            })
            .into();
        let diff_ids = [Digest::of(&tar), Digest::of(&empty)];
        let mut platform = json!({"architecture": architecture, "os": "linux"});
        if let Some(variant) = variant {
            platform["variant"] = variant.into();
        }
        let mut config = platform.clone();
        config["config"] = json!({});
        config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
        let (digest, size) = layout.blob(config.to_string().as_bytes());
        let kind = "application/vnd.oci.image.config.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": kind, "digest": digest, "size": size}, "layers": layers});
        let (digest, size) = layout.blob(manifest.to_string().as_bytes());
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
            "platform": platform})
    };
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": kind,
        "manifests": [manifest("arm64", Some("v8")), manifest("amd64", None), manifest("arm", Some("v6"))]});
    let (digest, size) = layout.blob(index.to_string().as_bytes());
    let top = json!({"schemaVersion": 2, "manifests": [{"mediaType": kind, "digest": digest, "size": size,
        "annotations": {"org.opencontainers.image.ref.name": "t"}}]});
    fs::write(layout.dir.join("index.json"), top.to_string()).unwrap();
    layout
}

#[test]
fn indexes_of_several_platforms() {
    let work = tempfile::tempdir().unwrap();
    if !have("skopeo") {
        return;
    }
    let Some(registry) = Registry::start(work.path(), "", "") else { return };
    let layout = two_platforms(&work.path().join("oci"));
    let name = format!("{}/multi/image:v1", registry.address);
    skopeo(&layout, &name, &["--all"]);
    let store = store(&work.path().join("store"), no_credentials(work.path()));
    let sources: [Source; 2] = [name.parse().unwrap(), layout.source()];
    let asked = [
        ("linux/amd64", Some("amd64")),
        ("linux/arm64", Some("arm64")),
        ("linux/arm64/v8", Some("arm64")),
        // A newer CPU runs what was built for an older one, not the other way round.
        ("linux/arm/v7", Some("arm")),
        ("linux/arm/v5", None),
        ("linux/s390x", None),
        ("windows/amd64", None),
    ];
    for source in &sources {
        for (platform, expected) in asked {
            let result = store.ensure(source, &platform.parse().unwrap(), &Quiet);
            match (result, expected) {
                (Ok(image), Some(architecture)) => {
                    assert_eq!(image.config.architecture().to_string(), architecture, "{platform}");
                }
                (Err(Error::WrongPlatform { have, .. }), None) => {
                    assert_eq!(have, ["linux/arm64/v8", "linux/amd64", "linux/arm/v6"]);
                }
                (result, _) => panic!("{platform}: {result:?}"),
            }
        }
    }
    // The name's digest is the index's: that is what pins all platforms.
    store.ensure(&sources[0], &Platform::host(), &Quiet).unwrap();
    let image = store.find(&name).unwrap();
    let pinned = store.inspect(image.id).unwrap().repo_digests.pop().unwrap();
    assert!(!pinned.ends_with(&image.manifest.to_string()), "the manifest's would pin one platform");
    let arm = store.ensure(&pinned.parse().unwrap(), &"linux/arm64".parse().unwrap(), &Quiet).unwrap();
    assert_eq!(arm.config.architecture().to_string(), "arm64");
}

#[test]
fn images_made_here_are_pushed_as_well() {
    let work = tempfile::tempdir().unwrap();
    let Some(registry) = Registry::start(work.path(), "", "") else { return };
    let store = store(&work.path().join("store"), no_credentials(work.path()));
    let tar = Tar::default().dir("etc").file("etc/x", b"x").end();
    let base = store.import(&tar[..], &ImportOptions::default()).unwrap();
    let layer = Tar::default().file("etc/y", b"y").end();
    let made = store.commit(Some(base.id), Some(Box::new(&layer[..])), &CommitOptions::default()).unwrap();
    let target: Reference = format!("{}/made/image:v1", registry.address).parse().unwrap();
    store.tag(made.id, &target).unwrap();
    assert!(store.inspect(made.id).unwrap().repo_digests.is_empty(), "no registry knows it yet");
    store.push(made.id, &target, &Quiet).unwrap();
    assert_eq!(store.inspect(made.id).unwrap().repo_digests, [target.with_digest(made.manifest).to_string()]);
    if have("skopeo") && have("umoci") && is_root() {
        let copy = work.path().join("copy");
        let to = format!("oci:{}:t", copy.display());
        run("skopeo", &["copy", "--src-tls-verify=false", &format!("docker://{target}"), &to]);
        let bundle = work.path().join("bundle");
        run("umoci", &["unpack", "--image", &format!("{}:t", copy.display()), bundle.to_str().unwrap()]);
        assert!(bundle.join("rootfs/etc/x").exists() && bundle.join("rootfs/etc/y").exists());
    }
}
