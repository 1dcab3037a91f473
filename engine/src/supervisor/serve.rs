//! One connection to the supervisor: one question and its answers.

use std::rc::Rc;
use std::time::Instant;

use agent::protocol::Call;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tracing::Instrument as _;

use super::Supervisor;
use super::hub::feed;
use super::wire::{Ask, GREETING, Question, Reply, Streams, Until, answer, read_frame};
use crate::error::Refusal;
use crate::model::{Limits, Outcome, Size};
use crate::{EngineError, spec, trace, truth};

/// Serves a connection to its end. One that breaks concerns nobody else.
pub(super) async fn connection(supervisor: &Rc<Supervisor>, mut connection: UnixStream) {
    if connection.write_all(&[GREETING]).await.is_err() {
        return;
    }
    let Ok(Question { request, ask }) = read_frame::<Question<Ask>>(&mut connection).await else { return };
    let request = request.filter(|id| trace::is_id(id)).unwrap_or_default();
    let span = tracing::info_span!("asked", request, what = ask.name());
    trace::of_request(request, serve(supervisor, connection, ask)).instrument(span).await;
}

async fn serve(supervisor: &Rc<Supervisor>, mut connection: UnixStream, ask: Ask) {
    let began = Instant::now();
    let replied = match ask {
        Ask::Start => supervisor.start().await.map(Reply::Changed),
        Ask::Stop { signal, timeout } => supervisor.stop(signal, timeout).await.map(Reply::Changed),
        Ask::Restart { signal, timeout } => supervisor.restart(signal, timeout).await.map(|()| Reply::Done),
        Ask::Kill { signal } => supervisor.kill(signal).await.map(|()| Reply::Done),
        Ask::Pause => supervisor.pause(true).await.map(|()| Reply::Done),
        Ask::Unpause => supervisor.pause(false).await.map(|()| Reply::Done),
        Ask::Resize { size } => supervisor.resize(size).await.map(|()| Reply::Done),
        Ask::Update { limits } => supervisor.update(&limits).await.map(|()| Reply::Done),
        Ask::Connect { network } => supervisor.join_network(&network).await.map(|()| Reply::Done),
        Ask::Disconnect { network } => supervisor.leave_network(&network).await.map(|()| Reply::Done),
        Ask::Count => supervisor.count().await.map(Reply::Counted),
        Ask::Remove { force } => supervisor.remove(force).await.map(|()| Reply::Done),
        Ask::ExecResize { id, size } => supervisor.resize_exec(&id, size).await.map(|()| Reply::Done),
        Ask::Look { call } => supervisor.look(*call).await.map(|answer| Reply::Answer(Box::new(answer))),
        Ask::Transfer { call } => supervisor.transfer(&mut connection, *call).await,
        Ask::Wait { until } => match supervisor.wait(&mut connection, until).await {
            Some(outcome) => Ok(Reply::Ended(outcome)),
            None => return,
        },
        Ask::Attach { streams } => return supervisor.attach(connection, streams).await,
        Ask::ExecStart { id, size } => match supervisor.exec(connection, &id, size).await {
            Ok(()) => return,
            Err((back, error)) => {
                connection = back;
                Err(error)
            }
        },
    };
    let milliseconds = began.elapsed().as_millis();
    let reply = match replied {
        Ok(reply) => {
            tracing::info!(milliseconds, "done");
            Ok(reply)
        }
        Err(error) => {
            tracing::warn!(milliseconds, error = truth::one_line(&error), "refused");
            Err(Refusal::from(&error))
        }
    };
    // Who asked may have gone away.
    let _ = answer(&mut connection, &reply).await;
}

/// Returns when the other side has closed the connection.
async fn hung_up(connection: &UnixStream) {
    while connection.readable().await.is_ok() {
        match connection.try_read(&mut [0]) {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(1..) => {}
            _ => return,
        }
    }
}

impl Supervisor {
    /// Tells that the wait has begun, and waits; `None` if who asked went away.
    async fn wait(&self, connection: &mut UnixStream, until: Until) -> Option<Outcome> {
        let (sender, outcome) = oneshot::channel();
        let running = self.run.borrow().is_some() || self.restarting.get();
        let now = until == Until::NotRunning && !running && self.lifecycle.try_lock().is_ok();
        if now {
            let container = self.container().ok()?;
            let _ = sender.send(container.state.outcome.unwrap_or_default());
        } else {
            self.waiters.borrow_mut().push((until, sender));
        }
        answer(connection, &Ok(Reply::Waiting)).await.ok()?;
        tokio::select! {
            outcome = outcome => outcome.ok(),
            () = hung_up(connection) => None,
        }
    }

    /// Gives a connection to the container's streams.
    async fn attach(&self, mut connection: UnixStream, streams: Streams) {
        let Ok(container) = self.container() else { return };
        let config = &container.config;
        if answer(&mut connection, &Ok(Reply::Attached { tty: config.tty })).await.is_err() {
            return;
        }
        let wanted = streams.stdin && config.open_stdin;
        let close = config.stdin_once && !config.tty;
        let reader = self.hub.attach(connection, streams);
        tokio::select! {
            () = feed(reader, self.input.subscribe(), wanted, close) => {}
            // Whoever is still connected has seen all there is to see.
            () = self.hub.closed() => {}
        }
    }

    async fn resize(&self, size: Size) -> Result<(), EngineError> {
        let run = self.running()?;
        let size = spec::terminal_size(size);
        run.booted.guest.call(Call::Resize { process: run.init.clone(), size }).await.map(drop)
    }

    async fn update(&self, limits: &Limits) -> Result<(), EngineError> {
        let Ok(run) = self.running() else { return Ok(()) };
        // Of what is said here, the container's own limits are what holds: absent ones stay.
        let mut all = self.container()?.config.limits;
        crate::verbs::overlay(&mut all, limits.clone());
        run.booted.limit_disk(crate::machine::DiskRates::new(&all))?;
        let resources = spec::resources(limits);
        run.booted.guest.call(Call::Update(Box::new(resources))).await.map(drop)
    }
}
