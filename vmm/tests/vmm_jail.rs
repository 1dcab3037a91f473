//! What the host sees of a VMM's own processes, and what becomes of them: read back from /proc, for both accelerators,
//! for root and for an ordinary user.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_wrap, clippy::cast_possible_truncation)]

mod kvm;
#[macro_use]
mod uml_support;

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kvm::assembler::Code;
use kvm::process::{EXTRA, Setup, Vmm};
use nix::sys::ptrace;
use nix::unistd::Pid;
use vmm::config::{CgroupConfig, Fd, HostConfig, JailPolicy};
use vmm::control::{Event, ExitReason};
use vmm::jail::Strength;
use vmm::jail::calls::Role;
use vmm::jail::filter;

const USER: u32 = 12345;
const CAN_KILL: &str = "0000000000000020";
const NONE: &str = "0000000000000000";

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn status(path: &str) -> HashMap<String, String> {
    let text = fs::read_to_string(format!("{path}/status")).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

fn namespaces(pid: &str) -> Vec<PathBuf> {
    let kinds = ["user", "mnt", "pid", "net", "ipc", "uts"].iter();
    kinds.filter_map(|kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()).collect()
}

fn descriptors(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    entries
        .filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
        .collect()
}

/// Checks a VMM's process in its jail, thread by thread; returns the number of threads.
fn assert_jailed(inner: i32, user: u32, given: &[&Path]) -> usize {
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{inner}/task")).unwrap().flatten() {
        let status = status(&thread.path().to_string_lossy());
        // KVM's own thread, which never leaves the host's kernel, comes with the first run.
        threads += usize::from(!status["Name"].starts_with("kvm-"));
        assert_eq!(status["Uid"], vec![user.to_string(); 4].join("\t"));
        if user != USER {
            assert_eq!(status["Groups"], "");
        }
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status[set], NONE, "{set}");
        }
        assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), ("1", "2"));
    }
    let (ours, theirs) = (namespaces("self"), namespaces(&inner.to_string()));
    assert_eq!(theirs.len(), 6);
    assert!(theirs.iter().all(|one| !ours.contains(one)), "{theirs:?}");
    // Process 1 of its own process ids.
    assert!(status(&format!("/proc/{inner}"))["NSpid"].ends_with("\t1"));
    // Its root is empty, and cannot be written to.
    let root = format!("/proc/{inner}/root");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    let mounts = fs::read_to_string(format!("/proc/{inner}/mounts")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    let flags = mounts.split_ascii_whitespace().nth(3).unwrap();
    assert!(
        ["ro", "nosuid", "nodev", "noexec"].iter().all(|flag| flags.split(',').any(|one| one == *flag)),
        "{flags}"
    );
    // Not dumpable: its files in /proc are root's.
    assert_eq!(fs::metadata(format!("/proc/{inner}/mem")).unwrap().uid(), 0);
    // Its standard error is this test's own, wherever that goes.
    let inherited = fs::read_link("/proc/self/fd/2").unwrap();
    for open in descriptors(inner) {
        let given = given.iter().any(|path| Path::new(&open) == *path);
        let nameless =
            ["socket:", "pipe:", "anon_inode:", "/memfd:"].iter().any(|kind| open.starts_with(kind));
        let expected = open.starts_with("/dev/") || open.ends_with(".log") || open.contains("(deleted)");
        let inherited = Path::new(&open) == inherited;
        assert!(given || nameless || expected || inherited, "{open}");
        assert!(!Path::new(&open).is_dir(), "{open}");
    }
    let limits = fs::read_to_string(format!("/proc/{inner}/limits")).unwrap();
    let limit = |name: &str| limits.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    for name in ["Max core file size", "Max locked memory", "Max msgqueue size", "Max realtime priority"] {
        assert!(limit(name).split_ascii_whitespace().any(|word| word == "0"), "{}", limit(name));
    }
    for name in ["Max open files", "Max data size", "Max file size"] {
        assert!(!limit(name).contains("unlimited"), "{}", limit(name));
    }
    threads
}

/// Checks the process outside: it can end the others, and nothing else.
fn assert_shut_in(outer: u32, root: bool) {
    let status = status(&format!("/proc/{outer}"));
    for set in ["CapPrm", "CapEff"] {
        assert_eq!(status[set], if root { CAN_KILL } else { NONE }, "{set}");
    }
    assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), ("1", "2"));
    let open = descriptors(outer as i32);
    assert!(open.len() <= 8, "{open:?}");
}

fn spin() -> Vec<u8> {
    Code::new().spin().image()
}

fn strength(event: Event) -> Strength {
    match event {
        Event::Started { jail, .. } => jail,
        Event::Ended(report) => panic!("{report:?}"),
    }
}

/// Waits until none of these processes is left.
fn gone(processes: &[i32]) {
    let began = Instant::now();
    let alive = |pid: &&i32| match fs::read_to_string(format!("/proc/{pid}/stat")) {
        // A zombie that the host's first process has not buried yet is dead enough.
        Ok(stat) => !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
        Err(_) => false,
    };
    while let Some(pid) = processes.iter().find(alive) {
        assert!(began.elapsed() < uml_support::PATIENCE, "process {pid} is still there");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_vmm_of_kvm_is_jailed() {
    let Some(kvm) = kvm::device() else { return };
    if !is_root() {
        kvm::skip("only root can look into the jail");
        return;
    }
    for uid in [None, Some(USER)] {
        let mut setup = Setup::new(kvm.try_clone().unwrap(), &spin());
        setup.vcpus = 3;
        setup.uid = uid;
        let vmm = setup.boot(|_| {});
        assert_eq!(strength(vmm.started()), Strength::Full);
        assert_eq!(assert_jailed(vmm.inner(), uid.unwrap_or(65534), &[]), 4);
        assert_shut_in(vmm.child.id(), uid.is_none());
    }
}

#[test]
fn the_vmm_of_uml_is_jailed() {
    let kernel = kernel_or_skip!();
    if !is_root() {
        kvm::skip("only root can look into the jail");
        return;
    }
    for uid in [None, Some(USER)] {
        let mut setup = uml_support::Setup::new(&kernel, "hang");
        setup.uid = uid;
        let mut machine = setup.boot();
        machine.expect("hanging");
        let inner = machine.inner();
        let initramfs = uml_support::initramfs();
        assert_eq!(assert_jailed(inner, uid.unwrap_or(65534), &[&kernel, initramfs]), 1);
        assert_shut_in(machine.vmm.id(), uid.is_none());
        // VMM and guest kernel cannot name each other.
        let (ours, guest) = (namespaces(&inner.to_string()), namespaces(&machine.guest()[0].to_string()));
        assert!(ours.iter().all(|one| !guest.contains(one)), "{ours:?} {guest:?}");
        let processes = machine.descendants();
        machine.vmm.kill().unwrap();
        machine.vmm.wait().unwrap();
        gone(&processes);
    }
}

#[test]
fn each_process_dies_with_the_other() {
    let Some(kvm) = kvm::device() else { return };
    let image = spin();
    // The one that the supervisor knows, at any time.
    for delay in 0..40 {
        let mut vmm = Setup::new(kvm.try_clone().unwrap(), &image).boot(|_| {});
        std::thread::sleep(Duration::from_micros(150 * delay));
        let pid = vmm.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        vmm.child.kill().unwrap();
        vmm.child.wait().unwrap();
        gone(&children.split_ascii_whitespace().map(|word| word.parse().unwrap()).collect::<Vec<_>>());
    }
    // The one in the jail, which is reported.
    let vmm = Setup::new(kvm, &image).boot(|_| {});
    vmm.started();
    // SAFETY: signals a process that this test's VMM made.
    unsafe { libc::kill(vmm.inner(), libc::SIGKILL) };
    let (report, code) = vmm.ended();
    assert_eq!((report.reason, code), (ExitReason::Killed, Some(128 + libc::SIGKILL)), "{report:?}");
    assert!(report.detail.contains("killed from outside"), "{report:?}");
}

#[test]
fn a_guest_kernel_does_not_outlive_the_vmm_in_its_jail() {
    let kernel = kernel_or_skip!();
    let mut machine = uml_support::Setup::new(&kernel, "spin").boot();
    machine.expect("spinning");
    let processes = machine.descendants();
    // SAFETY: signals a process that this test's VMM made.
    unsafe { libc::kill(machine.inner(), libc::SIGKILL) };
    loop {
        match machine.event() {
            Event::Ended(report) => {
                assert_eq!(report.reason, ExitReason::Killed, "{report:?}");
                break;
            }
            Event::Started { .. } => {}
        }
    }
    machine.vmm.wait().unwrap();
    gone(&processes);
}

/// Makes a thread of a VMM do something else than it wanted: its next system call becomes this one. A bug that a guest
/// can use would look like that.
fn subvert(thread: i32, call: i64) {
    let thread = Pid::from_raw(thread);
    ptrace::seize(thread, ptrace::Options::PTRACE_O_TRACESYSGOOD).unwrap();
    ptrace::interrupt(thread).unwrap();
    let stopped = || {
        // SAFETY: waits for the thread that this one traces.
        unsafe { libc::waitpid(thread.as_raw(), std::ptr::null_mut(), libc::__WALL) };
    };
    stopped();
    loop {
        ptrace::syscall(thread, None).unwrap();
        stopped();
        let Ok(info) = ptrace::syscall_info(thread) else { continue };
        if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
            break;
        }
    }
    let mut registers = ptrace::getregs(thread).unwrap();
    registers.orig_rax = call as u64;
    ptrace::setregs(thread, registers).unwrap();
    ptrace::detach(thread, None).unwrap();
}

#[test]
fn a_vmm_that_leaves_its_list_is_killed_and_reported() {
    let Some(kvm) = kvm::device() else { return };
    if !is_root() {
        kvm::skip("only root may trace processes that are not dumpable");
        return;
    }
    let calls = [
        libc::SYS_openat,
        libc::SYS_socket,
        libc::SYS_execve,
        libc::SYS_clone,
        libc::SYS_ptrace,
        libc::SYS_mount,
    ];
    for (turn, call) in calls.into_iter().enumerate() {
        let vmm = Setup::new(kvm.try_clone().unwrap(), &spin()).boot(|_| {});
        vmm.started();
        let inner = vmm.inner();
        let vcpu = fs::read_dir(format!("/proc/{inner}/task"))
            .unwrap()
            .flatten()
            .find(|task| status(&task.path().to_string_lossy())["Name"] == "vcpu0")
            .map(|task| task.file_name().to_str().unwrap().parse().unwrap());
        subvert(if turn % 2 == 0 { inner } else { vcpu.unwrap() }, call);
        let (report, code) = vmm.ended();
        assert_eq!(
            (report.reason, code),
            (ExitReason::JailViolation, Some(128 + libc::SIGSYS)),
            "{call}: {report:?}"
        );
        assert!(report.detail.contains("does not allow"), "{report:?}");
        gone(&[inner]);
    }
}

/// How a copy of this process ends that puts itself under a filter and makes a call.
fn fate(role: Role, call: i64, arguments: [u64; 3]) -> i32 {
    let mut status = 0;
    // SAFETY: the copy allocates, which the C library's fork allows, makes one call, and exits.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            if filter::install(role).is_err() {
                libc::_exit(7);
            }
            libc::syscall(call, arguments[0], arguments[1], arguments[2]);
            libc::syscall(libc::SYS_exit_group, 0);
        }
        libc::waitpid(child, &raw mut status, 0);
    }
    status
}

#[test]
fn every_role_is_killed_by_what_is_not_on_its_list() {
    // Without them a filter cannot be installed.
    // SAFETY: has no preconditions.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    let roles = [Role::UmlLoop, Role::KvmLoop, Role::Vcpu, Role::SoftwareVcpu];
    let forbidden = [
        libc::SYS_openat,
        libc::SYS_open,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_fork,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_kill,
        libc::SYS_mount,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_keyctl,
        libc::SYS_bpf,
        libc::SYS_io_uring_setup,
        libc::SYS_userfaultfd,
        libc::SYS_perf_event_open,
        libc::SYS_init_module,
        libc::SYS_prctl,
        libc::SYS_seccomp,
    ];
    let read_write_execute = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    for role in roles {
        assert_eq!(fate(role, libc::SYS_write, [u64::MAX, 0, 0]), 0, "{role:?}: what is listed does no harm");
        for call in forbidden {
            let status = fate(role, call, [0; 3]);
            assert!(
                libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS,
                "{role:?} {call} {status:#x}"
            );
        }
        let arguments = [
            // TIOCSTI; KVM_CREATE_VM.
            (libc::SYS_ioctl, [0, 0x5412, 0]),
            (libc::SYS_ioctl, [0, 0xae01, 0]),
            (libc::SYS_mmap, [0, 4096, read_write_execute]),
            (libc::SYS_mprotect, [0, 4096, read_write_execute]),
            (libc::SYS_tgkill, [1, 1, 9]),
        ];
        for (call, arguments) in arguments {
            let status = fate(role, call, arguments);
            assert!(
                libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS,
                "{role:?} {call} {status:#x}"
            );
        }
    }
}

/// A program that makes the host refuse user namespaces to what it starts: it is in one that allows none below.
fn without_user_namespaces(setup: Setup, root: bool) -> Vmm {
    use std::os::unix::process::CommandExt;
    let (uid, mapped) = if root { (0, 65536) } else { (USER, 1) };
    setup.boot_by(
        |command| {
            let (go, ready) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
            let (go_read, ready_write) = (go.0, ready.1);
            if !root {
                command.uid(USER).gid(USER);
            }
            // SAFETY: only system calls between fork and exec.
            unsafe {
                command.pre_exec(move || {
                    if libc::unshare(libc::CLONE_NEWUSER) != 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                    libc::write(std::os::fd::AsRawFd::as_raw_fd(&ready_write), [0u8].as_ptr().cast(), 1);
                    libc::read(std::os::fd::AsRawFd::as_raw_fd(&go_read), [0u8].as_mut_ptr().cast(), 1);
                    let fd = libc::open(c"/proc/sys/user/max_user_namespaces".as_ptr(), libc::O_WRONLY);
                    if fd < 0 || libc::write(fd, c"0".as_ptr().cast(), 1) != 1 {
                        return Err(std::io::Error::last_os_error());
                    }
                    libc::close(fd);
                    Ok(())
                });
            }
            let (mut ready, mut go) = (ready.0, go.1);
            // The child is found by what it waits for.
            std::thread::spawn(move || {
                use std::io::{Read, Write};
                ready.read_exact(&mut [0]).unwrap();
                let me = std::process::id();
                for task in fs::read_dir(format!("/proc/{me}/task")).unwrap().flatten() {
                    let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                    for child in children.split_ascii_whitespace() {
                        let user = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).ok();
                        let map = fs::read_to_string(format!("/proc/{child}/uid_map")).unwrap_or_default();
                        if user(child) != user("self") && map.trim().is_empty() {
                            fs::write(format!("/proc/{child}/uid_map"), format!("{uid} {uid} {mapped}"))
                                .unwrap();
                            fs::write(format!("/proc/{child}/gid_map"), format!("{uid} {uid} {mapped}"))
                                .unwrap();
                        }
                    }
                }
                go.write_all(&[0]).unwrap();
            });
        },
        |_| {},
    )
}

#[test]
fn a_host_that_refuses_user_namespaces_is_told_by_name() {
    let Some(kvm) = kvm::device() else { return };
    if !is_root() {
        kvm::skip("only root can play such a host");
        return;
    }
    let setup = |policy| {
        let mut setup = Setup::new(kvm.try_clone().unwrap(), &spin());
        setup.host.jail = policy;
        setup
    };
    // An ordinary user can do nothing about it, and is refused unless it says that it may be.
    let (report, _) = without_user_namespaces(setup(JailPolicy::Required), false).ended();
    assert_eq!(report.reason, ExitReason::BootFailed, "{report:?}");
    assert!(report.detail.contains("are unprivileged user namespaces allowed?"), "{report:?}");
    let vmm = without_user_namespaces(setup(JailPolicy::Optional), false);
    assert_eq!(strength(vmm.started()), Strength::FilterOnly);
    let status_of = status(&format!("/proc/{}", vmm.inner()));
    // Who has no right to change the bounding set keeps it; without new privileges it gives nothing.
    assert_eq!((status_of["CapEff"].as_str(), status_of["CapPrm"].as_str()), (NONE, NONE));
    assert_eq!((status_of["NoNewPrivs"].as_str(), status_of["Seccomp"].as_str()), ("1", "2"));
    drop(vmm);
    // Root makes the other namespaces by itself.
    let vmm = without_user_namespaces(setup(JailPolicy::Required), true);
    assert_eq!(strength(vmm.started()), Strength::WithoutUserNamespace);
    let (ours, theirs) = (namespaces("self"), namespaces(&vmm.inner().to_string()));
    assert!(theirs[1..].iter().all(|one| !ours.contains(one)), "{theirs:?}");
    let status_of = status(&format!("/proc/{}", vmm.inner()));
    assert_eq!(status_of["Uid"], "65534\t65534\t65534\t65534");
    assert_eq!((status_of["CapEff"].as_str(), status_of["CapPrm"].as_str()), (NONE, NONE));
    assert_eq!(fs::read_dir(format!("/proc/{}/root", vmm.inner())).unwrap().count(), 0);
}

/// A control group for memory, of version 1 or 2, removed at the end.
struct Group {
    directory: PathBuf,
    second: bool,
}

impl Group {
    fn new(name: &str, limit: u64) -> Option<Self> {
        let name = format!("bulkhead-test-{name}-{}", std::process::id());
        for (mount, file, second) in [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", false),
            ("/sys/fs/cgroup", "memory.max", true),
        ] {
            let directory = Path::new(mount).join(&name);
            if fs::create_dir(&directory).is_err() {
                continue;
            }
            let group = Self { directory, second };
            if fs::write(group.directory.join(file), limit.to_string()).is_ok() {
                return Some(group);
            }
        }
        None
    }

    /// The descriptors to hand over, and their description.
    fn open(&self) -> (Vec<File>, HostConfig) {
        let name = if self.second { "memory.events" } else { "memory.oom_control" };
        let events = File::open(self.directory.join(name)).unwrap();
        let (member, cgroup) = if self.second {
            let cgroup =
                CgroupConfig { directory: Some(Fd(EXTRA)), processes: vec![], events: Some(Fd(EXTRA + 1)) };
            (File::open(&self.directory).unwrap(), cgroup)
        } else {
            let cgroup =
                CgroupConfig { directory: None, processes: vec![Fd(EXTRA)], events: Some(Fd(EXTRA + 1)) };
            let procs = File::options().write(true).open(self.directory.join("cgroup.procs")).unwrap();
            (procs, cgroup)
        };
        (vec![member, events], HostConfig { cgroup: Some(cgroup), ..HostConfig::default() })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..1000 {
            if fs::remove_dir(&self.directory).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_machine_that_exceeds_its_control_group_is_told_apart() {
    let Some(kvm) = kvm::device() else { return };
    let Some(group) = Group::new("oom", 24 << 20) else {
        kvm::skip("no control group for memory can be made here");
        return;
    };
    // Touches a page every two microseconds or so, up to more than the group has.
    let mut code = Code::new();
    code.say("touch\n");
    // mov rbx, 16 MiB + 64 KiB; again: mov [rbx], bl; add rbx, 4096; cmp rbx, 160 MiB; jb again
    code.raw(&[0x48, 0xbb]).raw(&0x101_0000u64.to_le_bytes());
    code.raw(&[0x88, 0x1b, 0x48, 0x81, 0xc3, 0, 0x10, 0, 0, 0x48, 0x81, 0xfb])
        .raw(&0x0a00_0000u32.to_le_bytes());
    code.raw(&[0x72, 0xee]).say("survived").reset();
    // A page table for what lies beyond the first GiB is not needed.
    let (extra, host) = group.open();
    let mut setup = Setup::new(kvm, &code.image());
    setup.memory_mib = 192;
    (setup.extra, setup.host) = (extra, host);
    let vmm = setup.boot(|_| {});
    let members = fs::read_to_string(group.directory.join("cgroup.procs")).unwrap();
    let (report, code) = vmm.ended();
    assert_eq!(report.reason, ExitReason::OutOfMemory, "{report:?} {members}");
    assert_eq!(code, Some(128 + libc::SIGKILL));
}

#[test]
fn a_group_of_version_2_is_entered_by_its_directory() {
    let Some(kvm) = kvm::device() else { return };
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let path = words.next()?;
        (words.next()? == "cgroup2").then(|| path.to_owned())
    });
    let directory =
        mount.map(|mount| Path::new(&mount).join(format!("bulkhead-test-v2-{}", std::process::id())));
    let Some(directory) = directory.filter(|directory| fs::create_dir(directory).is_ok()) else {
        kvm::skip("no control group of version 2 can be made here");
        return;
    };
    let group = Group { directory, second: true };
    let mut setup = Setup::new(kvm, &spin());
    setup.extra = vec![File::open(&group.directory).unwrap()];
    let cgroup = CgroupConfig { directory: Some(Fd(EXTRA)), processes: vec![], events: None };
    setup.host.cgroup = Some(cgroup);
    let vmm = setup.boot(|_| {});
    vmm.started();
    let members = fs::read_to_string(group.directory.join("cgroup.procs")).unwrap();
    assert_eq!(members.trim(), vmm.inner().to_string());
}
