//! Whom a command speaks to: a daemon, or the same server in this process.

use std::env;
use std::os::unix::net::UnixStream;
use std::path::Path;

use api::client::{Client, Endpoint};
use api::server::{Address, ServeError, TlsFiles, Token, default_socket};
use engine::paths::Paths;
use engine::{Engine, EngineError};

use crate::args::Global;
use crate::failure::Failure;

/// Where commands go if `-H` does not say.
pub const HOST: &str = "BULKHEAD_HOST";
/// The state directory. Who names one wants that, and not what a daemon somewhere has.
const ROOT: &str = "BULKHEAD_ROOT";

/// A client of the daemon that was named, or of the one that answers on the usual socket, or of this process.
///
/// # Errors
/// The address is malformed, or the state directory cannot be used.
pub fn client(global: &Global) -> Result<Client, Failure> {
    let named = global.host.clone().or_else(|| env::var(HOST).ok()).filter(|host| !host.is_empty());
    if let Some(host) = named {
        return endpoint(&host, global).map(Client::new);
    }
    let socket = default_socket();
    if env::var_os(ROOT).is_none() && UnixStream::connect(&socket).is_ok() {
        return Ok(Client::new(Endpoint::Unix(socket)));
    }
    let engine = Engine::open(Paths::from_environment()?)?;
    Ok(Client::in_process(api::router(engine)))
}

fn endpoint(host: &str, global: &Global) -> Result<Endpoint, Failure> {
    match host.parse::<Address>().map_err(|error| refused(host, &error))? {
        Address::Unix(path) => Ok(Endpoint::Unix(path)),
        Address::Tcp(address) => Ok(Endpoint::Tcp {
            address,
            tls: global.tls.as_deref().map(tls_files),
            token: global.token.as_deref().map(Token::read).transpose().map_err(|e| refused(host, &e))?,
        }),
        Address::Activation => {
            Err(Failure::option("--host", host, "it is an address for servers", "use unix:// or tcp://"))
        }
    }
}

fn tls_files(directory: &Path) -> TlsFiles {
    TlsFiles {
        authority: directory.join("ca.pem"),
        certificate: directory.join("cert.pem"),
        key: directory.join("key.pem"),
    }
}

fn refused(host: &str, error: &ServeError) -> Failure {
    Failure::option("--host", host, error.to_string(), "write unix:///PATH or tcp://HOST:PORT")
}

/// The state directory of this process; for what is no matter of the API.
///
/// # Errors
/// It cannot be made.
pub fn paths() -> Result<Paths, EngineError> {
    Paths::from_environment()
}
