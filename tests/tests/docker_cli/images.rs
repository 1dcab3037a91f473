//! Files of containers, and images.

use std::fs;
use std::process::Command;

use bulkhead_tests::daemon::Daemon;
use bulkhead_tests::registry::Registry;

#[test]
fn files_go_in_and_out() {
    let Some(daemon) = Daemon::with_docker() else { return };
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir_all(work.path().join("tree/deep")).unwrap();
    fs::write(work.path().join("tree/deep/file"), "content\n").unwrap();
    let _ = daemon.ok(&["run", "-d", "--name", "box", "busybox", "sleep", "1000"]);
    for state in ["running", "stopped"] {
        if state == "stopped" {
            let _ = daemon.ok(&["kill", "box"]);
            let _ = daemon.ok(&["wait", "box"]);
        }
        let _ = daemon.ok(&["cp", &path("tree"), &format!("box:/tmp/{state}")]);
        let _ = daemon.ok(&["cp", &format!("box:/tmp/{state}"), &path(state)]);
        assert_eq!(fs::read_to_string(path(&format!("{state}/deep/file"))).unwrap(), "content\n");
        let tar = daemon.fed(&["cp", "-", "box:/tmp"], &{
            let mut tar = tar::Builder::new(Vec::new());
            bulkhead_tests::image::add_file(&mut tar, &format!("piped-{state}"), b"piped", 0o600);
            tar.into_inner().unwrap()
        });
        assert_eq!(tar.code, 0, "{tar:?}");
        let _ = daemon.ok(&["cp", &format!("box:/tmp/piped-{state}"), &path("piped")]);
        assert_eq!(fs::read_to_string(path("piped")).unwrap(), "piped");
        daemon.fails(1, "Could not find the file /nope in container", &["cp", "box:/nope", &path("x")]);
        let changes = daemon.ok(&["diff", "box"]);
        assert!(changes.lines().any(|line| line == format!("A /tmp/{state}/deep/file")), "{changes}");
        assert!(changes.lines().any(|line| line == "C /tmp"), "{changes}");
    }
    let exported = daemon.command(&["export", "box"]).output().unwrap();
    let mut tar = tar::Archive::new(&exported.stdout[..]);
    let names: Vec<String> =
        tar.entries().unwrap().map(|e| e.unwrap().path().unwrap().to_string_lossy().into_owned()).collect();
    assert!(names.iter().any(|name| name.trim_start_matches("./") == "tmp/running/deep/file"), "{names:?}");
    let id = daemon.ok(&[
        "commit",
        "-m",
        "said",
        "-a",
        "me",
        "-c",
        "CMD [\"cat\", \"/tmp/running/deep/file\"]",
        "box",
        "made:1",
    ]);
    assert!(id.starts_with("sha256:"), "{id}");
    assert_eq!(daemon.ok(&["run", "--rm", "made:1"]), "content");
    assert_eq!(daemon.ok(&["inspect", "-f", "{{.Comment}} {{.Author}}", "made:1"]), "said me");
    let imported =
        daemon.fed(&["import", "-c", "CMD [\"echo\", \"imported\"]", "-", "flat:1"], &exported.stdout);
    assert!(imported.code == 0 && imported.stdout.starts_with("sha256:"), "{imported:?}");
    assert_eq!(daemon.ok(&["run", "--rm", "-e", "PATH=/bin", "flat:1"]), "imported");
    let _ = daemon.ok(&["rm", "box"]);
}

#[test]
fn images_are_told_of_tagged_saved_and_removed() {
    let Some(daemon) = Daemon::with_docker() else { return };
    assert_eq!(daemon.ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"]), "busybox:latest");
    let id = daemon.ok(&["inspect", "-f", "{{.Id}}", "busybox"]);
    assert_eq!(daemon.ok(&["images", "-q", "--no-trunc"]), id);
    assert_eq!(
        daemon.ok(&["inspect", "-f", "{{.Os}}/{{.Architecture}} {{json .Config.Cmd}}", "busybox"]),
        "linux/amd64 [\"sh\"]"
    );
    let _ = daemon.ok(&["tag", "busybox", "other/name:v1"]);
    assert_eq!(daemon.ok(&["images", "-q", "--no-trunc", "other/name"]), id);
    assert_eq!(daemon.ok(&["images", "-q", "--filter", "reference=nothing"]), "");
    assert_eq!(daemon.ok(&["history", "-q", "--no-trunc", "busybox"]), id);
    let saved = daemon.command(&["save", "busybox", "other/name:v1"]).output().unwrap();
    assert!(saved.status.success(), "{saved:?}");
    daemon.fails(1, "image is referenced in multiple repositories", &["rmi", &id]);
    assert_eq!(daemon.ok(&["rmi", "other/name:v1"]), "Untagged: other/name:v1");
    let _ = daemon.ok(&["create", "--name", "user", "busybox", "echo", "kept for me"]);
    daemon.fails(1, "image is being used by stopped container", &["rmi", "busybox"]);
    assert_eq!(daemon.ok(&["rmi", "-f", "busybox"]), "Untagged: busybox:latest");
    assert_eq!(daemon.ok(&["start", "-a", "user"]), "kept for me");
    assert_eq!(daemon.ok(&["images", "-q", "--no-trunc", "--filter", "dangling=true"]), id);
    let _ = daemon.ok(&["tag", &id, "busybox"]);
    let _ = daemon.ok(&["rm", "user"]);
    assert_eq!(daemon.ok(&["rmi", "busybox"]), format!("Untagged: busybox:latest\nDeleted: {id}"));
    daemon.fails(1, "No such image: busybox:latest", &["rmi", "busybox"]);
    let loaded = daemon.fed(&["load", "-q"], &saved.stdout);
    let mut lines: Vec<&str> = loaded.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["Loaded image: busybox:latest", "Loaded image: other/name:v1"], "{loaded:?}");
    assert_eq!(daemon.ok(&["inspect", "-f", "{{.Id}}", "other/name:v1"]), id);
    daemon.fails(1, "search is not supported", &["search", "busybox"]);
    let pruned = daemon.ok(&["image", "prune", "-a", "-f"]);
    assert!(pruned.contains(&id) && pruned.contains("Total reclaimed space"), "{pruned}");
    assert_eq!(daemon.ok(&["images", "-q"]), "");
    let broken = daemon.fed(&["load"], b"this is no archive");
    assert!(broken.code == 1 && !broken.stderr.is_empty(), "{broken:?}");
}

#[test]
fn images_are_pulled_and_pushed() {
    let Some(daemon) = Daemon::with_docker() else { return };
    let directory = tempfile::tempdir().unwrap();
    let Some(registry) = Registry::start(directory.path(), "", "") else { return };
    let name = format!("{}/some/busybox:v1", registry.address);
    let _ = daemon.ok(&["tag", "busybox", &name]);
    let pushed = daemon.ok(&["push", &name]);
    assert!(
        pushed.contains("The push refers to repository") && pushed.contains("v1: digest: sha256:"),
        "{pushed}"
    );
    // What the registry has under the name, without pulling it; docker's command line has no verb for that.
    let url = format!("http://x/distribution/{name}/json");
    let asked =
        Command::new("curl").args(["-sS", "--unix-socket"]).arg(daemon.socket()).arg(url).output().unwrap();
    let told: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap();
    assert!(pushed.contains(told["Descriptor"]["digest"].as_str().unwrap()), "{told}");
    assert_eq!(told["Platforms"][0]["architecture"], "amd64", "{told}");
    let _ = daemon.ok(&["rmi", &name]);
    let _ = daemon.ok(&["rmi", "busybox"]);
    // `run` pulls what is missing.
    let ran = daemon.docker(&["run", "--rm", &name, "echo", "pulled"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "pulled\n"), "{ran:?}");
    assert!(
        ran.stderr.contains("Unable to find image") && ran.stderr.contains("Downloaded newer image"),
        "{ran:?}"
    );
    let again = daemon.ok(&["pull", &name]);
    assert!(again.contains("Image is up to date for"), "{again}");
    assert_eq!(daemon.ok(&["pull", "-q", &name]), name);
    daemon.fails(1, "not found", &["pull", &format!("{}/some/busybox:v2", registry.address)]);
    daemon.fails(
        125,
        "pull access denied for no/thing",
        &["run", "--rm", &format!("{}/no/thing", registry.address)],
    );
}
