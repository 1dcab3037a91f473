//! The pipes of processes, each with its pump between it and a connection of the host's.
//!
//! A machine that was restored has lost the connections, not the processes: what a process writes waits in its pipe until the present host opens
//! the stream again, and nothing that it wrote is lost. A stream of input that nobody opens again has no end.

use std::os::fd::OwnedFd;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::Server;
use crate::guest::pump::{Interest, Pump};
use crate::guest::streams::Opened;
use crate::guest::{AgentError, Context};
use crate::protocol::{ProcessId, Stream};

/// A pipe and its pump.
pub(super) struct Pipe {
    pump: Pump,
    /// What is watched for it.
    interest: Interest,
    process: ProcessId,
    stream: Stream,
    /// The host that opened the stream, by the number of its control connection.
    host: u64,
}

impl Server {
    pub(super) fn add_pump(
        &mut self,
        process: &ProcessId,
        (connection, pending): Opened,
        pipe: OwnedFd,
        stream: Stream,
    ) -> Result<(), AgentError> {
        let pump = match stream {
            Stream::Stdin => Pump::new(connection, pipe, pending),
            Stream::Stdout | Stream::Stderr => Pump::new(pipe, connection, Vec::new()),
        };
        let token = self.token();
        let (process, host) = (process.clone(), self.host.number());
        self.pipes.insert(token, Pipe { pump, interest: Interest::Done, process, stream, host });
        self.run_pump(token)
    }

    /// Runs a pump and watches the descriptor that it waits for; an idle descriptor that hung up would wake epoll for ever.
    pub(super) fn run_pump(&mut self, token: u64) -> Result<(), AgentError> {
        let Some(Pipe { pump, interest, .. }) = self.pipes.get_mut(&token) else { return Ok(()) };
        let (before, after) = (*interest, pump.run());
        if after == before {
            return Ok(());
        }
        if matches!(before, Interest::Read | Interest::Write) {
            self.epoll.delete(pump.descriptor(before)).context("forget a stream")?;
        }
        *interest = after;
        let flags = match after {
            Interest::Read => EpollFlags::EPOLLIN,
            Interest::Write => EpollFlags::EPOLLOUT,
            Interest::Connection => return Ok(()),
            Interest::Done => {
                self.pipes.remove(&token);
                return Ok(());
            }
        };
        self.epoll.add(pump.descriptor(after), EpollEvent::new(flags, token)).context("watch a stream")
    }

    /// Gives the pipes of an earlier host the streams that the present one, if it may ask for anything, has opened for them.
    pub(super) fn rejoin(&mut self) -> Result<(), AgentError> {
        let host = self.host.number();
        if !self.host.is_settled() {
            return Ok(());
        }
        let open = |pipe: &Pipe| pipe.host < host && self.streams.all_open(&pipe.process, &[pipe.stream]);
        let found: Vec<u64> =
            self.pipes.iter().filter(|(_, pipe)| open(pipe)).map(|(token, _)| *token).collect();
        for token in found {
            let Some(pipe) = self.pipes.get_mut(&token) else { continue };
            let (connection, pending) =
                self.streams.claim(&pipe.process, pipe.stream).context("claim a stream")?;
            if matches!(pipe.interest, Interest::Read | Interest::Write) {
                self.epoll.delete(pipe.pump.descriptor(pipe.interest)).context("forget a stream")?;
            }
            match pipe.stream {
                Stream::Stdin => pipe.pump.replace_source(connection, &pending),
                Stream::Stdout | Stream::Stderr => pipe.pump.replace_destination(connection),
            }
            (pipe.interest, pipe.host) = (Interest::Done, host);
            self.run_pump(token)?;
        }
        Ok(())
    }

    /// Closes the pipes of a process that has ended, as far as the present host has not opened their streams: the next process of that name has others.
    pub(super) fn forget_pipes(&mut self, ended: &ProcessId) -> Result<(), AgentError> {
        let host = self.host.number();
        self.close_pipes(|pipe| pipe.process == *ended && pipe.host < host)
    }

    /// Closes the pipes of processes that ended before the machine was restored.
    pub(super) fn forget_ended_pipes(&mut self) -> Result<(), AgentError> {
        let running: Vec<ProcessId> = self.processes.keys().cloned().collect();
        self.close_pipes(|pipe| running.binary_search(&pipe.process).is_err())
    }

    fn close_pipes(&mut self, gone: impl Fn(&Pipe) -> bool) -> Result<(), AgentError> {
        for (_, Pipe { pump, interest, .. }) in self.pipes.extract_if(|_, pipe| gone(pipe)) {
            // A terminal is open under other numbers too: closing this one would not take it off epoll.
            if matches!(interest, Interest::Read | Interest::Write) {
                self.epoll.delete(pump.descriptor(interest)).context("forget a stream")?;
            }
        }
        Ok(())
    }
}
