//! One container: from an OCI runtime specification to a running process.
//!
//! [`plan`] checks the specification, [`cgroup`] sets the limits, [`stage`] is the forked child on its way to the
//! container's program, in the order namespaces, mounts, limits, identity, exec.

mod capabilities;
mod cgroup;
mod devices;
mod mounts;
mod plan;
mod rlimits;
mod stage;
mod terminal;
mod user;

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair,
};
use nix::unistd::{Pid, pipe2};

pub(crate) use cgroup::Cgroup;
use plan::Plan;
pub(crate) use terminal::resize;

use super::Context;
use crate::protocol::{Failure, FailureKind, Start, TerminalSize};

/// A child that was forked and is on its way to its program.
pub(crate) struct Starting {
    /// The container's process.
    pub(crate) pid: Pid,
    /// Its limits and their accounts.
    pub(crate) cgroup: Cgroup,
    /// Where the child reports: the terminal's master, then a failure, or nothing but its end when the program runs.
    pub(crate) report: OwnedFd,
    /// The agent's ends of the pipes; empty with a terminal.
    pub(crate) pipes: Pipes,
}

/// The agent's ends of a process's standard streams.
#[derive(Default)]
pub(crate) struct Pipes {
    /// Written by the agent.
    pub(crate) stdin: Option<OwnedFd>,
    /// Read by the agent.
    pub(crate) stdout: Option<OwnedFd>,
    /// Read by the agent.
    pub(crate) stderr: Option<OwnedFd>,
}

/// What a starting child said.
pub(crate) enum Report {
    /// Nothing yet.
    Nothing,
    /// Its terminal's master side.
    Terminal(OwnedFd),
    /// It could not start.
    Failed(Failure),
    /// Its program runs.
    Running,
}

/// Forks the container's process.
///
/// # Errors
/// The specification asks for what is not supported, or the guest is out of resources.
pub(crate) fn start(request: &Start) -> Result<Starting, Failure> {
    let plan = Plan::new(request)?;
    let other = |e: super::AgentError| Failure::new(FailureKind::Other, e.to_string());
    let cgroup = Cgroup::create(request.process.as_str(), &plan.limits).map_err(other)?;
    let (report, child_report) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .context("make the report socket")
            .map_err(other)?;
    super::pump::set_nonblocking(&report).context("make the report socket non-blocking").map_err(other)?;
    let (pipes, stdio) =
        make_stdio(request.stdin, request.terminal).context("make the standard pipes").map_err(other)?;
    let pid = stage::fork(&plan, &cgroup, stdio, &child_report).context("fork").map_err(other)?;
    Ok(Starting { pid, cgroup, report, pipes })
}

/// The child's side of its standard streams.
enum Stdio {
    /// Three descriptors: pipes, or /dev/null for the input.
    Pipes([OwnedFd; 3]),
    /// A terminal that the child opens in its own devpts.
    Terminal(TerminalSize),
}

fn make_stdio(stdin: bool, terminal: Option<TerminalSize>) -> std::io::Result<(Pipes, Stdio)> {
    if let Some(size) = terminal {
        return Ok((Pipes::default(), Stdio::Terminal(size)));
    }
    let (in_read, in_write) = if stdin {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        (read, Some(write))
    } else {
        (File::open("/dev/null")?.into(), None)
    };
    let (out_read, out_write) = pipe2(OFlag::O_CLOEXEC)?;
    let (err_read, err_write) = pipe2(OFlag::O_CLOEXEC)?;
    let pipes = Pipes { stdin: in_write, stdout: Some(out_read), stderr: Some(err_read) };
    for fd in [&pipes.stdin, &pipes.stdout, &pipes.stderr].into_iter().flatten() {
        super::pump::set_nonblocking(fd)?;
    }
    Ok((pipes, Stdio::Pipes([in_read, out_write, err_write])))
}

impl Starting {
    /// Reads what the child says, without blocking.
    pub(crate) fn read_report(&self) -> Report {
        let mut text = vec![0u8; 2 * crate::protocol::MAX_ERROR];
        let mut space = nix::cmsg_space!([i32; 1]);
        let mut terminal = None;
        let length = {
            let mut io = [std::io::IoSliceMut::new(&mut text)];
            match recvmsg::<()>(
                self.report.as_raw_fd(),
                &mut io,
                Some(&mut space),
                MsgFlags::MSG_CMSG_CLOEXEC,
            ) {
                Ok(message) => {
                    for part in message.cmsgs().into_iter().flatten() {
                        if let ControlMessageOwned::ScmRights(fds) = part {
                            // SAFETY: the kernel has just installed this descriptor for us; nobody else owns it.
                            terminal = fds.first().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) });
                        }
                    }
                    message.bytes
                }
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return Report::Nothing,
                Err(_) => 0,
            }
        };
        match (terminal, length) {
            (Some(master), _) => Report::Terminal(master),
            (None, 0) => Report::Running,
            (None, n) => Report::Failed(serde_json::from_slice(&text[..n]).unwrap_or_else(|_| {
                Failure::new(FailureKind::Other, "the container's first process failed")
            })),
        }
    }
}
