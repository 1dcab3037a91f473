//! `containers/json`: the list, narrowed by filters.

use std::collections::HashSet;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use engine::Engine;
use engine::model::{Container, Network, Status};

use crate::App;
use crate::body::json;
use crate::error::ApiError;
use crate::filters::{Filters, matches_name};
use crate::query::Query;
use crate::routes::Answer;
use crate::translate::{health, network, ports, summary};

const KNOWN: [&str; 17] = [
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "isolation",
    "is-task",
    "label",
    "label!",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
    "annotation",
];

pub fn routes() -> Router<App> {
    Router::new().route("/containers/json", get(list))
}

async fn list(State(app): State<App>, query: Query) -> Answer {
    let filters = query.filters(&KNOWN)?;
    let limit =
        query.number("limit")?.and_then(|limit| usize::try_from(limit).ok()).filter(|&limit| limit > 0);
    // A filter for what does not run, or a number, asks for all of them.
    let all = query.flag("all") || filters.has("status") || filters.has("exited") || limit.is_some();
    let networks = app.engine.networks()?;
    let narrow = Narrow::new(&filters, &app.engine, &networks)?;
    let mut found: Vec<Container> = app
        .engine
        .containers()?
        .into_iter()
        .filter(|container| all || container.state.status.is_running())
        .filter(|container| narrow.passes(container))
        .take(limit.unwrap_or(usize::MAX))
        .collect();
    found.sort_by_key(|container| std::cmp::Reverse(container.created));
    let mut list: Vec<_> = found.iter().map(|container| summary::show(container, &app.engine)).collect();
    if query.flag("size") {
        for (line, container) in list.iter_mut().zip(&found) {
            let (writable, root) = super::disk_size(container, &app.engine).await;
            (line.size_rw, line.size_root_fs) = (Some(writable), Some(root));
        }
    }
    json(&list)
}

/// Filters, with what they name looked up once.
struct Narrow<'a> {
    filters: &'a Filters,
    networks: &'a [Network],
    /// Images that `ancestor` means: ids.
    ancestors: HashSet<String>,
    before: Option<i64>,
    since: Option<i64>,
    task: Option<bool>,
}

impl<'a> Narrow<'a> {
    fn new(filters: &'a Filters, engine: &Engine, networks: &'a [Network]) -> Result<Self, ApiError> {
        let created = |name: &str| -> Result<Option<i64>, ApiError> {
            // The last one counts, as in Docker.
            filters.values(name).last().map(|id| Ok(engine.container(id)?.created)).transpose()
        };
        for status in filters.values("status") {
            if !STATUSES.iter().any(|known| known.word() == status) {
                return Err(ApiError::bad(format!("invalid filter 'status={status}'")));
            }
        }
        for code in filters.values("exited") {
            if code.parse::<i64>().is_err() {
                return Err(ApiError::bad(format!("invalid filter 'exited={code}'")));
            }
        }
        // A name that means no image finds nothing.
        let ancestors = filters.values("ancestor").iter().filter_map(|name| engine.images().find(name).ok());
        Ok(Self {
            networks,
            ancestors: ancestors.map(|image| image.id.to_string()).collect(),
            before: created("before")?,
            since: created("since")?,
            task: filters.flag("is-task")?,
            filters,
        })
    }

    fn passes(&self, container: &Container) -> bool {
        let (filters, config, state) = (self.filters, &container.config, &container.state);
        let code = state.outcome.as_ref().map_or(0, |outcome| outcome.code).to_string();
        let ended = matches!(state.status, Status::Exited | Status::Dead);
        let health = state.health.as_ref().map_or("none", |health| health::word(health.status));
        let port = |wanted: &str, have: &str| {
            ports::normal(wanted).is_ok_and(|wanted| wanted == have) || ranges(wanted, have)
        };
        let network = |wanted: &str| {
            config.endpoints.iter().any(|(name, endpoint)| {
                *name == network::name(wanted)
                    || (wanted.len() >= 12 && endpoint.network.starts_with(wanted))
                    || self.networks.iter().any(|n| n.id == endpoint.network && n.name == wanted)
            }) || config.network_mode == wanted
        };
        let volume = |wanted: &str| config.mounts.iter().any(|m| m.source == wanted || m.target == wanted);
        filters.any("id", |id| container.id.starts_with(id))
            && filters.any("name", |pattern| matches_name(pattern, &container.name))
            && filters.any("status", |word| word == state.status.word())
            && filters.any("exited", |wanted| ended && wanted == code)
            && filters.any("health", |word| word == health)
            && filters.any("isolation", |word| word == "default")
            && (!filters.has("ancestor") || self.ancestors.contains(&config.image_id))
            && self.before.is_none_or(|time| container.created < time)
            && self.since.is_none_or(|time| container.created > time)
            && self.task != Some(true)
            && filters.any("expose", |wanted| config.exposed_ports.iter().any(|have| port(wanted, have)))
            && filters.any("publish", |wanted| config.port_bindings.keys().any(|have| port(wanted, have)))
            && filters.any("network", network)
            && filters.any("volume", volume)
            && filters.labels(&config.labels)
    }
}

const STATUSES: [Status; 7] = [
    Status::Created,
    Status::Running,
    Status::Paused,
    Status::Restarting,
    Status::Exited,
    Status::Removing,
    Status::Dead,
];

/// Whether a port such as `80/tcp` is in a range such as `80-90/tcp`.
fn ranges(wanted: &str, have: &str) -> bool {
    let split = |text: &str| -> Option<(u16, u16, String)> {
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        Some((first.parse().ok()?, last.parse().ok()?, protocol.to_owned()))
    };
    split(wanted).zip(split(have)).is_some_and(|((first, last, wanted), (port, _, have))| {
        wanted == have && (first..=last).contains(&port)
    })
}

#[cfg(test)]
mod tests {
    use engine::model::{ContainerConfig, Endpoint, Outcome, State};

    use super::*;

    fn container() -> Container {
        Container {
            id: "f".repeat(64),
            name: "web".into(),
            created: 5,
            config: ContainerConfig {
                image_id: "sha256:1".into(),
                labels: [("tier".to_owned(), "front".to_owned())].into(),
                exposed_ports: ["80/tcp".to_owned()].into(),
                endpoints: [(
                    "bridge".to_owned(),
                    Endpoint { network: "a".repeat(64), ..Endpoint::default() },
                )]
                .into(),
                ..ContainerConfig::default()
            },
            state: State {
                status: Status::Exited,
                outcome: Some(Outcome { code: 3, ..Outcome::default() }),
                ..State::default()
            },
        }
    }

    #[test]
    fn every_filter_narrows() {
        let container = container();
        let passes = |text: &str| {
            let filters = Filters::parse(text, &KNOWN).unwrap();
            let narrow = Narrow {
                filters: &filters,
                networks: &[],
                ancestors: ["sha256:1".to_owned()].into(),
                before: None,
                since: None,
                task: filters.flag("is-task").unwrap(),
            };
            narrow.passes(&container)
        };
        for yes in [
            "",
            r#"{"id":["ffff"]}"#,
            r#"{"name":["we","x"]}"#,
            r#"{"status":["exited"]}"#,
            r#"{"exited":["3"]}"#,
            r#"{"health":["none"]}"#,
            r#"{"ancestor":["busybox"]}"#,
            r#"{"expose":["80"]}"#,
            r#"{"expose":["70-90/tcp"]}"#,
            r#"{"network":["default"]}"#,
            r#"{"network":["aaaaaaaaaaaa"]}"#,
            r#"{"label":["tier=front"]}"#,
            r#"{"label!":["tier=back"]}"#,
            r#"{"is-task":["false"]}"#,
        ] {
            assert!(passes(yes), "{yes}");
        }
        for no in [
            r#"{"id":["0"]}"#,
            r#"{"name":["^eb"]}"#,
            r#"{"status":["running"]}"#,
            r#"{"exited":["0"]}"#,
            r#"{"health":["healthy"]}"#,
            r#"{"expose":["80/udp"]}"#,
            r#"{"publish":["80"]}"#,
            r#"{"network":["other"]}"#,
            r#"{"volume":["/data"]}"#,
            r#"{"label":["tier=back"]}"#,
            r#"{"label!":["tier"]}"#,
            r#"{"is-task":["true"]}"#,
        ] {
            assert!(!passes(no), "{no}");
        }
    }
}
