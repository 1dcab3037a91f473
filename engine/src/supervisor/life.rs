//! The container's life: start, signals, end, restart, removal.

use std::rc::Rc;
use std::time::{Duration, Instant};

use agent::protocol::{Call, FailureKind};
use tokio::task::spawn_local;

use super::Supervisor;
use super::policy;
use super::run::{Ending, Run};
use super::wire::Until;
use crate::model::{Container, Health, HealthStatus, Outcome, State, Status, now};
use crate::timings::Timings;
use crate::{EngineError, truth, volumes};

/// How long a container may take to stop when neither it nor the caller says.
const STOP_TIMEOUT: i64 = 10;
/// How long a guest may take to kill its container's process.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// SIGKILL.
const SIGKILL: u8 = 9;

impl Supervisor {
    /// The machine that runs the container.
    pub(super) fn running(&self) -> Result<Rc<Run>, EngineError> {
        self.run.borrow().clone().ok_or_else(|| EngineError::NotRunning(self.id.clone()))
    }

    /// Starts the container; false if it runs already.
    pub(super) async fn start(self: &Rc<Self>) -> Result<bool, EngineError> {
        let _turn = self.lifecycle.lock().await;
        if self.run.borrow().is_some() {
            return Ok(false);
        }
        self.start_now(0).await.map(|()| true)
    }

    /// Starts the container, which does not run; the caller has its turn.
    async fn start_now(self: &Rc<Self>, restarts: u32) -> Result<(), EngineError> {
        let timings = Timings::new();
        let container = self.container()?;
        if matches!(container.state.status, Status::Removing | Status::Dead) {
            return Err(EngineError::Conflict(format!("container {} is being removed", container.name)));
        }
        self.helper.end(self).await;
        self.abort.send_replace(None);
        let mut abort = self.abort.subscribe();
        // Docker's clients send the terminal's size again when the container runs.
        let size = container.config.console_size;
        let started = tokio::select! {
            started = Run::start(self, container.clone(), size, &timings) => started,
            _ = abort.wait_for(Option::is_some) => {
                Err(EngineError::Conflict("the container was stopped before it had started".to_owned()))
            }
        };
        match started {
            Ok(run) => {
                let container = self.change(|c| {
                    c.state = State {
                        places: std::mem::take(&mut c.state.places),
                        ports: std::mem::take(&mut c.state.ports),
                        status: Status::Running,
                        machine: Some(run.booted.described.clone()),
                        outcome: None,
                        started: now(),
                        finished: 0,
                        restarts,
                        stopped: false,
                        health: policy::health_check(&c.config)
                            .map(|_| Health { status: HealthStatus::Starting, ..Health::default() }),
                    };
                })?;
                self.event(&container, "start", &[]);
                *self.run.borrow_mut() = Some(Rc::clone(&run));
                spawn_local(Rc::clone(self).attend(Rc::clone(&run), timings));
                spawn_local(super::health::watch(Rc::clone(self), Rc::clone(&run)));
                spawn_local(super::health::watch_memory(Rc::clone(self), Rc::clone(&run)));
                Ok(())
            }
            Err(error) => {
                self.not_started(&container, &error);
                Err(error)
            }
        }
    }

    /// Writes down why the container could not be started, and tells those who wait.
    fn not_started(&self, container: &Container, error: &EngineError) {
        let outcome = Outcome { code: error.exit_code(), oom_killed: false, error: truth::one_line(error) };
        let changed = self.change(|c| {
            // As Docker: it is as it was, but for the exit code and the error.
            c.state.outcome = Some(outcome.clone());
            c.state.machine = None;
            c.state.places.clear();
            c.state.ports.clear();
            if c.state.status.is_running() {
                c.state.status = Status::Exited;
                c.state.finished = now();
            }
        });
        if let Err(error) = changed {
            tracing::error!(%error, "the container's state cannot be written");
        }
        self.hub.close();
        self.after_end(container, &outcome);
    }

    /// Waits for the end of a run, writes it down, and does what the restart policy wants.
    async fn attend(self: Rc<Self>, run: Rc<Run>, timings: Timings) {
        let began = Instant::now();
        let ending = run.finish().await;
        self.input.send_replace(None);
        self.execs.borrow_mut().clear();
        let auto_remove = run.container.config.auto_remove;
        let outcome = match ending {
            Ending::Exited(exit) => {
                // The disk is thrown away with a temporary container: its machine need not write it. Volumes stay.
                if auto_remove && !run.booted.has_volumes() {
                    run.booted.kill().await;
                } else {
                    run.booted.shut_down().await;
                }
                Outcome { code: exit.status.code(), oom_killed: exit.oom_killed, error: String::new() }
            }
            Ending::Condemned => {
                let error = run.condemned.borrow().clone().unwrap_or_default();
                Outcome { code: 128 + SIGKILL, oom_killed: false, error }
            }
            Ending::Failed(error) => {
                tracing::error!(
                    error = truth::one_line(&error),
                    console = error.console(),
                    "the machine failed"
                );
                run.booted.kill().await;
                Outcome { code: error.exit_code(), oom_killed: false, error: truth::one_line(&error) }
            }
        };
        timings.mark("ended");
        // Its ports are free before its end is told.
        run.networks.cut().await;
        let again = policy::restarts(&self.container(), &outcome, run.stopped.get(), began.elapsed());
        let changed = self.change(|c| {
            c.state.status = if again.is_some() { Status::Restarting } else { Status::Exited };
            c.state.machine = None;
            c.state.places.clear();
            c.state.ports.clear();
            c.state.outcome = Some(outcome.clone());
            c.state.finished = now();
            c.state.stopped = run.stopped.get();
        });
        let container = match changed {
            Ok(container) => container,
            Err(error) => {
                tracing::error!(%error, "the container's end cannot be written");
                run.container.clone()
            }
        };
        let _ = self.database.delete_execs_of(&self.id);
        self.event(&container, "die", &[("exitCode", outcome.code.to_string())]);
        *self.run.borrow_mut() = None;
        self.hub.close();
        run.over.send_replace(true);
        match again {
            Some(delay) => {
                self.wake(&outcome, |until| until == Until::NextExit);
                self.restarting.set(true);
                spawn_local(Rc::clone(&self).start_again(delay, container.state.restarts + 1));
            }
            None => self.after_end(&container, &outcome),
        }
    }

    /// What follows a container's last end: the removal of a temporary one, and the news for those who wait.
    fn after_end(&self, container: &Container, outcome: &Outcome) {
        self.wake(outcome, |until| until != Until::Removed);
        if container.config.auto_remove {
            if let Err(error) = self.erase(container) {
                tracing::error!(%error, "the container cannot be removed");
            }
            self.wake(outcome, |_| true);
        }
        self.idle.notify_one();
    }

    async fn start_again(self: Rc<Self>, delay: Duration, restarts: u32) {
        let mut abort = self.abort.subscribe();
        abort.mark_unchanged();
        let stopped = tokio::select! {
            () = tokio::time::sleep(delay) => false,
            _ = abort.changed() => true,
        };
        let turn = self.lifecycle.lock().await;
        self.restarting.set(false);
        let waits = self.container().is_ok_and(|c| c.state.status == Status::Restarting);
        let again = waits && !stopped && self.run.borrow().is_none();
        if again && let Err(error) = self.start_now(restarts).await {
            tracing::error!(error = truth::one_line(&error), "the container cannot be started again");
        }
        drop(turn);
        self.idle.notify_one();
    }

    /// Sends the container's first process a signal. SIGKILL ends its machine if the guest does not.
    pub(super) async fn kill(self: &Rc<Self>, signal: u8) -> Result<(), EngineError> {
        let Ok(run) = self.running() else {
            // A start that is under way is ended by what would end the process.
            if self.lifecycle.try_lock().is_err() && matches!(signal, 2 | 9 | 15) {
                self.abort.send_replace(Some(signal));
                return Ok(());
            }
            return Err(EngineError::NotRunning(self.id.clone()));
        };
        self.event(&run.container, "kill", &[("signal", signal.to_string())]);
        if signal != SIGKILL {
            return self.signal(&run, signal).await;
        }
        run.stopped.set(true);
        self.end(&run, "it was killed, and did not end by itself").await;
        Ok(())
    }

    async fn signal(&self, run: &Run, signal: u8) -> Result<(), EngineError> {
        match run.booted.guest.call(Call::Signal { process: run.init.clone(), signal }).await {
            // It is just ending.
            Err(EngineError::Agent(_)) => Ok(()),
            Err(EngineError::Guest(failure)) if failure.kind == FailureKind::NotRunning => Ok(()),
            other => other.map(drop),
        }
    }

    /// Ends a run for certain: its process by SIGKILL, so that the disk is written; else the machine.
    async fn end(&self, run: &Rc<Run>, why: &str) {
        let mut over = run.over.subscribe();
        let ends = async {
            let _ = self.signal(run, SIGKILL).await;
            // A paused container's process takes a signal only when it goes on.
            let _ = run.booted.guest.call(Call::Unpause).await;
            let _ = over.wait_for(|over| *over).await;
        };
        if tokio::time::timeout(KILL_TIMEOUT, ends).await.is_err() {
            run.condemned.send_replace(Some(why.to_owned()));
            let _ = over.wait_for(|over| *over).await;
        }
    }

    /// Asks the container to end, and ends it when its time is over; false if it does not run.
    pub(super) async fn stop(
        self: &Rc<Self>,
        signal: Option<u8>,
        timeout: Option<i64>,
    ) -> Result<bool, EngineError> {
        let Ok(run) = self.running() else {
            self.abort.send_replace(Some(15));
            let _turn = self.lifecycle.lock().await;
            let waited = self.container()?.state.status == Status::Restarting;
            if waited {
                self.change(|c| {
                    c.state.status = Status::Exited;
                    c.state.stopped = true;
                })?;
            }
            return Ok(waited);
        };
        run.stopped.set(true);
        let timeout = timeout.or(run.container.config.stop_timeout).unwrap_or(STOP_TIMEOUT);
        let mut over = run.over.subscribe();
        self.signal(&run, signal.unwrap_or(run.stop_signal)).await?;
        let gone = async {
            let _ = over.wait_for(|over| *over).await;
        };
        match u64::try_from(timeout) {
            Err(_) => gone.await,
            Ok(seconds) => {
                if tokio::time::timeout(Duration::from_secs(seconds), gone).await.is_err() {
                    self.end(&run, "it did not stop in time").await;
                }
            }
        }
        self.event(&run.container, "stop", &[]);
        Ok(true)
    }

    /// Stops the container and starts it again.
    pub(super) async fn restart(
        self: &Rc<Self>,
        signal: Option<u8>,
        timeout: Option<i64>,
    ) -> Result<(), EngineError> {
        if self.run.borrow().as_ref().is_some_and(|run| run.container.config.auto_remove) {
            return Err(EngineError::Conflict(
                "a container that is removed when it ends cannot be restarted".into(),
            ));
        }
        self.stop(signal, timeout).await?;
        self.start().await?;
        let container = self.container()?;
        self.event(&container, "restart", &[]);
        Ok(())
    }

    /// Freezes the container's processes, or lets them go on.
    pub(super) async fn pause(&self, pause: bool) -> Result<(), EngineError> {
        let run = self.running()?;
        let paused = self.container()?.state.status == Status::Paused;
        match (pause, paused) {
            (true, true) => return Err(EngineError::Paused(self.id.clone())),
            (false, false) => return Err(EngineError::NotPaused(self.id.clone())),
            _ => {}
        }
        run.booted.guest.call(if pause { Call::Pause } else { Call::Unpause }).await?;
        let container =
            self.change(|c| c.state.status = if pause { Status::Paused } else { Status::Running })?;
        self.event(&container, if pause { "pause" } else { "unpause" }, &[]);
        Ok(())
    }

    /// Removes the container. One that runs is ended first if `force` says so.
    pub(super) async fn remove(self: &Rc<Self>, force: bool) -> Result<(), EngineError> {
        self.abort.send_replace(Some(SIGKILL));
        let running = self.run.borrow().clone();
        if let Some(run) = running {
            if !force {
                return Err(EngineError::Running(self.id.clone()));
            }
            run.stopped.set(true);
            self.end(&run, "it was removed").await;
        }
        let _turn = self.lifecycle.lock().await;
        if self.removed.get() {
            // It was a temporary one, and its end has removed it.
            return Ok(());
        }
        self.helper.end(self).await;
        let container = self.container()?;
        self.erase(&container)?;
        self.wake(&container.state.outcome.unwrap_or_default(), |_| true);
        Ok(())
    }

    /// Removes the container from disk and database.
    fn erase(&self, container: &Container) -> Result<(), EngineError> {
        self.removed.set(true);
        truth::erase(&self.database, &self.directory, container)?;
        if container.config.auto_remove {
            volumes::remove_anonymous(&self.database, &self.paths, container);
        }
        Ok(())
    }
}
