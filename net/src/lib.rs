//! The switch and gateway of one network of containers: one process in user space, without rights, in a jail.
//!
//! Supervisors bring it cables, each the other end of a machine's network card, and listening sockets of published ports
//! ([`protocol`]). What guests send is hostile: the switch ([`switch`]) takes frames apart ([`frame`]), passes on what is between
//! containers of the network, and terminates the rest at the gateway ([`gateway`]), where rules ([`egress`]) say what may leave. What leaves does so
//! over plain sockets of the host's. See docs/networks.md.

pub mod address;
pub mod cable;
pub mod egress;
pub mod filter;
pub mod frame;
pub mod gateway;
pub mod host;
pub mod jail;
pub mod protocol;
pub mod reactor;
pub mod reason;
pub mod switch;
