//! `_ping`, version, info, auth.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::routing::{get, post};
use bollard_stubs::models::{
    LocalNodeState, PluginsInfo, RegistryServiceConfig, Runtime, SwarmInfo, SystemAuthResponse, SystemInfo,
    SystemInfoCgroupDriverEnum, SystemInfoCgroupVersionEnum, SystemVersion, SystemVersionComponents,
    SystemVersionPlatform,
};
use engine::model::Status;
use image_unpack::{Credentials, Registries};

use super::{Answer, blocking};
use crate::App;
use crate::body::{self, JsonBody, json};
use crate::error::ApiError;
use crate::version::{API_VERSION, MIN_API_VERSION};

/// What Docker's clients are told that the engine's version is: ours.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Where clients log in if they name no registry.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

pub fn routes() -> Router<App> {
    Router::new()
        .route("/_ping", get(ping).head(ping))
        .route("/version", get(version))
        .route("/info", get(info))
        .route("/auth", post(auth))
}

async fn ping(method: Method) -> Answer {
    let text = if method == Method::HEAD { "" } else { "OK" };
    let mut response = body::with_type(StatusCode::OK, "text/plain; charset=utf-8", Body::from(text));
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    // Clients choose the builder by it: 1 is the one that they ask over /build.
    headers.insert("builder-version", HeaderValue::from_static("1"));
    headers.insert("swarm", HeaderValue::from_static("inactive"));
    Ok(response)
}

async fn version(State(app): State<App>) -> Answer {
    let host = app.host().clone();
    let details = HashMap::from([
        ("ApiVersion".to_owned(), API_VERSION.to_owned()),
        ("MinAPIVersion".to_owned(), MIN_API_VERSION.to_owned()),
        ("Os".to_owned(), "linux".to_owned()),
        ("Arch".to_owned(), architecture().to_owned()),
        ("KernelVersion".to_owned(), host.kernel.clone()),
        ("Accelerator".to_owned(), host.accelerator.to_owned()),
        ("Boundary".to_owned(), host.boundary.to_owned()),
    ]);
    json(&SystemVersion {
        platform: Some(SystemVersionPlatform { name: format!("Bulkhead {VERSION}") }),
        components: Some(vec![SystemVersionComponents {
            name: "Engine".into(),
            version: VERSION.into(),
            details: Some(details),
        }]),
        version: Some(VERSION.into()),
        api_version: Some(API_VERSION.into()),
        min_api_version: Some(MIN_API_VERSION.into()),
        git_commit: Some(String::new()),
        go_version: Some(String::new()),
        os: Some("linux".into()),
        arch: Some(architecture().into()),
        kernel_version: Some(host.kernel),
        experimental: Some(false),
        build_time: Some(String::new()),
    })
}

/// The host's CPU as Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

async fn info(State(app): State<App>) -> Answer {
    let engine = app.engine.clone();
    let images = blocking(move || Ok(engine.images().images()?.len())).await?;
    let containers = app.engine.containers()?;
    let count = |wanted: fn(Status) -> bool| {
        let number = containers.iter().filter(|container| wanted(container.state.status)).count();
        i64::try_from(number).ok()
    };
    let host = app.host().clone();
    let runtime =
        |name: &str| (name.to_owned(), Runtime { path: Some("bulkhead-vmm".into()), ..Runtime::default() });
    json(&SystemInfo {
        id: Some(host.id),
        containers: count(|_| true),
        containers_running: count(|status| matches!(status, Status::Running | Status::Restarting)),
        containers_paused: count(|status| status == Status::Paused),
        containers_stopped: count(|status| !status.is_running()),
        images: i64::try_from(images).ok(),
        driver: Some("erofs".into()),
        driver_status: Some(vec![
            vec!["Accelerator".into(), host.accelerator.into()],
            vec!["Boundary".into(), host.boundary.into()],
        ]),
        docker_root_dir: Some(app.engine.paths().root().display().to_string()),
        plugins: Some(PluginsInfo {
            volume: Some(vec!["local".into()]),
            network: Some(vec!["bridge".into(), "null".into()]),
            authorization: None,
            log: Some(vec!["json-file".into(), "none".into()]),
        }),
        memory_limit: Some(true),
        swap_limit: Some(false),
        cpu_cfs_period: Some(true),
        cpu_cfs_quota: Some(true),
        cpu_shares: Some(true),
        cpu_set: Some(true),
        pids_limit: Some(true),
        oom_kill_disable: Some(false),
        ipv4_forwarding: Some(true),
        debug: Some(false),
        nfd: Some(open_descriptors()),
        n_goroutines: Some(0),
        system_time: Some(crate::times::rfc3339(engine::model::now())),
        logging_driver: Some("json-file".into()),
        // The guests' own: the host's cgroups are not what limits a container.
        cgroup_driver: Some(SystemInfoCgroupDriverEnum::CGROUPFS),
        cgroup_version: Some(SystemInfoCgroupVersionEnum::_2),
        n_events_listener: i64::try_from(app.listeners.load(Ordering::Relaxed)).ok(),
        kernel_version: Some(host.kernel),
        operating_system: Some(host.os),
        os_version: Some(String::new()),
        os_type: Some("linux".into()),
        architecture: Some(std::env::consts::ARCH.into()),
        ncpu: Some(i64::from(host.cpus)),
        mem_total: i64::try_from(host.memory).ok(),
        index_server_address: Some(DOCKER_HUB.into()),
        registry_config: Some(RegistryServiceConfig {
            insecure_registry_cidrs: Some(vec!["::1/128".into(), "127.0.0.0/8".into()]),
            index_configs: Some(HashMap::new()),
            mirrors: Some(Vec::new()),
        }),
        http_proxy: Some(String::new()),
        https_proxy: Some(String::new()),
        no_proxy: Some(String::new()),
        name: Some(host.name),
        labels: Some(Vec::new()),
        experimental_build: Some(false),
        server_version: Some(VERSION.into()),
        runtimes: Some(["bulkhead", "kvm", "uml"].iter().map(|name| runtime(name)).collect()),
        default_runtime: Some("bulkhead".into()),
        swarm: Some(SwarmInfo {
            local_node_state: Some(LocalNodeState::INACTIVE),
            control_available: Some(false),
            ..SwarmInfo::default()
        }),
        live_restore_enabled: Some(true),
        init_binary: Some("bulkhead-agent".into()),
        security_options: Some(vec!["name=seccomp,profile=builtin".into()]),
        warnings: Some(Vec::new()),
        ..SystemInfo::default()
    })
}

fn open_descriptors() -> i64 {
    std::fs::read_dir("/proc/self/fd").map_or(0, |entries| i64::try_from(entries.count()).unwrap_or(0))
}

/// Asks a registry whether it takes these credentials. Nothing is stored: that is the client's part.
async fn auth(body: JsonBody) -> Answer {
    let mut fields = body.fields()?;
    let address = fields.text("serveraddress")?.unwrap_or_else(|| DOCKER_HUB.to_owned());
    let token = fields.text("identitytoken")?;
    let (user, password) = (fields.take("username")?, fields.take("password")?);
    let credentials = token.map_or(Credentials::Password { user, password }, Credentials::IdentityToken);
    blocking(move || match Registries::default().login(&address, &credentials) {
        Ok(()) => Ok(()),
        Err(image_unpack::Error::AuthNeeded { reason, registry, .. }) => Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            format!("login attempt to {registry} failed: unauthorized: {reason}"),
        )),
        Err(other) => Err(other.into()),
    })
    .await?;
    json(&SystemAuthResponse { status: "Login Succeeded".into(), identity_token: Some(String::new()) })
}
