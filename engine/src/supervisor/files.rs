//! Looking into a container and moving archives in and out, whether it runs or not.
//!
//! The host never mounts a container's disk. For one that does not run, a helper machine mounts it: the same machine, in which nothing is started.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use agent::protocol::{Answer, Call, StreamOpen};
use tokio::net::UnixStream;
use tokio::sync::MutexGuard;
use tokio::time::Instant;

use super::Supervisor;
use super::guest::{Connecting, Guest};
use super::run::{Booted, Run};
use super::wire::{Reply, answer, send_descriptor};
use crate::EngineError;
use crate::error::Refusal;
use crate::timings::Timings;

/// How long a helper machine is kept: `docker cp` looks first and copies then.
const LINGER: Duration = Duration::from_millis(1500);

/// A machine that only shows the disk of a container that does not run.
#[derive(Default)]
pub(super) struct Helper {
    machine: RefCell<Option<Booted>>,
    until: std::cell::Cell<Option<Instant>>,
}

impl Helper {
    /// Whether there is one that may be needed again.
    pub(super) fn lingers(&self) -> bool {
        self.machine.borrow().is_some() && self.until.get().is_some_and(|until| Instant::now() < until)
    }

    /// Has it write its disk and end.
    pub(super) async fn end(&self, _: &Supervisor) {
        let machine = self.machine.borrow_mut().take();
        if let Some(machine) = machine {
            machine.shut_down().await;
        }
    }
}

/// Who shows the container's files.
enum Shown<'a> {
    Run(Rc<Run>),
    Helper(Rc<Guest>, #[expect(dead_code, reason = "no start while the helper is used")] MutexGuard<'a, ()>),
}

impl Supervisor {
    /// Whether a call may be passed on to the agent as it is.
    fn only_looks(call: &Call) -> bool {
        matches!(call, Call::Processes | Call::Stats | Call::StatPath { .. })
    }

    fn is_transfer(call: &Call) -> bool {
        let transfers = matches!(call, Call::ArchivePut(_) | Call::Export | Call::Diff | Call::Changes);
        transfers || matches!(call, Call::ArchiveGet { .. })
    }

    async fn shown(&self, call: &Call) -> Result<Shown<'_>, EngineError> {
        if matches!(call, Call::Processes | Call::Stats) {
            return self.running().map(Shown::Run);
        }
        if let Ok(run) = self.running() {
            return Ok(Shown::Run(run));
        }
        let turn = self.lifecycle.lock().await;
        if let Ok(run) = self.running() {
            return Ok(Shown::Run(run));
        }
        if self.helper.machine.borrow().is_none() {
            let container = self.container()?;
            let image = crate::image::by_id(&self.paths, &container.config)?;
            let booted = Booted::boot(self, &container, &image, Vec::new(), &Timings::new()).await?;
            if let Err(error) = booted.prepared().await {
                let error = booted.explain(error).await;
                booted.kill().await;
                return Err(error);
            }
            *self.helper.machine.borrow_mut() = Some(booted);
        }
        self.helper.until.set(Some(Instant::now() + LINGER));
        let guest = self.helper.machine.borrow().as_ref().map(|booted| Rc::clone(&booted.guest));
        let guest = guest.ok_or_else(|| EngineError::NotRunning(self.id.clone()))?;
        Ok(Shown::Helper(guest, turn))
    }

    fn connect(&self, shown: &Shown<'_>) -> std::io::Result<std::os::unix::net::UnixStream> {
        match shown {
            Shown::Run(run) => run.booted.connect(),
            Shown::Helper(..) => match self.helper.machine.borrow().as_ref() {
                Some(booted) => booted.connect(),
                None => Err(std::io::ErrorKind::NotConnected.into()),
            },
        }
    }

    /// Passes a call that only looks on to the agent.
    pub(super) async fn look(&self, call: Call) -> Result<Answer, EngineError> {
        if !Self::only_looks(&call) {
            return Err(EngineError::Invalid("the call changes something".to_owned()));
        }
        let shown = self.shown(&call).await?;
        self.guest(&shown).call(call).await
    }

    fn guest(&self, shown: &Shown<'_>) -> Rc<Guest> {
        match shown {
            Shown::Run(run) => Rc::clone(&run.booted.guest),
            Shown::Helper(guest, _) => Rc::clone(guest),
        }
    }

    /// Gives a client the stream of a transfer, and then the agent's answer.
    pub(super) async fn transfer(
        &self,
        connection: &mut UnixStream,
        call: Call,
    ) -> Result<Reply, EngineError> {
        if !Self::is_transfer(&call) {
            return Err(EngineError::Invalid("the call is no transfer".to_owned()));
        }
        let shown = self.shown(&call).await?;
        let asked = self.connect(&shown).and_then(Connecting::request);
        let asked = asked.map_err(|e| EngineError::Agent(e.into()))?;
        let guest = self.guest(&shown);
        let (request, answered) = guest.send(call).await?;
        let stream = asked.open(&StreamOpen::Transfer { request }).await?;
        let gone = |e: std::io::Error| EngineError::io("handing a transfer over")(e);
        let told: Result<Reply, Refusal> = Ok(Reply::Transfer);
        answer(connection, &told).await.map_err(gone)?;
        let stream = stream.into_std().map_err(gone)?;
        send_descriptor(connection, std::os::fd::AsFd::as_fd(&stream)).await.map_err(gone)?;
        drop(stream);
        let result = guest.answer(answered).await?.map_err(EngineError::Guest);
        self.helper.until.set(Some(Instant::now() + LINGER));
        result.map(|answer| Reply::Answer(Box::new(answer)))
    }
}
