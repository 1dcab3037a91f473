//! The same image from every kind of source, and as an ordinary user.

use std::fs;
use std::path::Path;
use std::process::Command;

use bulkhead_tests::registry::Registry;
use bulkhead_tests::tools::have;
use bulkhead_tests::{Bulkhead, Ran, busybox};

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

#[test]
fn an_image_is_pulled_from_a_registry_once() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let directory = tempfile::tempdir().unwrap();
    if !have("skopeo") {
        return;
    }
    let Some(registry) = Registry::start(directory.path(), "", "") else { return };
    let name = format!("{}/some/busybox:v1", registry.address);
    skopeo_copy(&format!("docker://{name}"));
    let ran = bulkhead.run(&[&name, "echo", "pulled"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "pulled\n"), "{ran:?}");
    let missing = bulkhead.run(&[&format!("{}/some/busybox:v2", registry.address), "true"]);
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
    for name in ["bulkhead", "bulkhead-net", "bulkhead-vmm", "initramfs.cpio"] {
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
