//! What a container's places in networks are made of: addresses, ports of the host, resolvers, rules.

pub(crate) mod addresses;
pub(crate) mod kernel;
pub(crate) mod ports;
pub(crate) mod resolver;
pub(crate) mod rules;
