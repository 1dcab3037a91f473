//! The same image from every kind of source, and as an ordinary user.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bulkhead_tests::{Bulkhead, Ran, busybox};

fn have(program: &str) -> bool {
    let found = Command::new("which").arg(program).stdout(Stdio::null()).status().is_ok_and(|s| s.success());
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

fn skopeo_copy(to: &str) {
    let from = format!("{}:latest", busybox());
    let copy = ["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", &from, to];
    let output = Command::new("skopeo").args(copy).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn archives_run_like_the_layout_they_were_made_from() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    if !have("skopeo") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for kind in ["oci-archive", "docker-archive"] {
        let file = directory.path().join(kind);
        skopeo_copy(&format!("{kind}:{}:bulkhead.test/busybox:latest", file.display()));
        let ran = bulkhead.run(&[&format!("{kind}:{}", file.display()), "echo", kind]);
        assert_eq!((ran.code, ran.stdout), (0, format!("{kind}\n")), "{}", ran.stderr);
    }
    bulkhead.assert_nothing_left();
}

/// Debian's docker-registry on a free port of the loopback interface.
struct Registry {
    child: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Registry {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = directory.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: '127.0.0.1:{port}' }}\n",
            directory.path().join("data").display()
        );
        fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, port, _directory: directory }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_image_is_pulled_from_a_registry_once() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    if !have("skopeo") || !have("docker-registry") {
        return;
    }
    let registry = Registry::start();
    let name = format!("127.0.0.1:{}/some/busybox:v1", registry.port);
    skopeo_copy(&format!("docker://{name}"));
    let ran = bulkhead.run(&[&name, "echo", "pulled"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "pulled\n"), "{ran:?}");
    let missing = bulkhead.run(&[&format!("127.0.0.1:{}/some/busybox:v2", registry.port), "true"]);
    bulkhead_tests::assert_error(&bulkhead, &missing, 125, "v2", "v2");
    // From now on it is in the store.
    drop(registry);
    let ran = bulkhead.run(&[&name, "echo", "stored"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "stored\n"), "{ran:?}");
}

#[test]
fn an_ordinary_user_needs_no_rights() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let drop_rights = ["--reuid", "12345", "--regid", "12345", "--clear-groups"];
    if !Command::new("setpriv").args(drop_rights).arg("true").status().is_ok_and(|s| s.success()) {
        eprintln!("skipped: the user cannot be changed, this test needs root");
        return;
    }
    // Everything where that user may read it.
    let program = std::env::var("BULKHEAD").unwrap();
    let kernel = std::env::var("BULKHEAD_KERNEL_UML").unwrap();
    let home = tempfile::Builder::new().prefix("bulkhead-user-").tempdir_in("/tmp").unwrap();
    for name in ["bulkhead", "bulkhead-vmm", "initramfs.cpio"] {
        fs::copy(Path::new(&program).with_file_name(name), home.path().join(name)).unwrap();
    }
    fs::copy(kernel, home.path().join("linux")).unwrap();
    let image = busybox();
    let copied = Command::new("cp")
        .arg("-r")
        .arg(image.trim_start_matches("oci:"))
        .arg(home.path().join("image"))
        .status();
    assert!(copied.unwrap().success());
    assert!(Command::new("chown").args(["-R", "12345:12345"]).arg(home.path()).status().unwrap().success());
    let ran: Ran = Command::new("setpriv")
        .args(drop_rights)
        .arg(home.path().join("bulkhead"))
        .args(["run", "--rm", "--accel", "uml"])
        .arg(format!("oci:{}", home.path().join("image").display()))
        .args(["sh", "-c", "id -u; echo text > /root/file; chown 5:6 /root/file; stat -c '%u:%g' /root/file"])
        .env("BULKHEAD_ROOT", home.path().join("state"))
        .env("BULKHEAD_KERNEL_UML", home.path().join("linux"))
        .env("HOME", home.path())
        .output()
        .unwrap()
        .into();
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "0\n5:6\n"), "{ran:?}");
    let left = fs::read_dir(home.path().join("state/containers")).unwrap().map(|e| e.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), [".lock"]);
    drop(bulkhead);
}
