//! Log lines of the daemon and of supervisors, on standard error: text for people or JSON for programs, with the id of the request
//! that each belongs to.

use std::io;

use clap::ValueEnum;
use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Verbosity {
    Error,
    Warn,
    Info,
    Debug,
}

impl From<Verbosity> for LevelFilter {
    fn from(verbosity: Verbosity) -> Self {
        Self::from_level(match verbosity {
            Verbosity::Error => Level::ERROR,
            Verbosity::Warn => Level::WARN,
            Verbosity::Info => Level::INFO,
            Verbosity::Debug => Level::DEBUG,
        })
    }
}

/// Begins to log. What is said before is lost.
pub fn begin(format: Format, verbosity: Verbosity) {
    let lines = fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        // Else a log on a full disk would end whatever wanted to say something.
        .log_internal_errors(false)
        .with_max_level(LevelFilter::from(verbosity));
    match format {
        Format::Text => lines.init(),
        Format::Json => lines.json().flatten_event(true).with_current_span(false).init(),
    }
}
