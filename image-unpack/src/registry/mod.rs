//! Registries (OCI distribution spec): pulling as an [`Origin`], and what is needed to push.

mod client;
mod credentials;
mod look;
mod pull;
mod push;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::Agent;
use ureq::http::{Method, StatusCode};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use crate::error::{Error, Result};
use crate::progress::Quiet;
use crate::reference::Reference;

pub use credentials::{Credentials, DockerConfig};
pub use look::Found;
pub(crate) use pull::Remote;
pub(crate) use push::{Outcome, Target};

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct Registries {
    /// Registries (host with port) that are spoken to in plain HTTP, beside those on loopback.
    pub plain: BTreeSet<String>,
    /// Registries on loopback that are on TLS all the same.
    pub tls: BTreeSet<String>,
    /// Hosts to try first, in order, instead of a registry. A mirror may be prefixed by `http://`.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Credentials of registries (host with port) that are used whatever `docker_config` has.
    pub credentials: BTreeMap<String, Credentials>,
    /// Where credentials are.
    pub docker_config: Option<DockerConfig>,
    /// Directories of `<host:port>/*.crt`: more certificate authorities for one registry.
    pub certificates: Vec<PathBuf>,
}

impl Default for Registries {
    /// Plain HTTP on loopback only, no mirrors, the user's Docker credentials and certificates.
    fn default() -> Self {
        let docker_config = DockerConfig::of_user();
        let mut certificates = vec![PathBuf::from("/etc/docker/certs.d")];
        if let Some(home) = std::env::home_dir() {
            certificates.push(home.join(".docker/certs.d"));
        }
        Self {
            plain: BTreeSet::new(),
            tls: BTreeSet::new(),
            mirrors: BTreeMap::new(),
            credentials: BTreeMap::new(),
            docker_config,
            certificates,
        }
    }
}

/// Where Linux distributions keep the authorities that the machine trusts.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

impl Registries {
    fn agent(&self, host: &str, plain: bool) -> Result<Agent> {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .https_only(!plain)
            .user_agent(concat!("bulkhead/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(Duration::from_secs(15)))
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .timeout_per_write(Some(Duration::from_secs(60)))
            .max_response_header_size(64 << 10)
            .input_buffer_size(256 << 10)
            .output_buffer_size(256 << 10);
        if plain {
            // A proxy is for the world outside.
            config = config.proxy(None);
        } else {
            config = config.tls_config(TlsConfig::builder().root_certs(self.roots(host)?).build());
        }
        Ok(config.build().new_agent())
    }

    /// The machine's authorities, and those for this registry; Mozilla's where the machine has none.
    fn roots(&self, host: &str) -> Result<RootCerts> {
        let mut certificates = Vec::new();
        if let Some(bundle) = BUNDLES.iter().find_map(|path| fs::read(path).ok()) {
            add_certificates(&bundle, &mut certificates);
        }
        let mut own = 0;
        for dir in &self.certificates {
            for entry in fs::read_dir(dir.join(host)).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.extension().is_some_and(|e| e == "crt" || e == "pem") {
                    let pem = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
                    own += 1;
                    add_certificates(&pem, &mut certificates);
                }
            }
        }
        if certificates.is_empty() && own == 0 {
            return Ok(RootCerts::WebPki);
        }
        Ok(RootCerts::new_with_certs(&certificates))
    }

    /// Whether `registry` is spoken to in plain HTTP.
    fn is_plain(&self, registry: &str, loopback: bool) -> bool {
        self.plain.contains(registry) || (loopback && !self.tls.contains(registry))
    }

    /// Where to ask for `registry`: mirrors first, each with host and whether it is plain HTTP.
    fn endpoints(&self, registry: &str, api_host: &str, loopback: bool) -> Vec<(String, bool)> {
        let mirrors = self.mirrors.get(registry).into_iter().flatten().map(|mirror| {
            let mirror = mirror.trim_end_matches('/');
            match (mirror.strip_prefix("http://"), mirror.strip_prefix("https://")) {
                (Some(host), _) => (host.to_owned(), true),
                (_, Some(host)) => (host.to_owned(), false),
                _ => (mirror.to_owned(), self.plain.contains(mirror)),
            }
        });
        mirrors.chain([(api_host.to_owned(), self.is_plain(registry, loopback))]).collect()
    }

    fn credentials_for(&self, registry: &str) -> Result<Option<Credentials>> {
        if let Some(given) = self.credentials.get(registry) {
            return Ok(Some(given.clone()));
        }
        self.docker_config.as_ref().map_or(Ok(None), |config| config.get(registry))
    }

    /// Asks whether `registry` takes these credentials. Nothing is stored.
    ///
    /// # Errors
    /// [`Error::AuthNeeded`] if it does not; [`Error::Unreachable`], [`Error::Registry`], [`Error::Invalid`].
    pub fn login(&self, registry: &str, credentials: &Credentials) -> Result<()> {
        let registry = canonical(registry);
        // A reference is the one judge of what a registry's name is.
        let reference: Reference = format!("{registry}/x").parse()?;
        if reference.registry() != registry {
            return Err(Error::invalid("registry", registry, "expected a host, with a port if need be"));
        }
        let registries = self.clone().with_credentials(registry, credentials.clone());
        let (host, plain) = (reference.api_host(), self.is_plain(registry, reference.is_loopback()));
        let client = client::Client::new(&registries, registry, host, plain, "", "")?;
        let response = client.get("/v2/", &[], &Quiet)?;
        if response.status() == StatusCode::OK {
            return Ok(());
        }
        Err(client.refused(&Method::GET, "/v2/", response))
    }

    /// Uses these credentials for one registry, whatever is stored.
    #[must_use]
    pub fn with_credentials(mut self, registry: &str, credentials: Credentials) -> Self {
        self.credentials.insert(canonical(registry).to_owned(), credentials);
        self
    }

    /// Reads credentials from this Docker configuration file instead of the user's.
    #[must_use]
    pub fn with_docker_config(mut self, path: &Path) -> Self {
        self.docker_config = Some(DockerConfig::at(path));
        self
    }
}

/// A registry's name without what clients put around it; Docker Hub has three.
fn canonical(registry: &str) -> &str {
    let name =
        registry.strip_prefix("https://").or_else(|| registry.strip_prefix("http://")).unwrap_or(registry);
    let host = name.split('/').next().unwrap_or_default();
    match host {
        "" | "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

fn add_certificates(pem: &[u8], out: &mut Vec<Certificate<'static>>) {
    // What is not a certificate, or one that cannot be parsed, is as good as absent.
    out.extend(parse_pem(pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    }));
}
