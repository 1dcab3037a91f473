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

/// Most heaps that glibc makes for threads. Each keeps memory that only its own threads use again, which counts where images are unpacked.
const HEAPS: libc::c_int = 2;

fn main() -> ExitCode {
    // SAFETY: there is no other thread yet, and the option takes a number.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, HEAPS) };
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
