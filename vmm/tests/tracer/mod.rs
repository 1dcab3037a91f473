//! Traces the system calls of a VMM's threads from the moment on at which each is under its filter. What the guest kernel
//! of `uml` does is left alone: it traces its own children, and a process can have one tracer only.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation
)]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::sys::ptrace::{self, Options};
use nix::unistd::Pid;

/// What kind of thread it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Warden,
    Loop,
    Vcpu,
}

/// What threads of a kind used.
#[derive(Debug, Default, Clone)]
pub struct Used {
    pub calls: BTreeSet<i64>,
    pub ioctls: BTreeSet<u32>,
    /// System calls of all threads before they were under a filter.
    pub before: usize,
}

pub type Trace = HashMap<Kind, Used>;

struct Thread {
    kind: Kind,
    filtered: bool,
    installing: bool,
}

/// Begins to trace a VMM that has not been given its machine yet. `guest`: it starts a guest kernel first.
pub fn begin(vmm: u32, guest: bool) -> JoinHandle<Trace> {
    let (ready, begun) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let vmm = Pid::from_raw(vmm as i32);
        let options =
            Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACESYSGOOD;
        ptrace::seize(vmm, options).unwrap();
        ptrace::interrupt(vmm).unwrap();
        ready.send(()).unwrap();
        follow(vmm, guest)
    });
    begun.recv().unwrap();
    thread
}

fn follow(vmm: Pid, mut guest: bool) -> Trace {
    let mut trace = Trace::new();
    let mut threads =
        HashMap::from([(vmm, Thread { kind: Kind::Warden, filtered: false, installing: false })]);
    let mut left_alone = HashSet::new();
    loop {
        let mut status = 0;
        // SAFETY: the status is ours. Only what this thread traces is waited for.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        if pid < 0 {
            return trace;
        }
        let pid = Pid::from_raw(pid);
        if !libc::WIFSTOPPED(status) {
            threads.remove(&pid);
            if pid == vmm {
                return trace;
            }
            continue;
        }
        let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
        match (signal, event) {
            // A new process or thread: its own first stop comes before or after this.
            (libc::SIGTRAP, libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_CLONE) => {
                let new = Pid::from_raw(ptrace::getevent(pid).unwrap() as i32);
                // What is left alone may be quick enough to have children before it is let go.
                if left_alone.contains(&pid) {
                    left_alone.insert(new);
                    let _ = ptrace::detach(pid, None);
                    continue;
                }
                meet(new, pid == vmm, &mut guest, &mut threads, &mut left_alone);
            }
            _ if signal == libc::SIGTRAP | 0x80 => on_call(pid, &mut threads, &mut trace),
            // The stop of a new or interrupted thread, or a group's: nothing to deliver.
            _ if event == libc::PTRACE_EVENT_STOP => {
                if !threads.contains_key(&pid) && parent(pid).is_some_and(|it| left_alone.contains(&it)) {
                    left_alone.insert(pid);
                }
                let is_process = inner(&threads).is_none();
                meet(pid, is_process, &mut guest, &mut threads, &mut left_alone);
                if left_alone.contains(&pid) {
                    let _ = ptrace::detach(pid, None);
                    continue;
                }
            }
            _ => {
                let signal = nix::sys::signal::Signal::try_from(signal).ok();
                // SIGRTMIN has no name there: it is the vCPUs' kick.
                match signal {
                    Some(signal) => drop(ptrace::syscall(pid, signal)),
                    None => resume_with(pid, libc::WSTOPSIG(status)),
                }
                continue;
            }
        }
        let _ = ptrace::syscall(pid, None);
    }
}

/// The process that a process is the child of.
fn parent(pid: Pid) -> Option<Pid> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let number = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    number.trim().parse().ok().map(Pid::from_raw)
}

/// The VMM's process in its jail, if it has come.
fn inner(threads: &HashMap<Pid, Thread>) -> Option<Pid> {
    threads.iter().find(|(_, thread)| thread.kind == Kind::Loop).map(|(pid, _)| *pid)
}

/// Notes what is seen for the first time: the first process of a VMM with a guest is the guest's, the next the inner one,
/// and what that starts are vCPUs.
fn meet(
    new: Pid,
    process: bool,
    guest: &mut bool,
    threads: &mut HashMap<Pid, Thread>,
    left_alone: &mut HashSet<Pid>,
) {
    if threads.contains_key(&new) || left_alone.contains(&new) {
        return;
    }
    if process && std::mem::take(guest) {
        left_alone.insert(new);
    } else {
        let kind = if process { Kind::Loop } else { Kind::Vcpu };
        threads.insert(new, Thread { kind, filtered: false, installing: false });
    }
}

fn resume_with(pid: Pid, signal: i32) {
    // SAFETY: PTRACE_SYSCALL takes numbers only.
    unsafe { libc::ptrace(libc::PTRACE_SYSCALL, pid.as_raw(), 0, signal) };
}

fn on_call(pid: Pid, threads: &mut HashMap<Pid, Thread>, trace: &mut Trace) {
    let (Some(thread), Ok(info)) = (threads.get_mut(&pid), ptrace::syscall_info(pid)) else { return };
    let used = trace.entry(thread.kind).or_default();
    match info.op {
        libc::PTRACE_SYSCALL_INFO_ENTRY => {
            // SAFETY: the kernel says that it is this member.
            let entry = unsafe { info.u.entry };
            let call = entry.nr as i64;
            if thread.filtered {
                used.calls.insert(call);
                if call == libc::SYS_ioctl {
                    used.ioctls.insert(entry.args[1] as u32);
                }
            } else {
                used.before += 1;
                thread.installing = call == libc::SYS_seccomp;
            }
        }
        libc::PTRACE_SYSCALL_INFO_EXIT => {
            thread.filtered |= std::mem::take(&mut thread.installing);
        }
        _ => {}
    }
}
