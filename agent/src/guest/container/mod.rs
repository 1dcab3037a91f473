//! One container: from an OCI runtime specification to running processes.
//!
//! [`plan`] checks the specification, [`cgroup`] sets the limits, [`stage`] is the forked child on its way into the container's namespaces (new
//! ones, or those of the running container), [`program`] takes it from there to the exec of the program.

mod capabilities;
pub(crate) mod cgroup;
mod devices;
mod init;
mod mounts;
mod plan;
mod program;
mod rlimits;
mod stage;
mod terminal;
pub(crate) mod user;

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair,
};
use nix::unistd::{Pid, pipe2};

pub(crate) use cgroup::Cgroup;
use plan::Plan;
use program::Program;
pub(crate) use terminal::resize;

use super::network::Netlink;
use super::rootfs::Prepared;
use super::{Context, sys};
use crate::protocol::spec::{Capabilities, Rlimit};
use crate::protocol::{Exec, Failure, FailureKind, Instruction, ProcessId, Start, TerminalSize};

/// Name of the container's cgroup.
const CGROUP: &str = "container";

/// A container whose first process was forked, until that process is reaped.
pub(crate) struct Container {
    /// Its first process.
    pub(crate) process: ProcessId,
    /// Its number.
    pub(crate) pid: Pid,
    /// Stands for it, whatever becomes of the number.
    pub(crate) handle: OwnedFd,
    /// Its limits and their accounts.
    pub(crate) cgroup: Cgroup,
    capabilities: Option<Capabilities>,
    rlimits: Vec<Rlimit>,
    no_new_privileges: bool,
    seccomp: Vec<Instruction>,
}

/// A child that was forked and is on its way to its program.
pub(crate) struct Starting {
    /// Its number.
    pub(crate) pid: Pid,
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

/// Forks the container's first process.
///
/// # Errors
/// The specification asks for what is not supported, or the guest is out of resources.
pub(crate) fn start(request: Start, prepared: &Prepared) -> Result<(Container, Starting), Failure> {
    let netlink = if request.network.is_empty() {
        None
    } else {
        Some(Netlink::open().context("open a netlink socket")?)
    };
    let plan = Plan::new(&request, netlink.as_ref())?;
    let (report, child_report) = report_pair()?;
    let (pipes, stdio) = make_stdio(request.stdin, request.terminal).context("make the standard pipes")?;
    let cgroup = Cgroup::create(CGROUP, &plan.limits)?;
    let forked = stage::fork(&plan, prepared, &cgroup, stdio, child_report).context("fork").and_then(|pid| {
        let handle = sys::open_process(pid).context("hold the container's process")?;
        Ok((pid, handle))
    });
    let (pid, handle) = forked.inspect_err(|_| cgroup.remove())?;
    let Start { process, spec, seccomp, .. } = request;
    let container = Container {
        process,
        pid,
        handle,
        cgroup,
        capabilities: spec.process.capabilities,
        rlimits: spec.process.rlimits,
        no_new_privileges: spec.process.no_new_privileges,
        seccomp,
    };
    Ok((container, Starting { pid, report, pipes }))
}

impl Container {
    /// Forks a further process; `this` is the agent's own pid namespace.
    ///
    /// # Errors
    /// The request asks for what is not supported, the container is ending, or the guest is out of resources.
    pub(crate) fn exec(&self, mut request: Exec, this: &OwnedFd) -> Result<Starting, Failure> {
        let process = &mut request.spec;
        plan::check_process(process)?;
        if process.capabilities.is_none() {
            process.capabilities.clone_from(&self.capabilities);
        }
        if process.rlimits.is_empty() {
            process.rlimits.clone_from(&self.rlimits);
        }
        process.no_new_privileges |= self.no_new_privileges;
        let numbers = format!("{}:{}", process.user.uid, process.user.gid);
        let program = Program {
            process: &request.spec,
            user: if request.user.is_empty() { &numbers } else { &request.user },
            groups: &request.groups,
            seccomp: &self.seccomp,
            init: false,
            first: false,
        };
        let (report, child_report) = report_pair()?;
        let (pipes, stdio) =
            make_stdio(request.stdin, request.terminal).context("make the standard pipes")?;
        let forked = stage::fork_into(&self.handle, this, &self.cgroup, &program, stdio, child_report);
        let pid = forked.map_err(|e| match e.raw_os_error() {
            // The namespace's first process has ended, or is ending.
            Some(libc::ENOMEM | libc::ESRCH | libc::EINVAL) => {
                Failure::new(FailureKind::NotRunning, "the container is not running")
            }
            _ => Failure::new(FailureKind::Other, format!("fork: {e}")),
        })?;
        Ok(Starting { pid, report, pipes })
    }
}

fn report_pair() -> Result<(OwnedFd, OwnedFd), Failure> {
    let (report, child) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .context("make the report socket")?;
    super::pump::set_nonblocking(&report).context("make the report socket non-blocking")?;
    Ok((report, child))
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
