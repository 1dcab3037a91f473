//! What `run` and `create` may be told, and the request that they make of it.
//!
//! [`flags`] has the words of the command line. The others turn them into the body of `containers/create`: [`config`] (the
//! process), [`host`] (what it may use), [`mounts`], [`network`] (and ports), with [`values`] for quantities and files.

pub mod config;
pub mod flags;
pub mod host;
pub mod mounts;
pub mod network;
pub mod values;

pub use config::{body, image_name};
pub use flags::ContainerFlags;
