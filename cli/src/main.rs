//! `bulkhead`: containers, each in its own microVM.

mod args;
mod attach;
mod commands;
mod complete;
mod connect;
mod failure;
mod logging;
mod options;
mod output;
mod progress;
mod report;
mod table;
mod terminal;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use clap_complete::CompleteEnv;

fn main() -> ExitCode {
    CompleteEnv::with_factory(args::Cli::command).complete();
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return report::usage(&error),
    };
    commands::execute(cli)
}
