//! Transports: how a device's queues reach its driver.

pub mod mmio;
pub mod vhost_user;
