//! What the host sees of a running guest kernel's processes, and what becomes of them when their VMM dies.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

#[macro_use]
mod uml_support;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use uml_support::{Machine, PATIENCE, Setup};
use vmm::control::ExitReason;

fn status(pid: i32) -> HashMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

fn namespaces(pid: &str) -> Vec<std::path::PathBuf> {
    ["user", "mnt", "pid", "net", "ipc", "uts"]
        .iter()
        .filter_map(|kind| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok())
        .collect()
}

fn running(kernel: &std::path::Path, test: &'static str, word: &str) -> Machine {
    let mut machine = Setup::new(kernel, test).boot();
    machine.expect(word);
    machine
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0)
}

#[test]
fn every_process_of_the_guest_is_jailed() {
    let kernel = kernel_or_skip!();
    let machine = running(&kernel, "hang", "hanging");
    let processes = machine.guest();
    assert!(processes.len() >= 3, "first process, kernel, guest's process: {processes:?}");
    let ours = namespaces("self");
    for pid in &processes {
        let status = status(*pid);
        if is_root() {
            assert_eq!(status["Uid"], "65534\t65534\t65534\t65534", "{pid}");
            assert_eq!(status["Groups"], "", "{pid}");
        }
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status[set], "0000000000000000", "{pid} {set}");
        }
        assert_eq!(status["NoNewPrivs"], "1", "{pid}");
        assert_eq!(status["Seccomp"], "2", "{pid}");
        let theirs = namespaces(&pid.to_string());
        assert!(theirs.iter().all(|one| !ours.contains(one)), "{pid}: {theirs:?}");
        if is_root() {
            assert_eq!(theirs.len(), 6);
            // The initramfs and the sockets were removed; the guest's memory has no name.
            let names: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/root")).unwrap().flatten().collect();
            let names: Vec<_> =
                names.iter().map(|entry| entry.file_name()).filter(|name| name != ".uml").collect();
            assert!(names.is_empty(), "{pid}: {names:?}");
        }
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert!(core.split_ascii_whitespace().any(|word| word == "0"), "{core}");
    }
    // The kernel and what it runs share one CPU.
    let cpus: Vec<String> =
        processes[1..].iter().map(|pid| status(*pid)["Cpus_allowed_list"].clone()).collect();
    assert!(cpus.iter().all(|list| *list == cpus[0] && !list.contains(['-', ','])), "{cpus:?}");
    drop(machine.control);
    let mut vmm = machine.vmm;
    vmm.wait().unwrap();
    gone(&processes);
}

#[test]
fn no_process_outlives_a_vmm_that_is_killed() {
    let kernel = kernel_or_skip!();
    for (test, word) in [("hang", "hanging"), ("spin", "spinning")] {
        let mut machine = running(&kernel, test, word);
        let processes = machine.descendants();
        assert!(processes.len() >= 3);
        machine.vmm.kill().unwrap();
        machine.vmm.wait().unwrap();
        gone(&processes);
    }
}

#[test]
fn no_process_outlives_a_vmm_that_is_killed_at_any_time() {
    let kernel = kernel_or_skip!();
    for delay in 0..80 {
        let mut machine = Setup::new(&kernel, "hang").boot();
        std::thread::sleep(Duration::from_micros(150 * delay));
        let processes = machine.descendants();
        machine.vmm.kill().unwrap();
        machine.vmm.wait().unwrap();
        gone(&processes);
    }
}

#[test]
fn a_supervisor_that_goes_away_takes_its_machine_with_it() {
    let kernel = kernel_or_skip!();
    let machine = running(&kernel, "hang", "hanging");
    let processes = machine.descendants();
    let Machine { mut vmm, control, .. } = machine;
    drop(control);
    assert!(vmm.wait().unwrap().success());
    gone(&processes);
}

#[test]
fn a_guest_kernel_that_is_killed_from_outside_is_reported() {
    let kernel = kernel_or_skip!();
    let machine = running(&kernel, "hang", "hanging");
    let processes = machine.guest();
    // SAFETY: signals a process that this test's machine made.
    unsafe { libc::kill(processes[1], libc::SIGKILL) };
    let report = machine.ended();
    assert_eq!(report.reason, ExitReason::Killed, "{report:?}");
    assert!(report.detail.contains("killed from outside"), "{}", report.detail);
    gone(&processes);
}

#[test]
fn an_ordinary_user_can_do_all_of_it() {
    let kernel = kernel_or_skip!();
    if !is_root() {
        eprintln!("skipped: all tests already run as an ordinary user");
        return;
    }
    let mut setup = Setup::new(&kernel, "hang");
    setup.uid = Some(12345);
    let mut machine = setup.boot();
    machine.expect("hanging");
    let processes = machine.descendants();
    assert!(processes.len() >= 4);
    for pid in &processes {
        let status = status(*pid);
        assert_eq!(status["Uid"], "12345\t12345\t12345\t12345");
        assert_eq!(
            (status["CapEff"].as_str(), status["CapBnd"].as_str()),
            ("0000000000000000", "0000000000000000")
        );
        assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), ("1", "2"));
    }
    machine.vmm.kill().unwrap();
    machine.vmm.wait().unwrap();
    gone(&processes);
}

#[test]
fn a_kernel_that_is_no_program_fails_to_boot_with_a_reason() {
    let _kernel = kernel_or_skip!();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("linux");
    std::fs::write(&path, b"not a program").unwrap();
    let report = Setup::new(&path, "hang").boot().ended();
    assert_eq!(report.reason, ExitReason::BootFailed);
    assert!(report.detail.starts_with("cannot start the guest kernel"), "{}", report.detail);
}

/// Waits until none of these processes is left.
fn gone(processes: &[i32]) {
    let began = Instant::now();
    let alive = |pid: &&i32| match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // A zombie that the host's first process has not buried yet is dead enough.
        Ok(stat) => !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
        Err(_) => false,
    };
    while let Some(pid) = processes.iter().find(alive) {
        assert!(began.elapsed() < PATIENCE, "process {pid} is still there");
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("{} processes gone within {:?}", processes.len(), began.elapsed());
}
