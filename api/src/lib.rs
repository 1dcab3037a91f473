//! Bulkhead's API: Docker's Engine API and Bulkhead's own, over HTTP; server and client.
//!
//! The command line and every Docker client speak to the same router: over the daemon's sockets ([`serve`]), or in the same
//! process ([`client::Client::in_process`]). An option that cannot be honoured is refused by name here, before anything is created.
//!
//! # Modules
//! ```text
//! server (sockets, TLS, tokens, socket activation)      client (the other end)
//!   \-> routes (one file for each group of endpoints)     \-> frames, error
//!         |-> translate (Docker's JSON <-> the engine's types, and what is refused)
//!         |-> hijack -> detach        progress        archive_stat
//!         \-> body -> fields    query -> filters    times
//! version (prefix and headers)   observe (request ids, metrics)   error (statuses and Docker's words)
//! ```

pub mod client;
pub mod error;
pub mod frames;
pub mod server;
pub mod times;
pub mod units;
pub mod version;

mod body;
mod detach;
mod fields;
mod filters;
mod hijack;
mod host;
mod observe;
mod pipe;
mod progress;
mod query;
mod routes;
mod translate;

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

pub use bollard_stubs::models;
pub use engine::EngineError;
pub use routes::router;
pub use server::{Options, serve};

use engine::Engine;

/// What every handler may use.
#[derive(Clone)]
pub(crate) struct App {
    engine: Engine,
    host: Arc<OnceLock<host::Host>>,
    metrics: Arc<observe::Metrics>,
    started: Instant,
    /// Event streams that are open.
    listeners: Arc<AtomicUsize>,
}

impl App {
    fn new(engine: Engine) -> Self {
        Self {
            engine,
            host: Arc::default(),
            metrics: Arc::default(),
            started: Instant::now(),
            listeners: Arc::default(),
        }
    }

    /// What is known of the host; found out once.
    fn host(&self) -> &host::Host {
        self.host.get_or_init(|| host::Host::new(&self.engine))
    }
}
