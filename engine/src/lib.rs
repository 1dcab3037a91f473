//! Bulkhead's engine: containers, their state on disk, and the machines they run in.
//!
//! The parts, lowest first: [`error`] (what people are told), [`paths`] (where state and parts lie), [`container`]
//! (one directory each), [`disk`] (the writable disk), [`accelerator`] (what executes guests here), [`machine`] (the VMM as a
//! process), [`client`] (the agent's side of the conversation), [`spec`] (image configuration to OCI runtime specification),
//! [`terminal`] and [`stdio`] (the caller's end), `session` (the conversation), and the verbs on top: [`run`], [`stop`], [`doctor`].

pub mod accelerator;
pub mod client;
pub mod container;
pub mod disk;
pub mod doctor;
pub mod error;
pub mod image;
pub mod machine;
pub mod model;
pub mod options;
pub mod paths;
pub mod run;
pub mod seccomp;
mod session;
mod signals;
pub mod spec;
pub mod stdio;
pub mod stop;
pub mod terminal;
mod timings;

pub use error::EngineError;
pub use options::{RunOptions, TerminalMode};
