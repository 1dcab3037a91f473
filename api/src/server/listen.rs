//! Sockets that clients connect to.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use nix::unistd::{Gid, Group, chown};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream, lookup_host};
use tokio_rustls::TlsAcceptor;

use super::{Address, Options, ServeError, Token, tls};
use crate::hijack::Connection;

/// Mode of a unix socket: its owner and its group.
const MODE: u32 = 0o660;
/// How long a TLS client may take to prove who it is.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Opens sockets.
pub struct Bind {
    group: Option<Gid>,
    tls: Option<TlsAcceptor>,
    token: Option<Token>,
}

impl Bind {
    /// Reads what the options name.
    ///
    /// # Errors
    /// A file or the group cannot be used.
    pub fn new(options: &Options) -> Result<Self, ServeError> {
        let group = match &options.group {
            None => None,
            Some(name) => {
                let found = Group::from_name(name).map_err(|e| ServeError::io("reading groups")(e.into()))?;
                let missing =
                    || ServeError::io(format!("the socket's group {name:?}"))(io::ErrorKind::NotFound.into());
                Some(found.ok_or_else(missing)?.gid)
            }
        };
        let tls = options.tls.as_ref().map(tls::acceptor).transpose()?;
        let token = options.token.as_deref().map(Token::read).transpose()?;
        Ok(Self { group, tls, token })
    }

    /// Opens the socket, or all that were passed.
    ///
    /// # Errors
    /// It cannot be opened, or would be open to everybody.
    pub async fn open(&self, address: &Address) -> Result<Vec<Listener>, ServeError> {
        match address {
            Address::Unix(path) => Ok(vec![self.unix(path).await?]),
            Address::Tcp(text) => {
                let resolved = lookup_host(text).await.map_err(ServeError::io(format!("finding {text}")))?;
                let sockets: Vec<SocketAddr> = resolved.collect();
                for socket in &sockets {
                    self.guarded(*socket)?;
                }
                let listener = TcpListener::bind(&sockets[..])
                    .await
                    .map_err(ServeError::io(format!("listening on {text}")))?;
                Ok(vec![self.tcp(listener)?])
            }
            Address::Activation => self.activated(),
        }
    }

    /// Whether strangers are kept out of a TCP socket.
    fn guarded(&self, socket: SocketAddr) -> Result<(), ServeError> {
        match (&self.tls, &self.token) {
            (Some(_), _) => Ok(()),
            (None, Some(_)) if socket.ip().is_loopback() => Ok(()),
            (None, Some(_)) => Err(ServeError::ClearToken(format!("tcp://{socket}"))),
            (None, None) => Err(ServeError::Unguarded(format!("tcp://{socket}"))),
        }
    }

    fn tcp(&self, listener: TcpListener) -> Result<Listener, ServeError> {
        let local = listener.local_addr().map_err(ServeError::io("reading a socket's address"))?;
        self.guarded(local)?;
        Ok(Listener(Socket::Tcp { listener, local, tls: self.tls.clone(), token: self.token.clone() }))
    }

    async fn unix(&self, path: &Path) -> Result<Listener, ServeError> {
        let shown = path.display();
        if let Some(parent) = path.parent() {
            // Where there is none yet, it is the user's own.
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(ServeError::io(format!("making the directory {}", parent.display())))?;
        }
        if let Ok(found) = fs::symlink_metadata(path) {
            if !found.file_type().is_socket() {
                let why = "something that is no socket is there".to_owned();
                return Err(ServeError::File { path: path.to_owned(), why });
            }
            if UnixStream::connect(path).await.is_ok() {
                return Err(ServeError::InUse(format!("unix://{shown}")));
            }
        }
        // Made aside, so that nobody can connect before the mode is right, and renamed over what a dead daemon left.
        let aside = path.with_extension(format!("{}.new", std::process::id()));
        let _ = fs::remove_file(&aside);
        let listener = UnixListener::bind(&aside).map_err(ServeError::io(format!("listening on {shown}")))?;
        let inode = (|| {
            fs::set_permissions(&aside, fs::Permissions::from_mode(MODE))?;
            if let Some(group) = self.group {
                chown(&aside, None, Some(group))?;
            }
            let inode = fs::symlink_metadata(&aside)?.ino();
            fs::rename(&aside, path)?;
            Ok(inode)
        })()
        .map_err(|source| {
            let _ = fs::remove_file(&aside);
            ServeError::Io { action: format!("opening {shown} to its users"), source }
        })?;
        Ok(Listener(Socket::Unix { listener, path: Some((path.to_owned(), inode)) }))
    }

    fn activated(&self) -> Result<Vec<Listener>, ServeError> {
        let mut passed = listenfd::ListenFd::from_env();
        let mut listeners = Vec::new();
        for index in 0..passed.len() {
            let wrong = ServeError::io(format!("the socket {index} that was passed"));
            if let Ok(Some(listener)) = passed.take_unix_listener(index) {
                let adopt = || {
                    listener.set_nonblocking(true)?;
                    UnixListener::from_std(listener)
                };
                // Its file is the service manager's.
                listeners.push(Listener(Socket::Unix { listener: adopt().map_err(wrong)?, path: None }));
                continue;
            }
            let mut adopt = || {
                let listener = passed.take_tcp_listener(index)?.ok_or(io::ErrorKind::InvalidInput)?;
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener)
            };
            let listener = adopt().map_err(wrong)?;
            listeners.push(self.tcp(listener)?);
        }
        if listeners.is_empty() { Err(ServeError::NotActivated) } else { Ok(listeners) }
    }
}

/// A socket that clients connect to. A unix socket's file is removed when it is dropped.
#[derive(Debug)]
pub struct Listener(Socket);

enum Socket {
    Unix { listener: UnixListener, path: Option<(PathBuf, u64)> },
    Tcp { listener: TcpListener, local: SocketAddr, tls: Option<TlsAcceptor>, token: Option<Token> },
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { path: Some((path, _)), .. } => write!(f, "unix://{}", path.display()),
            Self::Unix { .. } => f.write_str("fd:// (unix)"),
            Self::Tcp { local, .. } => write!(f, "tcp://{local}"),
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A connection whose client has not proven yet who it is.
pub(super) enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream, Option<TlsAcceptor>),
}

impl Accepted {
    /// Waits for the client's proof, if one is needed.
    pub(super) async fn ready(self) -> io::Result<Pin<Box<dyn Connection>>> {
        match self {
            Self::Unix(stream) => Ok(Box::pin(stream)),
            Self::Tcp(stream, None) => Ok(Box::pin(stream)),
            Self::Tcp(stream, Some(tls)) => {
                let stream = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await??;
                Ok(Box::pin(stream))
            }
        }
    }
}

impl Listener {
    /// The token that clients must show here.
    pub(super) fn token(&self) -> Option<Token> {
        match &self.0 {
            // With TLS, where there is a token it is wanted beside the certificate.
            Socket::Tcp { token, .. } => token.clone(),
            Socket::Unix { .. } => None,
        }
    }

    /// The port of a TCP socket.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match &self.0 {
            Socket::Tcp { local, .. } => Some(local.port()),
            Socket::Unix { .. } => None,
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match &self.0 {
            Socket::Unix { listener, .. } => Ok(Accepted::Unix(listener.accept().await?.0)),
            Socket::Tcp { listener, tls, .. } => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream, tls.clone()))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix { path: Some((path, inode)), .. } = &self.0
            && fs::symlink_metadata(path).is_ok_and(|found| found.ino() == *inode)
        {
            let _ = fs::remove_file(path);
        }
    }
}
