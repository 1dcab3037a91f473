//! `run` as a caller words it.

use engine::options::{AcceleratorChoice, Isolation, MIN_MEMORY_BYTES};
use engine::{EngineError, RunOptions, TerminalMode};
use vmm::config::Accelerator;

use crate::units::{parse_bytes, parse_milli_cpus};

/// Longest host name, in bytes (Linux's HOST_NAME_MAX).
const MAX_HOSTNAME: usize = 64;

/// A `run` with its options as text.
#[derive(Debug, Clone, Default)]
pub struct RunRequest {
    /// Image name.
    pub image: String,
    /// Command and arguments.
    pub command: Vec<String>,
    /// One word; empty clears the image's.
    pub entrypoint: Option<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Absolute path.
    pub workdir: Option<String>,
    /// `user[:group]`.
    pub user: Option<String>,
    /// Host name.
    pub hostname: Option<String>,
    /// Pass standard input on.
    pub interactive: bool,
    /// Allocate a terminal.
    pub terminal: bool,
    /// Remove the container afterwards.
    pub auto_remove: bool,
    /// Size, such as `512m`.
    pub memory: Option<String>,
    /// Number, such as `0.5`.
    pub cpus: Option<String>,
    /// `auto`, `kvm` or `uml`.
    pub accelerator: Option<String>,
    /// `any` or `vm`.
    pub isolation: Option<String>,
}

impl TryFrom<RunRequest> for RunOptions {
    type Error = EngineError;

    fn try_from(request: RunRequest) -> Result<Self, EngineError> {
        let memory = match &request.memory {
            None => None,
            Some(text) => {
                let bytes = parse_bytes(text)
                    .map_err(|why| refused("--memory", text, why, "give a size such as 256m"))?;
                if bytes < MIN_MEMORY_BYTES {
                    let why = "the least memory of a container is 6 MiB".to_owned();
                    return Err(refused("--memory", text, why, "give a size such as 256m"));
                }
                Some(bytes)
            }
        };
        let milli_cpus = request
            .cpus
            .as_deref()
            .map(|text| {
                parse_milli_cpus(text)
                    .map_err(|why| refused("--cpus", text, why, "give a number such as 0.5"))
            })
            .transpose()?;
        check_workdir(request.workdir.as_deref())?;
        check_hostname(request.hostname.as_deref())?;
        check_env(&request.env)?;
        Ok(Self {
            image: request.image,
            command: request.command,
            entrypoint: request.entrypoint.map(|word| vec![word]),
            env: request.env,
            workdir: request.workdir,
            user: request.user,
            hostname: request.hostname,
            interactive: request.interactive,
            terminal: if request.terminal { TerminalMode::Allocate } else { TerminalMode::None },
            auto_remove: request.auto_remove,
            memory,
            milli_cpus,
            accelerator: parse_accelerator(request.accelerator.as_deref())?,
            isolation: parse_isolation(request.isolation.as_deref())?,
        })
    }
}

fn refused(option: &str, value: &str, why: String, next: &str) -> EngineError {
    EngineError::Option { option: format!("{option} {value}"), why, next: next.to_owned() }
}

fn parse_accelerator(text: Option<&str>) -> Result<AcceleratorChoice, EngineError> {
    match text {
        None | Some("auto") => Ok(AcceleratorChoice::Auto),
        Some("kvm") => Ok(AcceleratorChoice::Named(Accelerator::Kvm)),
        Some("uml") => Ok(AcceleratorChoice::Named(Accelerator::Uml)),
        Some(other) => {
            let why = "there is no accelerator of that name".to_owned();
            Err(refused("--accel", other, why, "use auto, kvm or uml"))
        }
    }
}

fn parse_isolation(text: Option<&str>) -> Result<Isolation, EngineError> {
    match text {
        None | Some("any") => Ok(Isolation::Any),
        Some("vm") => Ok(Isolation::Vm),
        Some(other) => Err(refused(
            "--isolation",
            other,
            "there is no isolation of that name".to_owned(),
            "use any or vm",
        )),
    }
}

fn check_workdir(workdir: Option<&str>) -> Result<(), EngineError> {
    match workdir {
        Some(path) if !path.starts_with('/') => {
            let why = "the working directory is not an absolute path".to_owned();
            Err(refused("--workdir", path, why, "give a path that starts with /"))
        }
        _ => Ok(()),
    }
}

fn check_hostname(hostname: Option<&str>) -> Result<(), EngineError> {
    let Some(name) = hostname else { return Ok(()) };
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    if name.is_empty() || name.len() > MAX_HOSTNAME || !plain || name.starts_with(['-', '.']) {
        let why = "a host name has 1 to 64 letters, digits, '-' and '.'".to_owned();
        return Err(refused("--hostname", name, why, "give another name"));
    }
    Ok(())
}

fn check_env(env: &[String]) -> Result<(), EngineError> {
    match env.iter().find(|entry| entry.starts_with('=') || !entry.contains('=') || entry.contains('\0')) {
        Some(entry) => {
            let why = "it is not of the form NAME=value".to_owned();
            Err(refused("--env", entry, why, "give NAME=value"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(change: impl FnOnce(&mut RunRequest)) -> Result<RunOptions, EngineError> {
        let mut request = RunRequest { image: "busybox".into(), ..RunRequest::default() };
        change(&mut request);
        RunOptions::try_from(request)
    }

    #[test]
    fn good_requests_are_translated() {
        let options = options(|r| {
            r.memory = Some("256m".into());
            r.cpus = Some("0.5".into());
            r.accelerator = Some("uml".into());
            r.isolation = Some("vm".into());
            r.entrypoint = Some("sh".into());
        })
        .unwrap();
        assert_eq!((options.memory, options.milli_cpus), (Some(256 << 20), Some(500)));
        assert_eq!(options.accelerator, AcceleratorChoice::Named(Accelerator::Uml));
        assert_eq!(options.isolation, Isolation::Vm);
        assert_eq!(options.entrypoint, Some(vec!["sh".to_owned()]));
    }

    #[test]
    fn bad_values_are_refused_by_the_options_name() {
        type Change = fn(&mut RunRequest);
        let bad: [(&str, Change); 8] = [
            ("--memory lots", |r| r.memory = Some("lots".into())),
            ("--memory 1m", |r| r.memory = Some("1m".into())),
            ("--cpus 0", |r| r.cpus = Some("0".into())),
            ("--accel xen", |r| r.accelerator = Some("xen".into())),
            ("--isolation none", |r| r.isolation = Some("none".into())),
            ("--workdir here", |r| r.workdir = Some("here".into())),
            ("--hostname a b", |r| r.hostname = Some("a b".into())),
            ("--env =x", |r| r.env = vec!["=x".into()]),
        ];
        for (name, change) in bad {
            let error = options(change).unwrap_err();
            assert!(error.to_string().starts_with(name), "{error}");
            assert_eq!(error.exit_code(), 125);
        }
    }
}
