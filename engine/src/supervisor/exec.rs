//! Further processes in the running container.

use std::rc::Rc;

use agent::protocol::{Call, ExitStatus, ProcessId, Stream};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, watch};
use tokio::task::spawn_local;

use super::Supervisor;
use super::guest::ProcessStreams;
use super::hub::{Hub, Input, feed};
use super::run::Run;
use super::wire::{Reply, Streams, answer};
use crate::model::{Exec, Size, Status};
use crate::{EngineError, spec};

/// A further process that runs.
pub(super) struct Running {
    pub(super) process: ProcessId,
}

/// A process that was started, with its streams.
pub(super) struct Started {
    pub(super) process: ProcessId,
    pub(super) streams: Vec<(Stream, UnixStream)>,
    pub(super) exit: tokio::sync::oneshot::Receiver<super::guest::Exit>,
}

impl Supervisor {
    /// Starts a process beside the container's first.
    pub(super) async fn launch(
        &self,
        run: &Run,
        exec: &Exec,
        size: Option<Size>,
    ) -> Result<Started, EngineError> {
        // The id of the guest's process is shorter than ours.
        let process = ProcessId::try_from(exec.id.chars().take(32).collect::<String>())
            .map_err(|e| EngineError::Invalid(e.to_owned()))?;
        let booted = &run.booted;
        let asked = ProcessStreams::request(|| booted.connect(), exec.config.tty, exec.config.stdin)?;
        let call = spec::exec(&run.container, &exec.config, process.clone(), size)?;
        let exit = booted.guest.exit_of(&process);
        let (_, started) = booted.guest.send(Call::Exec(Box::new(call))).await?;
        let streams = asked.open(&process).await?;
        if let Err(failure) = booted.guest.answer(started).await? {
            booted.guest.forget(&process);
            return Err(EngineError::Start(failure));
        }
        Ok(Started { process, streams, exit })
    }

    /// Starts a further process for a client, and gives it the connection.
    pub(super) async fn exec(
        self: &Rc<Self>,
        mut connection: UnixStream,
        id: &str,
        size: Option<Size>,
    ) -> Result<(), (UnixStream, EngineError)> {
        let begun = async {
            let run = self.running()?;
            if self.container()?.state.status == Status::Paused {
                return Err(EngineError::Paused(self.id.clone()));
            }
            let mut exec = self.database.exec(id)?;
            if exec.started {
                return Err(EngineError::Conflict(format!("exec {id} was started before")));
            }
            exec.started = true;
            self.database.put_exec(&exec)?;
            let command = exec.config.cmd.join(" ");
            let container = self.container()?;
            let attributes = [("execID", exec.id.clone())];
            self.event(&container, &format!("exec_start: {command}"), &attributes);
            let started = self.launch(&run, &exec, size).await;
            exec.running = started.is_ok();
            if let Err(error) = &started {
                exec.exit_code = Some(error.exit_code());
            }
            self.database.put_exec(&exec)?;
            started.map(|started| (exec, started))
        };
        let (exec, started) = match begun.await {
            Ok(begun) => begun,
            Err(error) => return Err((connection, error)),
        };
        let tty = exec.config.tty;
        // A client that went away already does not keep the process from running.
        let _ = answer(&mut connection, &Ok(Reply::Attached { tty })).await;
        self.execs.borrow_mut().insert(exec.id.clone(), Running { process: started.process.clone() });
        let this = Rc::clone(self);
        this.attend_exec(connection, exec, started).await;
        Ok(())
    }

    /// Copies a further process's streams until it has ended and all that it wrote is out.
    async fn attend_exec(&self, connection: UnixStream, mut exec: Exec, started: Started) {
        let hub = Rc::new(Hub::default());
        let config = &exec.config;
        let streams = Streams { stdin: config.stdin, stdout: config.stdout, stderr: config.stderr };
        let (sender, input) = watch::channel(None);
        let reader = hub.attach(connection, streams);
        let feeding = spawn_local(feed(reader, input, config.stdin, !config.tty));
        let mut pumps = Vec::new();
        for (stream, connection) in started.streams {
            if stream == Stream::Stdin {
                let (_, writer) = connection.into_split();
                let input: Input = Rc::new(Mutex::new(Some(writer)));
                sender.send_replace(Some(input));
            } else {
                let (hub, tty) = (Rc::clone(&hub), config.tty);
                pumps.push(spawn_local(async move { hub.pump(stream, tty, connection, None).await }));
            }
        }
        let status = started.exit.await.map_or(ExitStatus::Signal(9), |exit| exit.status);
        for pump in pumps {
            let _ = pump.await;
        }
        feeding.abort();
        exec.running = false;
        exec.exit_code = Some(status.code());
        self.execs.borrow_mut().remove(&exec.id);
        // Its container may be gone by now.
        if let Ok(container) = self.container() {
            if self.run.borrow().is_some()
                && let Err(error) = self.database.put_exec(&exec)
            {
                tracing::error!(%error, exec = exec.id, "the end of an exec cannot be written");
            }
            let attributes = [("execID", exec.id.clone()), ("exitCode", status.code().to_string())];
            self.event(&container, "exec_die", &attributes);
        }
        // Only now: who waits for the end of its output may ask for the exit code at once.
        hub.close();
    }

    /// Sets the size of a further process's terminal.
    pub(super) async fn resize_exec(&self, id: &str, size: Size) -> Result<(), EngineError> {
        let run = self.running()?;
        let process = self.execs.borrow().get(id).map(|running| running.process.clone());
        let process = process.ok_or_else(|| EngineError::NoExec(id.to_owned()))?;
        run.booted.guest.call(Call::Resize { process, size: spec::terminal_size(size) }).await.map(drop)
    }

    /// Runs a process of the supervisor's own, and returns its exit status and the beginning of what it wrote.
    pub(super) async fn run_check(
        &self,
        run: &Run,
        exec: &Exec,
        most: usize,
    ) -> Result<(ExitStatus, Vec<u8>), EngineError> {
        let started = self.launch(run, exec, None).await?;
        let mut guard = KillOnDrop { run, process: Some(started.process.clone()) };
        let mut output = Vec::new();
        for (_, mut stream) in started.streams {
            let mut buffer = vec![0u8; 4096];
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                let room = most.saturating_sub(output.len());
                output.extend_from_slice(&buffer[..n.min(room)]);
            }
        }
        let exit = started.exit.await.map_err(|_| run.booted.guest.broken())?;
        guard.process = None;
        Ok((exit.status, output))
    }
}

/// Kills a process that nobody waits for any more.
struct KillOnDrop<'a> {
    run: &'a Run,
    process: Option<ProcessId>,
}

impl Drop for KillOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            let guest = Rc::clone(&self.run.booted.guest);
            spawn_local(async move { guest.call(Call::Signal { process, signal: 9 }).await });
        }
    }
}
