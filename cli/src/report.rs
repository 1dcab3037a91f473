//! What people read when something goes wrong: what happened, why, what to do next.

use std::process::ExitCode;

use clap::error::ErrorKind;
use engine::error::EXIT_ENGINE;

use crate::failure::Failure;
use crate::output::plain;

/// Prints an error and returns its exit code.
pub fn error(error: &Failure) -> u8 {
    if let Some(console) = error.console() {
        eprintln!("--- the guest's last console lines");
        for line in console.lines() {
            eprintln!("    {}", plain(line));
        }
        eprintln!("---");
    }
    let (why, next) = error.advice();
    three_lines(&error.to_string(), &why, &next);
    error.exit_code()
}

/// Prints a mistake in the command line. Help and version are no mistakes.
pub fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(EXIT_ENGINE);
    }
    let text = error.to_string();
    let why = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
    // What is missing stands on lines of its own.
    let missing = text.lines().skip(1).take_while(|line| line.starts_with("  ")).map(str::trim);
    let why = std::iter::once(why).chain(missing).collect::<Vec<_>>().join(" ");
    let tip = text.lines().find_map(|l| l.trim().strip_prefix("tip: "));
    three_lines("the command line is not understood", &why, tip.unwrap_or("bulkhead --help"));
    ExitCode::from(EXIT_ENGINE)
}

/// Prints three lines about something that a person should know.
pub fn three_lines(what: &str, why: &str, next: &str) {
    eprintln!("bulkhead: {}", plain(what));
    eprintln!("why: {}", plain(why));
    eprintln!("next: {}", plain(next));
}
