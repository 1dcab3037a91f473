//! Credentials as the Docker CLI keeps them: `config.json` and credential helpers (docs.docker.com, "docker login",
//! "Credential helper protocol").

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// What a registry is shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user name and a password (or access token in its place).
    Password {
        /// User name.
        user: String,
        /// Password.
        password: String,
    },
    /// An OAuth2 refresh token, as `docker login` gets from some registries.
    IdentityToken(String),
    /// A bearer token for the registry itself, shown as it is.
    RegistryToken(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the secret: this ends up in logs.
        match self {
            Self::Password { user, .. } => write!(f, "Password({user})"),
            Self::IdentityToken(_) => f.write_str("IdentityToken"),
            Self::RegistryToken(_) => f.write_str("RegistryToken"),
        }
    }
}

impl Credentials {
    /// The value of an `Authorization: Basic` header, if this can be one.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Self::Password { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            Self::IdentityToken(_) | Self::RegistryToken(_) => None,
        }
    }

    /// The value of an `Authorization: Bearer` header, if this is one.
    pub(super) fn bearer(&self) -> Option<String> {
        match self {
            Self::RegistryToken(token) if token.bytes().all(|b| b.is_ascii_graphic()) => {
                Some(format!("Bearer {token}"))
            }
            _ => None,
        }
    }
}

/// Bytes of a configuration file or of a helper's answer.
const MAX: u64 = 1 << 20;

#[derive(Default, Deserialize, Serialize)]
struct HelperReply {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

/// A Docker configuration file.
#[derive(Debug, Clone)]
pub struct DockerConfig {
    path: PathBuf,
}

impl DockerConfig {
    /// The file at `path`; it need not exist.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_path_buf() }
    }

    /// `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`; `None` without a home.
    pub fn of_user() -> Option<Self> {
        let dir = match std::env::var_os("DOCKER_CONFIG").filter(|dir| !dir.is_empty()) {
            Some(dir) => PathBuf::from(dir),
            None => std::env::home_dir()?.join(".docker"),
        };
        Some(Self { path: dir.join("config.json") })
    }

    fn read(&self) -> Result<Map<String, Value>> {
        let file = match fs::File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Map::new()),
            Err(e) => return Err(Error::io("read", &self.path, e)),
        };
        let mut text = Vec::new();
        file.take(MAX).read_to_end(&mut text).map_err(|e| Error::io("read", &self.path, e))?;
        if text.trim_ascii().is_empty() {
            return Ok(Map::new());
        }
        serde_json::from_slice(&text)
            .map_err(|e| Error::bad_image(self.path.display().to_string(), format!("malformed JSON: {e}")))
    }

    /// Written beside and renamed: other programs read it too.
    fn write(&self, config: &Map<String, Value>) -> Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| Error::io("create", dir, e))?;
        let temporary = dir.join(format!(".config.json.{}", std::process::id()));
        let failed = |e| Error::io("write", &temporary, e);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(failed)?;
        let text = serde_json::to_vec_pretty(config).map_err(|e| failed(std::io::Error::other(e)))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&temporary, &self.path).map_err(|e| Error::io("write", &self.path, e))
    }

    /// The credential helper in charge of a registry.
    fn helper(config: &Map<String, Value>, keys: &[String]) -> Option<String> {
        let named = config.get("credHelpers").and_then(Value::as_object);
        keys.iter()
            .find_map(|key| named?.get(key))
            .or_else(|| config.get("credsStore"))
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
    }

    /// What is stored for `registry`, if anything.
    ///
    /// # Errors
    /// The file is unreadable or malformed; the helper is missing or fails.
    pub fn get(&self, registry: &str) -> Result<Option<Credentials>> {
        let config = self.read()?;
        let keys = keys(registry);
        if let Some(helper) = Self::helper(&config, &keys) {
            for key in &keys {
                if let Some(reply) = call_helper(&helper, "get", key.as_bytes())? {
                    let reply: HelperReply = serde_json::from_slice(&reply).map_err(|e| {
                        Error::bad_image(format!("docker-credential-{helper}"), e.to_string())
                    })?;
                    return Ok(Some(if reply.username == "<token>" {
                        Credentials::IdentityToken(reply.secret)
                    } else {
                        Credentials::Password { user: reply.username, password: reply.secret }
                    }));
                }
            }
        }
        let auths = config.get("auths").and_then(Value::as_object);
        Ok(keys.iter().find_map(|key| parse_auth(auths?.get(key)?)))
    }

    /// Stores credentials for `registry`, in its helper if one is configured.
    ///
    /// # Errors
    /// As [`DockerConfig::get`]; the file cannot be written.
    pub fn set(&self, registry: &str, credentials: &Credentials) -> Result<()> {
        let mut config = self.read()?;
        let keys = keys(registry);
        let key = keys.last().map_or(registry, String::as_str).to_owned();
        let (user, secret) = match credentials {
            Credentials::Password { user, password } => (user.as_str(), password),
            Credentials::IdentityToken(token) => ("<token>", token),
            Credentials::RegistryToken(_) => {
                return Err(Error::Unsupported { what: "keeping a registry token, which ends soon,".into() });
            }
        };
        let mut auth = Map::new();
        if let Some(helper) = Self::helper(&config, &keys) {
            let request =
                BTreeMap::from([("ServerURL", key.as_str()), ("Username", user), ("Secret", secret)]);
            let request = serde_json::to_vec(&request).unwrap_or_default();
            call_helper(&helper, "store", &request)?;
        } else if let Credentials::IdentityToken(token) = credentials {
            auth.insert("identitytoken".into(), token.clone().into());
        } else {
            auth.insert("auth".into(), STANDARD.encode(format!("{user}:{secret}")).into());
        }
        let auths = config.entry("auths").or_insert_with(|| Map::new().into());
        match auths.as_object_mut() {
            Some(auths) => auths.insert(key, auth.into()),
            None => {
                return Err(Error::bad_image(self.path.display().to_string(), "`auths` is not an object"));
            }
        };
        self.write(&config)
    }

    /// Forgets what is stored for `registry`; true if something was.
    ///
    /// # Errors
    /// As [`DockerConfig::set`].
    pub fn remove(&self, registry: &str) -> Result<bool> {
        let mut config = self.read()?;
        let keys = keys(registry);
        let mut removed = false;
        if let Some(helper) = Self::helper(&config, &keys) {
            for key in &keys {
                // Helpers differ in what they say of what they do not have.
                if call_helper(&helper, "get", key.as_bytes())?.is_some() {
                    removed |= call_helper(&helper, "erase", key.as_bytes())?.is_some();
                }
            }
        }
        if let Some(auths) = config.get_mut("auths").and_then(Value::as_object_mut) {
            let before = auths.len();
            auths.retain(|key, _| !keys.contains(key));
            if auths.len() != before {
                removed = true;
                self.write(&config)?;
            }
        }
        Ok(removed)
    }
}

/// The names a registry has in the file, best first; the last is what Docker writes.
fn keys(registry: &str) -> Vec<String> {
    let registry = super::canonical(registry);
    if registry == "docker.io" {
        return vec![
            "docker.io".into(),
            "index.docker.io".into(),
            "registry-1.docker.io".into(),
            "https://index.docker.io/v1/".into(),
        ];
    }
    vec![format!("https://{registry}"), format!("http://{registry}"), registry.to_owned()]
}

fn parse_auth(entry: &Value) -> Option<Credentials> {
    let field = |name: &str| entry.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = field("identitytoken") {
        return Some(Credentials::IdentityToken(token.to_owned()));
    }
    if let Some(auth) = field("auth") {
        let text = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
        let (user, password) = text.trim_end_matches('\0').split_once(':')?;
        return Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() });
    }
    let (user, password) = (field("username")?, field("password")?);
    Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
}

/// Runs `docker-credential-<name>`; `None` if it has nothing for that registry.
fn call_helper(name: &str, verb: &str, input: &[u8]) -> Result<Option<Vec<u8>>> {
    // The name becomes a program's: no paths.
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err(Error::invalid(
            "credential helper",
            name,
            "a helper's name is letters, digits, `-`, `_`, `.`",
        ));
    }
    let program = format!("docker-credential-{name}");
    let failed = |e| Error::io("run", &program, e);
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read says so by its status.
        let _ = stdin.write_all(input);
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX).read_to_end(&mut output).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    if status.success() {
        return Ok(Some(output));
    }
    let said = String::from_utf8_lossy(&output);
    if said.contains("not found") {
        return Ok(None);
    }
    let reason: String = said.trim().chars().take(200).collect();
    Err(Error::io("run", &program, std::io::Error::other(reason)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_others_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, r#"{"HttpHeaders":{"a":"b"},"auths":{"x.io":{"auth":"dTpw"}}}"#).unwrap();
        let config = DockerConfig::at(&path);
        let known = Credentials::Password { user: "u".into(), password: "p".into() };
        assert_eq!(config.get("x.io").unwrap(), Some(known.clone()));
        assert_eq!(config.get("y.io").unwrap(), None);
        config.set("localhost:5000", &known).unwrap();
        config.set("docker.io", &known).unwrap();
        assert_eq!(config.get("localhost:5000").unwrap(), Some(known.clone()));
        assert_eq!(config.get("docker.io").unwrap(), Some(known));
        assert!(config.remove("x.io").unwrap());
        assert!(!config.remove("x.io").unwrap());
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("HttpHeaders") && text.contains("https://index.docker.io/v1/"));
    }

    #[test]
    fn refuses_what_is_not_ours_to_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, r#"{"credsStore":"../../bin/sh"}"#).unwrap();
        assert!(DockerConfig::at(&path).get("x.io").is_err());
        fs::write(&path, "{").unwrap();
        assert!(DockerConfig::at(&path).get("x.io").is_err());
    }

    #[test]
    fn never_prints_secrets() {
        let secret = Credentials::Password { user: "u".into(), password: "hunter2".into() };
        assert!(!format!("{secret:?}").contains("hunter2"));
    }
}
