//! The last steps of every process of a container, the first and the further ones: standard streams, limits, identity, seccomp, exec.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::setrlimit;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{
    Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, fchown, setgroups, setresgid, setresuid,
};

use super::capabilities::Sets;
use super::user::{self, Identity};
use super::{Stdio, init, rlimits, terminal};
use crate::guest::{AgentError, Context, sys};
use crate::protocol::spec::Process;
use crate::protocol::{Failure, FailureKind, Instruction};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program and who runs it.
pub(super) struct Program<'a> {
    pub(super) process: &'a Process,
    /// `user[:group]`.
    pub(super) user: &'a str,
    /// Supplementary groups beyond the user's own.
    pub(super) groups: &'a [String],
    pub(super) seccomp: &'a [Instruction],
    /// Leave this process as PID 1 and run the program as its child.
    pub(super) init: bool,
    /// The container's first process: its terminal is the console.
    pub(super) first: bool,
}

impl Program<'_> {
    /// Becomes the program. The caller is in the container already. The report socket ends when the program runs.
    pub(super) fn run(&self, stdio: Stdio, report: OwnedFd) -> Result<Infallible, Reported> {
        let prepared = self.prepare(stdio, &report);
        let env = match prepared {
            Ok(env) => env,
            Err(failure) => return Err(Reported(failure, report)),
        };
        let report = if self.init { init::fork(report)? } else { report };
        let Err(failure) = execute(&self.process.args, &env);
        Err(Reported(failure, report))
    }

    fn prepare(&self, stdio: Stdio, report: &OwnedFd) -> Result<Vec<String>, Failure> {
        let identity =
            user::resolve(self.user, self.groups).map_err(|why| Failure::new(FailureKind::Other, why))?;
        connect_stdio(stdio, report, &identity, self.first).context("set up the standard streams")?;
        self.set_limits()?;
        let env = environment(&self.process.env, &identity);
        enter_directory(&self.process.cwd)?;
        self.take_identity(&identity)?;
        Ok(env)
    }

    fn set_limits(&self) -> Result<(), AgentError> {
        for limit in &self.process.rlimits {
            if let Some(resource) = rlimits::resource(&limit.kind) {
                setrlimit(resource, limit.soft, limit.hard)
                    .context(format!("set the limit {}", limit.kind))?;
            }
        }
        if let Some(adjustment) = self.process.oom_score_adj {
            fs::write("/proc/self/oom_score_adj", adjustment.to_string()).context("set oom_score_adj")?;
        }
        Ok(())
    }

    fn take_identity(&self, identity: &Identity) -> Result<(), AgentError> {
        let process = self.process;
        let sets = Sets::new(&process.capabilities.clone().unwrap_or_default());
        sets.drop_bounding().map_err(io::Error::other).context("narrow the capability bounding set")?;
        if process.no_new_privileges {
            set_no_new_privs().context("forbid new privileges")?;
        } else {
            // Only a process with CAP_SYS_ADMIN may install a filter without that promise, so it comes before capabilities are dropped.
            sys::install_filter(self.seccomp).context("install the seccomp filter")?;
        }
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
            sys::install_filter(self.seccomp).context("install the seccomp filter")?;
        }
        Ok(())
    }
}

/// A failure, and the socket on which it is told.
pub(super) struct Reported(pub(super) Failure, pub(super) OwnedFd);

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        Self::new(FailureKind::Other, error.to_string())
    }
}

/// Signals as a program expects them at its start.
pub(super) fn reset_signals() -> nix::Result<()> {
    for number in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: sets a default disposition; no handler of ours is involved.
        unsafe { signal(number, SigHandler::SigDfl) }?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

fn connect_stdio(stdio: Stdio, report: &OwnedFd, identity: &Identity, console: bool) -> io::Result<()> {
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
            let master = terminal::open(size, console)?;
            let _ = fchown(io::stdin(), Some(Uid::from_raw(identity.uid)), None);
            let rights = [master.as_raw_fd()];
            let message = [ControlMessage::ScmRights(&rights)];
            sendmsg::<()>(report.as_raw_fd(), &[IoSlice::new(b"t")], &message, MsgFlags::MSG_NOSIGNAL, None)?;
        }
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

fn enter_directory(path: &Path) -> Result<(), Failure> {
    chdir(path).map_err(|e| {
        let text = format!("chdir to cwd ({:?}) failed: {}", path, e.desc().to_lowercase());
        Failure::new(FailureKind::NotExecutable, text)
    })
}

/// Executes the program, searched along PATH as execvp does. The words of a failure are Docker's.
fn execute(args: &[String], env: &[String]) -> Result<Infallible, Failure> {
    let program = args.first().map(String::as_str).unwrap_or_default();
    let c_string = |s: &str| {
        CString::new(s.as_bytes())
            .map_err(|_| Failure::new(FailureKind::Other, "an argument holds a NUL byte"))
    };
    let c_args = args.iter().map(|a| c_string(a)).collect::<Result<Vec<_>, _>>()?;
    let c_env = env.iter().map(|e| c_string(e)).collect::<Result<Vec<_>, _>>()?;
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
        let text = if program.contains('/') {
            format!("exec: {program:?}: stat {program}: no such file or directory")
        } else {
            format!("exec: {program:?}: executable file not found in $PATH")
        };
        return Err(Failure::new(FailureKind::NotFound, text));
    }
    let is_directory = fs::metadata(program).is_ok_and(|m| m.is_dir());
    let why = match error {
        _ if is_directory => "is a directory".to_owned(),
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
