//! A container's places in networks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bollard_stubs::models::{EndpointIpamConfig, EndpointSettings, NetworkSettings};
use engine::model::{Container, ContainerConfig, Endpoint, Place};

use super::ports;
use crate::error::ApiError;
use crate::fields::Fields;

/// The network that containers are in if nothing else is said.
pub const DEFAULT_NETWORK: &str = "bridge";

/// Reads a `NetworkMode`.
///
/// # Errors
/// It asks for a network that is not a machine's own.
pub fn mode(text: &str) -> Result<String, ApiError> {
    let refused = |why: &str, next: &str| Err(ApiError::refused(&format!("--network {text}"), why, next));
    match text {
        "" | "default" | DEFAULT_NETWORK => Ok("default".into()),
        "host" => refused(
            "a machine has a network card of its own; it cannot be in the host's network",
            "publish its ports with -p, or use a network of its own",
        ),
        _ if text.starts_with("container:") => refused(
            "each container is a machine with a network card of its own",
            "attach both containers to one network; they find each other by name",
        ),
        _ if text.starts_with("ns:") => {
            refused("a machine has no network namespace of the host", "leave it out")
        }
        name => Ok(name.to_owned()),
    }
}

/// The name of a network: `default` is another name for [`DEFAULT_NETWORK`].
#[must_use]
pub fn name(text: &str) -> String {
    if text == "default" { DEFAULT_NETWORK.into() } else { text.to_owned() }
}

/// Reads the settings of an endpoint.
///
/// # Errors
/// An address is malformed.
pub fn endpoint(fields: &mut Fields) -> Result<Endpoint, ApiError> {
    let mut ipam = fields.object("IPAMConfig")?;
    let endpoint = Endpoint {
        aliases: fields.take("Aliases")?,
        ipv4: ipam.take("IPv4Address")?,
        ipv6: ipam.take("IPv6Address")?,
        mac: fields.take("MacAddress")?,
        options: fields.take("DriverOpts")?,
        ..Endpoint::default()
    };
    ipam.finish(&[])?;
    // What an answer of the server has and clients send back.
    fields.forget(&[
        "NetworkID",
        "EndpointID",
        "Gateway",
        "IPAddress",
        "IPPrefixLen",
        "IPv6Gateway",
        "GlobalIPv6Address",
        "GlobalIPv6PrefixLen",
        "DNSNames",
    ]);
    let bad = |address: &str| ApiError::bad(format!("invalid address: {address}"));
    if !endpoint.ipv4.is_empty() && endpoint.ipv4.parse::<Ipv4Addr>().is_err() {
        return Err(bad(&endpoint.ipv4));
    }
    if !endpoint.ipv6.is_empty() && endpoint.ipv6.parse::<Ipv6Addr>().is_err() {
        return Err(bad(&endpoint.ipv6));
    }
    let hex = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
    if !endpoint.mac.is_empty() && (endpoint.mac.split(':').count() != 6 || !endpoint.mac.split(':').all(hex))
    {
        return Err(bad(&endpoint.mac));
    }
    Ok(endpoint)
}

/// Checks name servers and lines of /etc/hosts.
///
/// # Errors
/// One is malformed.
pub fn addresses(servers: &[String], hosts: &[String]) -> Result<(), ApiError> {
    if let Some(server) = servers.iter().find(|server| server.parse::<IpAddr>().is_err()) {
        return Err(ApiError::bad(format!("IP address is not correctly formatted: {server}")));
    }
    for line in hosts {
        let (name, address) = line.split_once([':', '=']).unwrap_or((line, ""));
        let address = address.trim_start_matches('[').trim_end_matches(']');
        let known = address == "host-gateway" || address.parse::<IpAddr>().is_ok();
        if name.is_empty() || name.contains(char::is_whitespace) || !known {
            return Err(ApiError::bad(format!("bad format for add-host: \"{line}\"")));
        }
    }
    Ok(())
}

/// Checks endpoints against the mode: a container without network is in none.
///
/// # Errors
/// It is to be in a network all the same.
pub fn check(config: &mut ContainerConfig) -> Result<(), ApiError> {
    if config.network_mode != "none" {
        return Ok(());
    }
    config.endpoints.remove("none");
    match config.endpoints.keys().next() {
        Some(name) => Err(ApiError::bad(format!(
            "conflicting options: cannot attach both the network none and the network {name}"
        ))),
        None => Ok(()),
    }
}

/// What a container has in the network of an endpoint now: nothing, if it does not run.
#[must_use]
pub fn place(endpoint: &Endpoint, container: &Container) -> Place {
    let places = container.state.places.values();
    places.into_iter().find(|place| place.network == endpoint.network).cloned().unwrap_or_default()
}

/// One endpoint as `inspect` shows it.
#[must_use]
pub fn show(endpoint: &Endpoint, container: &Container) -> EndpointSettings {
    let running = container.state.status.is_running();
    let place = place(endpoint, container);
    let when_running = |text: &str| Some(if running { text.to_owned() } else { String::new() });
    let wanted = !(endpoint.ipv4.is_empty() && endpoint.ipv6.is_empty());
    let short = container.id.get(..12).unwrap_or(&container.id);
    let mut names = vec![container.name.clone()];
    names.extend(endpoint.aliases.iter().cloned());
    names.push(short.to_owned());
    EndpointSettings {
        ipam_config: wanted.then(|| EndpointIpamConfig {
            ipv4_address: Some(endpoint.ipv4.clone()).filter(|text| !text.is_empty()),
            ipv6_address: Some(endpoint.ipv6.clone()).filter(|text| !text.is_empty()),
            link_local_ips: None,
        }),
        aliases: (!endpoint.aliases.is_empty()).then(|| endpoint.aliases.clone()),
        mac_address: Some(place.mac),
        driver_opts: (!endpoint.options.is_empty()).then(|| endpoint.options.clone().into_iter().collect()),
        network_id: Some(endpoint.network.clone()),
        // One container has one place in a network: its id names the place.
        endpoint_id: when_running(&container.id),
        gateway: Some(if place.internal { String::new() } else { place.gateway }),
        ip_address: Some(place.ipv4),
        ip_prefix_len: Some(place.ipv4_prefix.into()),
        ipv6_gateway: Some(if place.internal { String::new() } else { place.gateway6 }),
        global_ipv6_address: Some(place.ipv6),
        global_ipv6_prefix_len: Some(place.ipv6_prefix.into()),
        dns_names: Some(names),
        ..EndpointSettings::default()
    }
}

/// All endpoints of a container.
#[must_use]
pub fn endpoints(container: &Container) -> std::collections::HashMap<String, EndpointSettings> {
    container
        .config
        .endpoints
        .iter()
        .map(|(name, endpoint)| (name.clone(), show(endpoint, container)))
        .collect()
}

/// `NetworkSettings` as `inspect` shows them.
#[must_use]
pub fn settings(container: &Container) -> NetworkSettings {
    let endpoints = endpoints(container);
    let first = endpoints.get(DEFAULT_NETWORK).cloned().unwrap_or_default();
    let sandbox = if container.state.status.is_running() { container.id.clone() } else { String::new() };
    NetworkSettings {
        bridge: Some(String::new()),
        sandbox_id: Some(sandbox),
        sandbox_key: Some(String::new()),
        hairpin_mode: Some(false),
        link_local_ipv6_address: Some(String::new()),
        link_local_ipv6_prefix_len: Some(0),
        ports: Some(ports::current(container)),
        endpoint_id: Some(first.endpoint_id.unwrap_or_default()),
        gateway: Some(first.gateway.unwrap_or_default()),
        global_ipv6_address: Some(first.global_ipv6_address.unwrap_or_default()),
        global_ipv6_prefix_len: Some(first.global_ipv6_prefix_len.unwrap_or_default()),
        ip_address: Some(first.ip_address.unwrap_or_default()),
        ip_prefix_len: Some(first.ip_prefix_len.unwrap_or_default()),
        ipv6_gateway: Some(String::new()),
        mac_address: Some(first.mac_address.unwrap_or_default()),
        networks: Some(endpoints),
        ..NetworkSettings::default()
    }
}
