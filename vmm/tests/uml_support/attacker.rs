//! A guest kernel that attacks: a static program of the host that stands in the guest kernel's place, started by the
//! launcher in the same jail, under the same filter. Each attack runs in a copy of this process; what became of it is
//! printed on the console: `NAME refused ERRNO`, `NAME killed SIGNAL` or `NAME DONE`. Compiled by the tests, statically.

use std::ffi::CString;
use std::io::Write;

unsafe extern "C" {
    fn syscall(number: i64, ...) -> i64;
    fn fork() -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn _exit(code: i32) -> !;
    fn mmap(address: *mut u8, length: usize, protection: i32, flags: i32, fd: i32, offset: i64) -> *mut u8;
    fn prctl(option: i32, argument: u64, ...) -> i32;
    fn __errno_location() -> *mut i32;
}

/// It failed, as it should, without an error of its own.
fn failed() -> i64 {
    unsafe { *__errno_location() = 1 };
    -1
}

fn errno() -> i32 {
    unsafe { *__errno_location() }
}

/// Prints past the buffers of the standard library, which copies would share.
fn say(text: &str) {
    let mut line = text.to_owned();
    line.push('\n');
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Runs an attack in a copy: it succeeds if it returns 0 or more.
fn attack(name: &str, attempt: impl FnOnce() -> i64) {
    let child = unsafe { fork() };
    if child < 0 {
        say(&format!("{name} refused {}", errno()));
        return;
    }
    if child == 0 {
        let outcome = attempt();
        let code = if outcome < 0 { errno() } else { 0 };
        unsafe { _exit(code) };
    }
    let mut status = 0;
    unsafe { waitpid(child, &mut status, 0) };
    let text = match (status & 0x7f, status >> 8) {
        (0, 0) => "DONE".to_owned(),
        (0, errno) => format!("refused {errno}"),
        (signal, _) => format!("killed {signal}"),
    };
    say(&format!("{name} {text}"));
}

fn open(path: &str, flags: i32) -> i64 {
    let path = CString::new(path).unwrap();
    unsafe { syscall(257, -100, path.as_ptr(), flags, 0o600) }
}

fn main() {
    let root = |path: &'static str| move || open(path, 0);
    // What the host has and the jail has not.
    attack("open-passwd", root("/etc/passwd"));
    attack("open-proc", root("/proc/1/mem"));
    attack("open-sys", root("/sys/kernel"));
    attack("open-kvm", root("/dev/kvm"));
    attack("open-parent", root("/../../../etc/passwd"));
    attack("open-vmm-fd", root("/proc/self/fd/3"));
    // No descriptor but the standard ones came along.
    attack("inherited", || {
        (3..1024).find(|fd| unsafe { syscall(72, *fd, 1) } >= 0).unwrap_or(-1)
    });
    // Its own file system is small and ends with it.
    attack("fill-disk", || {
        let fd = open("/big", 0o102);
        let block = vec![1u8; 1 << 20];
        let mut written = 0i64;
        loop {
            let count = unsafe { syscall(1, fd, block.as_ptr(), block.len()) };
            if count <= 0 {
                return count;
            }
            written += count;
            if written > 1 << 30 {
                return 0;
            }
        }
    });
    attack("device-node", || unsafe { syscall(133, c"/node".as_ptr(), 0o060_600, 0x0801) });
    // The network, and sockets that are none.
    attack("socket-inet", || unsafe { syscall(41, 2, 1, 0) });
    attack("socket-netlink", || unsafe { syscall(41, 16, 3, 0) });
    attack("socket-packet", || unsafe { syscall(41, 17, 3, 0) });
    attack("socket-vsock", || unsafe { syscall(41, 40, 1, 0) });
    attack("socket-abstract", || {
        // Names without a file belong to the network namespace, which has none.
        let fd = unsafe { syscall(41, 1, 1, 0) };
        let mut address = [0u8; 32];
        address[0] = 1;
        address[3..20].copy_from_slice(b"/tmp/dbus-absent!");
        unsafe { syscall(42, fd, address.as_ptr(), 20) }
    });
    // Other processes: the jail's first one is the only other there is.
    attack("kill-init", || {
        let outcome = unsafe { syscall(62, 1, 9) };
        // It is not refused; but the first process of a jail takes no signals from within.
        std::thread::sleep(std::time::Duration::from_millis(20));
        if outcome == 0 && unsafe { syscall(62, 1, 0) } == 0 { failed() } else { outcome }
    });
    attack("kill-others", || unsafe { syscall(62, 4242, 9) });
    attack("ptrace-init", || unsafe { syscall(101, 16, 1, 0, 0) });
    attack("read-init", || unsafe { syscall(310, 1, 0, 0, 0, 0, 0) });
    attack("pidfd", || unsafe { syscall(434, 1, 0) });
    // Namespaces, mounts, privileges.
    for (name, flag) in [("user", 0x1000_0000u64), ("mount", 0x2_0000), ("pid", 0x2000_0000), ("net", 0x4000_0000)] {
        attack(&format!("unshare-{name}"), || unsafe { syscall(272, flag) });
        attack(&format!("clone-{name}"), || unsafe { syscall(56, flag | 17, 0, 0, 0, 0) });
    }
    attack("clone3", || unsafe { syscall(435, 0, 0) });
    attack("setns", || unsafe { syscall(308, 0, 0) });
    attack("mount", || unsafe {
        syscall(165, c"none".as_ptr(), c"/".as_ptr(), c"proc".as_ptr(), 0, 0)
    });
    attack("umount", || unsafe { syscall(166, c"/".as_ptr(), 2) });
    attack("chroot", || unsafe { syscall(161, c"/".as_ptr()) });
    attack("pivot-root", || unsafe { syscall(155, c"/".as_ptr(), c"/".as_ptr()) });
    attack("setuid", || unsafe { syscall(105, 0) });
    attack("capset", || unsafe { syscall(126, 0, 0) });
    attack("capability", || i64::from(unsafe { prctl(47, 2, 21u64, 0, 0) }));
    attack("undo-no-new-privs", || i64::from(unsafe { prctl(38, 0, 0u64, 0, 0) }));
    attack("seccomp-off", || i64::from(unsafe { prctl(22, 0, 0u64, 0, 0) }));
    attack("raise-limit", || {
        let unlimited = [u64::MAX; 2];
        unsafe { syscall(302, 0, 7, unlimited.as_ptr(), 0) }
    });
    // The host's kernel.
    for (name, number) in [
        ("keyctl", 250),
        ("add-key", 248),
        ("bpf", 321),
        ("io-uring", 425),
        ("userfaultfd", 323),
        ("perf", 298),
        ("init-module", 175),
        ("finit-module", 313),
        ("kexec", 246),
        ("reboot", 169),
        ("swapon", 167),
        ("settime", 227),
        ("sethostname", 170),
        ("open-by-handle", 304),
        ("name-to-handle", 303),
        ("syslog", 103),
        ("acct", 163),
        ("quotactl", 179),
        ("ioperm", 173),
        ("iopl", 172),
        ("modify-ldt", 154),
        ("personality-get", 135),
        ("shmget", 29),
        ("msgget", 68),
        ("semget", 64),
        ("inotify", 294),
        ("fanotify", 300),
        ("splice", 275),
        ("vmsplice", 278),
        ("process-vm-writev", 311),
        ("memfd-secret", 447),
        ("landlock", 444),
        ("mount-setattr", 442),
        ("open-tree", 428),
        ("fsopen", 430),
        ("clock-adjtime", 305),
        ("sched-setattr", 314),
        ("truncate", 76),
        ("link", 86),
        ("symlink", 88),
        ("chmod", 90),
        ("chown", 92),
    ] {
        attack(name, || unsafe { syscall(number, 0, 0, 0, 0, 0, 0) });
    }
    // The 32-bit system calls have other numbers.
    attack("int-80", || {
        let outcome: i64;
        unsafe {
            // getpid of the other list.
            std::arch::asm!("int 0x80", inlateout("rax") 20i64 => outcome, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
        outcome
    });
    attack("x32", || unsafe { syscall(0x4000_0000 | 39) });
    // Memory, descriptors, processes.
    attack("private-memory", || {
        let most = 1usize << 30;
        let got = unsafe { mmap(std::ptr::null_mut(), most, 3, 0x22, -1, 0) };
        if got as isize == -1 { -1 } else { 0 }
    });
    attack("memfd", || {
        let fd = unsafe { syscall(319, c"x".as_ptr(), 0) };
        let block = vec![1u8; 1 << 20];
        for _ in 0..1024 {
            let count = unsafe { syscall(1, fd, block.as_ptr(), block.len()) };
            if count <= 0 {
                return count;
            }
        }
        0
    });
    attack("core", || {
        // No core file may be written: it would hold the guest's memory.
        let mut limit = [u64::MAX; 2];
        let outcome = unsafe { syscall(302, 0, 4, 0, limit.as_mut_ptr()) };
        if outcome == 0 && limit == [0, 0] { failed() } else { 0 }
    });
    attack("descriptors", || {
        let mut count = 0;
        while unsafe { syscall(290, 0, 0) } >= 0 {
            count += 1;
            if count > 100_000 {
                return 0;
            }
        }
        -1
    });
    attack("fork-bomb", || {
        for _ in 0..20_000 {
            let child = unsafe { fork() };
            if child < 0 {
                return -1;
            }
            if child == 0 {
                loop {
                    std::thread::park();
                }
            }
        }
        0
    });
    say("attacks over");
}
