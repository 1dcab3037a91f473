//! The system calls of the switch. Anything else ends it, and supervisors start another one.

use std::collections::BTreeMap;
use std::convert::TryInto;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Is, SeccompCondition as Condition,
    SeccompFilter, SeccompRule as Rule,
};

/// What sockets need that are open, memory, and an end.
const CALLS: &[libc::c_long] = &[
    libc::SYS_epoll_wait,
    libc::SYS_epoll_ctl,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_fcntl,
    libc::SYS_close,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];
/// Bits of a socket's type that are not its flags.
const KIND: u64 = 0xf;

/// Installs the filter. New sockets are of TCP, UDP and ICMP echo over IP, which are neither bound nor listened on.
///
/// # Errors
/// The host refuses.
pub fn install() -> Result<(), seccompiler::Error> {
    let mut rules: BTreeMap<libc::c_long, Vec<Rule>> = CALLS.iter().map(|call| (*call, Vec::new())).collect();
    let equals = |argument, value: libc::c_int| {
        Condition::new(argument, Length::Dword, Is::Eq, u64::try_from(value).unwrap_or(u64::MAX))
    };
    let kind = |value: libc::c_int| {
        Condition::new(1, Length::Dword, Is::MaskedEq(KIND), u64::try_from(value).unwrap_or(u64::MAX))
    };
    let mut sockets = Vec::new();
    for (family, echo) in [(libc::AF_INET, libc::IPPROTO_ICMP), (libc::AF_INET6, libc::IPPROTO_ICMPV6)] {
        for (own, protocol) in [(libc::SOCK_STREAM, 0), (libc::SOCK_DGRAM, 0), (libc::SOCK_DGRAM, echo)] {
            sockets.push(Rule::new(vec![equals(0, family)?, kind(own)?, equals(2, protocol)?])?);
        }
    }
    rules.insert(libc::SYS_socket, sockets);
    let pair = vec![equals(0, libc::AF_UNIX)?, kind(libc::SOCK_STREAM)?];
    rules.insert(libc::SYS_socketpair, vec![Rule::new(pair)?]);
    let architecture = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, architecture)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)
}
