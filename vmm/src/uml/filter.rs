//! The system calls of the guest kernel's processes.
//!
//! Guest processes make none of the host's: the kernel stops each at its entry (PTRACE_SYSEMU), before any filter. The
//! list is what the kernel itself uses, from its start to its end, derived by running it under a filter that tells what
//! it stopped. It is one list for the start and for the run, because nothing of ours runs in the process after its start
//! that could narrow it.

use libc::sock_filter;
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp};

use super::UmlError;
use crate::jail::filter::{self, GUEST_INIT, Rules, allow, instructions, when};

/// What is absent matters: mounts, namespaces, sockets but unix ones, opening by handle, keys, bpf, io_uring,
/// userfaultfd, process_vm, and what shrinks a file (see the transport's memory).
const KERNEL: &[i64] = &[
    // Memory: the guest's RAM is a file that is mapped in every process of the guest.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_memfd_create,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Guest processes.
    libc::SYS_arch_prctl,
    libc::SYS_clone3, // answered below
    libc::SYS_execve, // of nothing: a reboot; there is no program in the jail
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_personality,
    libc::SYS_prctl,
    libc::SYS_ptrace,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setsid,
    libc::SYS_rseq,
    libc::SYS_wait4,
    // Signals, which are the guest kernel's interrupts, and time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_futex,
    libc::SYS_gettimeofday,
    libc::SYS_kill,
    libc::SYS_nanosleep,
    libc::SYS_pause,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_tgkill,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    // Descriptors.
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_connect,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_pipe2,
    libc::SYS_poll,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_write,
    libc::SYS_writev,
    // Files, of which the jail has the initramfs only.
    libc::SYS_access,
    libc::SYS_getdents64,
    libc::SYS_mkdir,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_readlink,
    libc::SYS_rmdir,
    libc::SYS_statfs,
    libc::SYS_unlink,
    // The host itself.
    libc::SYS_getrandom,
    libc::SYS_prlimit64,
    libc::SYS_uname,
];

/// CLONE_NEW*, of all namespaces: none may be made.
const NAMESPACES: u64 = 0x7e02_0080;

/// The guest kernel's filters: the list, and the answer to what cannot be checked.
///
/// # Errors
/// A list cannot be compiled.
pub fn kernel() -> Result<[Vec<sock_filter>; 2], UmlError> {
    let mut rules: Rules = KERNEL.iter().map(|call| (*call, Vec::new())).collect();
    let unix = u64::from(libc::AF_UNIX.unsigned_abs());
    let no_namespace = SeccompCmpOp::MaskedEq(NAMESPACES);
    rules.insert(libc::SYS_clone, vec![when(0, SeccompCmpArgLen::Qword, no_namespace, 0)?]);
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        rules.insert(call, vec![when(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, unix)?]);
    }
    // clone3 has its flags in memory, out of a filter's sight; without it the C library uses clone.
    let unsupported = filter::refuse(libc::SYS_clone3, libc::ENOSYS)?;
    Ok([instructions(&filter::compile(rules)?), instructions(&unsupported)])
}

/// The filter of the jail's first process.
///
/// # Errors
/// The list cannot be compiled.
pub fn init() -> Result<Vec<sock_filter>, UmlError> {
    Ok(instructions(&allow(GUEST_INIT)?))
}
