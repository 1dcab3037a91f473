//! What the kernel tells of the container's cgroup: processes killed for lack of memory, and the end of a freeze.

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::{Asked, CGROUP_EVENTS, MEMORY_EVENTS, Server};
use crate::guest::container::Cgroup;
use crate::guest::container::cgroup::Events;
use crate::guest::{AgentError, Context};
use crate::protocol::{Answer, Failure, FailureKind, Message};

/// Most pauses that wait for the same freeze.
const MAX_PAUSES: usize = 64;

/// The files of events of a running container's cgroup.
pub(super) struct Watched {
    memory: Events,
    cgroup: Events,
    /// Kills that the host has been told of.
    kills: u64,
    paused: bool,
    /// Pauses that are answered when all processes are frozen.
    freezing: Vec<Asked>,
}

impl Watched {
    pub(super) fn new(cgroup: &Cgroup, epoll: &Epoll) -> Result<Self, AgentError> {
        let mut watched = Self {
            memory: cgroup.events("memory.events")?,
            cgroup: cgroup.events("cgroup.events")?,
            kills: 0,
            paused: false,
            freezing: Vec::new(),
        };
        // Only what changes after a first reading is reported.
        watched.memory.number("oom_kill");
        watched.cgroup.number("frozen");
        for (events, token) in [(&watched.memory, MEMORY_EVENTS), (&watched.cgroup, CGROUP_EVENTS)] {
            epoll.add(&events.0, EpollEvent::new(EpollFlags::EPOLLPRI, token)).context("watch the cgroup")?;
        }
        Ok(watched)
    }

    /// Processes killed for lack of memory.
    pub(super) fn kills(&self) -> u64 {
        self.kills
    }

    /// Whether the container is paused, or about to be.
    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }
}

impl Server {
    /// Tells the host of kills that it does not know of.
    pub(super) fn report_oom(&mut self) -> Result<(), AgentError> {
        let Some(watched) = &mut self.watched else { return Ok(()) };
        let kills = watched.memory.number("oom_kill");
        if kills <= watched.kills {
            return Ok(());
        }
        watched.kills = kills;
        self.host.tell(Message::Oom { kills })
    }

    pub(super) fn pause(&mut self, id: Asked) -> Result<(), AgentError> {
        let refuse = |kind, text: &str| Err(Failure::new(kind, text));
        let result = match (&self.container, &mut self.watched) {
            (Some(container), Some(watched)) if watched.freezing.len() < MAX_PAUSES => {
                container.cgroup.freeze(true).map_err(Failure::from).map(|()| {
                    watched.paused = true;
                    watched.freezing.push(id);
                })
            }
            (Some(_), Some(_)) => refuse(FailureKind::Other, "too many pauses wait already"),
            _ => refuse(FailureKind::NotRunning, "the container is not running"),
        };
        match result {
            Ok(()) => self.report_frozen(),
            Err(failure) => self.reply(id, Err(failure)),
        }
    }

    pub(super) fn unpause(&mut self, id: Asked) -> Result<(), AgentError> {
        let result = self.running().and_then(|c| c.cgroup.freeze(false).map_err(Failure::from));
        if result.is_ok()
            && let Some(watched) = &mut self.watched
        {
            watched.paused = false;
            let freezing = std::mem::take(&mut watched.freezing);
            self.fail_pauses(freezing, FailureKind::Other, "the container was unpaused")?;
        }
        self.reply(id, result.map(|()| Answer::Done))
    }

    /// Answers the pauses that wait, if all processes are frozen by now.
    pub(super) fn report_frozen(&mut self) -> Result<(), AgentError> {
        let Some(watched) = &mut self.watched else { return Ok(()) };
        if watched.cgroup.number("frozen") == 1 {
            for id in std::mem::take(&mut watched.freezing) {
                self.reply(id, Ok(Answer::Done))?;
            }
        }
        Ok(())
    }

    /// Stops watching a container that has ended.
    pub(super) fn end_watch(&mut self, watched: Watched) -> Result<(), AgentError> {
        for events in [&watched.memory, &watched.cgroup] {
            self.epoll.delete(&events.0).context("forget the cgroup")?;
        }
        self.fail_pauses(watched.freezing, FailureKind::NotRunning, "the container has ended")
    }

    fn fail_pauses(&mut self, pauses: Vec<Asked>, kind: FailureKind, text: &str) -> Result<(), AgentError> {
        pauses.into_iter().try_for_each(|id| self.reply(id, Err(Failure::new(kind, text))))
    }
}
