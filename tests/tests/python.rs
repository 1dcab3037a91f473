//! A real distribution: Debian with Python, three layers, whiteouts.

use std::io::Write;
use std::process::Stdio;

use bulkhead_tests::{Bulkhead, Ran, script};

#[test]
fn debian_with_python_computes_reads_its_input_and_exits_as_told() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    if !std::path::Path::new("/usr/sbin/debootstrap").exists() || !is_root() {
        eprintln!("skipped: debootstrap is not installed, or this user is not root");
        return;
    }
    let image = format!("oci:{}", script("debian-python.sh").expect("debian-python.sh"));

    let ran = bulkhead.run(&[&image, "python3", "-c", "print(sum(range(10**7)))"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "49999995000000\n"), "{ran:?}");

    let mut child = bulkhead
        .command(&["run", "--rm", "--accel", "uml", "-i", &image])
        .args([
            "python3",
            "-c",
            "import sys; data = sys.stdin.buffer.read(); print(len(data)); sys.exit(len(data) % 251)",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&[b'x'; 300_007]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(300_007 % 251));
    assert_eq!(Ran::from(output).stdout, "300007\n");

    // What the third layer removed, changed and replaced.
    let check = "test ! -e /usr/share/doc && test ! -e /usr/share/man && test -f /opt && cat /etc/issue && pwd && \
        find / -xdev -name '.wh.*' | wc -l && dpkg --audit | wc -l";
    let ran = bulkhead.run(&[&image, "sh", "-c", check]);
    assert_eq!(ran.stdout, "third layer\n/srv\n0\n0\n", "{ran:?}");
    bulkhead.assert_nothing_left();
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}
