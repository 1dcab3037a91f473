//! The command line: what comes before the verb, and the verb.

use std::path::PathBuf;

use clap::{Args, Parser};

use crate::commands::Command;

/// Runs every container in its own microVM.
#[derive(Debug, Parser)]
#[command(name = "bulkhead", version, about, max_term_width = 110, subcommand_required = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for every verb.
#[derive(Debug, Clone, Default, Args)]
pub struct Global {
    /// Daemon to speak to: unix:///PATH or tcp://HOST:PORT [env: BULKHEAD_HOST]
    #[arg(short = 'H', long, value_name = "ADDRESS")]
    pub host: Option<String>,
    /// Directory with ca.pem, cert.pem and key.pem, for a daemon on TCP
    #[arg(long, value_name = "DIR")]
    pub tls: Option<PathBuf>,
    /// File with the token that a daemon on TCP wants to be shown
    #[arg(long, value_name = "FILE")]
    pub token: Option<PathBuf>,
}
