//! Networks.

use std::collections::HashMap;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use bollard_stubs::models::{
    ConfigReference, Ipam, IpamConfig, Network as DockerNetwork, NetworkContainer, NetworkCreateResponse,
    NetworkPruneResponse,
};
use engine::model::{Container, Endpoint, Network, Subnet};
use engine::{EngineError, NetworkOptions};

use super::Answer;
use super::containers::until;
use crate::App;
use crate::body::{JsonBody, empty, json, json_with};
use crate::error::ApiError;
use crate::fields::{Fields, Refusal};
use crate::filters::matches_name;
use crate::query::Query;
use crate::times;
use crate::translate::network;
use crate::translate::refused::REFUSED;

/// Networks that are always there.
const BUILT_IN: [&str; 3] = ["bridge", "host", "none"];

const SWARM: &str = "there is no cluster: networks are of this host";
const OWN_REFUSED: [Refusal; 3] = [
    Refusal { field: "Ingress", option: "--ingress", neutral: &[], why: SWARM, instead: "leave it out" },
    Refusal {
        field: "ConfigOnly",
        option: "--config-only",
        neutral: &[],
        why: SWARM,
        instead: "leave it out",
    },
    Refusal {
        field: "ConfigFrom",
        option: "--config-from",
        neutral: &[],
        why: SWARM,
        instead: "leave it out",
    },
];

pub fn routes() -> Router<App> {
    Router::new()
        .route("/networks", get(list))
        .route("/networks/create", post(create))
        .route("/networks/prune", post(prune))
        .route("/networks/{id}", get(inspect).delete(remove))
        .route("/networks/{id}/connect", post(connect))
        .route("/networks/{id}/disconnect", post(disconnect))
}

/// A container's place in a network.
fn place<'a>(container: &'a Container, network: &Network) -> Option<&'a Endpoint> {
    let endpoints = &container.config.endpoints;
    endpoints.iter().find(|(name, e)| e.network == network.id || **name == network.name).map(|(_, e)| e)
}

/// A network as clients read it; with the containers in it that run, if they are given.
fn show(network: &Network, containers: &[Container]) -> DockerNetwork {
    let subnet = |subnet: &Subnet| IpamConfig {
        subnet: Some(subnet.subnet.clone()),
        ip_range: Some(subnet.range.clone()).filter(|range| !range.is_empty()),
        gateway: Some(subnet.gateway.clone()).filter(|gateway| !gateway.is_empty()),
        auxiliary_addresses: None,
    };
    let with_prefix = |address: &str, prefix: u8| {
        Some(if address.is_empty() { String::new() } else { format!("{address}/{prefix}") })
    };
    let running = containers.iter().filter(|container| container.state.status.is_running());
    let inside = running.filter_map(|container| {
        let place = network::place(place(container, network)?, container);
        let shown = NetworkContainer {
            name: Some(container.name.clone()),
            endpoint_id: Some(container.id.clone()),
            mac_address: Some(place.mac.clone()),
            ipv4_address: with_prefix(&place.ipv4, place.ipv4_prefix),
            ipv6_address: with_prefix(&place.ipv6, place.ipv6_prefix),
        };
        Some((container.id.clone(), shown))
    });
    DockerNetwork {
        name: Some(network.name.clone()),
        id: Some(network.id.clone()),
        created: Some(times::rfc3339(network.created)),
        scope: Some("local".into()),
        driver: Some(network.driver.clone()),
        enable_ipv4: Some(true),
        enable_ipv6: Some(network.ipv6),
        ipam: Some(Ipam {
            driver: Some("default".into()),
            config: Some(network.subnets.iter().map(subnet).collect()),
            options: Some(HashMap::new()),
        }),
        internal: Some(network.internal),
        attachable: Some(network.attachable),
        ingress: Some(false),
        config_from: Some(ConfigReference { network: Some(String::new()) }),
        config_only: Some(false),
        containers: Some(inside.collect()),
        options: Some(network.options.clone().into_iter().collect()),
        labels: Some(network.labels.clone().into_iter().collect()),
        peers: None,
    }
}

async fn list(State(app): State<App>, query: Query) -> Answer {
    let filters = query.filters(&["dangling", "driver", "id", "label", "label!", "name", "scope", "type"])?;
    let dangling = filters.flag("dangling")?;
    for kind in filters.values("type") {
        if !matches!(kind.as_str(), "custom" | "builtin") {
            return Err(ApiError::bad(format!("invalid filter: 'type'='{kind}'")));
        }
    }
    let containers = app.engine.containers()?;
    let passes = |network: &Network| {
        let built_in = BUILT_IN.contains(&network.name.as_str());
        let used = containers.iter().any(|container| place(container, network).is_some());
        dangling.is_none_or(|wanted| wanted == (!used && !built_in))
            && filters.any("driver", |driver| driver == network.driver)
            && filters.any("id", |id| network.id.starts_with(id))
            && filters.any("name", |pattern| matches_name(pattern, &network.name))
            && filters.any("scope", |scope| scope == "local")
            && filters.any("type", |kind| (kind == "builtin") == built_in)
            && filters.labels(&network.labels)
    };
    let networks = app.engine.networks()?;
    json(
        &networks
            .iter()
            .filter(|network| passes(network))
            .map(|network| show(network, &[]))
            .collect::<Vec<_>>(),
    )
}

async fn inspect(State(app): State<App>, Path(id): Path<String>, query: Query) -> Answer {
    if let Some(scope) = query.text("scope").filter(|scope| *scope != "local") {
        return Err(ApiError::not_found(format!("network {id} not found in scope {scope}")));
    }
    json(&show(&app.engine.network(&id)?, &app.engine.containers()?))
}

fn options(mut body: Fields) -> Result<NetworkOptions, ApiError> {
    let name: String = body.take("Name")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if !first || name.len() > 255 || !name.bytes().all(plain) {
        return Err(ApiError::bad(format!(
            "invalid network name \"{name:.64}\": only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )));
    }
    let driver = body.text("Driver")?.unwrap_or_else(|| "bridge".into());
    if driver != "bridge" {
        return Err(ApiError::refused(
            &format!("--driver {driver}"),
            "networks are of this host, with addresses of their own",
            "use bridge",
        ));
    }
    if let Some(scope) = body.text("Scope")?.filter(|scope| scope != "local") {
        return Err(ApiError::refused(&format!("--scope {scope}"), SWARM, "use local"));
    }
    if body.take::<Option<bool>>("EnableIPv4")? == Some(false) {
        return Err(ApiError::refused("--ipv4=false", "every network has IPv4 addresses", "leave it out"));
    }
    let mut ipam = body.object("IPAM")?;
    if let Some(driver) = ipam.text("Driver")?.filter(|driver| driver != "default") {
        return Err(ApiError::refused(
            &format!("--ipam-driver {driver}"),
            "addresses are given by the network",
            "leave it out",
        ));
    }
    let mut subnets = Vec::new();
    for mut entry in ipam.objects("Config")? {
        subnets.push(Subnet {
            subnet: entry.take("Subnet")?,
            range: entry.take("IPRange")?,
            gateway: entry.take("Gateway")?,
        });
        entry.finish(&[])?;
    }
    ipam.finish(&[])?;
    let options = NetworkOptions {
        name,
        driver,
        subnets,
        internal: body.take("Internal")?,
        ipv6: body.take::<Option<bool>>("EnableIPv6")?.unwrap_or_default(),
        attachable: body.take("Attachable")?,
        labels: body.take("Labels")?,
        options: body.take("Options")?,
    };
    // Names are unique here whatever clients ask.
    body.forget(&["CheckDuplicate"]);
    body.finish(&OWN_REFUSED)?;
    Ok(options)
}

async fn create(State(app): State<App>, body: JsonBody) -> Answer {
    let network = app.engine.create_network(options(body.fields()?)?)?;
    json_with(StatusCode::CREATED, &NetworkCreateResponse { id: network.id, warning: String::new() })
}

async fn remove(State(app): State<App>, Path(id): Path<String>) -> Answer {
    app.engine.remove_network(&id)?;
    Ok(empty(StatusCode::NO_CONTENT))
}

async fn connect(State(app): State<App>, Path(id): Path<String>, body: JsonBody) -> Answer {
    let mut fields = body.fields()?;
    let container: String = fields.take("Container")?;
    let mut settings = fields.object("EndpointConfig")?;
    let endpoint = network::endpoint(&mut settings)?;
    settings.finish(&REFUSED)?;
    fields.finish(&[])?;
    app.engine.connect(&id, &container, endpoint).await?;
    Ok(empty(StatusCode::OK))
}

async fn disconnect(State(app): State<App>, Path(id): Path<String>, body: JsonBody) -> Answer {
    let mut fields = body.fields()?;
    let (container, force): (String, bool) = (fields.take("Container")?, fields.take("Force")?);
    fields.finish(&[])?;
    app.engine.disconnect(&id, &container, force).await?;
    Ok(empty(StatusCode::OK))
}

async fn prune(State(app): State<App>, query: Query) -> Answer {
    let filters = query.filters(&["label", "label!", "until"])?;
    let until = until(&filters)?;
    let containers = app.engine.containers()?;
    let mut deleted = Vec::new();
    for network in app.engine.networks()? {
        let used = containers.iter().any(|container| place(container, &network).is_some());
        let young = until.is_some_and(|time| network.created >= time);
        if used || young || BUILT_IN.contains(&network.name.as_str()) || !filters.labels(&network.labels) {
            continue;
        }
        match app.engine.remove_network(&network.id) {
            Ok(()) => deleted.push(network.name),
            // Someone uses it, or removed it, just now.
            Err(EngineError::NetworkInUse { .. } | EngineError::NoNetwork(_)) => {}
            Err(other) => return Err(other.into()),
        }
    }
    json(&NetworkPruneResponse { networks_deleted: Some(deleted) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_read() {
        let read = |json: &str| options(Fields::new(serde_json::from_str(json).unwrap()));
        let full = read(
            r#"{"Name":"front","CheckDuplicate":true,"Driver":"bridge","EnableIPv6":false,"IPAM":{"Driver":"default",
                "Config":[{"Subnet":"172.30.0.0/16","Gateway":"172.30.0.1"}],"Options":{}},"Internal":true,"ConfigFrom":null}"#,
        );
        let full = full.unwrap();
        assert!(full.internal && full.subnets[0].gateway == "172.30.0.1");
        for (bad, word) in [
            (r#"{"Name":""}"#, "invalid network name"),
            (r#"{"Name":"a","Driver":"overlay"}"#, "--driver overlay cannot be done"),
            (r#"{"Name":"a","Ingress":true}"#, "--ingress cannot be done"),
            (r#"{"Name":"a","EnableIPv4":false}"#, "--ipv4=false cannot be done"),
            (r#"{"Name":"a","IPAM":{"Driver":"dhcp"}}"#, "--ipam-driver dhcp cannot be done"),
            (
                r#"{"Name":"a","IPAM":{"Config":[{"AuxiliaryAddresses":{"x":"1"}}]}}"#,
                "AuxiliaryAddresses cannot",
            ),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.status == 400 && error.body.message.contains(word), "{error:?}");
        }
    }
}
