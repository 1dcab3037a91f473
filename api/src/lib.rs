//! Bulkhead's API: what callers ask for, in their own words, checked and turned into the engine's types.
//!
//! An option that cannot be honoured is refused by name here, before anything is created.

pub mod run;
pub mod units;

pub use engine::{EngineError, RunOptions};
