//! `doctor` and `accelerator`: what the host can do, found out by doing it.

use bulkhead_tests::Bulkhead;

#[test]
fn doctor_boots_a_machine_on_each_accelerator_and_leaves_nothing() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let ran = bulkhead.ran(&["doctor"]);
    eprintln!("{}", ran.stdout);
    assert_eq!(ran.code, 0, "{ran:?}");
    let row = |name: &str| {
        let found = ran.stdout.lines().find(|l| l.starts_with(name));
        found.unwrap_or_else(|| panic!("no row {name}: {}", ran.stdout)).to_owned()
    };
    let uml = row("accelerator uml");
    assert!(uml.contains(" ok ") && uml.contains(" ms ") && uml.contains("user-space kernel"), "{uml}");
    let kvm = row("accelerator kvm");
    if std::path::Path::new("/dev/kvm").exists() {
        assert!(kvm.contains(" ok ") && kvm.contains("virtual machine"), "{kvm}");
    } else {
        eprintln!("skipped: no /dev/kvm");
        assert!(kvm.contains(" no "), "{kvm}");
    }
    let map_count: u64 =
        std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    let mappings = row("memory mappings");
    assert!(mappings.contains(&map_count.to_string()), "{mappings}");
    assert_eq!(map_count < 262_144, ran.stdout.contains("next: sysctl -w vm.max_map_count=1048576"));
    bulkhead.assert_nothing_left();
}

#[test]
fn auto_chooses_by_measurement_and_says_so_once() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    std::fs::remove_file(bulkhead.root.path().join("cache/kvm.json")).ok();
    let first = bulkhead.ran(&["accelerator"]);
    let chosen = first.stdout.trim().to_owned();
    assert!(["kvm", "uml"].contains(&chosen.as_str()), "{first:?}");
    let remembered = std::fs::read_to_string(bulkhead.root.path().join("cache/kvm.json")).unwrap();
    assert_eq!(chosen == "kvm", remembered.contains("hardware"), "{remembered}");

    std::fs::remove_file(bulkhead.root.path().join("cache/kvm.json")).unwrap();
    let image = bulkhead_tests::busybox();
    let says = |ran: &bulkhead_tests::Ran| {
        ran.stderr.lines().filter(|l| l.starts_with("bulkhead: accelerator")).count()
    };
    let first = bulkhead.ran(&["run", "--rm", &image, "true"]);
    let second = bulkhead.ran(&["run", "--rm", &image, "true"]);
    assert_eq!((first.code, second.code), (0, 0), "{first:?} {second:?}");
    let expected = usize::from(chosen == "uml");
    assert_eq!((says(&first), says(&second)), (expected, 0), "{first:?}");
}
