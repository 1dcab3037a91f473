//! The agent's event loop: the control connection, stream connections, pumps and children, on one epoll.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, connect, listen, socket,
};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, read};

use super::container::{self, Cgroup, Report, Starting};
use super::pump::{Interest, Pump, set_nonblocking};
use super::streams::{Opened, Streams};
use super::{AgentError, Context, rootfs};
use crate::protocol::{
    self, Answer, CONTROL_PORT, Call, Decoder, ExitStatus, Failure, FailureKind, Message, ProcessId, Request,
    STREAM_PORT, ShutdownMethod, Start, Stream,
};

const CONTROL: u64 = 0;
const LISTENER: u64 = 1;
const CHILDREN: u64 = 2;
const FIRST_DYNAMIC: u64 = 16;

/// Most processes that run or wait to start at the same time.
const MAX_PROCESSES: usize = 1024;
/// Most events taken from epoll at once.
const EVENTS: usize = 32;

/// A process from the fork to the report of its end.
struct Process {
    pid: Pid,
    cgroup: Cgroup,
    /// Set once the terminal exists.
    terminal: Option<OwnedFd>,
    /// Its start has not been answered yet: the request's id, and what the child says.
    starting: Option<(u64, u64)>,
}

/// The agent's state.
pub(crate) struct Server {
    epoll: Epoll,
    control: OwnedFd,
    decoder: Decoder,
    listener: OwnedFd,
    children: SignalFd,
    streams: Streams,
    waiting: VecDeque<(u64, Start)>,
    processes: BTreeMap<ProcessId, Process>,
    reports: HashMap<u64, (ProcessId, Starting)>,
    pumps: HashMap<u64, (Pump, Interest)>,
    next_token: u64,
}

impl Server {
    /// Listens for streams, connects to the host and says hello.
    pub(crate) fn connect() -> Result<Self, AgentError> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block().context("block SIGCHLD")?;
        let children = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .context("watch children")?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let vsock = || socket(AddressFamily::Vsock, SockType::Stream, flags, None).context("open a vsock");
        let listener = vsock()?;
        bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, STREAM_PORT))
            .context("bind the vsock")?;
        listen(&listener, Backlog::new(64).context("listen")?).context("listen on the vsock")?;
        set_nonblocking(&listener).context("make the listener non-blocking")?;
        let control = vsock()?;
        connect(control.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_HOST, CONTROL_PORT))
            .context("connect to the host")?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("make an epoll")?;
        for (fd, token) in
            [(control.as_fd(), CONTROL), (listener.as_fd(), LISTENER), (children.as_fd(), CHILDREN)]
        {
            epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token)).context("watch a descriptor")?;
        }
        let server = Self {
            epoll,
            control,
            decoder: Decoder::default(),
            listener,
            children,
            streams: Streams::default(),
            waiting: VecDeque::new(),
            processes: BTreeMap::new(),
            reports: HashMap::new(),
            pumps: HashMap::new(),
            next_token: FIRST_DYNAMIC,
        };
        server.send(&Message::Hello { version: protocol::VERSION })?;
        Ok(server)
    }

    /// Serves until the host ends the machine.
    pub(crate) fn serve(mut self) -> Result<Infallible, AgentError> {
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(e).context("wait for events"),
            };
            for event in &events[..count] {
                match event.data() {
                    CONTROL => self.read_control()?,
                    LISTENER => self.accept_stream()?,
                    CHILDREN => self.reap()?,
                    token if self.streams.is_greeting(token) => {
                        if self.streams.read_greeting(token, &self.epoll).context("forget a stream")? {
                            self.start_waiting()?;
                        }
                    }
                    token if self.reports.contains_key(&token) => self.read_report(token)?,
                    token => self.run_pump(token)?,
                }
            }
        }
    }

    fn send(&self, message: &Message) -> Result<(), AgentError> {
        let writer = self.control.try_clone().map(File::from).context("answer the host")?;
        protocol::write_frame(writer, message).map_err(io::Error::other).context("answer the host")
    }

    fn reply(&self, id: u64, result: Result<Answer, Failure>) -> Result<(), AgentError> {
        self.send(&Message::Reply { id, result })
    }

    fn read_control(&mut self) -> Result<(), AgentError> {
        let mut buffer = [0u8; 16 * 1024];
        let n = read(&self.control, &mut buffer).context("read from the host")?;
        if n == 0 {
            let gone = io::Error::from(io::ErrorKind::ConnectionAborted);
            return Err(gone).context("the host closed the control connection");
        }
        self.decoder.feed(&buffer[..n]);
        while let Some(request) =
            self.decoder.next_frame::<Request>().map_err(io::Error::other).context("read a request")?
        {
            self.handle(request)?;
        }
        Ok(())
    }

    fn handle(&mut self, request: Request) -> Result<(), AgentError> {
        let id = request.id;
        let result = match request.call {
            Call::Prepare(prepare) => rootfs::prepare(&prepare),
            Call::Start(start) => {
                self.waiting.push_back((id, *start));
                return self.start_waiting();
            }
            Call::Signal { process, signal } => self.signal(&process, signal),
            Call::Resize { process, size } => self.process(&process).and_then(|p| {
                let Some(terminal) = &p.terminal else {
                    return Err(Failure::new(FailureKind::Unsupported, "the process has no terminal"));
                };
                container::resize(terminal, size).map_err(|e| Failure::new(FailureKind::Other, e.to_string()))
            }),
            Call::Shutdown { method } => return self.shutdown(method),
            _ => Err(Failure::new(FailureKind::Unsupported, "the agent does not know this call yet")),
        };
        self.reply(id, result.map(|()| Answer::Done))
    }

    fn process(&self, id: &ProcessId) -> Result<&Process, Failure> {
        self.processes
            .get(id)
            .ok_or_else(|| Failure::new(FailureKind::Other, format!("no process {} is running", id.as_str())))
    }

    fn signal(&self, id: &ProcessId, signal: u8) -> Result<(), Failure> {
        let process = self.process(id)?;
        if signal == 0 || signal > protocol::MAX_SIGNAL {
            return Err(Failure::new(FailureKind::Unsupported, format!("{signal} is not a signal")));
        }
        // SAFETY: kill takes two integers; real-time signals have no name in nix's enum.
        Errno::result(unsafe { libc::kill(process.pid.as_raw(), i32::from(signal)) }).map(drop).map_err(|e| {
            Failure::new(FailureKind::Other, format!("the signal could not be sent: {}", e.desc()))
        })
    }

    fn accept_stream(&mut self) -> Result<(), AgentError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        loop {
            let connection = match accept4(self.listener.as_raw_fd(), flags) {
                // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
                Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR | Errno::ECONNABORTED) => continue,
                Err(e) => return Err(e).context("accept a stream"),
            };
            let token = self.token();
            if let Some(connection) = self.streams.accept(token, connection) {
                self.epoll
                    .add(connection, EpollEvent::new(EpollFlags::EPOLLIN, token))
                    .context("watch a stream")?;
            }
        }
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// Starts what waits for its streams, in order, as far as they have come.
    fn start_waiting(&mut self) -> Result<(), AgentError> {
        for _ in 0..self.waiting.len() {
            let Some((id, start)) = self.waiting.pop_front() else { break };
            if !self.streams.all_open(&start.process, wanted_streams(&start)) {
                self.waiting.push_back((id, start));
            } else if let Err(failure) = self.start(id, &start) {
                self.reply(id, Err(failure))?;
            }
        }
        Ok(())
    }

    fn start(&mut self, id: u64, start: &Start) -> Result<(), Failure> {
        if self.processes.len() >= MAX_PROCESSES || self.processes.contains_key(&start.process) {
            return Err(Failure::new(
                FailureKind::Other,
                "the process exists already, or there are too many",
            ));
        }
        let other = |e: &dyn std::fmt::Display| Failure::new(FailureKind::Other, e.to_string());
        let mut starting = container::start(start)?;
        let pipes = std::mem::take(&mut starting.pipes);
        for (pipe, stream) in
            [(pipes.stdin, Stream::Stdin), (pipes.stdout, Stream::Stdout), (pipes.stderr, Stream::Stderr)]
        {
            if let Some(pipe) = pipe {
                let opened = self.streams.claim(&start.process, stream).map_err(|e| other(&e))?;
                self.add_pump(opened, pipe, stream).map_err(|e| other(&e))?;
            }
        }
        let token = self.token();
        self.epoll
            .add(&starting.report, EpollEvent::new(EpollFlags::EPOLLIN, token))
            .map_err(|e| other(&e))?;
        let process = Process {
            pid: starting.pid,
            cgroup: starting.cgroup.clone(),
            terminal: None,
            starting: Some((id, token)),
        };
        self.processes.insert(start.process.clone(), process);
        self.reports.insert(token, (start.process.clone(), starting));
        Ok(())
    }

    fn add_pump(
        &mut self,
        (connection, pending): Opened,
        pipe: OwnedFd,
        stream: Stream,
    ) -> Result<(), AgentError> {
        let pump = match stream {
            Stream::Stdin => Pump::new(connection, pipe, pending),
            Stream::Stdout | Stream::Stderr => Pump::new(pipe, connection, Vec::new()),
        };
        let token = self.token();
        self.pumps.insert(token, (pump, Interest::Done));
        self.run_pump(token)
    }

    /// Runs a pump and watches the descriptor that it waits for; an idle descriptor that hung up would wake epoll for ever.
    fn run_pump(&mut self, token: u64) -> Result<(), AgentError> {
        let Some((pump, before)) = self.pumps.get_mut(&token) else { return Ok(()) };
        let after = pump.run();
        if after == *before {
            return Ok(());
        }
        if *before != Interest::Done {
            self.epoll.delete(pump.descriptor(*before)).context("forget a stream")?;
        }
        *before = after;
        let flags = match after {
            Interest::Read => EpollFlags::EPOLLIN,
            Interest::Write => EpollFlags::EPOLLOUT,
            Interest::Done => {
                self.pumps.remove(&token);
                return Ok(());
            }
        };
        self.epoll.add(pump.descriptor(after), EpollEvent::new(flags, token)).context("watch a stream")
    }

    fn read_report(&mut self, token: u64) -> Result<(), AgentError> {
        let Some((id, starting)) = self.reports.get(&token) else { return Ok(()) };
        let id = id.clone();
        let result = match starting.read_report() {
            Report::Nothing => return Ok(()),
            Report::Terminal(master) => return self.add_terminal(&id, master),
            Report::Failed(failure) => Err(failure),
            Report::Running => Ok(()),
        };
        self.finish_start(&id, result)
    }

    /// Answers a start, once.
    fn finish_start(&mut self, id: &ProcessId, result: Result<(), Failure>) -> Result<(), AgentError> {
        let Some(process) = self.processes.get_mut(id) else { return Ok(()) };
        let Some((request, token)) = process.starting.take() else { return Ok(()) };
        self.reports.remove(&token);
        self.reply(request, result.map(|()| Answer::Done))
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
                self.add_pump(opened, end, stream)?;
            }
        }
        Ok(())
    }

    fn reap(&mut self) -> Result<(), AgentError> {
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
            if let Some(id) = found {
                self.ended(&id, status)?;
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
        let Some(process) = self.processes.remove(id) else { return Ok(()) };
        let oom_killed = process.cgroup.oom_killed();
        process.cgroup.remove();
        self.send(&Message::Exited { process: id.clone(), status, oom_killed })
    }

    /// Ends every process, writes everything to disk, ends the machine. Does not come back.
    fn shutdown(&mut self, method: ShutdownMethod) -> Result<(), AgentError> {
        for process in self.processes.values() {
            let _ = nix::sys::signal::kill(process.pid, Signal::SIGKILL);
        }
        while waitpid(None, None).is_ok() {}
        nix::unistd::sync();
        rootfs::unmount();
        let mode = match method {
            ShutdownMethod::PowerOff => RebootMode::RB_POWER_OFF,
            ShutdownMethod::Reset => RebootMode::RB_AUTOBOOT,
        };
        reboot(mode).map(|never| match never {}).context("end the machine")
    }
}

/// The streams that must be open before a process starts.
fn wanted_streams(start: &Start) -> &'static [Stream] {
    match (start.terminal.is_some(), start.stdin) {
        (true, true) => &[Stream::Stdin, Stream::Stdout],
        (true, false) => &[Stream::Stdout],
        (false, true) => &[Stream::Stdin, Stream::Stdout, Stream::Stderr],
        (false, false) => &[Stream::Stdout, Stream::Stderr],
    }
}
