//! The system calls of each kind of thread. What is not listed kills the process.
//!
//! The lists are what these threads were seen to use: a test traces machines of all kinds from start to end and fails
//! when they use less than is listed. What only happens seldom is listed as rare, each with its reason.

use kvm_bindings::{
    KVMIO, kvm_clock_data, kvm_debugregs, kvm_dirty_log, kvm_fpu, kvm_irqchip, kvm_lapic_state, kvm_mp_state,
    kvm_msrs, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr};

/// What a thread is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The event loop of a machine of `uml`: devices, console, supervisor.
    UmlLoop,
    /// The event loop of a machine of `kvm`.
    KvmLoop,
    /// A vCPU of `kvm`.
    Vcpu,
    /// A vCPU of a KVM without hardware, which needs help with instructions.
    SoftwareVcpu,
}

/// The VMM's process outside of the jail: waits for the other, reports how it ended.
pub const WARDEN: &[i64] =
    &[libc::SYS_exit_group, libc::SYS_pidfd_send_signal, libc::SYS_ppoll, libc::SYS_waitid];
/// Reports of violent deaths; the memory for them; after a stop and continue.
pub const WARDEN_RARE: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_pread64,
    libc::SYS_restart_syscall,
    libc::SYS_sendmsg,
];

/// The first process of a guest kernel's jail, which waits above it.
pub const GUEST_INIT: &[i64] = &[
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigreturn,
    libc::SYS_unlink,
    libc::SYS_wait4,
    libc::SYS_write,
];

/// Every event loop.
pub const LOOP: &[i64] = &[
    libc::SYS_close,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_getrandom,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_ppoll,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_write,
];
/// Every event loop, seldom.
pub const LOOP_RARE: &[i64] = &[
    // Locks that are waited for, and what the allocator does when it needs more.
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    // Sockets at the end of a machine that are not read.
    libc::SYS_poll,
    // A tap, which only privileged supervisors have.
    libc::SYS_readv,
    libc::SYS_writev,
    // After a stop and continue.
    libc::SYS_restart_syscall,
];
/// Devices that not every machine has, whatever executes it.
pub const DEVICES: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_madvise,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_timerfd_settime,
];
/// Disks of which the guest discards something.
pub const DISCARD: &[i64] = &[libc::SYS_fallocate];
/// Interrupts of vhost-user.
pub const UML_LOOP: &[i64] = &[libc::SYS_pwritev2];
/// Kicks of vCPU threads and their end; snapshots.
pub const KVM_LOOP: &[i64] = &[
    libc::SYS_clock_nanosleep,
    libc::SYS_ftruncate,
    libc::SYS_getpid,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_rt_sigprocmask,
    libc::SYS_tgkill,
];

/// A vCPU's thread.
pub const VCPU: &[i64] = &[
    libc::SYS_exit,
    libc::SYS_futex,
    libc::SYS_ioctl,
    libc::SYS_madvise,
    libc::SYS_munmap,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_write,
];
/// What the allocator does when memory is tight, and a panic.
pub const VCPU_RARE: &[i64] =
    &[libc::SYS_brk, libc::SYS_exit_group, libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_restart_syscall];

#[expect(clippy::cast_possible_truncation, reason = "a request has 32 bits")]
const fn request<T>(direction: u32, number: u32) -> u32 {
    ioctl_expr(direction, KVMIO, number, size_of::<T>() as u32) as u32
}

const RUN: u32 = request::<()>(_IOC_NONE, 0x80);
const GET_REGS: u32 = request::<kvm_regs>(_IOC_READ, 0x81);
const SET_REGS: u32 = request::<kvm_regs>(_IOC_WRITE, 0x82);
const GET_SREGS: u32 = request::<kvm_sregs>(_IOC_READ, 0x83);
const SET_SREGS: u32 = request::<kvm_sregs>(_IOC_WRITE, 0x84);
const GET_MSRS: u32 = request::<kvm_msrs>(_IOC_READ | _IOC_WRITE, 0x88);
const SET_MSRS: u32 = request::<kvm_msrs>(_IOC_WRITE, 0x89);
const GET_XSAVE: u32 = request::<kvm_xsave>(_IOC_READ, 0xa4);
const SET_XSAVE: u32 = request::<kvm_xsave>(_IOC_WRITE, 0xa5);
const GET_XCRS: u32 = request::<kvm_xcrs>(_IOC_READ, 0xa6);
const GET_VCPU_EVENTS: u32 = request::<kvm_vcpu_events>(_IOC_READ, 0x9f);
const SET_VCPU_EVENTS: u32 = request::<kvm_vcpu_events>(_IOC_WRITE, 0xa0);

/// What a vCPU's thread asks of KVM: to run, and what is told of a vCPU that failed.
pub const VCPU_IOCTLS: &[u32] = &[RUN, GET_REGS, GET_SREGS];
/// What helping with instructions takes on top.
pub const SOFTWARE_IOCTLS: &[u32] = &[
    SET_REGS,
    SET_SREGS,
    GET_MSRS,
    SET_MSRS,
    request::<kvm_fpu>(_IOC_READ, 0x8c),
    request::<kvm_fpu>(_IOC_WRITE, 0x8d),
    GET_XSAVE,
    SET_XSAVE,
    GET_XCRS,
    GET_VCPU_EVENTS,
    SET_VCPU_EVENTS,
];
/// What the event loop asks of KVM: the state of a machine that rests. It can read all and change nothing.
pub const KVM_LOOP_IOCTLS: &[u32] = &[
    GET_REGS,
    GET_SREGS,
    GET_MSRS,
    GET_XSAVE,
    GET_XCRS,
    GET_VCPU_EVENTS,
    request::<kvm_dirty_log>(_IOC_WRITE, 0x42),
    request::<kvm_irqchip>(_IOC_READ | _IOC_WRITE, 0x62),
    request::<kvm_clock_data>(_IOC_READ, 0x7c),
    request::<kvm_lapic_state>(_IOC_READ, 0x8e),
    request::<kvm_mp_state>(_IOC_READ, 0x98),
    request::<kvm_debugregs>(_IOC_READ, 0xa1),
    // KVM_GET_TSC_KHZ
    request::<()>(_IOC_NONE, 0xa3),
];

impl Role {
    /// All system calls of the role.
    #[must_use]
    pub fn calls(self) -> Vec<i64> {
        let lists: &[&[i64]] = match self {
            Self::UmlLoop => &[LOOP, LOOP_RARE, DEVICES, DISCARD, UML_LOOP],
            Self::KvmLoop => &[LOOP, LOOP_RARE, DEVICES, DISCARD, KVM_LOOP],
            Self::Vcpu | Self::SoftwareVcpu => &[VCPU, VCPU_RARE],
        };
        lists.concat()
    }

    /// The requests that its `ioctl` may make, if it has that call.
    #[must_use]
    pub fn ioctls(self) -> Vec<u32> {
        match self {
            Self::UmlLoop => Vec::new(),
            Self::KvmLoop => KVM_LOOP_IOCTLS.to_vec(),
            Self::Vcpu => VCPU_IOCTLS.to_vec(),
            Self::SoftwareVcpu => [VCPU_IOCTLS, SOFTWARE_IOCTLS].concat(),
        }
    }
}
