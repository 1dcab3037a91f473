//! `bulkhead`: containers, each in its own microVM.

mod archive;
mod args;
mod attach;
mod commands;
mod complete;
mod connect;
mod failure;
mod format;
mod help;
mod logging;
mod options;
mod output;
mod progress;
mod report;
mod table;
mod template;
mod terminal;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use clap_complete::CompleteEnv;

fn main() -> ExitCode {
    CompleteEnv::with_factory(args::Cli::command).var(commands::completion::VARIABLE).complete();
    let command = args::Cli::command();
    let text = help::grouped(&command);
    let parsed = command.override_help(text).try_get_matches();
    let cli = match parsed.and_then(|matches| args::Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return report::usage(&error),
    };
    commands::execute(cli)
}
