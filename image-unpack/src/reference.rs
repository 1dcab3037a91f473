//! Names of images: registry references as Docker parses them (distribution's reference grammar) and the local
//! sources `oci:`, `oci-archive:` and `docker-archive:`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::{Error, Result};

const WHAT: &str = "image reference";
const DEFAULT_REGISTRY: &str = "docker.io";

/// A registry reference, normalised: `python:3` is `docker.io/library/python:3`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Host and port as named, `docker.io` by default. At most 255 bytes.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path within the registry, with `library/` where Docker adds it. At most 255 bytes with the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` where neither tag nor digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The manifest digest, if the reference is pinned. It wins over the tag.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What the registry is asked for: the digest if there is one, else the tag.
    pub fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".into(),
        }
    }

    /// The host (and port) that serves the registry API: Docker Hub's is not `docker.io`.
    pub fn api_host(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY { "registry-1.docker.io" } else { &self.registry }
    }

    /// Whether the registry is on this machine's loopback, where plain HTTP is the default.
    pub fn is_loopback(&self) -> bool {
        host_is_loopback(&self.registry)
    }

    /// As a person would write it: without `docker.io/` and `library/`, where it means the same without.
    pub fn familiar(&self) -> String {
        if self.registry == DEFAULT_REGISTRY {
            let mut name = self.repository.strip_prefix("library/").unwrap_or(&self.repository).to_owned();
            self.push_suffix(&mut name);
            // `library/a/b` and `x.y/z` of Docker Hub would mean something else.
            if name.parse::<Self>().is_ok_and(|again| again == *self) {
                return name;
            }
        }
        self.to_string()
    }

    /// The same repository with another tag and no digest.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the tag is not one.
    pub fn with_tag(&self, tag: &str) -> Result<Self> {
        check_tag(tag, tag)?;
        Ok(Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// The same repository pinned to a digest, without a tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    fn push_suffix(&self, name: &mut String) {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(&digest.to_string());
        }
    }
}

fn host_is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut name = format!("{}/{}", self.registry, self.repository);
        self.push_suffix(&mut name);
        f.write_str(&name)
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |reason: &str| Error::invalid(WHAT, text, reason);
        if text.is_empty() {
            return Err(bad("it is empty"));
        }
        if text.len() > 1024 {
            return Err(bad("it is longer than 1024 bytes"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        // A colon is a tag's only after the last slash: before it, it is a port's.
        let after_slash = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[after_slash..].rfind(':') {
            Some(colon) => (&rest[..after_slash + colon], Some(&rest[after_slash + colon + 1..])),
            None => (rest, None),
        };
        if let Some(tag) = tag {
            check_tag(text, tag)?;
        }
        if Digest::from_hex(name).is_some() {
            return Err(bad("64 hex digits are an image id, not a name"));
        }
        let (registry, path) = split_registry(name);
        if !registry_ok(&registry) {
            return Err(bad("the registry is not a host name with an optional port"));
        }
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        check_repository(text, &repository)?;
        if registry.len() + 1 + repository.len() > 255 {
            return Err(bad("the name is longer than 255 bytes"));
        }
        let tag = match (tag, digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { registry, repository, tag, digest })
    }
}

/// Docker's rule: what stands before the first slash is a registry if it looks like a host.
fn split_registry(name: &str) -> (String, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            let registry = if first == "index.docker.io" { DEFAULT_REGISTRY } else { first };
            (registry.to_owned(), rest)
        }
        _ => (DEFAULT_REGISTRY.to_owned(), name),
    }
}

fn registry_ok(registry: &str) -> bool {
    let (host, port) = if let Some(rest) = registry.strip_prefix('[') {
        let Some((host, port)) = rest.split_once(']') else { return false };
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match port.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if port.is_empty() => (None, None),
            None => return false,
        }
    } else {
        match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        }
    };
    let host_ok = host.is_none_or(|host| {
        !host.is_empty()
            && host.split('.').all(|label| {
                let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
                edge(label.as_bytes().first())
                    && edge(label.as_bytes().last())
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            })
    });
    let port_ok =
        port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok());
    host_ok && port_ok
}

fn check_tag(text: &str, tag: &str) -> Result<()> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let ok = tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if ok {
        return Ok(());
    }
    Err(Error::invalid(WHAT, text, "a tag is 1 to 128 of [A-Za-z0-9_.-], not beginning with . or -"))
}

/// Components of lower-case letters and digits, joined by `.`, `_`, `__` or any number of `-`.
fn check_repository(text: &str, repository: &str) -> Result<()> {
    for component in repository.split('/') {
        let bytes = component.as_bytes();
        let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if component.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(Error::invalid(WHAT, text, "the repository name must be lower-case"));
        }
        let ends_ok = bytes.first().is_some_and(alnum) && bytes.last().is_some_and(alnum);
        let separators_ok = component
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|run| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|b| b == b'-'));
        if !ends_ok || !separators_ok {
            let reason =
                format!("`{component}` is not lower-case letters and digits joined by `.`, `_`, `__` or `-`");
            return Err(Error::invalid(WHAT, text, reason));
        }
    }
    Ok(())
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `oci:DIR[:tag]`: an OCI image layout directory.
    Layout {
        /// The directory.
        path: PathBuf,
        /// The `org.opencontainers.image.ref.name`; needed only if there are several images.
        tag: Option<String>,
    },
    /// `oci-archive:FILE[:tag]`: an OCI image layout in a tar file.
    LayoutArchive {
        /// The file.
        path: PathBuf,
        /// As for [`Source::Layout`].
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:tag]`: what `docker save` writes.
    DockerArchive {
        /// The file.
        path: PathBuf,
        /// A tag or whole reference; needed only if there are several images.
        tag: Option<String>,
    },
    /// Anything else: an image in a registry.
    Registry(Reference),
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let local = |rest: &str| -> Result<(PathBuf, Option<String>)> {
            // As skopeo does: the path ends at the first colon.
            let (path, tag) = match rest.split_once(':') {
                Some((path, tag)) => (path, Some(tag.to_owned())),
                None => (rest, None),
            };
            if path.is_empty() || tag.as_deref() == Some("") || rest.contains('\0') {
                return Err(Error::invalid("image source", text, "expected PATH or PATH:TAG"));
            }
            Ok((path.into(), tag))
        };
        Ok(match text.split_once(':') {
            Some(("oci", rest)) => {
                let (path, tag) = local(rest)?;
                Self::Layout { path, tag }
            }
            Some(("oci-archive", rest)) => {
                let (path, tag) = local(rest)?;
                Self::LayoutArchive { path, tag }
            }
            Some(("docker-archive", rest)) => {
                let (path, tag) = local(rest)?;
                Self::DockerArchive { path, tag }
            }
            Some(("docker", rest)) if rest.starts_with("//") => Self::Registry(rest[2..].parse()?),
            _ => Self::Registry(text.parse()?),
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, path, tag) = match self {
            Self::Registry(reference) => return fmt::Display::fmt(reference, f),
            Self::Layout { path, tag } => ("oci", path, tag),
            Self::LayoutArchive { path, tag } => ("oci-archive", path, tag),
            Self::DockerArchive { path, tag } => ("docker-archive", path, tag),
        };
        write!(f, "{kind}:{}", path.display())?;
        if let Some(tag) = tag {
            write!(f, ":{tag}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_as_docker_does() {
        let hex = "a".repeat(64);
        let cases = [
            ("python:3", "docker.io/library/python:3".to_owned()),
            ("busybox", "docker.io/library/busybox:latest".into()),
            ("bitnami/redis", "docker.io/bitnami/redis:latest".into()),
            ("docker.io/busybox", "docker.io/library/busybox:latest".into()),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest".into()),
            ("localhost/x", "localhost/x:latest".into()),
            ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1".into()),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest".into()),
            ("[::1]:5000/x", "[::1]:5000/x:latest".into()),
            ("ghcr.io/a/b__c--d.e:V-1.2_3", "ghcr.io/a/b__c--d.e:V-1.2_3".into()),
            (&*format!("x@sha256:{hex}"), format!("docker.io/library/x@sha256:{hex}")),
            (&*format!("r.io:1/x:t@sha256:{hex}"), format!("r.io:1/x:t@sha256:{hex}")),
            ("FOO/bar", "FOO/bar:latest".into()),
        ];
        for (text, want) in cases {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), want, "{text}");
            assert_eq!(want.parse::<Reference>().unwrap(), reference, "{text} is stable");
            let familiar: Reference = reference.familiar().parse().unwrap();
            assert_eq!(familiar, reference, "{text} survives its familiar form");
        }
    }

    #[test]
    fn refuses_what_docker_refuses() {
        let cases = [
            "",
            "Uppercase",
            "a//b",
            "/a",
            "a/",
            "a:",
            ":a",
            "a:b:c/",
            "a b",
            "a@sha256:zz",
            "a@b",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a/../b",
            "localhost:99999/a",
            "localhost:x/a",
            "[::1/a",
            "[zz]:1/a",
            "a:.b",
            "http://a/b",
            "ä",
            "a.b/..",
            "x.y-/a",
            "[::1]x/a",
            "a\0b",
        ];
        for text in cases {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
        assert!("a".repeat(64).parse::<Reference>().is_err());
        assert!("b".repeat(300).parse::<Reference>().is_err());
        assert!(format!("a:{}", "t".repeat(129)).parse::<Reference>().is_err());
    }

    #[test]
    fn knows_loopback() {
        for (text, yes) in [
            ("localhost:5000/x", true),
            ("127.0.0.2/x", true),
            ("[::1]:5000/x", true),
            ("localhost.evil.com/x", false),
            ("127.0.0.1.evil.com/x", false),
            ("r.io/x", false),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().is_loopback(), yes, "{text}");
        }
    }

    #[test]
    fn parses_sources() {
        let source: Source = "oci:/tmp/x:tag".parse().unwrap();
        assert_eq!(source, Source::Layout { path: "/tmp/x".into(), tag: Some("tag".into()) });
        let source: Source = "docker-archive:a.tar:repo:1".parse().unwrap();
        assert_eq!(source, Source::DockerArchive { path: "a.tar".into(), tag: Some("repo:1".into()) });
        let source: Source = "oci-archive:a.tar".parse().unwrap();
        assert_eq!(source.to_string(), "oci-archive:a.tar");
        assert!(matches!("docker://python:3".parse().unwrap(), Source::Registry(_)));
        assert!(matches!("oci".parse().unwrap(), Source::Registry(_)));
        assert!("oci:".parse::<Source>().is_err());
        assert!("oci:x:".parse::<Source>().is_err());
    }
}
