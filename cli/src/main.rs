//! `bulkhead`: containers, each in its own microVM.

mod args;
mod commands;
mod report;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return report::usage(&error),
    };
    match commands::execute(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => report::error(&error),
    }
}
