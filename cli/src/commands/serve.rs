//! `bulkhead serve`: the daemon, for Docker's clients and for those who want one place for everything.

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::server::{Address, ServeError, TlsFiles};
use clap::Args;
use engine::{Engine, EngineError};
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;
use crate::{connect, logging};

/// How often the daemon looks whether a supervisor has died.
const INTERVAL: Duration = Duration::from_secs(2);

/// Options of `serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Where to listen: unix://PATH, tcp://HOST:PORT, or fd:// for sockets of a service manager; repeatable
    #[arg(short = 'H', long, value_name = "ADDRESS")]
    host: Vec<String>,
    /// Group that may use the unix socket
    #[arg(short = 'G', long, value_name = "GROUP")]
    group: Option<String>,
    /// Directory with ca.pem, cert.pem and key.pem: clients on TCP must show a certificate of this authority
    #[arg(long, value_name = "DIR")]
    tls: Option<PathBuf>,
    /// File with the token that clients on TCP must show
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
    /// What carries the packets of networks that do not say it themselves: switch, or kernel (which takes root)
    #[arg(long, value_name = "PATH")]
    network_path: Option<String>,
    /// How log lines are written
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: logging::Format,
    /// How much is logged
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: logging::Verbosity,
}

pub fn execute(args: &Serve) -> Result<u8, Failure> {
    logging::begin(args.log_format, args.log_level);
    let mut paths = connect::paths()?;
    if let Some(path) = &args.network_path {
        paths = paths.with_network_path(path)?;
    }
    let options = options(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(EngineError::io("starting the daemon"))?;
    runtime.block_on(async {
        // Before the sockets are open, so that nobody's signal finds the default action.
        let mut terminate = signal(SignalKind::terminate()).map_err(EngineError::io("blocking signals"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(EngineError::io("blocking signals"))?;
        let engine = Engine::open(paths)?;
        let listeners = options.bind().await.map_err(refused)?;
        tokio::spawn(look_after(engine.clone()));
        let end = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        api::serve(engine, listeners, end).await.map_err(refused)
    })?;
    Ok(0)
}

/// Starts what is meant to run, now and whenever a supervisor has died.
async fn look_after(engine: Engine) {
    let mut failed = engine.recover().await;
    loop {
        match failed {
            Ok(containers) => {
                for (container, error) in containers {
                    tracing::warn!(%error, container = container.name, "it was not started again");
                }
            }
            Err(error) => tracing::error!(%error, "the containers cannot be looked after"),
        }
        tokio::time::sleep(INTERVAL).await;
        failed = engine.look_after().await;
    }
}

fn options(args: &Serve) -> Result<api::Options, EngineError> {
    let addresses = args.host.iter().map(|text| text.parse::<Address>()).collect::<Result<_, _>>();
    let in_directory = |directory: &Path| TlsFiles {
        authority: directory.join("ca.pem"),
        certificate: directory.join("cert.pem"),
        key: directory.join("key.pem"),
    };
    Ok(api::Options {
        addresses: addresses.map_err(refused)?,
        group: args.group.clone(),
        tls: args.tls.as_deref().map(in_directory),
        token: args.token.clone(),
    })
}

#[allow(clippy::needless_pass_by_value)] // it is given to `map_err`
fn refused(error: ServeError) -> EngineError {
    EngineError::Option {
        option: "serve".to_owned(),
        why: error.to_string(),
        next: "bulkhead serve --help".to_owned(),
    }
}
