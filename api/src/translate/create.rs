//! `POST /containers/create`: Docker's JSON to a [`ContainerConfig`].

use std::collections::{BTreeMap, BTreeSet};

use engine::Engine;
use engine::model::ContainerConfig;
use serde::Deserialize;

use super::refused::REFUSED;
use super::{health, host_config, network, ports};
use crate::error::ApiError;
use crate::fields::Fields;

/// Longest host name, in bytes (Linux's HOST_NAME_MAX).
const MAX_HOSTNAME: usize = 64;

/// A command: Docker takes a list of words, or one word as it is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(untagged)]
pub enum Words {
    /// Nothing was said.
    #[default]
    Unset,
    /// Words.
    List(Vec<String>),
    /// One word.
    One(String),
}

impl Words {
    /// The words; `None` if nothing was said.
    #[must_use]
    pub fn list(self) -> Option<Vec<String>> {
        match self {
            Self::Unset => None,
            Self::List(list) => Some(list),
            Self::One(word) if word.is_empty() => None,
            Self::One(word) => Some(vec![word]),
        }
    }
}

/// Reads the body of `create`.
///
/// # Errors
/// Something is malformed, or is asked for that a container here cannot have: 400 with its name.
pub fn container(mut body: Fields, engine: &Engine) -> Result<ContainerConfig, ApiError> {
    if body.is_empty() {
        return Err(ApiError::bad("config cannot be empty in order to create a container"));
    }
    let mut config = ContainerConfig::default();
    let mut host = body.object("HostConfig")?;
    let mut networking = body.object("NetworkingConfig")?;
    config.image = body.text("Image")?.ok_or_else(|| ApiError::bad("no image specified"))?;
    process(&mut body, &mut config)?;
    // Parameters of the address, which some clients send in the body as well.
    body.forget(&["name", "platform"]);
    body.finish(&REFUSED)?;
    host_config::read(&mut host, &mut config, engine)?;
    host.finish(&REFUSED)?;
    for (name, mut endpoint) in networking.named("EndpointsConfig")? {
        let read = network::endpoint(&mut endpoint)?;
        endpoint.finish(&REFUSED)?;
        config.endpoints.insert(network::name(&name), read);
    }
    networking.finish(&REFUSED)?;
    network::check(&mut config)?;
    Ok(config)
}

/// The part that an image's configuration has too; `commit` takes it as changes.
fn process(body: &mut Fields, config: &mut ContainerConfig) -> Result<(), ApiError> {
    config.entrypoint = body.take::<Words>("Entrypoint")?.list();
    config.cmd = body.take::<Words>("Cmd")?.list().filter(|words| !words.is_empty());
    if config.entrypoint.as_ref().is_some_and(|words| words.iter().all(String::is_empty) && !words.is_empty())
    {
        // `--entrypoint ""` takes the image's command away as well.
        config.entrypoint = Some(Vec::new());
        config.cmd.get_or_insert_default();
    }
    config.env = body.take("Env")?;
    config.workdir = body.text("WorkingDir")?;
    config.user = body.text("User")?;
    config.hostname = body.take("Hostname")?;
    config.domainname = body.take("Domainname")?;
    config.labels = body.take("Labels")?;
    config.exposed_ports = exposed(body.take("ExposedPorts")?)?;
    config.volumes = body.take::<BTreeMap<String, serde_json::Value>>("Volumes")?.into_keys().collect();
    config.stop_signal = body.text("StopSignal")?;
    config.stop_timeout = body.take("StopTimeout")?;
    config.health_check = health::read(&mut body.object("Healthcheck")?)?;
    config.tty = body.take("Tty")?;
    config.open_stdin = body.take("OpenStdin")?;
    config.stdin_once = body.take("StdinOnce")?;
    config.attach = [body.take("AttachStdin")?, body.take("AttachStdout")?, body.take("AttachStderr")?];
    if body.take("NetworkDisabled")? {
        config.network_mode = "none".into();
    }
    // One of a command line of Windows, and one for builds: they say nothing about a container of Linux.
    body.forget(&["ArgsEscaped", "Shell"]);
    check(config)
}

fn exposed(ports: BTreeMap<String, serde_json::Value>) -> Result<BTreeSet<String>, ApiError> {
    ports.into_keys().map(|port| ports::normal(&port)).collect()
}

fn check(config: &ContainerConfig) -> Result<(), ApiError> {
    let bad =
        |what: &str, value: &str, why: &str| Err(ApiError::bad(format!("invalid {what} {value:?}: {why}")));
    if let Some(path) = config.workdir.as_deref().filter(|path| !path.starts_with('/')) {
        return Err(ApiError::bad(format!(
            "the working directory '{path}' is invalid, it needs to be an absolute path"
        )));
    }
    for (what, name) in [("hostname", &config.hostname), ("domainname", &config.domainname)] {
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
        if name.len() > MAX_HOSTNAME || !plain || name.starts_with(['-', '.']) {
            return bad(what, name, "it has at most 64 letters, digits, '-' and '.'");
        }
    }
    if let Some(entry) =
        config.env.iter().find(|entry| entry.is_empty() || entry.starts_with('=') || entry.contains('\0'))
    {
        return bad("environment variable", entry, "it is not of the form NAME=value");
    }
    if let Some(path) = config.volumes.iter().find(|path| !path.starts_with('/')) {
        return bad("volume", path, "it is not an absolute path");
    }
    if let Some(signal) = &config.stop_signal {
        signal_number(signal)?;
    }
    Ok(())
}

/// A signal by number, or by name with or without `SIG`, also `RTMIN+3`.
///
/// # Errors
/// There is no such signal.
pub fn signal_number(text: &str) -> Result<u8, ApiError> {
    let bad = || ApiError::bad(format!("invalid signal: {text}"));
    if let Ok(number) = text.parse::<u8>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(bad()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    let realtime = || {
        let (base, offset) = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
            (Some(rest), _) => (34i32, rest),
            (_, Some(rest)) => (64, rest),
            _ => return None,
        };
        let offset: i32 = if offset.is_empty() { 0 } else { offset.parse().ok()? };
        u8::try_from(base.checked_add(offset)?).ok().filter(|number| (34..=64).contains(number))
    };
    known.or_else(realtime).ok_or_else(bad)
}

/// Linux's signals by name (signal(7), x86-64).
const SIGNALS: [(&str, u8); 35] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("UNUSED", 31),
];
