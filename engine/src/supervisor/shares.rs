//! The shared folders of a machine: a jailed file server (`bulkhead-fs`) for each, which the supervisor starts and outlives.
//!
//! The VMM gets one end of each server's socket, and opens nothing. A server ends when the machine lets go of that end; one that
//! is killed leaves its guest with errors, and is buried at once.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use agent::protocol::spec::Mount;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::task::{JoinHandle, spawn_local};

use crate::EngineError;
use crate::machine::Share;
use crate::model::Container;
use crate::paths::Paths;
use crate::share::{self, Source};

/// What the server calls the file that it shares alone.
const FILE: &str = "file";
/// How long a server may take to end after its machine.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// Most bytes of what a server says that are kept.
const MAX_WORDS: u64 = 4096;

/// The servers of a machine's shared folders, and what its agent is told of them.
#[derive(Default)]
pub(super) struct Shares {
    servers: Vec<Server>,
    /// What the guest mounts for itself.
    pub(super) shares: Vec<agent::protocol::Share>,
    /// What the container has of it.
    pub(super) volumes: Vec<Mount>,
}

struct Server {
    /// What it serves, for people.
    source: String,
    /// Why it failed, once it has.
    failed: Rc<RefCell<Option<String>>>,
    task: JoinHandle<()>,
}

impl Shares {
    /// Starts the servers for a container's mounts. Returns them, and what the machine needs.
    ///
    /// # Errors
    /// A folder is not there, or the server's program is not.
    pub(super) fn start(paths: &Paths, container: &Container) -> Result<(Self, Vec<Share>), EngineError> {
        let (mut this, mut devices) = (Self::default(), Vec::new());
        let needed = share::needed(&container.config, paths);
        let mut files = Vec::new();
        for (number, (path, read_only)) in needed.iter().enumerate() {
            let tag = format!("share{number}");
            let source = Source::open(path)?;
            files.push(source.file.is_some());
            let (socket, server) = start_server(&paths.fs()?, source, *read_only)?;
            this.servers.push(Server::watch(path.display().to_string(), server));
            this.shares.push(agent::protocol::Share { tag: tag.clone(), read_only: *read_only });
            devices.push(Share { tag, socket });
        }
        for mount in &container.config.mounts {
            let wanted = (share::path(mount, paths), mount.read_only);
            let Some(number) = needed.iter().position(|share| *share == wanted) else { continue };
            let (Some(share), Some(file)) = (this.shares.get(number), files.get(number)) else { continue };
            let source = if *file { format!("{}/{FILE}", share.tag) } else { share.tag.clone() };
            // Device nodes of the host would be the guest's own devices there.
            let mut options = vec!["nodev".to_owned()];
            options.extend(mount.read_only.then(|| "ro".to_owned()));
            let destination = mount.target.clone().into();
            this.volumes.push(Mount { destination, kind: "bind".to_owned(), source, options });
        }
        Ok((this, devices))
    }

    /// The error behind a guest's that could not mount a share: a server that failed knows more.
    pub(super) fn explain(&self, error: EngineError) -> EngineError {
        let failed = self.servers.iter().find_map(|server| {
            let why = server.failed.borrow().clone()?;
            Some(EngineError::Share { folder: server.source.clone(), why })
        });
        failed.unwrap_or(error)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// Waits for the servers' end, after the machine's.
    pub(super) async fn end(&mut self) {
        let ended = async {
            for server in &mut self.servers {
                let _ = (&mut server.task).await;
            }
        };
        let _ = tokio::time::timeout(END_TIMEOUT, ended).await;
        // What is left is killed when its task is dropped.
        self.servers.drain(..).for_each(|server| server.task.abort());
    }
}

impl Drop for Shares {
    fn drop(&mut self) {
        self.servers.iter().for_each(|server| server.task.abort());
    }
}

impl Server {
    /// Buries the server when it ends, and remembers what it said if it failed.
    fn watch(source: String, mut child: Child) -> Self {
        let failed = Rc::new(RefCell::new(None));
        let (told, name) = (Rc::clone(&failed), source.clone());
        let task = spawn_local(async move {
            let mut words = Vec::new();
            if let Some(stderr) = child.stderr.take() {
                let _ = stderr.take(MAX_WORDS).read_to_end(&mut words).await;
            }
            let ended = match child.wait().await {
                Ok(status) if status.success() => return,
                Ok(status) => format!("its file server ended with {status}"),
                Err(error) => format!("its file server is lost: {error}"),
            };
            let words = String::from_utf8_lossy(&words);
            let words = words.trim().trim_start_matches("bulkhead-fs: ");
            let why = if words.is_empty() { ended } else { words.to_owned() };
            tracing::error!(folder = name, why, "the file server of a shared folder failed");
            *told.borrow_mut() = Some(why);
        });
        Self { source, failed, task }
    }
}

/// Starts a server. Returns the machine's end of its socket, and its process.
///
/// It is killed when this thread ends, which is the supervisor's only one that lasts; so it is started here, not by a helper.
fn start_server(program: &Path, source: Source, read_only: bool) -> Result<(OwnedFd, Child), EngineError> {
    let action = "starting a shared folder's file server";
    let (socket, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|e| EngineError::io(action)(e.into()))?;
    let mut command = Command::new(program);
    command.args(["--socket", "0", "--folder", "1"]);
    if let Some(name) = &source.file {
        command.args(["--file", name]);
    }
    if read_only {
        command.arg("--read-only");
    }
    let child = command
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::from(source.folder))
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(EngineError::io(action))?;
    Ok((socket, child))
}
