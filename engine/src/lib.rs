//! Bulkhead's engine: containers, their state on disk, and the machines they run in.
//!
//! The parts, lowest first: [`error`] (what people are told), [`paths`] (where state and parts lie), [`model`] (what is kept),
//! `database` (where), `directory` and `truth` (a container on disk), [`disk`] (the writable disk), [`accelerator`] (what
//! executes guests here), [`machine`] (the VMM as a process), `spec` (configuration to OCI runtime specification),
//! [`supervisor`] (the process that owns a container), and [`Engine`] with its verbs on top; beside it [`doctor`].

pub mod accelerator;
pub mod client;
mod database;
mod directory;
pub mod disk;
pub mod doctor;
mod engine;
pub mod error;
mod events;
mod ids;
pub mod image;
pub mod machine;
pub mod model;
mod names;
mod network;
pub mod options;
pub mod paths;
pub mod seccomp;
mod share;
pub mod signals;
pub mod spec;
pub mod supervisor;
pub mod time;
pub mod timings;
pub mod trace;
mod truth;
mod verbs;
mod volume_disk;
mod volumes;

pub use crate::engine::Engine;
pub use crate::events::EventStream;
pub use crate::supervisor::wire::{Streams, Until};
pub use crate::verbs::{
    Attached, CommitOptions, Created, LogLine, LogOptions, LogStream, NetworkOptions, Transfer,
    VolumeOptions, Waiting,
};
pub(crate) use database::Database;
pub use error::EngineError;
