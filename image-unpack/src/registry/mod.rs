//! Registries (OCI distribution spec): pulling as an [`Origin`], and what is needed to push.

mod client;
mod credentials;
mod pull;
mod push;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use crate::error::{Error, Result};

pub use credentials::{Credentials, DockerConfig};
pub(crate) use pull::Remote;
pub(crate) use push::Target;

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct Registries {
    /// Registries (host with port) that are spoken to in plain HTTP, beside those on loopback.
    pub plain: BTreeSet<String>,
    /// Registries on loopback that are on TLS all the same.
    pub tls: BTreeSet<String>,
    /// Hosts to try first, in order, instead of a registry. A mirror may be prefixed by `http://`.
    pub mirrors: BTreeMap<String, Vec<String>>,
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

    /// Reads credentials from this Docker configuration file instead of the user's.
    #[must_use]
    pub fn with_docker_config(mut self, path: &Path) -> Self {
        self.docker_config = Some(DockerConfig::at(path));
        self
    }
}

fn add_certificates(pem: &[u8], out: &mut Vec<Certificate<'static>>) {
    // What is not a certificate, or one that cannot be parsed, is as good as absent.
    out.extend(parse_pem(pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    }));
}
