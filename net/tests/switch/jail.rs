//! What a switch that was taken over could do.

use std::fs;

use crate::site::Switch;

fn status(process: i32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{field}: {status}")).trim().to_owned()
}

#[test]
fn a_switch_has_nothing_but_its_sockets() {
    let switch = Switch::start(1);
    let guest = switch.guest(2);
    let process = switch.process();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(process, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(process, "NoNewPrivs"), "1");
    assert_eq!(status(process, "Seccomp"), "2");
    // Its own process number in its own namespace is 1.
    assert!(status(process, "NSpid").ends_with("\t1"), "{}", status(process, "NSpid"));
    let root = fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    if root {
        assert_eq!(status(process, "Uid"), "65534\t65534\t65534\t65534");
        assert_eq!(status(process, "Groups"), "");
        assert_eq!(
            fs::read_dir(format!("/proc/{process}/root")).unwrap().count(),
            0,
            "its root is not empty"
        );
        for namespace in ["user", "mnt", "pid", "ipc", "uts"] {
            let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{namespace}")).unwrap();
            assert_ne!(of(&process.to_string()), of("self"), "{namespace}");
        }
        let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
        for limit in ["Max core file size", "Max processes", "Max locked memory"] {
            let line = limits.lines().find_map(|line| line.strip_prefix(limit)).unwrap();
            assert!(line.split_whitespace().take(2).eq(["0", "0"]), "{limit}: {limits}");
        }
        // Sockets, its log, /dev/null and the epoll descriptor: nothing else is open.
        for entry in fs::read_dir(format!("/proc/{process}/fd")).unwrap().flatten() {
            let target = fs::read_link(entry.path()).unwrap().to_string_lossy().into_owned();
            let known =
                target.starts_with("socket:") || target == "anon_inode:[eventpoll]" || target == "/dev/null";
            assert!(known || target.ends_with("/log"), "{target}");
        }
    } else {
        eprintln!("skipped: not root: whose root directory and limits cannot be looked at");
    }
    drop(guest);
}

#[test]
fn a_switch_that_nobody_uses_ends() {
    let switch = Switch::start(1);
    let process = switch.process();
    let guest = switch.guest(2);
    drop(guest);
    let began = std::time::Instant::now();
    while fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|comm| comm.trim() == "bulkhead-net")
    {
        assert!(began.elapsed().as_secs() < 30, "it stays");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(switch.log(), "");
}

#[test]
fn an_ordinary_user_has_a_switch_too() {
    let root = fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    if !root {
        eprintln!("skipped: not root, so that the others were such switches");
        return;
    }
    // Its listening socket was made by root, as its supervisor's would be by the user.
    let switch = Switch::start_as(1, Some(12_345));
    let guest = switch.guest(2);
    let process = switch.process();
    assert_eq!(status(process, "Uid"), "12345\t12345\t12345\t12345");
    assert_eq!(status(process, "CapEff"), "0000000000000000");
    drop(guest);
}
