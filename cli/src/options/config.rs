//! The body of `containers/create`: the process and its image.

use std::env;
use std::path::Path;

use serde_json::Value;

use super::flags::{ContainerFlags, EndFlags};
use super::values::{Object, duration, egress, environment, file, labels};
use super::{host, mounts, network};
use crate::failure::Failure;

/// Beginnings of names that mean files of this host.
const LOCAL: [&str; 3] = ["oci:", "oci-archive:", "docker-archive:"];
/// Longest host name in bytes (Linux's HOST_NAME_MAX).
const MAX_HOSTNAME: usize = 64;

/// Streams that a command is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

/// What a command is attached to: everything, but for input that nobody keeps open; or what `-a` names.
///
/// # Errors
/// `-a` names no stream.
pub fn streams(flags: &ContainerFlags, detached: bool) -> Result<Streams, Failure> {
    if detached {
        return Ok(Streams { stdin: false, stdout: false, stderr: false });
    }
    if flags.attach.is_empty() {
        return Ok(Streams { stdin: flags.interactive, stdout: true, stderr: true });
    }
    let mut streams = Streams { stdin: false, stdout: false, stderr: false };
    for name in &flags.attach {
        match name.to_ascii_lowercase().as_str() {
            "stdin" => streams.stdin = true,
            "stdout" => streams.stdout = true,
            "stderr" => streams.stderr = true,
            _ => {
                let next = "use stdin, stdout or stderr";
                return Err(Failure::option("--attach", name, "there is no stream of that name", next));
            }
        }
    }
    Ok(streams)
}

/// The body.
///
/// # Errors
/// A value is malformed.
pub fn body(
    flags: &ContainerFlags,
    image: &str,
    command: &[String],
    streams: Streams,
) -> Result<Value, Failure> {
    let mut body = Object::default();
    body.set("Image", image_name(image));
    body.set("Cmd", command.to_vec());
    if let Some(word) = &flags.entrypoint {
        body.put("Entrypoint", vec![word.clone()]);
    }
    body.set("Env", environment(&flags.env_file, &flags.env)?);
    body.set("WorkingDir", workdir(flags.workdir.as_deref())?);
    body.set("User", flags.user.clone());
    body.set("Hostname", hostname("--hostname", flags.hostname.as_deref())?);
    body.set("Domainname", hostname("--domainname", flags.domainname.as_deref())?);
    body.set("Labels", object(egress(labels(&flags.label_file, &flags.label)?, &flags.network.egress)?));
    body.set("Tty", flags.tty);
    body.set("OpenStdin", flags.interactive);
    // Whoever types ends the input by going away.
    body.set("StdinOnce", flags.interactive && streams.stdin);
    body.set("AttachStdin", streams.stdin);
    body.set("AttachStdout", streams.stdout);
    body.set("AttachStderr", streams.stderr);
    body.set("StopSignal", flags.end.stop_signal.clone());
    body.set("StopTimeout", flags.end.stop_timeout);
    body.set("Healthcheck", health(&flags.end)?);
    body.set("ExposedPorts", network::exposed(&flags.network)?);
    body.set("Volumes", mounts::anonymous(&flags.files.volume));
    body.set("HostConfig", host::body(flags)?);
    body.set("NetworkingConfig", network::endpoints(&flags.network)?);
    Ok(body.into())
}

/// A name of an image for a server that runs in another directory: paths are absolute.
pub fn image_name(name: &str) -> String {
    let local = LOCAL.iter().find_map(|prefix| Some((*prefix, name.strip_prefix(prefix)?)));
    match local {
        Some((prefix, path)) if !path.is_empty() && !path.starts_with('/') => {
            format!("{prefix}{}", absolute(path))
        }
        _ => name.to_owned(),
    }
}

/// A path from this process's directory, however it is written.
pub fn absolute(path: &str) -> String {
    let base = env::current_dir().unwrap_or_default();
    let joined = base.join(path);
    // `.` and doubled slashes go; `..` stays, because what it means depends on links.
    joined.components().collect::<std::path::PathBuf>().display().to_string()
}

/// A map as a JSON object.
pub fn object(map: impl IntoIterator<Item = (String, String)>) -> Value {
    Value::Object(map.into_iter().map(|(name, value)| (name, value.into())).collect())
}

fn workdir(path: Option<&str>) -> Result<Option<String>, Failure> {
    match path {
        Some(path) if !Path::new(path).is_absolute() => {
            let why = "the working directory is not an absolute path";
            Err(Failure::option("--workdir", path, why, "give a path that starts with /"))
        }
        other => Ok(other.map(str::to_owned)),
    }
}

fn hostname(option: &str, name: Option<&str>) -> Result<Option<String>, Failure> {
    let Some(name) = name else { return Ok(None) };
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if name.is_empty() || name.len() > MAX_HOSTNAME || !plain || name.starts_with(['-', '.']) {
        let why = "a host name has 1 to 64 letters, digits, '-' and '.'";
        return Err(Failure::option(option, name, why, "give another name"));
    }
    Ok(Some(name.to_owned()))
}

fn health(flags: &EndFlags) -> Result<Value, Failure> {
    let mut check = Object::default();
    if let Some(command) = &flags.health_cmd {
        check.set("Test", vec!["CMD-SHELL".to_owned(), command.clone()]);
    }
    for (field, option, text) in [
        ("Interval", "--health-interval", &flags.health_interval),
        ("Timeout", "--health-timeout", &flags.health_timeout),
        ("StartPeriod", "--health-start-period", &flags.health_start_period),
        ("StartInterval", "--health-start-interval", &flags.health_start_interval),
    ] {
        if let Some(text) = text {
            check.set(field, duration(option, text)?);
        }
    }
    check.set("Retries", flags.health_retries);
    let check = Value::from(check);
    if !flags.no_healthcheck {
        return Ok(check);
    }
    if check.as_object().is_some_and(|fields| !fields.is_empty()) {
        let next = "leave one of them out";
        return Err(Failure::option("--no-healthcheck", "", "other options describe a check", next));
    }
    Ok(serde_json::json!({ "Test": ["NONE"] }))
}

/// A seccomp profile's file as the text that the server takes.
///
/// # Errors
/// The file cannot be read.
pub fn security_option(option: &str) -> Result<String, Failure> {
    match option.split_once(['=', ':']) {
        Some(("seccomp", "unconfined" | "builtin")) => Ok(option.to_owned()),
        Some(("seccomp", path)) => Ok(format!("seccomp={}", file("--security-opt", path)?)),
        _ => Ok(option.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(change: impl FnOnce(&mut ContainerFlags)) -> Result<Value, Failure> {
        let mut flags = ContainerFlags::default();
        flags.security.accel = "auto".into();
        flags.security.isolation = "any".into();
        change(&mut flags);
        let streams = streams(&flags, false)?;
        body(&flags, "busybox", &[], streams)
    }

    #[test]
    fn what_is_not_said_is_not_sent() {
        let body = of(|_| {}).unwrap();
        let expected = serde_json::json!({ "Image": "busybox", "AttachStdout": true, "AttachStderr": true });
        assert_eq!(body, expected);
    }

    #[test]
    fn flags_become_fields() {
        let body = of(|f| {
            f.entrypoint = Some(String::new());
            f.interactive = true;
            f.label = vec!["a=b".into()];
            f.network.egress = vec!["allow=example.org:443".into(), "deny-all".into()];
            f.end.health_cmd = Some("true".into());
            f.end.health_interval = Some("2s".into());
            f.limits.memory = Some("64m".into());
            f.limits.cpus = Some("0.5".into());
            f.security.accel = "uml".into();
            f.security.isolation = "vm".into();
        })
        .unwrap();
        assert_eq!(body["Entrypoint"], serde_json::json!([""]));
        assert_eq!((&body["OpenStdin"], &body["StdinOnce"]), (&true.into(), &true.into()));
        assert_eq!(body["Labels"]["a"], "b");
        assert_eq!(body["Labels"]["bulkhead.egress"], "allow=example.org:443,deny-all");
        assert_eq!(body["Healthcheck"]["Test"][1], "true");
        assert_eq!(body["Healthcheck"]["Interval"], 2_000_000_000i64);
        assert_eq!(body["HostConfig"]["Memory"], 64 << 20);
        assert_eq!(body["HostConfig"]["NanoCpus"], 500_000_000);
        assert_eq!(body["HostConfig"]["Runtime"], "uml");
        assert_eq!(body["HostConfig"]["Isolation"], "vm");
    }

    #[test]
    fn bad_values_are_refused_by_the_options_name() {
        type Change = fn(&mut ContainerFlags);
        let bad: [(&str, Change); 13] = [
            ("--egress deny-all", |f| {
                f.network.egress = vec!["deny-all".into()];
                f.label = vec!["bulkhead.egress=allow-all".into()];
            }),
            ("--memory lots", |f| f.limits.memory = Some("lots".into())),
            ("--memory 1m", |f| f.limits.memory = Some("1m".into())),
            ("--cpus 0", |f| f.limits.cpus = Some("0".into())),
            ("--accel xen", |f| f.security.accel = "xen".into()),
            ("--isolation none", |f| f.security.isolation = "none".into()),
            ("--workdir here", |f| f.workdir = Some("here".into())),
            ("--hostname a b", |f| f.hostname = Some("a b".into())),
            ("--env =x", |f| f.env = vec!["=x".into()]),
            ("--attach x", |f| f.attach = vec!["x".into()]),
            ("--restart on-failure:x", |f| f.end.restart = Some("on-failure:x".into())),
            ("--ulimit nofile", |f| f.limits.ulimit = vec!["nofile".into()]),
            ("--publish x", |f| f.network.publish = vec!["x".into()]),
        ];
        for (name, change) in bad {
            let error = of(change).unwrap_err();
            assert!(error.to_string().starts_with(name), "{error}");
            assert_eq!((error.exit_code(), error.of_run().exit_code()), (1, 125));
        }
    }

    #[test]
    fn names_of_files_are_absolute() {
        let here = env::current_dir().unwrap();
        assert_eq!(image_name("oci:a/./b:tag"), format!("oci:{}/a/b:tag", here.display()));
        for name in ["oci:/a:b", "busybox", "localhost:5000/oci:1", "docker-archive:/x.tar"] {
            assert_eq!(image_name(name), name);
        }
    }
}
