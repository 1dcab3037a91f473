//! The forked child on its way to the container's program.
//!
//! The agent has one thread, so the child may allocate; it ends in exec or in a report of why not.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_dumpable;
use nix::sys::socket::MsgFlags;
use nix::unistd::{Pid, sethostname, setsid};

use super::cgroup::Cgroup;
use super::plan::Plan;
use super::program::{Program, Reported, reset_signals};
use super::{Stdio, devices, mounts};
use crate::guest::rootfs::Prepared;
use crate::guest::{AgentError, Context, network, sys};
use crate::protocol::Failure;

/// Forks into new namespaces. The parent gets the child's pid; the child never returns.
pub(super) fn fork(
    plan: &Plan<'_>,
    prepared: &Prepared,
    cgroup: &Cgroup,
    stdio: Stdio,
    report: OwnedFd,
) -> io::Result<Pid> {
    let flags = plan.namespaces.bits() | libc::SIGCHLD;
    fork_with(flags, report, |report| match enter_new(plan, prepared, cgroup) {
        Err(failure) => Err(Reported(failure, report)),
        Ok(()) => plan.program().run(stdio, report),
    })
}

/// Forks into the namespaces of a running container; `this` is the agent's own pid namespace.
pub(super) fn fork_into(
    container: &OwnedFd,
    this: &OwnedFd,
    cgroup: &Cgroup,
    program: &Program<'_>,
    stdio: Stdio,
    report: OwnedFd,
) -> io::Result<Pid> {
    // Counts for children only, so that the agent is the new process's parent and knows its number.
    setns(container.as_fd(), CloneFlags::CLONE_NEWPID)?;
    let pid = fork_with(libc::SIGCHLD, report, |report| match enter_running(container, cgroup) {
        Err(failure) => Err(Reported(failure, report)),
        Ok(()) => program.run(stdio, report),
    });
    setns(this.as_fd(), CloneFlags::CLONE_NEWPID)?;
    pid
}

fn fork_with(
    flags: libc::c_int,
    report: OwnedFd,
    child: impl FnOnce(OwnedFd) -> Result<Infallible, Reported>,
) -> io::Result<Pid> {
    // SAFETY: without CLONE_VM and with a null stack this is a fork; the process has one thread, so the child's copy of every
    // lock is free.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) };
    match pid {
        0 => {
            let Err(Reported(failure, report)) = child(report);
            report_failure(&report, &failure);
            sys::exit_at_once(1)
        }
        pid if pid > 0 => Ok(Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?)),
        _ => Err(io::Error::last_os_error()),
    }
}

fn report_failure(report: &OwnedFd, failure: &Failure) {
    if let Ok(text) = serde_json::to_vec(failure) {
        let _ = nix::sys::socket::send(report.as_raw_fd(), &text, MsgFlags::MSG_NOSIGNAL);
    }
}

/// In the container's first process: everything that its namespaces hold.
fn enter_new(plan: &Plan<'_>, prepared: &Prepared, cgroup: &Cgroup) -> Result<(), Failure> {
    reset_signals().context("reset signals")?;
    setsid().context("start a session")?;
    cgroup.enter()?;
    if plan.cgroup_namespace {
        unshare(CloneFlags::CLONE_NEWCGROUP).context("enter a cgroup namespace")?;
    }
    build_root(plan, prepared)
}

/// In a further process: the namespaces of the container, as they are.
fn enter_running(container: &OwnedFd, cgroup: &Cgroup) -> Result<(), Failure> {
    // Until it executes the program, the container's other processes may not trace it or look at it.
    set_dumpable(false).context("forbid tracing")?;
    reset_signals().context("reset signals")?;
    setsid().context("start a session")?;
    cgroup.enter()?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    setns(container.as_fd(), namespaces).context("enter the container's namespaces")?;
    Ok(())
}

/// Namespaces' contents: mounts, names, devices, network.
fn build_root(plan: &Plan<'_>, prepared: &Prepared) -> Result<(), Failure> {
    let spec = plan.spec;
    if plan.namespaces.contains(CloneFlags::CLONE_NEWNET) {
        network::set_up(plan.netlink, plan.interfaces)?;
    }
    let opened = prepared.open_mounts(&spec.mounts)?;
    mounts::enter_root()?;
    for mount in &opened {
        mounts::mount_one(mount)?;
        if mount.target == Path::new("/dev") && mount.tree.is_none() {
            devices::create().context("make the device nodes")?;
        }
    }
    drop(opened);
    if let Some(hostname) = &spec.hostname {
        sethostname(hostname).context("set the host name")?;
    }
    if let Some(domainname) = &spec.domainname {
        sys::set_domain_name(domainname).context("set the domain name")?;
    }
    for (key, value) in &spec.linux.sysctl {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        fs::write(path, value).context(format!("set the sysctl {key}"))?;
    }
    make_directory(&spec.process.cwd)?;
    spec.linux.readonly_paths.iter().try_for_each(|path| mounts::make_read_only(path))?;
    spec.linux.masked_paths.iter().try_for_each(|path| mounts::mask(path))?;
    if spec.root.readonly {
        mounts::make_root_read_only()?;
    }
    Ok(())
}

/// A working directory that the image lacks is made, as Docker makes it.
fn make_directory(path: &Path) -> Result<(), AgentError> {
    match fs::create_dir_all(path) {
        Err(e) if e.raw_os_error() == Some(libc::EROFS) => Ok(()),
        // Entering it says more than making it.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists || e.kind() == io::ErrorKind::NotADirectory => {
            Ok(())
        }
        other => other.context(format!("create the working directory {}", path.display())),
    }
}
