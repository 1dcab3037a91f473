//! Requests that forked children work on: archives, paths, networks of the running container.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::{CloneFlags, setns};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{Asked, Server};
use crate::guest::network::{self, Netlink};
use crate::guest::task::{self, Task};
use crate::guest::{AgentError, Context, archive};
use crate::protocol::{Answer, ArchivePut, Failure, FailureKind, Interface};

/// Most helpers at a time; further requests wait.
const MAX_HELPERS: usize = 16;

/// What a helper does.
pub(super) enum Work {
    StatPath(String),
    ArchiveGet(String),
    ArchivePut(ArchivePut),
    Export,
    Diff,
    Changes,
    NetworkAttach(Box<Interface>),
    NetworkDetach(String),
}

impl Work {
    fn needs_stream(&self) -> bool {
        !matches!(self, Self::StatPath(_) | Self::NetworkAttach(_) | Self::NetworkDetach(_))
    }
}

impl Server {
    /// Whether a helper is free and the work's stream is open.
    pub(super) fn can_help(&self, asked: Asked, work: &Work) -> bool {
        self.helpers.len() < MAX_HELPERS && (!work.needs_stream() || self.streams.is_transfer_open(asked.id))
    }

    /// Forks a helper; the request is answered when it has reported.
    pub(super) fn help(&mut self, asked: Asked, work: &Work) -> Result<(), Failure> {
        let stream = if work.needs_stream() {
            Some(self.streams.claim_transfer(asked.id).context("claim a stream")?)
        } else {
            None
        };
        let task = match work {
            Work::NetworkAttach(_) | Work::NetworkDetach(_) => self.fork_network(work)?,
            _ => self.fork_archive(work, stream)?,
        };
        let token = self.token();
        let watched = self.epoll.add(&task.report, EpollEvent::new(EpollFlags::EPOLLIN, token));
        if let Err(error) = watched {
            task.kill();
            return Err(Failure::new(FailureKind::Other, format!("watch a helper: {error}")));
        }
        self.helpers.insert(token, (asked, task));
        Ok(())
    }

    fn fork_archive(&self, work: &Work, stream: Option<(OwnedFd, Vec<u8>)>) -> Result<Task, Failure> {
        let Some(prepared) = &self.prepared else {
            return Err(Failure::new(FailureKind::Other, "the machine has not been prepared"));
        };
        let (stream, pending) = stream.map_or((None, Vec::new()), |(fd, pending)| (Some(fd), pending));
        let keep: Vec<_> = stream.iter().map(AsRawFd::as_raw_fd).collect();
        // The stream moves into the work, which closes it before its end is reported.
        let forked = task::fork(&keep, move || {
            let Some(stream) = stream else {
                return match work {
                    Work::StatPath(path) => archive::stat(prepared, path),
                    _ => Err(Failure::new(FailureKind::Other, "the work has no stream")),
                };
            };
            let stream = blocking(stream)?;
            match work {
                Work::ArchiveGet(path) => archive::get(prepared, path, stream),
                Work::ArchivePut(put) => archive::put(prepared, put, &pending, stream),
                Work::Export => archive::export(stream),
                Work::Diff => archive::diff(stream),
                Work::Changes => archive::changes(stream),
                Work::StatPath(_) | Work::NetworkAttach(_) | Work::NetworkDetach(_) => {
                    Err(Failure::new(FailureKind::Other, "the work has no use for a stream"))
                }
            }
        });
        Ok(forked.context("fork a helper")?)
    }

    fn fork_network(&self, work: &Work) -> Result<Task, Failure> {
        let container = &self.running()?.handle;
        let machine = Netlink::open().context("open a netlink socket")?;
        let namespace = File::open("/proc/self/ns/net").context("find the agent's network")?;
        let keep = [container.as_raw_fd(), machine.as_fd().as_raw_fd(), namespace.as_raw_fd()];
        let forked = task::fork(&keep, || {
            setns(container, CloneFlags::CLONE_NEWNET).context("enter the container's network")?;
            match work {
                Work::NetworkAttach(interface) => network::attach(&machine, interface)?,
                Work::NetworkDetach(name) => network::detach(&namespace, name)?,
                _ => {
                    return Err(Failure::new(FailureKind::Other, "the work has nothing to do with networks"));
                }
            }
            Ok(Answer::Done)
        });
        Ok(forked.context("fork a helper")?)
    }

    /// Passes a helper's report on.
    pub(super) fn finish_helper(&mut self, token: u64) -> Result<(), AgentError> {
        let Some((asked, task)) = self.helpers.remove(&token) else { return Ok(()) };
        self.reply(asked, task.result())?;
        self.run_waiting()
    }
}

/// A helper may wait for its stream: it has nothing else to do.
fn blocking(stream: OwnedFd) -> Result<File, AgentError> {
    let flags =
        fcntl(&stream, FcntlArg::F_GETFL).map(OFlag::from_bits_retain).context("read a stream's flags")?;
    fcntl(&stream, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK)).context("make a stream blocking")?;
    Ok(File::from(stream))
}
