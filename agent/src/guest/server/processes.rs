//! Processes from their start to the report of their end, and their pipes.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::events::Watched;
use super::{Asked, MAX_PROCESSES, Server};
use crate::guest::container::{self, Report};
use crate::guest::pump::set_nonblocking;
use crate::guest::{AgentError, Context, sys};
use crate::protocol::{
    Answer, Exec, ExitStatus, Failure, FailureKind, MAX_SIGNAL, Message, ProcessId, Start, Stream,
    TerminalSize,
};

/// A process to start.
pub(super) enum Launch {
    /// The container's first.
    Start(Box<Start>),
    /// A further one.
    Exec(Box<Exec>),
}

impl Launch {
    pub(super) fn process(&self) -> &ProcessId {
        match self {
            Self::Start(start) => &start.process,
            Self::Exec(exec) => &exec.process,
        }
    }

    /// The streams that must be open before it starts.
    pub(super) fn streams(&self) -> &'static [Stream] {
        let (terminal, stdin) = match self {
            Self::Start(start) => (start.terminal.is_some(), start.stdin),
            Self::Exec(exec) => (exec.terminal.is_some(), exec.stdin),
        };
        match (terminal, stdin) {
            (true, true) => &[Stream::Stdin, Stream::Stdout],
            (true, false) => &[Stream::Stdout],
            (false, true) => &[Stream::Stdin, Stream::Stdout, Stream::Stderr],
            (false, false) => &[Stream::Stdout, Stream::Stderr],
        }
    }
}

/// A process from the fork to the report of its end.
pub(super) struct Process {
    pub(super) pid: Pid,
    /// Set once the terminal exists.
    terminal: Option<OwnedFd>,
    /// Its start has not been answered yet: the request's id, and what the child says.
    starting: Option<(Asked, u64)>,
    /// Its program does not run: the request's id, and why not. Answered when the child is gone, so that its name is free by then.
    failed: Option<(Asked, Failure)>,
}

impl Server {
    fn process(&self, id: &ProcessId) -> Result<&Process, Failure> {
        self.processes.get(id).ok_or_else(|| {
            Failure::new(FailureKind::NotRunning, format!("no process {} is running", id.as_str()))
        })
    }

    pub(super) fn signal(&self, id: &ProcessId, signal: u8) -> Result<Answer, Failure> {
        let process = self.process(id)?;
        if signal == 0 || signal > MAX_SIGNAL {
            return Err(Failure::new(FailureKind::Unsupported, format!("{signal} is not a signal")));
        }
        sys::kill(process.pid, i32::from(signal)).map_err(|e| {
            Failure::new(FailureKind::Other, format!("the signal could not be sent: {}", e.desc()))
        })?;
        Ok(Answer::Done)
    }

    pub(super) fn resize(&self, id: &ProcessId, size: TerminalSize) -> Result<Answer, Failure> {
        let Some(terminal) = &self.process(id)?.terminal else {
            return Err(Failure::new(FailureKind::Unsupported, "the process has no terminal"));
        };
        container::resize(terminal, size).map_err(|e| Failure::new(FailureKind::Other, e.to_string()))?;
        Ok(Answer::Done)
    }

    /// Forks a process; its start is answered once its program runs. If that fails, its streams are closed.
    pub(super) fn launch(&mut self, id: Asked, launch: Launch) -> Result<(), Failure> {
        let process = launch.process().clone();
        if self.processes.contains_key(&process) {
            // Its streams are open because the running process's were not all claimed; they stay as they are.
            let text = format!("there is a process {} already", process.as_str());
            return Err(Failure::new(FailureKind::Other, text));
        }
        let launched = self.fork(id, launch);
        if launched.is_err() {
            self.streams.forget(&process);
        }
        launched
    }

    fn fork(&mut self, id: Asked, launch: Launch) -> Result<(), Failure> {
        if self.processes.len() >= MAX_PROCESSES {
            return Err(Failure::new(FailureKind::Other, "there are too many processes"));
        }
        let process = launch.process().clone();
        let mut starting = match launch {
            Launch::Start(start) => self.start(*start)?,
            Launch::Exec(exec) => {
                let container = self.running()?;
                if self.watched.as_ref().is_some_and(Watched::is_paused) {
                    return Err(Failure::new(FailureKind::Paused, "the container is paused"));
                }
                container.exec(*exec, &self.pid_namespace)?
            }
        };
        let pipes = std::mem::take(&mut starting.pipes);
        let token = self.token();
        // From here on the child is known, so that its end is told whatever else fails.
        self.processes.insert(
            process.clone(),
            Process { pid: starting.pid, terminal: None, starting: Some((id, token)), failed: None },
        );
        let watched = self.epoll.add(&starting.report, EpollEvent::new(EpollFlags::EPOLLIN, token));
        self.reports.insert(token, (process.clone(), starting));
        let mut connected = watched.map_err(std::io::Error::from).context("watch a child");
        for (pipe, stream) in
            [(pipes.stdin, Stream::Stdin), (pipes.stdout, Stream::Stdout), (pipes.stderr, Stream::Stderr)]
        {
            if let (Some(pipe), true) = (pipe, connected.is_ok()) {
                connected = self
                    .streams
                    .claim(&process, stream)
                    .context("claim a stream")
                    .and_then(|opened| self.add_pump(&process, opened, pipe, stream));
            }
        }
        if let Err(error) = connected {
            if let Some(process) = self.processes.get_mut(&process) {
                process.starting = None;
                let _ = nix::sys::signal::kill(process.pid, nix::sys::signal::Signal::SIGKILL);
            }
            self.reports.remove(&token);
            return Err(error.into());
        }
        Ok(())
    }

    fn start(&mut self, start: Start) -> Result<container::Starting, Failure> {
        let Some(prepared) = &self.prepared else {
            return Err(Failure::new(FailureKind::Other, "the machine has not been prepared"));
        };
        if self.container.is_some() {
            return Err(Failure::new(FailureKind::Other, "the container is running already"));
        }
        let (container, starting) = container::start(start, prepared)?;
        let watched = Watched::new(&container.cgroup, &self.epoll);
        self.container = Some(container);
        match watched {
            Ok(watched) => self.watched = Some(watched),
            Err(error) => {
                // The child is reaped like any other; nobody hears of it.
                let _ = nix::sys::signal::kill(starting.pid, nix::sys::signal::Signal::SIGKILL);
                return Err(error.into());
            }
        }
        Ok(starting)
    }

    pub(super) fn read_report(&mut self, token: u64) -> Result<(), AgentError> {
        let Some((id, starting)) = self.reports.get(&token) else { return Ok(()) };
        let id = id.clone();
        let failure = match starting.read_report() {
            Report::Nothing => return Ok(()),
            Report::Terminal(master) => return self.add_terminal(&id, master),
            Report::Failed(failure) => Some(failure),
            Report::Running => None,
        };
        self.reports.remove(&token);
        let Some(process) = self.processes.get_mut(&id) else { return Ok(()) };
        let Some((request, _)) = process.starting.take() else { return Ok(()) };
        match failure {
            None => self.reply(request, Ok(Answer::Done)),
            Some(failure) => {
                process.failed = Some((request, failure));
                Ok(())
            }
        }
    }

    fn add_terminal(&mut self, id: &ProcessId, master: OwnedFd) -> Result<(), AgentError> {
        set_nonblocking(&master).context("make the terminal non-blocking")?;
        let input = master.try_clone().context("share the terminal")?;
        let output = master.try_clone().context("share the terminal")?;
        if let Some(process) = self.processes.get_mut(id) {
            process.terminal = Some(master);
        }
        for (end, stream) in [(input, Stream::Stdin), (output, Stream::Stdout)] {
            // Without a stream for its input, a terminal is one that nobody types on.
            if let Ok(opened) = self.streams.claim(id, stream) {
                self.add_pump(id, opened, end, stream)?;
            }
        }
        Ok(())
    }

    pub(super) fn reap(&mut self) -> Result<(), AgentError> {
        while let Ok(Some(_)) = self.children.read_signal() {}
        loop {
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => {
                    (pid, ExitStatus::Code(u8::try_from(code & 0xff).unwrap_or(255)))
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid, ExitStatus::Signal(u8::try_from(signal as i32).unwrap_or(0)))
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(e) => return Err(e).context("reap children"),
            };
            let found = self.processes.iter().find(|(_, p)| p.pid == pid).map(|(id, _)| id.clone());
            match found {
                Some(id) => self.ended(&id, status)?,
                // One that could not be watched from its start.
                None if self.container.as_ref().is_some_and(|c| c.pid == pid) => self.forget_container()?,
                None => {}
            }
        }
    }

    fn ended(&mut self, id: &ProcessId, status: ExitStatus) -> Result<(), AgentError> {
        // What the child said before it ended may not have been read yet.
        for _ in 0..3 {
            match self.processes.get(id).and_then(|p| p.starting) {
                Some((_, token)) => self.read_report(token)?,
                None => break,
            }
        }
        self.report_oom()?;
        let oom_killed = self.watched.as_ref().is_some_and(|w| w.kills() > 0);
        let failed = self.processes.remove(id).and_then(|p| p.failed);
        self.streams.forget(id);
        self.forget_pipes(id)?;
        if self.container.as_ref().is_some_and(|c| c.process == *id) {
            self.forget_container()?;
        }
        match failed {
            Some((request, failure)) => self.reply(request, Err(failure)),
            None => self.host.tell(Message::Exited { process: id.clone(), status, oom_killed }),
        }
    }

    /// After the container's first process: all others are gone, the kernel has seen to it.
    fn forget_container(&mut self) -> Result<(), AgentError> {
        if let Some(watched) = self.watched.take() {
            self.end_watch(watched)?;
        }
        if let Some(container) = self.container.take() {
            container.cgroup.remove();
        }
        Ok(())
    }
}
