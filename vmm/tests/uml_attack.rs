//! An attacking guest kernel: what it can reach, and what it cannot. Each attack must be refused or kill its process.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

#[macro_use]
mod uml_support;

use std::collections::BTreeMap;

use uml_support::{Setup, attacker};

/// What must come of an attack.
enum Fate {
    /// Killed by SIGSYS: the filter.
    Filter,
    /// Answered with one of these error numbers.
    Errno(&'static [i32]),
    /// Killed by this signal, or answered with that error number: a limit.
    Limit(i32, i32),
}

use Fate::{Errno, Filter, Limit};

/// All attacks; those that are not named here must be killed by the filter.
fn expected(name: &str) -> Fate {
    match name {
        // There is nothing in the jail.
        "open-passwd" | "open-proc" | "open-sys" | "open-kvm" | "open-parent" | "open-vmm-fd" => {
            Errno(&[libc::ENOENT])
        }
        "inherited" => Errno(&[libc::EBADF]),
        // The size of the jail's file system, or the largest file.
        "fill-disk" | "memfd" => Limit(libc::SIGXFSZ, libc::ENOSPC),
        // An address without anybody behind it.
        "socket-abstract" => Errno(&[libc::ECONNREFUSED]),
        // The signal is discarded, and there are no limits to read.
        "kill-init" | "core" => Errno(&[libc::EPERM]),
        "kill-others" => Errno(&[libc::ESRCH]),
        // The first process is not dumpable.
        "ptrace-init" => Errno(&[libc::EPERM]),
        "clone3" => Errno(&[libc::ENOSYS]),
        "capability" | "raise-limit" => Errno(&[libc::EPERM]),
        "undo-no-new-privs" | "seccomp-off" => Errno(&[libc::EINVAL]),
        "private-memory" => Errno(&[libc::ENOMEM]),
        "descriptors" => Errno(&[libc::EMFILE]),
        "fork-bomb" => Errno(&[libc::EAGAIN]),
        // Tells the persona and changes nothing, as many programs ask for.
        "personality-get" => Errno(&[]),
        _ => Filter,
    }
}

#[test]
fn an_attacking_guest_kernel_reaches_nothing() {
    let _kernel = kernel_or_skip!();
    let mut setup = Setup::new(attacker(), "none");
    setup.memory_mib = 32;
    let report = setup.boot().ended();
    let console = &report.console;
    assert!(console.ends_with("attacks over\n"), "{report:?}");
    let fates: BTreeMap<&str, &str> = console.lines().filter_map(|line| line.split_once(' ')).collect();
    assert!(fates.len() > 80, "{fates:?}");
    let mut surprises = Vec::new();
    for (name, fate) in &fates {
        if *name == "attacks" {
            continue;
        }
        let number = |word: &str| fate.strip_prefix(word).and_then(|rest| rest.trim().parse::<i32>().ok());
        let as_expected = match expected(name) {
            Filter => number("killed") == Some(libc::SIGSYS),
            Errno([]) => *fate == "DONE",
            Errno(list) => number("refused").is_some_and(|errno| list.contains(&errno)),
            Limit(signal, errno) => number("killed") == Some(signal) || number("refused") == Some(errno),
        };
        if !as_expected {
            surprises.push(format!("{name}: {fate}"));
        }
    }
    println!("{} attacks", fates.len());
    assert!(surprises.is_empty(), "{surprises:#?}");
}
