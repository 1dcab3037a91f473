//! Ports of the host that are passed on to a container. The supervisor binds them and keeps them for the container's life, so that
//! nobody else gets them while a switch is away.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use bulkhead_net::egress::Protocol;
use bulkhead_net::protocol::Published;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, getsockname, listen,
    setsockopt, socket, sockopt,
};

use crate::EngineError;
use crate::model::{Container, PortBinding};

/// How often any free port is looked for that is free for IPv4 and IPv6.
const TRIES: usize = 16;

/// The ports of a container: sockets, and how they are shown.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    pub(crate) sockets: Vec<(Published, OwnedFd)>,
    pub(crate) shown: BTreeMap<String, Vec<PortBinding>>,
}

impl Ports {
    /// Binds all that a container publishes.
    ///
    /// # Errors
    /// One is taken, or not this user's to have.
    pub(crate) fn open(container: &Container) -> Result<Self, EngineError> {
        let config = &container.config;
        let mut ports = Self::default();
        let any = PortBinding { host_ip: String::new(), host_port: String::new() };
        let exposed: BTreeSet<&String> = if config.publish_all_ports {
            config.exposed_ports.iter().filter(|port| !config.port_bindings.contains_key(*port)).collect()
        } else {
            BTreeSet::new()
        };
        let exposed = exposed.into_iter().map(|port| (port, std::slice::from_ref(&any)));
        let wanted = config.port_bindings.iter().map(|(port, list)| (port, list.as_slice()));
        for (name, bindings) in wanted.chain(exposed) {
            let wrong = || EngineError::Invalid(format!("invalid port specification: {name:?}"));
            let (port, protocol) = name.split_once('/').ok_or_else(wrong)?;
            let protocol = match protocol {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                _ => return Err(wrong()),
            };
            let published = Published { protocol, port: port.parse().map_err(|_| wrong())? };
            for binding in bindings {
                let opened =
                    open(protocol, binding).map_err(|(address, error)| refuse(container, address, &error))?;
                for (address, socket) in opened {
                    let shown = PortBinding {
                        host_ip: address.ip().to_string(),
                        host_port: address.port().to_string(),
                    };
                    ports.shown.entry(name.clone()).or_default().push(shown);
                    ports.sockets.push((published, socket));
                }
            }
        }
        Ok(ports)
    }
}

/// The error, in Docker's words.
fn refuse(container: &Container, address: SocketAddr, error: &io::Error) -> EngineError {
    let why = match error.kind() {
        io::ErrorKind::AddrInUse => format!("Bind for {address} failed: port is already allocated"),
        _ => format!("failed to bind host port for {address}: {error}"),
    };
    EngineError::Conflict(format!(
        "driver failed programming external connectivity on endpoint {} ({}): {why}",
        container.name, container.id
    ))
}

type Opened = Vec<(SocketAddr, OwnedFd)>;

/// Opens what one binding asks for: on all addresses of both families, if it names none.
fn open(protocol: Protocol, binding: &PortBinding) -> Result<Opened, (SocketAddr, io::Error)> {
    let unspecified = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let ip: IpAddr = if binding.host_ip.is_empty() {
        unspecified
    } else {
        let wrong = |_| (SocketAddr::new(unspecified, 0), io::Error::from(io::ErrorKind::InvalidInput));
        binding.host_ip.parse().map_err(wrong)?
    };
    let both = binding.host_ip.is_empty();
    let (first, last) = match binding.host_port.split_once('-') {
        Some((first, last)) => (first.parse().unwrap_or(0), last.parse().unwrap_or(0)),
        None => {
            let port: u16 = binding.host_port.parse().unwrap_or(0);
            (port, port)
        }
    };
    let attempts: Vec<u16> = if first == 0 { vec![0; TRIES] } else { (first..=last).collect() };
    let mut refused = None;
    for port in attempts {
        match one(protocol, SocketAddr::new(ip, port), both) {
            Ok(opened) => return Ok(opened),
            Err(error) if error.1.kind() == io::ErrorKind::AddrInUse => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refused.unwrap_or((SocketAddr::new(ip, first), io::ErrorKind::AddrInUse.into())))
}

fn one(protocol: Protocol, address: SocketAddr, both: bool) -> Result<Opened, (SocketAddr, io::Error)> {
    let (address, socket) = bound(protocol, address).map_err(|error| (address, error))?;
    let mut opened = vec![(address, socket)];
    if both {
        let six = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port());
        match bound(protocol, six) {
            Ok(six) => opened.push(six),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err((six, error)),
            // The host has no IPv6.
            Err(_) => {}
        }
    }
    Ok(opened)
}

fn bound(protocol: Protocol, address: SocketAddr) -> io::Result<(SocketAddr, OwnedFd)> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind = if protocol == Protocol::Tcp { SockType::Stream } else { SockType::Datagram };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    if protocol == Protocol::Tcp {
        // Connections of a former container may still be ending.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    let port = match address {
        SocketAddr::V4(v4) => {
            bind(socket.as_raw_fd(), &SockaddrIn::from(v4))?;
            getsockname::<SockaddrIn>(socket.as_raw_fd())?.port()
        }
        SocketAddr::V6(v6) => {
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            bind(socket.as_raw_fd(), &SockaddrIn6::from(v6))?;
            getsockname::<SockaddrIn6>(socket.as_raw_fd())?.port()
        }
    };
    if protocol == Protocol::Tcp {
        listen(&socket, Backlog::MAXALLOWABLE)?;
    }
    Ok((SocketAddr::new(address.ip(), port), socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(ip: &str, port: &str) -> PortBinding {
        PortBinding { host_ip: ip.into(), host_port: port.into() }
    }

    #[test]
    fn a_port_that_is_taken_is_refused_and_a_range_goes_on() {
        let first = open(Protocol::Tcp, &binding("127.0.0.1", "")).unwrap();
        let port = first[0].0.port();
        assert_ne!(port, 0);
        let (address, error) = open(Protocol::Tcp, &binding("127.0.0.1", &port.to_string())).unwrap_err();
        assert_eq!((address.port(), error.kind()), (port, io::ErrorKind::AddrInUse));
        if let Some(last) = port.checked_add(8) {
            let next = open(Protocol::Tcp, &binding("127.0.0.1", &format!("{port}-{last}"))).unwrap();
            assert!(next[0].0.port() > port);
        }
    }

    #[test]
    fn no_address_is_all_of_both_families() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let opened = open(protocol, &binding("", "")).unwrap();
            assert!(opened[0].0.ip().is_ipv4());
            if let Some((six, _)) = opened.get(1) {
                assert_eq!(six.port(), opened[0].0.port());
            }
        }
    }
}
