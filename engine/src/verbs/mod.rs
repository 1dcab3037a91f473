//! The engine's verbs, a file each. Those that only look and those of containers that nobody owns are done here; the rest is asked of
//! the container's supervisor.

mod attach;
mod create;
mod exec;
mod files;
mod images;
mod lifecycle;
mod list;
mod logs;
mod networks;
mod recover;
mod remove;
mod update;
pub(crate) use update::overlay;
mod volumes;
mod wait;

pub use attach::Attached;
pub use create::Created;
pub use files::{CommitOptions, Transfer};
pub use logs::{LogLine, LogOptions, LogStream};
pub use networks::NetworkOptions;
pub(crate) use networks::{all_networks, default_network};
pub use volumes::VolumeOptions;
pub use wait::Waiting;
