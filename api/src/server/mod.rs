//! The daemon's end of the API: sockets, who may speak on them, and connections.
//!
//! A unix socket is guarded by its mode. TCP is open to nobody by default: it needs TLS with client certificates, or a token,
//! which without TLS is accepted on loopback only.

mod address;
mod connection;
mod listen;
mod tls;
mod token;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware;
use engine::Engine;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

pub use address::{Address, default_socket};
pub use connection::serve_connection;
pub use listen::{Bind, Listener};
pub use tls::TlsFiles;
pub(crate) use tls::{certificates, key, roots};
pub use token::Token;

/// Most connections at once, over all sockets.
const MAX_CONNECTIONS: usize = 4096;
/// How long open connections may go on after the end was asked for.
const GRACE: Duration = Duration::from_secs(3);
/// Pause after accepting failed, for lack of descriptors for example.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address is not one.
    #[error("{address:?} is not an address to listen on: {why}")]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// TCP without anything that keeps strangers out.
    #[error(
        "{0} would let everybody who reaches it run anything: give TLS with client certificates, or a token"
    )]
    Unguarded(String),
    /// A token would be sent for everybody to read.
    #[error("{0} is not on loopback: a token needs TLS there")]
    ClearToken(String),
    /// Somebody else listens there.
    #[error("another daemon listens on {0}")]
    InUse(String),
    /// No sockets were passed by a service manager.
    #[error("fd:// needs sockets from a service manager (LISTEN_FDS), and there are none")]
    NotActivated,
    /// A file with a certificate, key or token cannot be used.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A system call failed.
    #[error("{action}: {source}")]
    Io {
        /// What was being done.
        action: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl ServeError {
    fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}

/// How a daemon serves.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where to listen; the default socket if there is none.
    pub addresses: Vec<Address>,
    /// Group that may use the unix sockets, by name; the daemon's own if absent. A missing group is an error.
    pub group: Option<String>,
    /// Certificates for TCP.
    pub tls: Option<TlsFiles>,
    /// File with the token that clients on TCP must show.
    pub token: Option<PathBuf>,
}

impl Options {
    /// Opens all sockets.
    ///
    /// # Errors
    /// One cannot be opened, or would be open to everybody.
    pub async fn bind(&self) -> Result<Vec<Listener>, ServeError> {
        let bind = Bind::new(self)?;
        let default = [Address::Unix(default_socket())];
        let addresses = if self.addresses.is_empty() { &default[..] } else { &self.addresses };
        let mut listeners = Vec::new();
        for address in addresses {
            listeners.extend(bind.open(address).await?);
        }
        Ok(listeners)
    }
}

/// Serves the API until `end` comes true, then lets open connections finish for a moment.
///
/// # Errors
/// There is no listener.
pub async fn serve(
    engine: Engine,
    listeners: Vec<Listener>,
    end: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    if listeners.is_empty() {
        return Err(ServeError::NotActivated);
    }
    let router = crate::router(engine);
    let (ending, ended) = watch::channel(false);
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = JoinSet::new();
    for listener in listeners {
        tracing::info!(address = %listener, "listening");
        tasks.spawn(accept(listener, router.clone(), room.clone(), ended.clone()));
    }
    end.await;
    // Nobody may be listening any more: then all is over already.
    let _ = ending.send(true);
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Accepts connections until the end, then waits for those that are open.
async fn accept(listener: Listener, router: Router, room: Arc<Semaphore>, mut ended: watch::Receiver<bool>) {
    let router = match listener.token() {
        Some(token) => router.layer(middleware::from_fn_with_state(token, token::check)),
        None => router,
    };
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = asked(&mut ended) => break,
        };
        match accepted {
            Ok(stream) => {
                let (router, ended) = (router.clone(), ended.clone());
                connections.spawn(async move {
                    match stream.ready().await {
                        Ok(stream) => serve_connection(stream, router, ended).await,
                        Err(error) => tracing::info!(%error, "a client was not let in"),
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    // What is still open after that is broken off.
    let _ = tokio::time::timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
}

/// Waits until the end is asked for. A sender that is gone without a word asks for it too.
async fn asked(ended: &mut watch::Receiver<bool>) {
    // What it returns borrows from the channel, and is not kept.
    let _ = ended.wait_for(|ended| *ended).await.is_ok();
}
