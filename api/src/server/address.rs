//! Where a daemon listens and clients connect: `unix:///path`, `tcp://host:port`, `fd://`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::ServeError;

/// An address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
    /// The sockets that a service manager passed (systemd's LISTEN_FDS).
    Activation,
}

impl FromStr for Address {
    type Err = ServeError;

    fn from_str(text: &str) -> Result<Self, ServeError> {
        let bad = |why: &str| ServeError::Address { address: text.to_owned(), why: why.to_owned() };
        match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("unix", _)) => Err(bad("the path of a unix socket begins with /")),
            Some(("tcp", rest)) => {
                let host = rest.trim_end_matches('/');
                let port =
                    host.rsplit_once(':').and_then(|(name, port)| Some((name, port.parse::<u16>().ok()?)));
                match port {
                    Some((name, _)) if !name.is_empty() => Ok(Self::Tcp(host.to_owned())),
                    _ => Err(bad("write tcp://HOST:PORT")),
                }
            }
            Some(("fd", _)) => Ok(Self::Activation),
            _ => Err(bad("write unix:///PATH, tcp://HOST:PORT or fd://")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Activation => f.write_str("fd://"),
        }
    }
}

/// Where the daemon listens if nothing else is said: `/run/bulkhead.sock` for root, `$XDG_RUNTIME_DIR/bulkhead.sock` for others, and
/// where that is not set a directory of the user's own below `/tmp`.
#[must_use]
pub fn default_socket() -> PathBuf {
    let user = nix::unistd::geteuid();
    if user.is_root() {
        return PathBuf::from("/run/bulkhead.sock");
    }
    let directory = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    directory.unwrap_or_else(|| PathBuf::from(format!("/tmp/bulkhead-{user}"))).join("bulkhead.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for text in ["unix:///run/x.sock", "tcp://127.0.0.1:2376", "tcp://[::1]:2376", "fd://"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["", "/run/x", "unix://x", "tcp://", "tcp://x", "tcp://:1", "tcp://x:99999", "http://x:1"]
        {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        assert!(default_socket().ends_with("bulkhead.sock"));
    }
}
