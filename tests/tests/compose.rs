//! Compose v1 (PyPI) against `bulkhead serve`: three services go up, one is scaled, all go down.

use std::path::{Path, PathBuf};
use std::process::Command;

use bulkhead_tests::daemon::Daemon;
use bulkhead_tests::venv;

/// It is not maintained any more: these are the versions that it works with. Its PyYAML is built from source, by a Cython of its time.
const PACKAGES: &[&[&str]] = &[
    &["cython<3", "wheel", "setuptools<81"],
    &["--no-build-isolation", "pyyaml==5.4.1"],
    &["docker-compose==1.29.2", "docker==5.0.3", "requests<2.29", "urllib3<2"],
];

struct Compose<'a> {
    program: PathBuf,
    daemon: &'a Daemon,
}

impl Compose<'_> {
    fn ok(&self, args: &[&str]) -> String {
        let output = Command::new("timeout")
            .arg("120")
            .arg(&self.program)
            .args(["--no-ansi", "-p", "trio", "-f"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("docker/compose.yml"))
            .args(args)
            .env("DOCKER_HOST", self.daemon.host())
            // It makes containers anew from a field of images that Docker dropped in 1.45.
            .env("COMPOSE_API_VERSION", "1.44")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{args:?}: {text} {}", String::from_utf8_lossy(&output.stderr));
        text
    }
}

#[test]
fn three_services_go_up_scale_and_go_down() {
    let Some(python) = venv::python("compose", PACKAGES, "import compose.cli.main") else { return };
    let Some(daemon) = Daemon::with_docker() else { return };
    let compose = Compose { program: python.with_file_name("docker-compose"), daemon: &daemon };
    let _ = compose.ok(&["up", "-d"]);
    let names = |filter: &str| {
        let listed = daemon.ok(&["ps", "--filter", filter, "--format", "{{.Names}}"]);
        let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
        names.sort_unstable();
        names
    };
    let project = "label=com.docker.compose.project=trio";
    assert_eq!(names(project), ["trio_store_1", "trio_web_1", "trio_worker_1"]);
    assert!(compose.ok(&["ps"]).contains("trio_web_1"));
    let log = compose.ok(&["logs", "--no-color", "web"]);
    assert!(log.contains("web up"), "{log}");
    let _ = compose.ok(&["up", "-d", "--scale", "worker=3"]);
    let workers = "label=com.docker.compose.service=worker";
    assert_eq!(names(workers), ["trio_worker_1", "trio_worker_2", "trio_worker_3"]);
    assert_eq!(compose.ok(&["exec", "-T", "web", "sh", "-c", "echo $GREETING"]), "hello\n");
    // Services find each other by name, and the host finds what is published.
    assert_eq!(compose.ok(&["exec", "-T", "worker", "wget", "-qO-", "http://web/"]), "a page\n");
    let published = compose.ok(&["port", "web", "80"]);
    let page = Command::new("curl").args(["-sf", published.trim()]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&page.stdout), "a page\n", "{published} {page:?}");
    // What one writes into a volume, its next container reads.
    let _ = compose.ok(&["exec", "-T", "store", "sh", "-c", "echo kept > /data/file"]);
    let _ = compose.ok(&["up", "-d", "--force-recreate", "-t", "1", "store"]);
    assert_eq!(compose.ok(&["exec", "-T", "store", "cat", "/data/file"]), "kept\n");
    let _ = compose.ok(&["restart", "-t", "1", "store"]);
    let _ = compose.ok(&["stop", "-t", "1", "worker"]);
    assert_eq!(names(project), ["trio_store_1", "trio_web_1"]);
    let _ = compose.ok(&["down", "-v", "-t", "1"]);
    assert_eq!(daemon.ok(&["ps", "-aq"]), "");
    assert_eq!(daemon.ok(&["volume", "ls", "-q"]), "");
    assert_eq!(daemon.ok(&["network", "ls", "--format", "{{.Name}}", "--filter", "type=custom"]), "");
}
