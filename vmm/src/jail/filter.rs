//! System call filters: everything that is not listed kills the process.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

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

/// System calls, and under which conditions on their arguments (any of the list; an empty one means always).
pub type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// A program that allows the system calls of `allowed` and kills the process at any other.
///
/// # Errors
/// The list cannot be compiled.
pub fn allow(allowed: &[i64]) -> Result<BpfProgram, FilterError> {
    compile(allowed.iter().map(|call| (*call, Vec::new())).collect())
}

/// A program that allows what the rules allow and kills the process at anything else.
///
/// # Errors
/// The rules cannot be compiled.
pub fn compile(rules: Rules) -> Result<BpfProgram, FilterError> {
    build(rules, SeccompAction::KillProcess, SeccompAction::Allow)
}

/// A program, for use beside another, that answers one system call with an error number.
///
/// # Errors
/// It cannot be compiled.
pub fn refuse(call: i64, errno: i32) -> Result<BpfProgram, FilterError> {
    let rules = Rules::from([(call, Vec::new())]);
    build(rules, SeccompAction::Allow, SeccompAction::Errno(errno.unsigned_abs()))
}

fn build(rules: Rules, otherwise: SeccompAction, listed: SeccompAction) -> Result<BpfProgram, FilterError> {
    let arch = if cfg!(target_arch = "aarch64") { TargetArch::aarch64 } else { TargetArch::x86_64 };
    Ok(BpfProgram::try_from(SeccompFilter::new(rules, otherwise, listed, arch)?)?)
}

/// The program in the form that the system call takes.
#[must_use]
pub fn instructions(program: &BpfProgram) -> Vec<libc::sock_filter> {
    program.iter().map(|one| libc::sock_filter { code: one.code, jt: one.jt, jf: one.jf, k: one.k }).collect()
}
