//! The Linux guest on /dev/kvm, with the agent and a container. On hosts whose KVM executes guest kernels in software this takes
//! up to a minute or two; the test binary holds nothing else, so that it runs alone.

use std::fs::OpenOptions;
use std::time::Instant;

use bulkhead_tests::{Bulkhead, busybox};

#[test]
fn a_container_runs_under_kvm() {
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        eprintln!("skipped: no /dev/kvm ({error})");
        return;
    }
    let Some(bulkhead) = Bulkhead::new() else { return };
    let start = Instant::now();
    let script =
        "echo pid $$; cat /proc/cpuinfo | grep -c ^processor; echo written > /file && cat /file; exit 9";
    let ran =
        bulkhead.ran(&["run", "--rm", "--accel", "kvm", "--memory", "64m", &busybox(), "sh", "-c", script]);
    eprintln!("a container under kvm: {:?}", start.elapsed());
    assert_eq!((ran.code, ran.stdout.as_str()), (9, "pid 1\n1\nwritten\n"), "{ran:?}");
    bulkhead.assert_nothing_left();
}
