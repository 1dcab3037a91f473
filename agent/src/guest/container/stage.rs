//! The forked child on its way to the container's program.
//!
//! The agent has one thread, so the child may allocate; it ends in exec or in a report of why not.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};

use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::setrlimit;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socket};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{
    Gid, Pid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, fchown, setgroups, sethostname,
    setresgid, setresuid, setsid,
};

use super::capabilities::Sets;
use super::cgroup::Cgroup;
use super::plan::Plan;
use super::user::Identity;
use super::{Stdio, devices, mounts, rlimits, terminal, user};
use crate::guest::{AgentError, Context};
use crate::protocol::{Failure, FailureKind};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Forks into new namespaces. The parent gets the child's pid; the child never returns.
pub(super) fn fork(plan: &Plan<'_>, cgroup: &Cgroup, stdio: Stdio, report: &OwnedFd) -> io::Result<Pid> {
    let flags = plan.namespaces.bits() | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and with a null stack this is a fork; the process has one thread, so the child's copy of every
    // lock is free.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) };
    match pid {
        0 => {
            let Err(failure) = become_container(plan, cgroup, stdio, report);
            report_failure(report, &failure);
            // SAFETY: ends the child at once, without the parent's exit handlers.
            unsafe { libc::_exit(1) }
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

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        Self::new(FailureKind::Other, error.to_string())
    }
}

fn become_container(
    plan: &Plan<'_>,
    cgroup: &Cgroup,
    stdio: Stdio,
    report: &OwnedFd,
) -> Result<Infallible, Failure> {
    reset_signals().context("reset signals")?;
    setsid().context("start a session")?;
    cgroup.enter()?;
    if plan.cgroup_namespace {
        unshare(CloneFlags::CLONE_NEWCGROUP).context("enter a cgroup namespace")?;
    }
    build_root(plan)?;
    let identity = user::resolve(&plan.user).map_err(|why| Failure::new(FailureKind::Other, why))?;
    connect_stdio(stdio, report, &identity).context("set up the standard streams")?;
    set_limits(plan)?;
    let env = environment(&plan.spec.process.env, &identity);
    enter_directory(&plan.spec.process.cwd)?;
    take_identity(plan, &identity)?;
    execute(&plan.spec.process.args, &env)
}

fn reset_signals() -> nix::Result<()> {
    for number in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: sets a default disposition; no handler of ours is involved.
        unsafe { signal(number, SigHandler::SigDfl) }?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

/// Namespaces' contents: mounts, names, devices, network.
fn build_root(plan: &Plan<'_>) -> Result<(), AgentError> {
    mounts::enter_root()?;
    for entry in plan.mounts() {
        mounts::mount_one(entry)?;
        if entry.destination == Path::new("/dev") {
            devices::create().context("make the device nodes")?;
        }
    }
    if plan.namespaces.contains(CloneFlags::CLONE_NEWNET) {
        bring_loopback_up().context("bring the loopback interface up")?;
    }
    if let Some(hostname) = &plan.spec.hostname {
        sethostname(hostname).context("set the host name")?;
        mounts::write_host_files(hostname)?;
    }
    for (key, value) in &plan.spec.linux.sysctl {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        fs::write(path, value).context(format!("set the sysctl {key}"))?;
    }
    make_directory(&plan.spec.process.cwd)?;
    plan.spec.linux.readonly_paths.iter().try_for_each(|path| mounts::make_read_only(path))?;
    plan.spec.linux.masked_paths.iter().try_for_each(|path| mounts::mask(path))?;
    if plan.spec.root.readonly {
        mounts::make_root_read_only()?;
    }
    Ok(())
}

fn bring_loopback_up() -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: ifreq is plain data; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or_default();
    // SAFETY: the pointer is to an ifreq that lives through the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })?;
    Ok(())
}

/// A working directory that the image lacks is made, as Docker makes it.
fn make_directory(path: &Path) -> Result<(), AgentError> {
    match fs::create_dir_all(path) {
        Err(e) if e.raw_os_error() == Some(libc::EROFS) => Ok(()),
        other => other.context(format!("create the working directory {}", path.display())),
    }
}

fn connect_stdio(stdio: Stdio, report: &OwnedFd, identity: &Identity) -> io::Result<()> {
    match stdio {
        Stdio::Pipes([stdin, stdout, stderr]) => {
            dup2_stdin(&stdin)?;
            dup2_stdout(&stdout)?;
            dup2_stderr(&stderr)?;
            // So that a program which is not root may open /dev/stdout anew.
            for pipe in [&stdin, &stdout, &stderr] {
                let _ = fchown(pipe, Some(Uid::from_raw(identity.uid)), Some(Gid::from_raw(identity.gid)));
            }
        }
        Stdio::Terminal(size) => {
            let master = terminal::open(size)?;
            let _ = fchown(io::stdin(), Some(Uid::from_raw(identity.uid)), None);
            let rights = [master.as_raw_fd()];
            let message = [ControlMessage::ScmRights(&rights)];
            sendmsg::<()>(report.as_raw_fd(), &[IoSlice::new(b"t")], &message, MsgFlags::MSG_NOSIGNAL, None)?;
        }
    }
    Ok(())
}

fn set_limits(plan: &Plan<'_>) -> Result<(), AgentError> {
    let process = &plan.spec.process;
    for limit in &process.rlimits {
        if let Some(resource) = rlimits::resource(&limit.kind) {
            setrlimit(resource, limit.soft, limit.hard).context(format!("set the limit {}", limit.kind))?;
        }
    }
    if let Some(adjustment) = process.oom_score_adj {
        fs::write("/proc/self/oom_score_adj", adjustment.to_string()).context("set oom_score_adj")?;
    }
    Ok(())
}

/// HOME comes from the user's entry unless it was given, PATH from Docker's default.
fn environment(given: &[String], identity: &Identity) -> Vec<String> {
    let mut env = given.to_vec();
    let has = |env: &[String], name: &str| env.iter().any(|e| e.starts_with(name));
    if !has(&env, "PATH=") {
        env.push(DEFAULT_PATH.to_owned());
    }
    if !has(&env, "HOME=") {
        env.push(format!("HOME={}", identity.home));
    }
    env
}

fn enter_directory(path: &Path) -> Result<(), AgentError> {
    chdir(path).context(format!("enter the working directory {}", path.display()))
}

fn take_identity(plan: &Plan<'_>, identity: &Identity) -> Result<(), AgentError> {
    let process = &plan.spec.process;
    let sets = Sets::new(&process.capabilities.clone().unwrap_or_default());
    sets.drop_bounding().map_err(io::Error::other).context("narrow the capability bounding set")?;
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    setgroups(&groups).context("set the supplementary groups")?;
    setresgid(gid, gid, gid).context("set the group")?;
    // The kernel clears the sets when root becomes another user, unless told to keep them until they are set below.
    nix::sys::prctl::set_keepcaps(true).context("keep capabilities over the change of user")?;
    setresuid(uid, uid, uid).context("set the user")?;
    sets.apply().map_err(io::Error::other).context("set the capabilities")?;
    umask(Mode::from_bits_truncate(process.user.umask.unwrap_or(0o022)));
    if process.no_new_privileges {
        set_no_new_privs().context("forbid new privileges")?;
    }
    Ok(())
}

/// Executes the program, searched along PATH as execvp does.
fn execute(args: &[String], env: &[String]) -> Result<Infallible, Failure> {
    let program = &args[0];
    let c_string = |s: &String| {
        CString::new(s.as_bytes())
            .map_err(|_| Failure::new(FailureKind::Other, "an argument holds a NUL byte"))
    };
    let c_args = args.iter().map(c_string).collect::<Result<Vec<_>, _>>()?;
    let c_env = env.iter().map(c_string).collect::<Result<Vec<_>, _>>()?;
    let mut error = Errno::ENOENT;
    for candidate in candidates(program, env) {
        let path = c_string(&candidate)?;
        let Err(errno) = execve(&path, &c_args, &c_env);
        // As execvp: a name that is found but not executable is remembered, the search goes on.
        match errno {
            Errno::ENOENT | Errno::ENOTDIR if Path::new(&candidate).exists() && error == Errno::ENOENT => {
                return Err(missing_interpreter(program));
            }
            Errno::ENOENT | Errno::ENOTDIR => {}
            other => error = other,
        }
    }
    if error == Errno::ENOENT {
        let place = if program.contains('/') { "" } else { " in $PATH" };
        let text = format!("exec: {program:?}: executable file not found{place}");
        return Err(Failure::new(FailureKind::NotFound, text));
    }
    let is_directory = fs::metadata(program).is_ok_and(|m| m.is_dir());
    let why = match error {
        _ if is_directory => "it is a directory".to_owned(),
        Errno::EACCES => "permission denied".to_owned(),
        Errno::ENOEXEC => "exec format error".to_owned(),
        other => other.desc().to_lowercase(),
    };
    Err(Failure::new(FailureKind::NotExecutable, format!("exec: {program:?}: {why}")))
}

fn candidates(program: &str, env: &[String]) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let path = env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or_default();
    path.split(':').map(|dir| format!("{}/{program}", if dir.is_empty() { "." } else { dir })).collect()
}

fn missing_interpreter(program: &str) -> Failure {
    let text = format!("exec: {program:?}: its interpreter or loader is not in the image");
    Failure::new(FailureKind::NotFound, text)
}
