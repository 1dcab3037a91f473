//! A container as `inspect` shows it.

use std::collections::HashMap;

use bollard_stubs::models::{
    ContainerConfig as DockerConfig, ContainerInspectResponse, ContainerState, ContainerStateStatusEnum,
    DriverData,
};
use engine::Engine;
use engine::model::{Container, ContainerConfig, Status};

use super::{health, host_config, mounts, network};
use crate::error::ApiError;
use crate::times;

/// All about a container.
///
/// # Errors
/// The engine's state cannot be read.
pub fn show(
    container: &Container,
    engine: &Engine,
    execs: Vec<String>,
) -> Result<ContainerInspectResponse, ApiError> {
    let config = &container.config;
    let words = command(config);
    let directory = engine.paths().containers().join(&container.id);
    let file = |name: &str| Some(directory.join(name).display().to_string());
    Ok(ContainerInspectResponse {
        id: Some(container.id.clone()),
        created: Some(times::rfc3339(container.created)),
        path: Some(words.first().cloned().unwrap_or_default()),
        args: Some(words.into_iter().skip(1).collect()),
        state: Some(state(container)),
        image: Some(config.image_id.clone()),
        resolv_conf_path: Some(String::new()),
        hostname_path: Some(String::new()),
        hosts_path: Some(String::new()),
        log_path: match config.log.driver {
            engine::model::LogDriver::JsonFile => file("container.log"),
            engine::model::LogDriver::None => Some(String::new()),
        },
        name: Some(format!("/{}", container.name)),
        restart_count: Some(i64::from(container.state.restarts)),
        driver: Some("erofs".into()),
        platform: Some("linux".into()),
        mount_label: Some(String::new()),
        process_label: Some(String::new()),
        app_armor_profile: Some(String::new()),
        exec_ids: (!execs.is_empty()).then_some(execs),
        host_config: Some(host_config::show(container)),
        graph_driver: Some(DriverData { name: "erofs".into(), data: HashMap::new() }),
        mounts: Some(mounts::points(container, engine)),
        config: Some(docker_config(container)),
        network_settings: Some(network::settings(container)),
        ..ContainerInspectResponse::default()
    })
}

/// The words that are executed.
#[must_use]
pub fn command(config: &ContainerConfig) -> Vec<String> {
    config.entrypoint.iter().flatten().chain(config.cmd.iter().flatten()).cloned().collect()
}

fn state(container: &Container) -> ContainerState {
    let state = &container.state;
    let running = state.status.is_running();
    let outcome = state.outcome.clone().unwrap_or_default();
    ContainerState {
        status: Some(match state.status {
            Status::Created => ContainerStateStatusEnum::CREATED,
            Status::Running => ContainerStateStatusEnum::RUNNING,
            Status::Paused => ContainerStateStatusEnum::PAUSED,
            Status::Restarting => ContainerStateStatusEnum::RESTARTING,
            Status::Exited => ContainerStateStatusEnum::EXITED,
            Status::Removing => ContainerStateStatusEnum::REMOVING,
            Status::Dead => ContainerStateStatusEnum::DEAD,
        }),
        running: Some(running),
        paused: Some(state.status == Status::Paused),
        restarting: Some(state.status == Status::Restarting),
        oom_killed: Some(!running && outcome.oom_killed),
        dead: Some(state.status == Status::Dead),
        pid: Some(state.machine.as_ref().map_or(0, |machine| i64::from(machine.vmm))),
        exit_code: Some(if running { 0 } else { i64::from(outcome.code) }),
        error: Some(if running { String::new() } else { outcome.error }),
        started_at: Some(times::rfc3339(state.started)),
        finished_at: Some(times::rfc3339(state.finished)),
        health: state.health.as_ref().map(health::state),
    }
}

fn docker_config(container: &Container) -> DockerConfig {
    let config = &container.config;
    let set = |names: &std::collections::BTreeSet<String>| {
        (!names.is_empty()).then(|| names.iter().map(|name| (name.clone(), HashMap::new())).collect())
    };
    let [stdin, stdout, stderr] = config.attach;
    DockerConfig {
        hostname: Some(if config.hostname.is_empty() {
            container.id.get(..12).unwrap_or_default().to_owned()
        } else {
            config.hostname.clone()
        }),
        domainname: Some(config.domainname.clone()),
        user: Some(config.user.clone().unwrap_or_default()),
        attach_stdin: Some(stdin),
        attach_stdout: Some(stdout),
        attach_stderr: Some(stderr),
        exposed_ports: set(&config.exposed_ports),
        tty: Some(config.tty),
        open_stdin: Some(config.open_stdin),
        stdin_once: Some(config.stdin_once),
        env: Some(config.env.clone()),
        cmd: config.cmd.clone(),
        healthcheck: config.health_check.as_ref().map(health::config),
        image: Some(config.image.clone()),
        volumes: set(&config.volumes),
        working_dir: Some(config.workdir.clone().unwrap_or_default()),
        entrypoint: config.entrypoint.clone(),
        labels: Some(config.labels.clone().into_iter().collect()),
        stop_signal: config.stop_signal.clone(),
        stop_timeout: config.stop_timeout,
        ..DockerConfig::default()
    }
}
