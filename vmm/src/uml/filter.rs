//! The system calls of the guest kernel's processes.
//!
//! Guest processes make none of the host's: the kernel stops each at its entry (PTRACE_SYSEMU), before any filter. The
//! list is what the kernel itself uses, from its start to its end, derived by running it under a filter that logs; one list,
//! because nothing of ours runs in the process after its start that could narrow it.

use libc::sock_filter;

use super::UmlError;
use crate::jail::filter::{INIT, allow, build, instructions};
use seccompiler::SeccompAction;

/// Names: `man 2` each. What is absent matters: no socket but unix ones' calls, no mount, no namespace, no open by
/// handle, no keys, no bpf, no io_uring, no userfaultfd, no process_vm, no ftruncate (see the transport's memory).
const KERNEL: &[i64] = &[];

/// The guest kernel's filter.
///
/// # Errors
/// The list cannot be compiled.
pub fn kernel() -> Result<Vec<sock_filter>, UmlError> {
    Ok(instructions(&build(KERNEL, SeccompAction::Log)?))
}

/// The filter of the jail's first process.
///
/// # Errors
/// The list cannot be compiled.
pub fn init() -> Result<Vec<sock_filter>, UmlError> {
    Ok(instructions(&allow(INIT)?))
}
