//! The agent's event loop: the control connection, stream connections, pumps, children, helpers and the container's events, on one epoll.

mod events;
mod helpers;
mod host;
mod pipes;
mod processes;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, connect, listen, socket,
};
use nix::sys::wait::waitpid;

use super::container::{Container, Starting, cgroup::Limits};
use super::pump::set_nonblocking;
use super::restored;
use super::rootfs::Prepared;
use super::streams::Streams;
use super::task::Task;
use super::{AgentError, Context, accounts, listing, rootfs, sys};
use crate::protocol::{
    self, Answer, CONTROL_PORT, Call, Failure, FailureKind, ProcessId, STREAM_PORT, ShutdownMethod,
};
use events::Watched;
use helpers::Work;
use host::{Asked, Host};
use pipes::Pipe;
use processes::{Launch, Process};

const CONTROL: u64 = 0;
const LISTENER: u64 = 1;
const CHILDREN: u64 = 2;
const MEMORY_EVENTS: u64 = 3;
const CGROUP_EVENTS: u64 = 4;
const FIRST_DYNAMIC: u64 = 16;

/// Most processes that run or wait to start at the same time.
const MAX_PROCESSES: usize = 1024;
/// Most requests that wait for their streams, or for a helper.
const MAX_WAITING: usize = 64;
/// How long the host may take to answer a connection, in seconds; a host that refuses it does so at once.
const CONNECT_SECONDS: i64 = 60;
/// Most events taken from epoll at once.
const EVENTS: usize = 32;

/// A request that waits.
enum Waiting {
    /// For its streams.
    Launch(Launch),
    /// For its stream, and for one of few helpers.
    Work(Work),
}

/// The agent's state.
pub(crate) struct Server {
    epoll: Epoll,
    host: Host,
    listener: OwnedFd,
    children: SignalFd,
    /// The agent's own pid namespace, to come back to.
    pid_namespace: OwnedFd,
    streams: Streams,
    waiting: VecDeque<(Asked, Waiting)>,
    prepared: Option<Prepared>,
    container: Option<Container>,
    watched: Option<Watched>,
    processes: BTreeMap<ProcessId, Process>,
    reports: HashMap<u64, (ProcessId, Starting)>,
    pipes: HashMap<u64, Pipe>,
    /// Helpers at work, and the requests that they work for.
    helpers: HashMap<u64, (Asked, Task)>,
    next_token: u64,
}

/// A vsock that is not connected.
fn vsock() -> Result<OwnedFd, AgentError> {
    socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).context("open a vsock")
}

/// A connection to the host.
fn dial() -> Result<OwnedFd, AgentError> {
    let control = vsock()?;
    sys::set_connect_timeout(&control, CONNECT_SECONDS).context("set the time for connecting")?;
    connect(control.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_HOST, CONTROL_PORT))
        .context("connect to the host")?;
    Ok(control)
}

impl Server {
    /// Listens for streams, connects to the host and says hello.
    pub(crate) fn connect() -> Result<Self, AgentError> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block().context("block SIGCHLD")?;
        let children = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .context("watch children")?;
        let listener = vsock()?;
        bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, STREAM_PORT))
            .context("bind the vsock")?;
        listen(&listener, Backlog::new(64).context("listen")?).context("listen on the vsock")?;
        set_nonblocking(&listener).context("make the listener non-blocking")?;
        let control = dial()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("make an epoll")?;
        for (fd, token) in
            [(control.as_fd(), CONTROL), (listener.as_fd(), LISTENER), (children.as_fd(), CHILDREN)]
        {
            epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token)).context("watch a descriptor")?;
        }
        let pid_namespace = File::open("/proc/self/ns/pid").context("find the agent's namespace")?.into();
        Ok(Self {
            epoll,
            host: Host::new(control)?,
            listener,
            children,
            pid_namespace,
            streams: Streams::default(),
            waiting: VecDeque::new(),
            prepared: None,
            container: None,
            watched: None,
            processes: BTreeMap::new(),
            reports: HashMap::new(),
            pipes: HashMap::new(),
            helpers: HashMap::new(),
            next_token: FIRST_DYNAMIC,
        })
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
                    MEMORY_EVENTS => self.report_oom()?,
                    CGROUP_EVENTS => self.report_frozen()?,
                    token if self.streams.is_greeting(token) => {
                        if self.streams.read_greeting(token, &self.epoll).context("open a stream")? {
                            self.rejoin()?;
                            self.run_waiting()?;
                        }
                    }
                    token if self.reports.contains_key(&token) => self.read_report(token)?,
                    token if self.helpers.contains_key(&token) => self.finish_helper(token)?,
                    token => self.run_pump(token)?,
                }
            }
            if self.host.is_lost() {
                self.reconnect()?;
            }
        }
    }

    /// The machine was restored from a snapshot, else nobody takes the connection. What the host had asked for, and is not done, was asked by
    /// one that is gone; the pipes of running processes wait for the next one.
    fn reconnect(&mut self) -> Result<(), AgentError> {
        let control = dial()?;
        self.epoll.delete(&self.host).context("forget the host")?;
        self.epoll.add(&control, EpollEvent::new(EpollFlags::EPOLLIN, CONTROL)).context("watch the host")?;
        self.waiting.clear();
        self.streams = Streams::default();
        for (_, (_, task)) in self.helpers.drain() {
            task.kill();
        }
        self.forget_ended_pipes()?;
        self.host.renew(control)
    }

    fn reply(&mut self, asked: Asked, result: Result<Answer, Failure>) -> Result<(), AgentError> {
        self.host.reply(asked, result)
    }

    fn read_control(&mut self) -> Result<(), AgentError> {
        self.host.read()?;
        while let Some((asked, call)) = self.host.next_request()? {
            self.handle(asked, call)?;
        }
        Ok(())
    }

    fn handle(&mut self, id: Asked, call: Call) -> Result<(), AgentError> {
        let result = match call {
            Call::Prepare(prepare) => self.prepare(&prepare),
            Call::Restored(news) => return self.settle(id, &news),
            Call::Start(start) => return self.wait(id, Waiting::Launch(Launch::Start(start))),
            Call::Exec(exec) => return self.wait(id, Waiting::Launch(Launch::Exec(exec))),
            Call::Signal { process, signal } => self.signal(&process, signal),
            Call::Resize { process, size } => self.resize(&process, size),
            Call::Processes => self.running().map(|c| Answer::Processes(listing::read(&c.cgroup))),
            Call::Stats => self.running().map(|c| Answer::Stats(Box::new(accounts::read(c)))),
            Call::Pause => return self.pause(id),
            Call::Unpause => return self.unpause(id),
            Call::Update(resources) => self.running().and_then(|container| {
                container.cgroup.limit(&Limits::new(&resources)?).map(|()| Answer::Done)
            }),
            Call::StatPath { path } => return self.wait(id, Waiting::Work(Work::StatPath(path))),
            Call::ArchiveGet { path } => return self.wait(id, Waiting::Work(Work::ArchiveGet(path))),
            Call::ArchivePut(put) => return self.wait(id, Waiting::Work(Work::ArchivePut(put))),
            Call::Export => return self.wait(id, Waiting::Work(Work::Export)),
            Call::Diff => return self.wait(id, Waiting::Work(Work::Diff)),
            Call::Changes => return self.wait(id, Waiting::Work(Work::Changes)),
            Call::NetworkAttach(interface) => {
                return self.wait(id, Waiting::Work(Work::NetworkAttach(interface)));
            }
            Call::NetworkDetach { name } => return self.wait(id, Waiting::Work(Work::NetworkDetach(name))),
            Call::Shutdown { method } => return self.shutdown(method),
        };
        self.reply(id, result)
    }

    /// Makes the machine one that no other is; only then is anything else served.
    fn settle(&mut self, id: Asked, news: &protocol::Restored) -> Result<(), AgentError> {
        match restored::settle(news) {
            Ok(()) => {
                self.reply(id, Ok(Answer::Done))?;
                self.host.settle()?;
                self.rejoin()
            }
            Err(error) => self.reply(id, Err(error.into())),
        }
    }

    fn prepare(&mut self, request: &protocol::Prepare) -> Result<Answer, Failure> {
        if self.prepared.is_some() {
            return Err(Failure::new(FailureKind::Other, "the machine has been prepared already"));
        }
        self.prepared = Some(rootfs::prepare(request)?);
        Ok(Answer::Done)
    }

    /// The container, if there is one.
    fn running(&self) -> Result<&Container, Failure> {
        self.container
            .as_ref()
            .ok_or_else(|| Failure::new(FailureKind::NotRunning, "the container is not running"))
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
            let connection = self.streams.accept(token, connection);
            self.epoll
                .add(connection, EpollEvent::new(EpollFlags::EPOLLIN, token))
                .context("watch a stream")?;
        }
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// Takes a request that may have to wait, and does what can be done now.
    fn wait(&mut self, id: Asked, waiting: Waiting) -> Result<(), AgentError> {
        if self.waiting.len() >= MAX_WAITING {
            return self.reply(id, Err(Failure::new(FailureKind::Other, "too many requests wait already")));
        }
        self.waiting.push_back((id, waiting));
        self.run_waiting()
    }

    /// Does what waits and can be done, in order.
    fn run_waiting(&mut self) -> Result<(), AgentError> {
        for _ in 0..self.waiting.len() {
            let Some((id, waiting)) = self.waiting.pop_front() else { break };
            let ready = match &waiting {
                Waiting::Launch(launch) => self.streams.all_open(launch.process(), launch.streams()),
                Waiting::Work(work) => self.can_help(id, work),
            };
            if !ready {
                self.waiting.push_back((id, waiting));
                continue;
            }
            let done = match waiting {
                Waiting::Launch(launch) => self.launch(id, launch),
                Waiting::Work(work) => self.help(id, &work),
            };
            if let Err(failure) = done {
                self.reply(id, Err(failure))?;
            }
        }
        Ok(())
    }

    /// Ends every process, writes everything to disk, ends the machine. Does not come back.
    fn shutdown(&mut self, method: ShutdownMethod) -> Result<(), AgentError> {
        for process in self.processes.values() {
            let _ = nix::sys::signal::kill(process.pid, Signal::SIGKILL);
        }
        for (_, task) in self.helpers.values() {
            task.kill();
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
