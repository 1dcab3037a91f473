//! System call filters: everything that is not listed kills the process.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// A filter could not be made; a mistake in a list.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the system call filter: {0}")]
pub struct FilterError(#[from] seccompiler::BackendError);

/// What the jail's first process uses, which waits above the guest kernel.
pub const INIT: &[i64] = &[
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

/// A program that allows the system calls of `allowed` and kills the process at any other.
///
/// # Errors
/// The list cannot be compiled.
pub fn allow(allowed: &[i64]) -> Result<BpfProgram, FilterError> {
    build(allowed, SeccompAction::KillProcess)
}

/// As [`allow`], but any other call fails with EPERM or is only logged: for deriving a list.
///
/// # Errors
/// As [`allow`].
pub fn build(allowed: &[i64], otherwise: SeccompAction) -> Result<BpfProgram, FilterError> {
    let rules: BTreeMap<i64, Vec<seccompiler::SeccompRule>> =
        allowed.iter().map(|call| (*call, Vec::new())).collect();
    let arch = if cfg!(target_arch = "aarch64") { TargetArch::aarch64 } else { TargetArch::x86_64 };
    let filter = SeccompFilter::new(rules, otherwise, SeccompAction::Allow, arch)?;
    Ok(BpfProgram::try_from(filter)?)
}

/// The program in the form that the system call takes.
#[must_use]
pub fn instructions(program: &BpfProgram) -> Vec<libc::sock_filter> {
    program.iter().map(|one| libc::sock_filter { code: one.code, jt: one.jt, jf: one.jf, k: one.k }).collect()
}
