//! `HostConfig`: what a container may use, where it is attached, and what follows its end.

use std::collections::BTreeMap;

use bollard_stubs::models::{
    HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, RestartPolicy as DockerRestart,
    RestartPolicyNameEnum,
};
use engine::Engine;
use engine::model::{Container, ContainerConfig, LogConfig, LogDriver, RestartPolicy, Size};
use engine::options::{AcceleratorChoice, Isolation};
use vmm::config::Accelerator;

use super::refused::REFUSED;
use super::{limits, mounts, network, ports, security};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::units::parse_bytes;

/// Names of `Runtime` that let the host choose: Docker's own, and ours.
const RUNTIMES: [&str; 4] = ["", "runc", "io.containerd.runc.v2", "bulkhead"];

/// Reads a `HostConfig`. What it does not take is refused by the caller.
///
/// # Errors
/// Something is malformed or not supported.
pub fn read(host: &mut Fields, config: &mut ContainerConfig, engine: &Engine) -> Result<(), ApiError> {
    config.limits = limits::read(host)?;
    config.ulimits = limits::ulimits(host)?;
    config.restart = restart(&mut host.object("RestartPolicy")?)?;
    config.auto_remove = host.take("AutoRemove")?;
    if config.auto_remove && config.restart != RestartPolicy::No {
        return Err(ApiError::bad("can't create 'AutoRemove' container with restart policy"));
    }
    config.log = log(&mut host.object("LogConfig")?)?;
    security::read(host, config)?;
    mounts::read(host, config, engine)?;
    config.init = host.take("Init")?;
    config.read_only = host.take("ReadonlyRootfs")?;
    config.groups = host.take("GroupAdd")?;
    config.sysctls = host.take("Sysctls")?;
    let shm: i64 = host.take("ShmSize")?;
    config.shm_size = match shm {
        0 => None,
        _ => Some(u64::try_from(shm).map_err(|_| ApiError::bad("SHM size can not be less than 0"))?),
    };
    let score: i64 = host.take("OomScoreAdj")?;
    config.oom_score_adj =
        i32::try_from(score).ok().filter(|score| (-1000..=1000).contains(score)).ok_or_else(|| {
            ApiError::bad(format!("Invalid value {score}, range for oom score adj is [-1000, 1000]"))
        })?;
    config.port_bindings = ports::bindings(host)?;
    config.exposed_ports.extend(config.port_bindings.keys().cloned());
    config.publish_all_ports = host.take("PublishAllPorts")?;
    config.dns = host.take("Dns")?;
    config.dns_options = host.take("DnsOptions")?;
    config.dns_search = host.take("DnsSearch")?;
    config.extra_hosts = host.take("ExtraHosts")?;
    network::addresses(&config.dns, &config.extra_hosts)?;
    config.annotations = host.take("Annotations")?;
    config.storage_size = storage(host.take("StorageOpt")?)?;
    if config.network_mode.is_empty() {
        config.network_mode = network::mode(&host.take::<String>("NetworkMode")?)?;
    } else {
        host.forget(&["NetworkMode"]);
    }
    config.accelerator = accelerator(&host.take::<String>("Runtime")?)?;
    config.isolation = isolation(&host.take::<String>("Isolation")?)?;
    config.console_size = match host.take::<Option<[u16; 2]>>("ConsoleSize")? {
        None | Some([0, _] | [_, 0]) => None,
        Some([rows, columns]) => Some(Size { rows, columns }),
    };
    // A file that the command line writes.
    host.forget(&["ContainerIDFile"]);
    Ok(())
}

/// Reads a `RestartPolicy`.
///
/// # Errors
/// There is no policy of that name, or a count that does not go with it.
pub fn restart(fields: &mut Fields) -> Result<RestartPolicy, ApiError> {
    let name: String = fields.take("Name")?;
    let maximum: i64 = fields.take("MaximumRetryCount")?;
    let Ok(count) = u32::try_from(maximum) else {
        return Err(ApiError::bad("invalid restart policy: maximum retry count cannot be negative"));
    };
    let policy = match name.as_str() {
        "" | "no" => RestartPolicy::No,
        "always" => RestartPolicy::Always,
        "unless-stopped" => RestartPolicy::UnlessStopped,
        "on-failure" => return Ok(RestartPolicy::OnFailure { maximum: count }),
        other => {
            return Err(ApiError::bad(format!(
                "invalid restart policy: unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or \
                 'unless-stopped'"
            )));
        }
    };
    if count != 0 {
        return Err(ApiError::bad(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'",
        ));
    }
    Ok(policy)
}

fn log(fields: &mut Fields) -> Result<LogConfig, ApiError> {
    let name: String = fields.take("Type")?;
    let mut options: BTreeMap<String, String> = fields.take::<Option<_>>("Config")?.unwrap_or_default();
    let driver = match name.as_str() {
        "" | "json-file" => LogDriver::JsonFile,
        "none" => LogDriver::None,
        other => {
            return Err(ApiError::refused(
                &format!("--log-driver {other}"),
                "logs are kept in files of JSON lines, or not at all",
                "use json-file or none",
            ));
        }
    };
    let mut log = LogConfig { driver, ..LogConfig::default() };
    if let Some(size) = options.remove("max-size") {
        log.max_size = if size == "-1" {
            0
        } else {
            parse_bytes(&size).map_err(|why| ApiError::bad(format!("max-size: {why}")))?
        };
    }
    if let Some(files) = options.remove("max-file") {
        log.max_files = files.parse().ok().filter(|&files| files >= 1).ok_or_else(|| {
            ApiError::bad(format!("max-file: {files:?} is not a number of files, at least 1"))
        })?;
    }
    if log.max_files > 1 && log.max_size == 0 {
        return Err(ApiError::bad("cannot use max-file without max-size: logs are rotated by size"));
    }
    // Both name what is done anyway.
    options.retain(|name, value| {
        !matches!((name.as_str(), value.as_str()), ("mode", "blocking") | ("compress", "false"))
    });
    match options.into_iter().next() {
        Some((name, value)) => Err(ApiError::refused(
            &format!("--log-opt {name}={value}"),
            "logs have no option of that name",
            "use max-size and max-file",
        )),
        None => Ok(log),
    }
}

fn storage(mut options: BTreeMap<String, String>) -> Result<Option<u64>, ApiError> {
    let size = options
        .remove("size")
        .map(|size| parse_bytes(&size).map_err(|why| ApiError::bad(format!("storage option size: {why}"))))
        .transpose()?;
    match options.into_keys().next() {
        Some(name) => Err(ApiError::refused(
            &format!("--storage-opt {name}"),
            "the writable disk has a size and nothing else",
            "use --storage-opt size=10g",
        )),
        None => Ok(size),
    }
}

fn accelerator(runtime: &str) -> Result<AcceleratorChoice, ApiError> {
    match runtime {
        "kvm" => Ok(AcceleratorChoice::Named(Accelerator::Kvm)),
        "uml" => Ok(AcceleratorChoice::Named(Accelerator::Uml)),
        _ if RUNTIMES.contains(&runtime) => Ok(AcceleratorChoice::Auto),
        other => Err(ApiError::refused(
            &format!("--runtime {other}"),
            "every container runs in a microVM",
            "leave it out, or name an accelerator: kvm or uml",
        )),
    }
}

fn isolation(name: &str) -> Result<Isolation, ApiError> {
    match name {
        "" | "default" | "any" => Ok(Isolation::Any),
        "vm" => Ok(Isolation::Vm),
        other => Err(ApiError::refused(
            &format!("--isolation {other}"),
            "there is no isolation of that name",
            "use default, or vm for a hardware virtual machine only",
        )),
    }
}

/// The name that `inspect` gives an accelerator as a runtime.
#[must_use]
pub fn runtime(choice: AcceleratorChoice) -> &'static str {
    match choice {
        AcceleratorChoice::Auto => "bulkhead",
        AcceleratorChoice::Named(Accelerator::Kvm) => "kvm",
        AcceleratorChoice::Named(Accelerator::Uml) => "uml",
    }
}

/// A container's `HostConfig` as `inspect` shows it.
#[must_use]
pub fn show(container: &Container) -> HostConfig {
    let config = &container.config;
    let some = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    let mut host = HostConfig {
        auto_remove: Some(config.auto_remove),
        annotations: Some(config.annotations.clone().into_iter().collect())
            .filter(|map: &std::collections::HashMap<_, _>| !map.is_empty()),
        cap_add: some(&config.cap_add),
        cap_drop: some(&config.cap_drop),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        console_size: Some(vec![0, 0]),
        container_id_file: Some(String::new()),
        dns: Some(config.dns.clone()),
        dns_options: Some(config.dns_options.clone()),
        dns_search: Some(config.dns_search.clone()),
        extra_hosts: some(&config.extra_hosts),
        group_add: some(&config.groups),
        init: config.init.then_some(true),
        ipc_mode: Some("private".into()),
        log_config: Some(log_config(&config.log)),
        masked_paths: config.masked_paths.clone(),
        readonly_paths: config.readonly_paths.clone(),
        network_mode: Some(config.network_mode.clone()),
        oom_score_adj: Some(i64::from(config.oom_score_adj)),
        pid_mode: Some(String::new()),
        port_bindings: Some(ports::map(&config.port_bindings)),
        privileged: Some(false),
        publish_all_ports: Some(config.publish_all_ports),
        readonly_rootfs: Some(config.read_only),
        restart_policy: Some(show_restart(config.restart)),
        runtime: Some(runtime(config.accelerator).into()),
        security_opt: security::options(config),
        shm_size: Some(config.shm_size.map_or(64 << 20, |size| i64::try_from(size).unwrap_or(i64::MAX))),
        storage_opt: config.storage_size.map(|size| [("size".to_owned(), size.to_string())].into()),
        sysctls: Some(config.sysctls.clone().into_iter().collect())
            .filter(|map: &std::collections::HashMap<_, _>| !map.is_empty()),
        tmpfs: Some(config.tmpfs.clone().into_iter().collect())
            .filter(|map: &std::collections::HashMap<_, _>| !map.is_empty()),
        userns_mode: Some(String::new()),
        uts_mode: Some(String::new()),
        volume_driver: Some(String::new()),
        ..HostConfig::default()
    };
    limits::show(&config.limits, &config.ulimits, &mut host);
    host.binds = mounts::binds(config);
    host
}

fn show_restart(policy: RestartPolicy) -> DockerRestart {
    let (name, maximum) = match policy {
        RestartPolicy::No => (RestartPolicyNameEnum::NO, 0),
        RestartPolicy::Always => (RestartPolicyNameEnum::ALWAYS, 0),
        RestartPolicy::UnlessStopped => (RestartPolicyNameEnum::UNLESS_STOPPED, 0),
        RestartPolicy::OnFailure { maximum } => (RestartPolicyNameEnum::ON_FAILURE, maximum),
    };
    DockerRestart { name: Some(name), maximum_retry_count: Some(i64::from(maximum)) }
}

fn log_config(log: &LogConfig) -> HostConfigLogConfig {
    let mut options = std::collections::HashMap::new();
    if log.max_size > 0 {
        options.insert("max-size".to_owned(), log.max_size.to_string());
        options.insert("max-file".to_owned(), log.max_files.to_string());
    }
    let name = match log.driver {
        LogDriver::JsonFile => "json-file",
        LogDriver::None => "none",
    };
    HostConfigLogConfig { typ: Some(name.into()), config: Some(options) }
}

/// Reads the body of `update`: limits and the restart policy, if one is given.
///
/// # Errors
/// Something is malformed or cannot be changed.
pub fn update(mut body: Fields) -> Result<(engine::model::Limits, Option<RestartPolicy>), ApiError> {
    let limits = limits::read(&mut body)?;
    let mut policy = body.object("RestartPolicy")?;
    let restart = if policy.has_text("Name") { Some(self::restart(&mut policy)?) } else { None };
    body.finish(&REFUSED)?;
    Ok((limits, restart))
}
