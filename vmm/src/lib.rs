//! Bulkhead's VMM: everything that is a machine's hardware, as a library. `main.rs` is a thin binary on top.
//!
//! The crate knows machines, devices and accelerators; it knows no containers, images or HTTP.
//! The parts, lowest first:
//!
//! - [`config`]: what a machine consists of, as the supervisor describes it;
//! - [`control`]: the socket between supervisor and VMM: one configuration in, an exit report out;
//! - [`virtio`]: every device once, as queue logic that knows no transport;
//! - [`transport`]: how a device's queues reach its driver.

pub mod assemble;
pub mod config;
pub mod console;
pub mod control;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
#[allow(clippy::expect_used, reason = "the world around a device under test")]
pub mod fuzz;
pub mod jail;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod process;
pub mod snapshot;
pub mod transport;
pub mod uml;
pub mod virtio;
