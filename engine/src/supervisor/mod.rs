//! The supervisor: one process that owns one container for life, whatever becomes of the daemon or command that asked for it.
//!
//! It is started by whoever first wants something of a container that nobody owns ([`reach`]), takes the container's lock,
//! answers on the container's socket, and leaves when the container does not run and nobody is connected.
//! Everything happens on one thread; what must not be interleaved holds [`Supervisor::lifecycle`].
//!
//! The parts, lowest first: [`wire`] (questions and answers), [`log`] and `hub` (output and input), `guest` (the agent's
//! other end), `shares` (folders of the host), `run` (one life of a machine), `life` (start, stop, restart, removal), `exec`, `health`, `files` (transfers), `serve` (one
//! connection), and `reach` (the engine's side).

mod exec;
mod files;
mod fill;
mod guest;
mod health;
mod hub;
mod life;
pub(crate) mod log;
mod network;
mod policy;
pub(crate) mod reach;
mod run;
mod serve;
mod shares;
pub(crate) mod wire;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::rc::Rc;

use tokio::net::UnixListener;
use tokio::sync::{Mutex, Notify, oneshot, watch};
use tokio::task::LocalSet;

use crate::directory::Directory;
use crate::events;
use crate::model::{Container, EventKind, Outcome};
use crate::paths::Paths;
use crate::volume_disk::Mounts;
use crate::{Database, EngineError};

use hub::{Hub, Input};
use run::Run;
use wire::Until;

/// What the supervisor says on its standard output once it answers.
pub(crate) const READY: &str = "ready";
/// What it says when somebody else owns the container.
pub(crate) const BUSY: &str = "busy";

/// The owner of one container.
struct Supervisor {
    paths: Paths,
    database: Database,
    directory: Directory,
    id: String,
    /// Start, stop and removal, one at a time.
    lifecycle: Mutex<()>,
    /// The machine that runs the container.
    run: RefCell<Option<Rc<Run>>>,
    /// A machine that only shows the disk of a container that does not run.
    helper: files::Helper,
    /// Disks of its volumes.
    mounts: RefCell<Mounts>,
    hub: Rc<Hub>,
    /// The first process's standard input, while it runs.
    input: watch::Sender<Option<Input>>,
    waiters: RefCell<Vec<(Until, oneshot::Sender<Outcome>)>>,
    /// Ends a start that is under way, with this signal.
    abort: watch::Sender<Option<u8>>,
    /// Further processes with a terminal or input, by id.
    execs: RefCell<HashMap<String, exec::Running>>,
    connections: Cell<usize>,
    /// A restart is waited for.
    restarting: Cell<bool>,
    removed: Cell<bool>,
    /// Something changed that may let the supervisor leave.
    idle: Notify,
}

/// Owns the container `id` until nobody needs it to: the body of the process `bulkhead supervise`.
///
/// # Errors
/// There is no such container, or its directory cannot be used. They are also told on standard output, to who started the process.
pub fn supervise(paths: Paths, id: &str) -> Result<(), EngineError> {
    let told = open(paths, id);
    let supervisor = match told {
        Ok(Some(supervisor)) => supervisor,
        Ok(None) => {
            say(BUSY);
            return Ok(());
        }
        Err(error) => {
            say(&format!("{error}: {}", error.advice().why));
            return Err(error);
        }
    };
    let (supervisor, lock) = supervisor;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(EngineError::io("starting the supervisor"))?;
    let result = LocalSet::new().block_on(&runtime, supervisor.serve());
    drop(lock);
    // A thread that still waits for a machine's end must not hold the process up.
    runtime.shutdown_background();
    result
}

fn open(paths: Paths, id: &str) -> Result<Option<(Rc<Supervisor>, crate::directory::Lock)>, EngineError> {
    let database = Database::open(&paths.database())?;
    let container = database.container(id)?;
    let directory = Directory::new(&paths.containers(), &container.id);
    let Some(lock) = directory.lock()? else { return Ok(None) };
    Ok(Some((
        Rc::new(Supervisor {
            paths,
            database,
            directory,
            id: container.id,
            lifecycle: Mutex::new(()),
            run: RefCell::new(None),
            helper: files::Helper::default(),
            mounts: RefCell::default(),
            hub: Rc::new(Hub::default()),
            input: watch::channel(None).0,
            waiters: RefCell::default(),
            abort: watch::channel(None).0,
            execs: RefCell::default(),
            connections: Cell::new(0),
            restarting: Cell::new(false),
            removed: Cell::new(false),
            idle: Notify::new(),
        }),
        lock,
    )))
}

/// Tells who started this process one word, and lets go of the standard output.
fn say(word: &str) {
    let _ = writeln!(io::stdout(), "{word}");
    let _ = io::stdout().flush();
    if let Ok(null) = fs::OpenOptions::new().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(null);
    }
}

impl Supervisor {
    /// Answers questions until nobody needs this process any more.
    async fn serve(self: Rc<Self>) -> Result<(), EngineError> {
        let listener = self
            .directory
            .with_socket(|path| {
                // Whoever made an older one is gone: this process has the lock.
                let _ = fs::remove_file(path);
                UnixListener::bind(path)
            })
            .map_err(EngineError::io("making the supervisor's socket"))?;
        self.tell_the_truth()?;
        say(READY);
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let Ok((connection, _)) = accepted else { continue };
                    self.connections.set(self.connections.get() + 1);
                    let this = Rc::clone(&self);
                    tokio::task::spawn_local(async move {
                        serve::connection(&this, connection).await;
                        this.connections.set(this.connections.get() - 1);
                        this.idle.notify_one();
                    });
                }
                () = self.idle.notified() => {
                    if self.may_leave() {
                        break;
                    }
                }
                () = tokio::time::sleep(reach::PATIENCE), if self.may_leave() => break,
            }
        }
        self.helper.end(&self).await;
        let _ = self.directory.with_socket(|path| fs::remove_file(path));
        Ok(())
    }

    fn may_leave(&self) -> bool {
        self.connections.get() == 0
            && self.run.borrow().is_none()
            && !self.restarting.get()
            && self.lifecycle.try_lock().is_ok()
            && !self.helper.lingers()
    }

    /// The container as it is written down now.
    fn container(&self) -> Result<Container, EngineError> {
        self.database.container(&self.id)
    }

    /// Changes the container's state.
    fn change(&self, change: impl FnOnce(&mut Container)) -> Result<Container, EngineError> {
        let mut container = self.container()?;
        change(&mut container);
        self.database.set_state(&self.id, &container.state)?;
        Ok(container)
    }

    /// A record that says "running" is a former supervisor's, who died.
    fn tell_the_truth(&self) -> Result<(), EngineError> {
        let container = self.container()?;
        if container.state.status.is_running() {
            crate::truth::write_off(&self.database, &container)?;
        }
        self.database.delete_execs_of(&self.id)
    }

    /// Remembers something that happened to the container. That nobody can remember it must not stop it from happening.
    fn event(&self, container: &Container, action: &str, more: &[(&str, String)]) {
        let event = events::of_container(container, action, more);
        debug_assert_eq!(event.kind, EventKind::Container);
        if let Err(error) = self.database.insert_event(&event) {
            tracing::error!(%error, action, "an event cannot be written");
        }
    }

    /// Wakes those who wait for this.
    fn wake(&self, outcome: &Outcome, wanted: impl Fn(Until) -> bool) {
        let mut waiters = self.waiters.borrow_mut();
        let (now, later) = waiters.drain(..).partition::<Vec<_>, _>(|(until, _)| wanted(*until));
        *waiters = later;
        for (_, waiter) in now {
            let _ = waiter.send(outcome.clone());
        }
    }
}
