//! The gateway: what leaves a network, flow by flow, over sockets of the host's. Parts that know no switch.

pub mod datagrams;
pub mod dns;
pub mod stream;

use std::net::SocketAddr;

use crate::egress::Protocol;

/// What tells a flow from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Whose it is.
    pub member: u64,
    /// What it speaks.
    pub protocol: Protocol,
    /// The container's end; of ICMP, the identifier is the port.
    pub guest: SocketAddr,
    /// The other end, as the container sees it.
    pub remote: SocketAddr,
}
