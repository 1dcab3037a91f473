//! Ports: `80/tcp`, bindings, and how they are listed.

use std::collections::BTreeMap;

use bollard_stubs::models::{Port, PortBinding as DockerBinding, PortMap, PortTypeEnum};
use engine::model::{Container, PortBinding};

use crate::error::ApiError;
use crate::fields::Fields;

/// Most ports of one container.
const MAX_PORTS: usize = 4096;

/// A port with its protocol: `80` and `80/TCP` are `80/tcp`.
///
/// # Errors
/// It is not a port, or has a protocol that is not passed on.
pub fn normal(text: &str) -> Result<String, ApiError> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if port.parse::<u16>().ok().filter(|&port| port != 0).is_none() {
        return Err(ApiError::bad(format!("invalid port specification: {text:?}")));
    }
    match protocol.as_str() {
        "tcp" | "udp" => Ok(format!("{port}/{protocol}")),
        "sctp" => Err(ApiError::refused(
            &format!("port {text}"),
            "networks here pass TCP, UDP and ICMP on",
            "publish a port of tcp or udp",
        )),
        _ => Err(ApiError::bad(format!("invalid port specification: {text:?}: unknown protocol"))),
    }
}

/// Reads `PortBindings`.
///
/// # Errors
/// A port or an address is malformed.
pub fn bindings(fields: &mut Fields) -> Result<BTreeMap<String, Vec<PortBinding>>, ApiError> {
    #[derive(serde::Deserialize, Default)]
    #[serde(default, rename_all = "PascalCase")]
    struct Wire {
        host_ip: Option<String>,
        host_port: Option<String>,
    }
    let wire: BTreeMap<String, Option<Vec<Wire>>> = fields.take("PortBindings")?;
    let mut read: BTreeMap<String, Vec<PortBinding>> = BTreeMap::new();
    for (port, bindings) in wire {
        let port = normal(&port)?;
        // An empty list publishes the port on any free one, as Docker does.
        let bindings = bindings.filter(|list| !list.is_empty()).unwrap_or_else(|| vec![Wire::default()]);
        for binding in bindings {
            let (host_ip, host_port) =
                (binding.host_ip.unwrap_or_default(), binding.host_port.unwrap_or_default());
            if !host_ip.is_empty() && host_ip.parse::<std::net::IpAddr>().is_err() {
                return Err(ApiError::bad(format!("invalid IP address {host_ip:?} for port {port}")));
            }
            if !is_range(&host_port) {
                return Err(ApiError::bad(format!("invalid port specification: {host_port:?}")));
            }
            read.entry(port.clone()).or_default().push(PortBinding { host_ip, host_port });
        }
    }
    if read.values().map(Vec::len).sum::<usize>() > MAX_PORTS {
        return Err(ApiError::bad(format!("a container publishes at most {MAX_PORTS} ports")));
    }
    Ok(read)
}

/// Nothing, a port, or the first and the last of a range.
fn is_range(text: &str) -> bool {
    let port = |text: &str| text.parse::<u16>().ok();
    match text.split_once('-') {
        None => text.is_empty() || port(text).is_some(),
        Some((first, last)) => port(first).zip(port(last)).is_some_and(|(first, last)| first <= last),
    }
}

/// Bindings as `inspect` shows them.
#[must_use]
pub fn map(bindings: &BTreeMap<String, Vec<PortBinding>>) -> PortMap {
    let binding = |binding: &PortBinding| DockerBinding {
        host_ip: Some(binding.host_ip.clone()),
        host_port: Some(binding.host_port.clone()),
    };
    bindings.iter().map(|(port, list)| (port.clone(), Some(list.iter().map(binding).collect()))).collect()
}

/// Ports as `NetworkSettings` shows them: what is passed on now, and what is only exposed.
#[must_use]
pub fn current(container: &Container) -> PortMap {
    let mut ports: PortMap = container.config.exposed_ports.iter().map(|port| (port.clone(), None)).collect();
    if container.state.status.is_running() {
        ports.extend(map(&container.state.ports));
        return ports;
    }
    PortMap::new()
}

/// Ports as `ps` shows them, lowest first.
#[must_use]
pub fn list(container: &Container) -> Vec<Port> {
    let mut ports = Vec::new();
    for (port, bindings) in current(container) {
        let (number, protocol) = port.split_once('/').unwrap_or((port.as_str(), "tcp"));
        let Ok(private_port) = number.parse() else { continue };
        let typ = Some(if protocol == "udp" { PortTypeEnum::UDP } else { PortTypeEnum::TCP });
        let plain = Port { private_port, typ, ..Port::default() };
        match bindings {
            None => ports.push(plain),
            Some(bindings) => ports.extend(bindings.into_iter().map(|binding| Port {
                ip: binding.host_ip.map(|ip| if ip.is_empty() { "0.0.0.0".into() } else { ip }),
                public_port: binding.host_port.and_then(|port| port.parse().ok()),
                ..plain.clone()
            })),
        }
    }
    ports.sort_by_key(|port| (port.private_port, port.public_port));
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_a_number_and_a_protocol() {
        assert_eq!(normal("80").unwrap(), "80/tcp");
        assert_eq!(normal("53/UDP").unwrap(), "53/udp");
        for bad in ["", "0", "65536", "x/tcp", "80/icmp", "80-90/tcp"] {
            assert_eq!(normal(bad).unwrap_err().status, 400, "{bad}");
        }
        assert!(normal("80/sctp").unwrap_err().body.message.starts_with("port 80/sctp cannot be done"));
        assert!(is_range("") && is_range("80") && is_range("80-90"));
        assert!(!is_range("90-80") && !is_range("x") && !is_range("80-") && !is_range("70000"));
    }

    #[test]
    fn bindings_are_read() {
        let body = r#"{"PortBindings":{"80":[{"HostIp":"127.0.0.1","HostPort":"8080"},{"HostPort":""}],"81/udp":null}}"#;
        let read = bindings(&mut Fields::new(serde_json::from_str(body).unwrap())).unwrap();
        assert_eq!(read["80/tcp"].len(), 2);
        assert_eq!(read["80/tcp"][0], PortBinding { host_ip: "127.0.0.1".into(), host_port: "8080".into() });
        assert_eq!(read["81/udp"], [PortBinding { host_ip: String::new(), host_port: String::new() }]);
        for bad in [
            r#"{"PortBindings":{"80":[{"HostIp":"here"}]}}"#,
            r#"{"PortBindings":{"80":[{"HostPort":"9-8"}]}}"#,
        ] {
            assert!(bindings(&mut Fields::new(serde_json::from_str(bad).unwrap())).is_err(), "{bad}");
        }
    }
}
