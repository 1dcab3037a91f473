//! The seccomp filter, which the host compiled; here it is only bounded and installed.

use std::io;

use nix::errno::Errno;

use crate::protocol::{Instruction, MAX_FILTER};

/// Installs the filter for this process and all that come from it; an empty one is none. Needs CAP_SYS_ADMIN or no_new_privs.
pub(super) fn install(program: &[Instruction]) -> io::Result<()> {
    if program.is_empty() {
        return Ok(());
    }
    if program.len() > MAX_FILTER {
        return Err(Errno::E2BIG.into());
    }
    let mut filter: Vec<libc::sock_filter> = program
        .iter()
        .map(|Instruction(code, jt, jf, k)| libc::sock_filter { code: *code, jt: *jt, jf: *jf, k: *k })
        .collect();
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(io::Error::other)?,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program and the instructions that it points to live through the call; the kernel copies and checks them.
    let done =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    Errno::result(done)?;
    Ok(())
}
