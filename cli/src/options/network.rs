//! Networks and ports: `--network`, `-p`, `--expose`, `--dns`, `--add-host`.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use super::flags::NetworkFlags;
use super::values::{Object, fields};
use crate::failure::Failure;

/// Most ports that one option may name.
const MAX_PORTS: usize = 4096;

/// Puts what belongs there into a `HostConfig`.
///
/// # Errors
/// A port is malformed.
pub fn set(flags: &NetworkFlags, host: &mut Object) -> Result<(), Failure> {
    if let Some(first) = flags.network.first() {
        host.set("NetworkMode", place(first)?.0);
    }
    let mut bindings = Map::new();
    for text in &flags.publish {
        for (port, binding) in publish(text)? {
            let list = bindings.entry(port).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                list.push(binding);
            }
        }
    }
    host.set("PortBindings", bindings);
    host.set("PublishAllPorts", flags.publish_all);
    host.set("Dns", flags.dns.clone());
    host.set("DnsOptions", flags.dns_option.clone());
    host.set("DnsSearch", flags.dns_search.clone());
    host.set("ExtraHosts", flags.add_host.clone());
    Ok(())
}

/// `NetworkingConfig`: the places in networks.
///
/// # Errors
/// A network is malformed, or has an option twice.
pub fn endpoints(flags: &NetworkFlags) -> Result<Value, Failure> {
    let mut places = Map::new();
    for (number, text) in flags.network.iter().enumerate() {
        let (name, mut place) = place(text)?;
        if number == 0 {
            own(flags, &mut place);
        }
        places.insert(name, place.into());
    }
    if flags.network.is_empty() {
        let mut place = Object::default();
        own(flags, &mut place);
        let place = Value::from(place);
        if place != json!({}) {
            places.insert("default".to_owned(), place);
        }
    }
    // A name alone is said by the network mode.
    if places.len() == 1 && places.values().all(|place| *place == json!({})) {
        return Ok(Value::Null);
    }
    Ok(if places.is_empty() { Value::Null } else { json!({ "EndpointsConfig": places }) })
}

/// What flags of their own say about the first network.
fn own(flags: &NetworkFlags, place: &mut Object) {
    place.set("Aliases", flags.network_alias.clone());
    let mut addresses = Object::default();
    addresses.set("IPv4Address", flags.ip.clone());
    addresses.set("IPv6Address", flags.ip6.clone());
    place.set("IPAMConfig", addresses);
    place.set("MacAddress", flags.mac_address.clone());
}

/// One `--network`: a name, or fields.
fn place(text: &str) -> Result<(String, Object), Failure> {
    let mut place = Object::default();
    if !text.contains("name=") {
        return Ok((text.to_owned(), place));
    }
    let bad = |why: &str| Failure::option("--network", text, why, "write name=NETWORK,alias=NAME");
    let (mut network, mut aliases, mut addresses, mut options) =
        (None, Vec::new(), Object::default(), Map::new());
    for (name, value) in fields("--network", text)? {
        let value = value.ok_or_else(|| bad(&format!("{name} has no value")))?;
        match name.as_str() {
            "name" => network = Some(value),
            "alias" => aliases.push(value),
            "ip" => addresses.set("IPv4Address", value),
            "ip6" => addresses.set("IPv6Address", value),
            "mac-address" => place.set("MacAddress", value),
            "driver-opt" => {
                let (option, value) = value.split_once('=').ok_or_else(|| bad("driver-opt has no value"))?;
                options.insert(option.to_owned(), value.into());
            }
            other => return Err(bad(&format!("there is no field {other}"))),
        }
    }
    place.set("Aliases", aliases);
    place.set("IPAMConfig", addresses);
    place.set("DriverOpts", options);
    Ok((network.ok_or_else(|| bad("it has no name"))?, place))
}

/// `ExposedPorts`: those of `--expose`. Published ones are exposed anyway.
///
/// # Errors
/// A port is malformed.
pub fn exposed(flags: &NetworkFlags) -> Result<Value, Failure> {
    let mut ports = Map::new();
    for text in &flags.expose {
        let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let range = range(numbers).ok_or_else(|| bad_port("--expose", text))?;
        for port in range {
            ports.insert(format!("{port}/{protocol}"), json!({}));
        }
    }
    Ok(Value::Object(ports))
}

fn bad_port(option: &str, text: &str) -> Failure {
    Failure::option(option, text, "it is not a port, or a range of them", "write it as 8080:80")
}

/// One `-p`: ports of the container, each with where it is published.
fn publish(text: &str) -> Result<Vec<(String, Value)>, Failure> {
    let bad = || bad_port("--publish", text);
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (address, ports) = address(ports).ok_or_else(bad)?;
    let (outer, inner) = match ports.rsplit_once(':') {
        Some((outer, inner)) => (outer, inner),
        None => ("", ports),
    };
    let inner = range(inner).ok_or_else(bad)?;
    let binding = |host_port: String| json!({ "HostIp": address, "HostPort": host_port });
    let key = |port: u16| format!("{port}/{protocol}");
    if outer.is_empty() {
        return Ok(inner.map(|port| (key(port), binding(String::new()))).collect());
    }
    let free = range(outer).ok_or_else(bad)?;
    match (free.len(), inner.len()) {
        (a, b) if a == b => Ok(free.zip(inner).map(|(o, i)| (key(i), binding(o.to_string()))).collect()),
        // Any free one of these.
        (_, 1) => Ok(inner.map(|port| (key(port), binding(outer.to_owned()))).collect()),
        _ => Err(Failure::option("--publish", text, "the ranges are not of one length", "make them so")),
    }
}

/// The address in front of the ports, if there is one: `127.0.0.1:`, `[::1]:`.
fn address(text: &str) -> Option<(String, &str)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, ports) = rest.split_once("]:")?;
        return address.parse::<IpAddr>().ok().map(|a| (a.to_string(), ports));
    }
    if text.matches(':').count() < 2 {
        return Some((String::new(), text));
    }
    let (address, ports) = text.split_once(':')?;
    if address.is_empty() {
        return Some((String::new(), ports));
    }
    address.parse::<IpAddr>().ok().map(|a| (a.to_string(), ports))
}

/// A port, or the first and the last.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    (first <= last && usize::from(last - first) < MAX_PORTS).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_p() {
        let read = |text: &str| {
            let list = publish(text).unwrap();
            let one = |(port, b): (String, Value)| {
                format!("{port}@{}:{}", b["HostIp"].as_str().unwrap(), b["HostPort"].as_str().unwrap())
            };
            list.into_iter().map(one).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(read("80"), "80/tcp@:");
        assert_eq!(read("8080:80"), "80/tcp@:8080");
        assert_eq!(read("127.0.0.1:8080:80/udp"), "80/udp@127.0.0.1:8080");
        assert_eq!(read("127.0.0.1::80"), "80/tcp@127.0.0.1:");
        assert_eq!(read("[::1]:8080:80"), "80/tcp@::1:8080");
        assert_eq!(read("8080-8081:80-81"), "80/tcp@:8080 81/tcp@:8081");
        assert_eq!(read("8080-8090:80"), "80/tcp@:8080-8090");
        for bad in ["", "x", "0", "70000", "1-2:3-5", "2-1", "here:1:2", "[::1:1:2", "1:2:3:4", ":"] {
            assert!(publish(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks_are_names_or_fields() {
        let flags = |network: &[&str]| NetworkFlags {
            network: network.iter().map(|n| (*n).to_owned()).collect(),
            ..NetworkFlags::default()
        };
        assert_eq!(endpoints(&flags(&["back"])).unwrap(), Value::Null);
        assert_eq!(endpoints(&flags(&[])).unwrap(), Value::Null);
        let read = endpoints(&flags(&["name=back,alias=db,ip=10.0.0.2", "front"])).unwrap();
        assert_eq!(read["EndpointsConfig"]["back"]["Aliases"], json!(["db"]));
        assert_eq!(read["EndpointsConfig"]["back"]["IPAMConfig"]["IPv4Address"], "10.0.0.2");
        assert_eq!(read["EndpointsConfig"]["front"], json!({}));
        let mut aliased = flags(&[]);
        aliased.network_alias = vec!["db".into()];
        assert_eq!(endpoints(&aliased).unwrap()["EndpointsConfig"]["default"]["Aliases"], json!(["db"]));
        assert!(endpoints(&flags(&["name=,what=x"])).is_err());
    }
}
