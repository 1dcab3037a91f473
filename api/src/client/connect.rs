//! Where a client's requests go.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use hyper::header::HeaderValue;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;

use super::ClientError;
use crate::hijack::Connection;
use crate::server::{TlsFiles, Token, serve_connection};

/// Bytes in the pipe to a server in this process.
const PIPE: usize = 256 << 10;

/// A server.
#[derive(Clone)]
pub enum Endpoint {
    /// A unix socket.
    Unix(PathBuf),
    /// Host and port.
    Tcp {
        /// `host:port`.
        address: String,
        /// The authority of the server's certificate, and the client's own certificate.
        tls: Option<TlsFiles>,
        /// What the server wants to be shown.
        token: Option<Token>,
    },
    /// A router in this process.
    InProcess(Router),
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { address, .. } => write!(f, "tcp://{address}"),
            Self::InProcess(_) => f.write_str("in process"),
        }
    }
}

impl Endpoint {
    pub(super) fn authorization(&self) -> Result<Option<HeaderValue>, ClientError> {
        let Self::Tcp { token: Some(token), .. } = self else { return Ok(None) };
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.secret()))
            .map_err(|_| ClientError::Protocol("the token cannot be sent in a header".into()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    pub(super) async fn connect(&self) -> Result<Box<dyn Connection>, ClientError> {
        let failed = |source| ClientError::Connect { address: format!("{self:?}"), source };
        match self {
            Self::Unix(path) => Ok(Box::new(UnixStream::connect(path).await.map_err(failed)?)),
            Self::Tcp { address, tls, .. } => {
                let stream = TcpStream::connect(address).await.map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                let Some(files) = tls else { return Ok(Box::new(stream)) };
                let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
                let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
                    .map_err(|e| ClientError::Protocol(format!("{host}: {e}")))?;
                let stream = connector(files)?.connect(name, stream).await.map_err(failed)?;
                Ok(Box::new(stream))
            }
            Self::InProcess(router) => {
                let (near, far) = tokio::io::duplex(PIPE);
                let (ending, ended) = watch::channel(false);
                let router = router.clone();
                tokio::spawn(async move {
                    serve_connection(far, router, ended).await;
                    drop(ending);
                });
                Ok(Box::new(near))
            }
        }
    }
}

fn connector(files: &TlsFiles) -> Result<TlsConnector, ClientError> {
    let wrong = |e: crate::server::ServeError| ClientError::Protocol(e.to_string());
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| ClientError::Protocol(e.to_string()))?
        .with_root_certificates(crate::server::roots(&files.authority).map_err(wrong)?)
        .with_client_auth_cert(
            crate::server::certificates(&files.certificate).map_err(wrong)?,
            crate::server::key(&files.key).map_err(wrong)?,
        )
        .map_err(|e| ClientError::Protocol(e.to_string()))?;
    Ok(TlsConnector::from(Arc::new(config)))
}
