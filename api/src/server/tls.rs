//! TLS: the server's certificate, and the authority that clients' certificates must be from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::ServeError;

/// Files in PEM, named as dockerd's options name them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Authority that signed the certificates of the other side (`--tlscacert`).
    pub authority: PathBuf,
    /// Own certificate, with what is between it and its authority (`--tlscert`).
    pub certificate: PathBuf,
    /// Key of the own certificate (`--tlskey`).
    pub key: PathBuf,
}

fn wrong(path: &Path, why: &dyn std::fmt::Display) -> ServeError {
    ServeError::File { path: path.to_owned(), why: why.to_string() }
}

/// All certificates of a file.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ServeError> {
    let found = CertificateDer::pem_file_iter(path).map_err(|e| wrong(path, &e))?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|e| wrong(path, &e))?;
    if found.is_empty() { Err(wrong(path, &"there is no certificate in it")) } else { Ok(found) }
}

/// The authorities of a file.
pub(crate) fn roots(path: &Path) -> Result<RootCertStore, ServeError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|e| wrong(path, &e))?;
    }
    Ok(roots)
}

/// The key of a file.
pub(crate) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, ServeError> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| wrong(path, &e))
}

/// What greets clients: those without a certificate of the authority are sent away.
pub(super) fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, ServeError> {
    let provider = Arc::new(ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&files.authority)?), provider.clone())
            .build()
            .map_err(|e| wrong(&files.authority, &e))?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(&files.certificate, &e))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&files.certificate)?, key(&files.key)?)
        .map_err(|e| wrong(&files.certificate, &e))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
