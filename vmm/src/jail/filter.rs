//! System call filters: everything that is not listed kills the process.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

pub use super::calls::{self, GUEST_INIT, Role, WARDEN, WARDEN_RARE};
use super::{At, Step, StepError, sys};

/// A filter could not be made; a mistake in a list.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the system call filter: {0}")]
pub struct FilterError(#[from] seccompiler::BackendError);

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

/// Puts the calling thread, and what it starts, under the filter of its role.
///
/// # Errors
/// The host refused it.
pub fn install(role: Role) -> Result<(), StepError> {
    let invalid = |_| StepError { step: Step::Filter, errno: libc::EINVAL };
    let program = rules(role).and_then(compile).map_err(invalid)?;
    sys::install_filter(&instructions(&program)).at(Step::Filter)
}

/// What a role's threads may do.
fn rules(role: Role) -> Result<Rules, FilterError> {
    let mut rules: Rules = role.calls().into_iter().map(|call| (call, Vec::new())).collect();
    let mut only = |call: i64, any: Vec<SeccompRule>| rules.insert(call, any);
    // Code is never made at run time.
    let not_executable = SeccompCmpOp::MaskedEq(libc::PROT_EXEC.unsigned_abs().into());
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        only(call, vec![when(2, SeccompCmpArgLen::Dword, not_executable.clone(), 0)?]);
    }
    let requests: Vec<SeccompRule> = role
        .ioctls()
        .iter()
        .map(|request| when(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(*request)))
        .collect::<Result<_, _>>()?;
    if !requests.is_empty() {
        only(libc::SYS_ioctl, requests);
    }
    if role == Role::KvmLoop {
        // The kicks of this process's own vCPU threads.
        let own = u64::from(std::process::id());
        only(libc::SYS_tgkill, vec![when(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, own)?]);
    }
    Ok(rules)
}

/// One condition on an argument.
///
/// # Errors
/// There is no such argument.
pub fn when(
    argument: u8,
    length: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, FilterError> {
    Ok(SeccompRule::new(vec![SeccompCondition::new(argument, length, operator, value)?])?)
}
