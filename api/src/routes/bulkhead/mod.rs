//! `bulkhead/v1`: what Docker's API has no place for. Described by OpenAPI 3.1, which is made from this code.

mod viewer;

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use engine::Engine;
use engine::model::Container;
use engine::options::{AcceleratorChoice, Isolation};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use super::Answer;
use crate::App;
use crate::body::json;
use crate::translate::host_config;

pub fn routes() -> Router<App> {
    Router::new()
        .route("/bulkhead/v1/host", get(host))
        .route("/bulkhead/v1/machines", get(machines))
        .route("/bulkhead/v1/containers/{id}/machine", get(machine))
        .route("/bulkhead/v1/containers/{id}/networks", get(networks))
        .route("/bulkhead/v1/openapi.json", get(openapi))
        .merge(viewer::routes())
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Bulkhead",
        description = "What Bulkhead has beside Docker's Engine API, which the same server speaks under /v1.24 to /v1.50."
    ),
    paths(host, machines, machine, networks, openapi),
    components(schemas(Host, Machine, NetworkCounts, Problem))
)]
struct Description;

/// The host, and what it executes machines with.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Host {
    /// Version of Bulkhead.
    #[schema(example = "0.1.0")]
    pub version: String,
    /// The host's name.
    pub name: String,
    /// What `auto` takes on this host: `kvm` or `uml`.
    #[schema(example = "kvm")]
    pub accelerator: String,
    /// What stands between a guest and the host, for people.
    pub boundary: String,
    /// The host's kernel.
    pub kernel: String,
    /// CPUs of the host.
    pub cpus: u32,
    /// Memory of the host in bytes.
    pub memory: u64,
    /// The state directory.
    pub root: String,
}

/// The machine of a container.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Machine {
    /// The container's id: 64 hexadecimal digits.
    pub container: String,
    /// The container's name.
    pub name: String,
    /// Where the container is in its life, in Docker's words.
    #[schema(example = "running")]
    pub status: String,
    /// What was asked for: `bulkhead` for the host's choice, `kvm` or `uml`.
    pub wanted_accelerator: String,
    /// The weakest wall that its owner accepts: `any` or `vm`.
    pub wanted_isolation: String,
    /// What executes it, or would at its next start; absent if this host cannot give what it wants.
    pub accelerator: Option<String>,
    /// What stands between it and the host, or would; for people.
    pub boundary: Option<String>,
    /// Process number of the supervisor that owns it, while it runs.
    pub supervisor: Option<u32>,
    /// Process number of its VMM, while it runs.
    pub vmm: Option<u32>,
}

/// Why a request was refused. It is Docker's error, with three lines for people.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// All of it in one line.
    pub message: String,
    /// What happened.
    pub what: Option<String>,
    /// Why.
    pub why: Option<String>,
    /// What to do next.
    pub next: Option<String>,
}

fn describe(container: &Container, engine: &Engine) -> Machine {
    let machine = container.state.machine.as_ref();
    let (accelerator, boundary) = match machine {
        Some(machine) => Some((machine.accelerator.clone(), machine.boundary.clone())),
        None => engine.would_have(&container.config),
    }
    .unzip();
    Machine {
        container: container.id.clone(),
        name: container.name.clone(),
        status: container.state.status.word().to_owned(),
        wanted_accelerator: wanted(container.config.accelerator).to_owned(),
        wanted_isolation: match container.config.isolation {
            Isolation::Any => "any".to_owned(),
            Isolation::Vm => "vm".to_owned(),
        },
        accelerator,
        boundary,
        supervisor: machine.map(|machine| machine.supervisor),
        vmm: machine.map(|machine| machine.vmm),
    }
}

fn wanted(choice: AcceleratorChoice) -> &'static str {
    host_config::runtime(choice)
}

/// The host, and what it executes machines with.
#[utoipa::path(get, path = "/bulkhead/v1/host", responses((status = 200, body = Host)))]
async fn host(State(app): State<App>) -> Answer {
    let host = app.host().clone();
    json(&Host {
        version: env!("CARGO_PKG_VERSION").into(),
        name: host.name,
        accelerator: host.accelerator.into(),
        boundary: host.boundary.into(),
        kernel: host.kernel,
        cpus: host.cpus,
        memory: host.memory,
        root: app.engine.paths().root().display().to_string(),
    })
}

/// All containers with their machines, newest first.
#[utoipa::path(get, path = "/bulkhead/v1/machines", responses((status = 200, body = Vec<Machine>)))]
async fn machines(State(app): State<App>) -> Answer {
    json(
        &app.engine
            .containers()?
            .iter()
            .map(|container| describe(container, &app.engine))
            .collect::<Vec<_>>(),
    )
}

/// The machine of one container.
#[utoipa::path(
    get,
    path = "/bulkhead/v1/containers/{id}/machine",
    params(("id" = String, Path, description = "A container's name, id, or an unambiguous beginning of its id")),
    responses((status = 200, body = Machine), (status = 404, description = "No such container", body = Problem))
)]
async fn machine(State(app): State<App>, Path(id): Path<String>) -> Answer {
    json(&describe(&app.engine.container(&id)?, &app.engine))
}

/// What passed between a container and one of its networks, and what did not.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NetworkCounts {
    /// The network's name.
    pub network: String,
    /// Frames that the container sent.
    pub sent: u64,
    /// Frames that it was given.
    pub received: u64,
    /// Flows through the gateway.
    pub flows: u64,
    /// What was not let through, by reason (docs/networks.md).
    pub refused: BTreeMap<String, u64>,
}

/// What the switches of a running container's networks counted since they were attached to it.
#[utoipa::path(
    get,
    path = "/bulkhead/v1/containers/{id}/networks",
    params(("id" = String, Path, description = "A container's name, id, or an unambiguous beginning of its id")),
    responses(
        (status = 200, body = Vec<NetworkCounts>),
        (status = 404, description = "No such container", body = Problem),
        (status = 409, description = "It does not run", body = Problem)
    )
)]
async fn networks(State(app): State<App>, Path(id): Path<String>) -> Answer {
    let counts = app.engine.network_counts(&id).await?.into_iter().map(|(network, report)| NetworkCounts {
        network,
        sent: report.sent,
        received: report.received,
        flows: report.flows,
        refused: report.refused.iter().map(|(reason, count)| (reason.word().to_owned(), *count)).collect(),
    });
    json(&counts.collect::<Vec<_>>())
}

/// This description.
#[utoipa::path(get, path = "/bulkhead/v1/openapi.json", responses((status = 200, description = "OpenAPI 3.1")))]
async fn openapi() -> Answer {
    json(&Description::openapi())
}
