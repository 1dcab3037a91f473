//! Docker's JSON and the engine's types, in both directions.

pub mod create;
pub mod health;
pub mod host_config;
pub mod inspect;
pub mod limits;
pub mod mounts;
pub mod network;
pub mod ports;
pub mod refused;
pub mod security;
pub mod summary;
