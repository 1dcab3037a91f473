//! The engine's side: reaching a container's supervisor, and starting one if nobody owns the container.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::Instant;

use super::wire::{Ask, GREETING, Question, Reply, read_frame, write_frame};
use super::{BUSY, READY};
use crate::EngineError;
use crate::directory::Directory;
use crate::error::Refusal;
use crate::paths::Paths;
use crate::trace;

/// How long a supervisor may take to answer the first byte, and how long one stays that nobody has asked anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait before a supervisor that was just leaving is tried again.
const RETRY: Duration = Duration::from_millis(2);
/// Most bytes of what a supervisor says that did not start.
const MAX_WORD: u64 = 4096;

/// Asks a container's supervisor, and returns the connection with its first answer. `spawn`: if there is none, start one.
pub(crate) async fn ask(
    paths: &Paths,
    id: &str,
    question: &Ask,
    spawn: bool,
) -> Result<(UnixStream, Reply), EngineError> {
    let gone = |_: io::Error| EngineError::SupervisorGone(id.to_owned());
    let mut connection = connect(paths, id, spawn).await?;
    let question = Question { request: trace::request(), ask: question };
    write_frame(&mut connection, &question).await.map_err(gone)?;
    let reply = reply(&mut connection, id).await?;
    Ok((connection, reply))
}

/// Waits for a further answer.
pub(crate) async fn reply(connection: &mut UnixStream, id: &str) -> Result<Reply, EngineError> {
    let reply: Result<Reply, Refusal> =
        read_frame(connection).await.map_err(|_| EngineError::SupervisorGone(id.to_owned()))?;
    reply.map_err(EngineError::from)
}

async fn connect(paths: &Paths, id: &str, spawn: bool) -> Result<UnixStream, EngineError> {
    let directory = Directory::new(&paths.containers(), id);
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(connection) = directory.with_socket(|path| std::os::unix::net::UnixStream::connect(path)) {
            let ready = connection.set_nonblocking(true).and_then(|()| UnixStream::from_std(connection));
            let mut connection = ready.map_err(EngineError::io("connecting to the supervisor"))?;
            match tokio::time::timeout_at(deadline, connection.read_u8()).await {
                Ok(Ok(GREETING)) => return Ok(connection),
                // It was leaving.
                Ok(_) => {}
                Err(_) => return Err(EngineError::SupervisorGone(id.to_owned())),
            }
        } else if !spawn {
            return Err(EngineError::NotRunning(id.to_owned()));
        } else {
            start(paths, id, &directory).await?;
        }
        if Instant::now() >= deadline {
            return Err(EngineError::SupervisorGone(id.to_owned()));
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Starts a supervisor, and waits until it answers or has found out that there is one.
async fn start(paths: &Paths, id: &str, directory: &Directory) -> Result<(), EngineError> {
    let action = "starting the container's supervisor";
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(directory.supervisor_log())
        .map_err(EngineError::io(action))?;
    let program = paths.supervisor()?;
    let mut child = Command::new(program)
        .arg("supervise")
        .arg(id)
        .envs(paths.variables())
        .current_dir("/")
        // A terminal's Ctrl-C is for the command that runs in it.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(EngineError::io(action))?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = stdout.take(MAX_WORD);
        let heard = tokio::time::timeout(PATIENCE, stdout.read_to_string(&mut said)).await;
        let _ = heard.map_err(|_| EngineError::SupervisorGone(id.to_owned()))?;
    }
    // It is nobody's child: the runtime buries it when it ends.
    match said.trim() {
        READY | BUSY => Ok(()),
        "" => Err(EngineError::SupervisorGone(id.to_owned())),
        why => Err(EngineError::Conflict(why.to_owned())),
    }
}
