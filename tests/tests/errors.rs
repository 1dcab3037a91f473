//! Bad input: a three-line error, the right exit code, nothing left behind.

use std::fs;
use std::path::Path;
use std::process::Command;

use bulkhead_tests::image::{ImageBuilder, add_file, digest};
use bulkhead_tests::{Bulkhead, Ran, assert_error, busybox};
use serde_json::{Value, json};

fn image_name(directory: &Path) -> String {
    format!("oci:{}", directory.display())
}

#[test]
fn a_command_that_is_missing_or_cannot_be_executed() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let directory = tempfile::tempdir().unwrap();
    let image = ImageBuilder::new(json!({ "Env": ["PATH=/bin"] }))
        .busybox_layer()
        .layer(|tar| {
            add_file(tar, "bin/plain", b"no program", 0o644);
            add_file(tar, "bin/garbage", b"\x7fELFgarbage", 0o755);
            add_file(tar, "bin/script", b"#!/no/such/interpreter\n", 0o755);
        })
        .write(directory.path());
    let image = image_name(&image);
    for (command, code, why) in [
        ("no-such-program", 127, "executable file not found in $PATH"),
        ("/no/such/program", 127, "no such file or directory"),
        ("script", 127, "interpreter"),
        ("plain", 126, "permission denied"),
        ("/bin", 126, "directory"),
        ("garbage", 126, "exec format error"),
    ] {
        let ran = bulkhead.run(&[&image, command]);
        assert_error(&bulkhead, &ran, code, "could not be started", why);
    }
    let ran = bulkhead.run(&[&image]);
    assert_error(&bulkhead, &ran, 125, "no command", "neither the image nor the command line");
    let ran = bulkhead.run(&["-u", "nobody-here", &image, "true"]);
    assert_error(&bulkhead, &ran, 125, "could not be started", "unable to find user nobody-here");
    // Not executable for root is one thing, for another user another.
    let ran = bulkhead.run(&["-u", "1000", &image, "/bin/plain"]);
    assert_error(&bulkhead, &ran, 126, "could not be started", "permission denied");
}

#[test]
fn unknown_flags_and_bad_values() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let image = busybox();
    for (args, what, why) in [
        (vec!["--privileged", &image, "true"], "command line", "--privileged"),
        (vec!["--memory", "lots", &image, "true"], "--memory lots", "unit"),
        (vec!["--memory", "1m", &image, "true"], "--memory 1m", "6 MiB"),
        (vec!["--cpus", "none", &image, "true"], "--cpus none", "not a number"),
        (vec!["--cpus", "2", &image, "true"], "--cpus 2", "at most 1"),
        (vec!["--isolation", "vm", &image, "true"], "--isolation vm", "user-space kernel"),
        (vec!["-w", "relative", &image, "true"], "--workdir relative", "absolute"),
        (vec!["-it", &image, "true"], "-it", "not a TTY"),
    ] {
        let ran = bulkhead.run(&args);
        assert_error(&bulkhead, &ran, 125, what, why);
    }
    let ran = bulkhead.ran(&["run", "--rm", "--accel", "xen", &image, "true"]);
    assert_error(&bulkhead, &ran, 125, "--accel xen", "no accelerator");
    let ran = bulkhead.ran(&["rm", "0123456789ab"]);
    assert_error(&bulkhead, &ran, 1, "No such container", "none");
}

#[test]
fn images_that_are_missing_or_damaged() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let good = || {
        let directory = tempfile::tempdir().unwrap();
        ImageBuilder::new(json!({ "Env": ["PATH=/bin"] })).busybox_layer().write(directory.path());
        directory
    };
    let ran = bulkhead.run(&["oci:/no/such/layout", "true"]);
    assert_error(&bulkhead, &ran, 125, "oci:/no/such/layout", "");
    let ran = bulkhead.run(&["127.0.0.1:1/library/busybox:latest", "true"]);
    assert_error(&bulkhead, &ran, 125, "127.0.0.1:1", "");
    let ran = bulkhead.run(&["UPPER/Case", "true"]);
    assert_error(&bulkhead, &ran, 125, "UPPER/Case", "");
    let ran = bulkhead.run(&[&format!("{}:no-such-tag", busybox()), "true"]);
    assert_error(&bulkhead, &ran, 125, "no-such-tag", "no-such-tag");

    // A byte of the layer changed: its digest is wrong.
    let image = good();
    let layer = largest_blob(image.path());
    let mut bytes = fs::read(&layer).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&layer, &bytes).unwrap();
    let ran = bulkhead.run(&[&image_name(image.path()), "true"]);
    assert_error(&bulkhead, &ran, 125, "cannot be used", "its content is sha256:");

    // The layer is cut short.
    let image = good();
    let layer = largest_blob(image.path());
    let bytes = fs::read(&layer).unwrap();
    fs::write(&layer, &bytes[..bytes.len() / 2]).unwrap();
    let ran = bulkhead.run(&[&image_name(image.path()), "true"]);
    assert_error(&bulkhead, &ran, 125, "cannot be used", "");

    // The tar within is cut short, with digests that say so.
    let image = good();
    truncate_tar(image.path());
    let ran = bulkhead.run(&[&image_name(image.path()), "true"]);
    assert_error(&bulkhead, &ran, 125, "cannot be used", "");

    // Nothing of the damaged images was kept in the store.
    let image = good();
    let ran = bulkhead.run(&[&image_name(image.path()), "echo", "fine"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "fine\n"), "{ran:?}");
}

fn largest_blob(image: &Path) -> std::path::PathBuf {
    let blobs = fs::read_dir(image.join("blobs/sha256")).unwrap().map(|e| e.unwrap().path());
    blobs.max_by_key(|p| fs::metadata(p).unwrap().len()).unwrap()
}

fn truncate_tar(image: &Path) {
    let blobs = image.join("blobs/sha256");
    let read = |digest: &str| fs::read(blobs.join(digest.trim_start_matches("sha256:"))).unwrap();
    let store = |bytes: &[u8]| {
        fs::write(blobs.join(digest(bytes).trim_start_matches("sha256:")), bytes).unwrap();
        (digest(bytes), bytes.len())
    };
    let layer = fs::read(largest_blob(image)).unwrap();
    let (layer_digest, layer_size) = store(&layer[..layer.len() / 2]);
    let mut index: Value = serde_json::from_slice(&fs::read(image.join("index.json")).unwrap()).unwrap();
    let mut manifest: Value =
        serde_json::from_slice(&read(index["manifests"][0]["digest"].as_str().unwrap())).unwrap();
    let mut config: Value =
        serde_json::from_slice(&read(manifest["config"]["digest"].as_str().unwrap())).unwrap();
    config["rootfs"]["diff_ids"][0] = json!(layer_digest);
    let (config_digest, config_size) = store(config.to_string().as_bytes());
    manifest["config"]["digest"] = json!(config_digest);
    manifest["config"]["size"] = json!(config_size);
    manifest["layers"][0]["digest"] = json!(layer_digest);
    manifest["layers"][0]["size"] = json!(layer_size);
    let (manifest_digest, manifest_size) = store(manifest.to_string().as_bytes());
    index["manifests"][0]["digest"] = json!(manifest_digest);
    index["manifests"][0]["size"] = json!(manifest_size);
    fs::write(image.join("index.json"), index.to_string()).unwrap();
}

#[test]
fn a_missing_kernel_initramfs_or_vmm() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let image = busybox();
    let run = |variable: &str, value: &Path| -> Ran {
        bulkhead
            .command(&["run", "--rm", "--accel", "uml", &image, "true"])
            .env(variable, value)
            .output()
            .unwrap()
            .into()
    };
    let ran = run("BULKHEAD_KERNEL_UML", Path::new("/no/such/kernel"));
    assert_error(&bulkhead, &ran, 125, "kernel for uml is missing", "/no/such/kernel");
    assert!(ran.stderr.contains("next: make kernel-uml"), "{ran:?}");
    let ran = run("BULKHEAD_LIB", Path::new("/no/such/library"));
    assert_error(&bulkhead, &ran, 125, "is missing", "/no/such/library");
}

#[test]
fn what_an_ordinary_user_may_not_do() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    if !Path::new("/dev/kvm").exists() {
        let ran = bulkhead.ran(&["run", "--rm", "--accel", "kvm", &busybox(), "true"]);
        assert_error(&bulkhead, &ran, 125, "kvm accelerator cannot be used", "/dev/kvm does not exist");
        return;
    }
    // As a user without rights on /dev/kvm, with a state directory of its own.
    if !Command::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups", "true"])
        .status()
        .is_ok_and(|s| s.success())
    {
        eprintln!("skipped: the user cannot be changed, this test needs root");
        return;
    }
    let program = std::env::var("BULKHEAD").unwrap();
    let copy = tempfile::Builder::new().prefix("bulkhead-user-").tempdir_in("/tmp").unwrap();
    let open = |path: &Path| {
        let status = Command::new("chmod").arg("-R").arg("a+rwX").arg(path).status().unwrap();
        assert!(status.success());
    };
    for name in ["bulkhead", "bulkhead-net", "bulkhead-vmm", "initramfs.cpio"] {
        fs::copy(Path::new(&program).with_file_name(name), copy.path().join(name)).unwrap();
    }
    open(copy.path());
    open(bulkhead.root.path());
    let nobodys = |args: &[&str]| -> Ran {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .arg(copy.path().join("bulkhead"))
            .args(args);
        command.env("BULKHEAD_ROOT", bulkhead.root.path()).env("BULKHEAD_CACHE", copy.path());
        command.output().unwrap().into()
    };
    let ran = nobodys(&["volume", "create", "-o", "size=64m", "small"]);
    assert_error(&bulkhead, &ran, 1, "a volume of 67108864 bytes cannot be done", "which takes root");
    let ran = nobodys(&["run", "--rm", "--accel", "kvm", "busybox", "true"]);
    assert_error(&bulkhead, &ran, 125, "kvm accelerator cannot be used", "may not be opened by this user");
}

#[test]
fn a_full_disk() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let script = "set -e; mkdir -p \"$1\"; mount -t tmpfs -o size=600k tmpfs \"$1\"; \
        if BULKHEAD_ROOT=$1 \"$BULKHEAD\" run --rm --accel uml \"$2\" true; then exit 0; else code=$?; fi; \
        find \"$1\" -name '*.new' -o -name '*.tmp*'; exit $code";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(bulkhead.root.path().join("full"))
        .arg(busybox())
        .output()
        .unwrap();
    let ran = Ran::from(output);
    assert_eq!(ran.code, 125, "{ran:?}");
    assert_eq!(ran.stdout, "", "half-written files left");
    assert!(ran.stderr.contains("space"), "{ran:?}");
    assert_eq!(ran.stderr.lines().filter(|l| l.starts_with("next: ")).count(), 1, "{ran:?}");
    fs::remove_dir(bulkhead.root.path().join("full")).unwrap();
    bulkhead.assert_nothing_left();
}

/// An initramfs whose only file is another program in the agent's place.
fn initramfs_with(bulkhead: &Bulkhead, program: &[u8]) -> tempfile::TempDir {
    let library = tempfile::tempdir().unwrap();
    for name in ["bulkhead-net", "bulkhead-vmm"] {
        let program = Path::new(&std::env::var("BULKHEAD").unwrap()).with_file_name(name);
        std::os::unix::fs::symlink(program, library.path().join(name)).unwrap();
    }
    let work = bulkhead.root.path().join("initramfs");
    fs::create_dir_all(work.join("dev")).unwrap();
    fs::write(work.join("init"), program).unwrap();
    let status = Command::new("sh")
        .args([
            "-c",
            "chmod 755 init && printf 'dev\\ninit\\n' | cpio --quiet -o -H newc -R 0:0 > \"$1\"",
            "sh",
        ])
        .arg(library.path().join("initramfs.cpio"))
        .current_dir(&work)
        .status()
        .unwrap();
    assert!(status.success());
    fs::remove_dir_all(&work).unwrap();
    library
}

#[test]
fn a_guest_kernel_that_panics_shows_its_last_lines() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    // A program that is none: the kernel finds no init and panics.
    let library = initramfs_with(&bulkhead, b"this is no program");
    let ran: Ran = bulkhead
        .command(&["run", "--rm", "--accel", "uml", &busybox(), "true"])
        .env("BULKHEAD_LIB", library.path())
        .output()
        .unwrap()
        .into();
    assert_error(&bulkhead, &ran, 125, "kernel panic", "");
    assert!(ran.stderr.contains("Kernel panic - not syncing"), "{ran:?}");
}

#[test]
fn an_agent_that_never_answers() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    // busybox as init, with no inittab and no consoles: it waits for ever.
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("init.c");
    fs::write(&source, "int pause(void); int main(void) { for (;;) pause(); }").unwrap();
    let status = Command::new("gcc")
        .args(["-static", "-O1", "-o", "init", "init.c"])
        .current_dir(directory.path())
        .status();
    assert!(status.unwrap().success());
    let library = initramfs_with(&bulkhead, &fs::read(directory.path().join("init")).unwrap());
    let ran: Ran = bulkhead
        .command(&["run", "--rm", "--accel", "uml", &busybox(), "true"])
        .env("BULKHEAD_LIB", library.path())
        .env("BULKHEAD_BOOT_TIMEOUT", "2")
        .output()
        .unwrap()
        .into();
    assert_error(&bulkhead, &ran, 125, "did not answer within 2 s", "");
}

/// Touches pages in an order that no two of them share a mapping of the host.
const TOUCH_AT_RANDOM: &str = r"
#include <stddef.h>
#include <sys/mman.h>
int main(void) {
    size_t pages = 100000;
    char *memory = mmap(0, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t i = 0; i < pages; i++)
        memory[(i * 48271 % pages) * 4096] = 1;
    return 0;
}";

#[test]
fn a_low_limit_on_memory_mappings_is_told_when_a_process_dies_of_it() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let limit: u64 = fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("touch.c"), TOUCH_AT_RANDOM).unwrap();
    let compile = ["-static", "-O1", "-o", "touch", "touch.c"];
    assert!(Command::new("gcc").args(compile).current_dir(directory.path()).status().unwrap().success());
    let program = fs::read(directory.path().join("touch")).unwrap();
    let image = ImageBuilder::new(json!({ "Cmd": ["/touch"] }))
        .layer(|tar| add_file(tar, "touch", &program, 0o755))
        .write(&directory.path().join("image"));
    let ran = bulkhead.run(&["--memory", "512m", &image_name(&image)]);
    if limit >= 110_000 {
        eprintln!("skipped: vm.max_map_count is {limit}, high enough for this program");
        assert_eq!(ran.code, 0, "{ran:?}");
        return;
    }
    assert_error(&bulkhead, &ran, 139, "segmentation fault", &format!("vm.max_map_count is {limit}"));
    assert!(ran.stderr.ends_with("next: sysctl -w vm.max_map_count=1048576\n"), "{ran:?}");
}
