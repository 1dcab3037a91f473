//! One place in one network: the connection to its switch, made again whenever the switch is gone.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::time::Duration;

use bulkhead_net::protocol::{self, Ask, Attachment, MAX_DESCRIPTORS, Published, Report, Said, VERSION};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking, spawn_local};

use super::reach::SwitchDirectory;
use crate::EngineError;
use crate::network::kernel::Seat;
use crate::paths::Paths;

/// How often a switch is looked for that does not answer, before the start of a container fails.
const TRIES: u32 = 5;
/// How long a switch may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries; a switch that was killed is back so soon.
const RETRY: Duration = Duration::from_millis(20);
/// Between two tries once it has failed for a while.
const LATER: Duration = Duration::from_secs(2);
/// Between two times that addresses are opened by name: each time a program is run, which a guest must not have done without end.
const PACE: Duration = Duration::from_millis(50);
/// How long another network's switch may take to say whether it knows a name.
const FIND: Duration = Duration::from_millis(500);

/// What a switch gets: everything is kept, so that another one can be given the same.
pub(super) struct Work {
    pub(super) attachment: Attachment,
    /// None: the container has a seat in a room instead.
    pub(super) cable: Option<Rc<OwnedFd>>,
    pub(super) ports: Rc<Vec<(Published, OwnedFd)>>,
    /// Given up by whoever has it when the container leaves, whatever is going on here.
    pub(super) seat: Weak<Seat>,
}

/// What a link is asked.
pub(super) enum Request {
    /// The addresses of a name in its network.
    Find(String, oneshot::Sender<Vec<IpAddr>>),
    /// What was counted.
    Report(oneshot::Sender<Report>),
}

/// The links of a container, so that they find each other.
pub(super) type Peers = Rc<RefCell<HashMap<String, mpsc::UnboundedSender<Request>>>>;
/// A link. It is cut when this is dropped.
pub(super) struct Link {
    key: String,
    peers: Peers,
    task: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.peers.borrow_mut().remove(&self.key);
        self.task.abort();
    }
}

impl Link {
    /// Begins to connect. The receiver learns whether it worked.
    pub(super) fn start(
        paths: &Paths,
        key: &str,
        network: &str,
        work: Work,
        peers: &Peers,
    ) -> Result<(Self, oneshot::Receiver<Result<(), EngineError>>), EngineError> {
        let program = paths.switch()?;
        let directory = Rc::new(SwitchDirectory::open(paths, network)?);
        let (sender, requests) = mpsc::unbounded_channel();
        peers.borrow_mut().insert(key.to_owned(), sender);
        let (told, ready) = oneshot::channel();
        let worker = Worker {
            key: key.to_owned(),
            program,
            directory,
            paths: paths.clone(),
            network: network.to_owned(),
            work,
            peers: Rc::clone(peers),
        };
        let task = spawn_local(worker.run(requests, told));
        Ok((Self { key: key.to_owned(), peers: Rc::clone(peers), task }, ready))
    }
}

/// What a network's switch counted for the container.
pub(super) async fn report(peers: &Peers, key: &str) -> Option<Report> {
    let sender = peers.borrow().get(key).cloned()?;
    let (answer, answered) = oneshot::channel();
    sender.send(Request::Report(answer)).ok()?;
    tokio::time::timeout(PATIENCE, answered).await.ok()?.ok()
}

struct Worker {
    key: String,
    program: std::path::PathBuf,
    directory: Rc<SwitchDirectory>,
    paths: Paths,
    network: String,
    work: Work,
    peers: Peers,
}

type Requests = mpsc::UnboundedReceiver<Request>;

impl Worker {
    async fn run(self, mut requests: Requests, told: oneshot::Sender<Result<(), EngineError>>) {
        let mut told = Some(told);
        let mut failed = 0;
        loop {
            let why = match self.attach().await {
                Ok(switch) => {
                    failed = 0;
                    if let Some(told) = told.take() {
                        let _ = told.send(Ok(()));
                    }
                    self.serve(&switch, &mut requests).await;
                    EngineError::Conflict(format!("the switch of network {} is gone", self.network))
                }
                Err(error) => error,
            };
            failed += 1;
            if failed >= TRIES
                && let Some(told) = told.take()
            {
                let _ = told.send(Err(why));
                return;
            }
            tokio::time::sleep(if failed < TRIES { RETRY } else { LATER }).await;
        }
    }

    /// Connects to the switch, and gives it everything.
    async fn attach(&self) -> Result<AsyncFd<OwnedFd>, EngineError> {
        let name = &self.work.attachment.network.name;
        let action = || format!("attaching to the network {name}");
        let (paths, network, program) = (self.paths.clone(), self.network.clone(), self.program.clone());
        let connect = spawn_blocking(move || SwitchDirectory::open(&paths, &network)?.connect(&program));
        let socket = connect.await.map_err(|e| EngineError::io(action())(io::Error::other(e)))??;
        let given = async {
            // SAFETY: an owned descriptor stays the same, and open, as long as it is here.
            let switch = unsafe { AsyncFd::register(socket) }?;
            match hear(&switch).await? {
                Said::Hello { version: VERSION } => {}
                _ => return Err(io::Error::other("its switch speaks another version of the protocol")),
            }
            let attach = Ask::Attach(Box::new(self.work.attachment.clone()));
            let cable: Vec<_> = self.work.cable.iter().map(|cable| cable.as_fd()).collect();
            say(&switch, &attach, &cable).await?;
            let hears = done(&switch).await?;
            if !hears || self.work.seat.upgrade().is_some_and(|seat| seat.has_name_sockets()) {
                self.bring_sockets(&switch).await?;
            }
            for ports in self.work.ports.chunks(MAX_DESCRIPTORS) {
                let (published, sockets): (Vec<_>, Vec<_>) =
                    ports.iter().map(|(published, socket)| (*published, socket.as_fd())).unzip();
                say(&switch, &Ask::Publish(published), &sockets).await?;
                done(&switch).await?;
            }
            Ok(switch)
        };
        match tokio::time::timeout(PATIENCE, given).await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let words = self.directory.last_words();
                Err(EngineError::io(action())(io::Error::other(format!("its switch ended: {words}"))))
            }
            Ok(given) => given.map_err(EngineError::io(action())),
            Err(_) => Err(EngineError::io(action())(io::ErrorKind::TimedOut.into())),
        }
    }

    /// Brings a switch that cannot hear yet what comes to the gateway of the room.
    async fn bring_sockets(&self, switch: &AsyncFd<OwnedFd>) -> io::Result<()> {
        loop {
            let sockets = match self.work.seat.upgrade() {
                Some(seat) => seat.name_sockets()?,
                None => return Err(io::ErrorKind::NotConnected.into()),
            };
            let borrowed: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
            say(switch, &Ask::Names, &borrowed).await?;
            if done(switch).await? {
                return Ok(());
            }
            // Somebody else has them, and is about to bring them; or had them, and is just being buried.
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Passes questions on, both ways, until the switch is gone.
    async fn serve(&self, switch: &AsyncFd<OwnedFd>, requests: &mut Requests) {
        let mut waiting: HashMap<u32, oneshot::Sender<Vec<IpAddr>>> = HashMap::new();
        let mut reports = std::collections::VecDeque::new();
        let mut next = 0u32;
        let mut learned_at = tokio::time::Instant::now();
        let (answers, mut answered) = mpsc::unbounded_channel::<Ask>();
        loop {
            tokio::select! {
                said = hear(switch) => match said {
                    Ok(Said::Find { id, name }) => {
                        let (peers, own, answers) = (Rc::clone(&self.peers), self.key.clone(), answers.clone());
                        spawn_local(async move {
                            let addresses = ask_others(&peers, &own, &name).await;
                            let _ = answers.send(Ask::Found { id, addresses });
                        });
                    }
                    Ok(Said::Learned { id, name, addresses }) => {
                        tokio::time::sleep_until(learned_at + PACE).await;
                        learned_at = tokio::time::Instant::now();
                        // Without it, the container does not hear the answer.
                        let learned = self.work.seat.upgrade().map(|seat| seat.learn(&name, &addresses));
                        match learned {
                            Some(Ok(())) => drop(answers.send(Ask::Learned { id })),
                            Some(Err(error)) => tracing::warn!(name, %error, "opening the addresses of a name"),
                            None => {}
                        }
                    }
                    Ok(Said::Found { id, addresses }) => {
                        if let Some(asker) = waiting.remove(&id) {
                            let _ = asker.send(addresses);
                        }
                    }
                    Ok(Said::Report(report)) => {
                        let asker: Option<oneshot::Sender<Report>> = reports.pop_front();
                        asker.map(|asker| asker.send(report));
                    }
                    Ok(_) => {}
                    Err(_) => return,
                },
                Some(answer) = answered.recv() => {
                    if say(switch, &answer, &[]).await.is_err() {
                        return;
                    }
                }
                request = requests.recv() => {
                    let ask = match request {
                        None => return,
                        Some(Request::Report(asker)) => {
                            reports.push_back(asker);
                            Ask::Report
                        }
                        Some(Request::Find(name, asker)) => {
                            next = next.wrapping_add(1);
                            waiting.retain(|_, asker| !asker.is_closed());
                            waiting.insert(next, asker);
                            Ask::Find { id: next, name }
                        }
                    };
                    if say(switch, &ask, &[]).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// Asks the container's other networks for a name.
async fn ask_others(peers: &Peers, own: &str, name: &str) -> Vec<IpAddr> {
    let mut asked = Vec::new();
    for (key, peer) in peers.borrow().iter().filter(|(key, _)| *key != own) {
        let (answer, answered) = oneshot::channel();
        if peer.send(Request::Find(name.to_owned(), answer)).is_ok() {
            asked.push((key.clone(), answered));
        }
    }
    // The same order each time, whatever the table's.
    asked.sort_by(|a, b| a.0.cmp(&b.0));
    for (_, answered) in asked {
        if let Ok(Ok(addresses)) = tokio::time::timeout(FIND, answered).await
            && !addresses.is_empty()
        {
            return addresses;
        }
    }
    Vec::new()
}

async fn say(
    switch: &AsyncFd<OwnedFd>,
    ask: &Ask,
    descriptors: &[std::os::fd::BorrowedFd<'_>],
) -> io::Result<()> {
    switch.async_io(Interest::WRITABLE, |socket| protocol::send(socket.as_fd(), ask, descriptors)).await
}

async fn hear(switch: &AsyncFd<OwnedFd>) -> io::Result<Said> {
    let heard = switch.async_io(Interest::READABLE, |socket| protocol::receive::<Said>(socket)).await?;
    heard.map(|(said, _)| said).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Whether it is done with all that it needs.
async fn done(switch: &AsyncFd<OwnedFd>) -> io::Result<bool> {
    match hear(switch).await? {
        Said::Done => Ok(true),
        Said::Deaf => Ok(false),
        Said::Refused(why) => Err(io::Error::other(why)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
