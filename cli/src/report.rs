//! What people read when something goes wrong: what happened, why, what to do next.

use std::process::ExitCode;

use clap::error::ErrorKind;
use engine::EngineError;
use engine::error::{EXIT_ENGINE, Hint};

/// Prints an error and returns its exit code.
pub fn error(error: &EngineError) -> ExitCode {
    if let Some(console) = error.console() {
        eprintln!("--- the guest's last console lines");
        for line in console.lines() {
            eprintln!("    {line}");
        }
        eprintln!("---");
    }
    let advice = error.advice();
    three_lines(&error.to_string(), &advice.why, &advice.next);
    ExitCode::from(error.exit_code())
}

/// Prints what a person should know about a container that did run.
pub fn hint(hint: &Hint) {
    three_lines(&hint.what, &hint.advice.why, &hint.advice.next);
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
    let tip = text.lines().find_map(|l| l.trim().strip_prefix("tip: "));
    three_lines("the command line is not understood", why, tip.unwrap_or("bulkhead --help"));
    ExitCode::from(EXIT_ENGINE)
}

fn three_lines(what: &str, why: &str, next: &str) {
    eprintln!("bulkhead: {what}");
    eprintln!("why: {why}");
    eprintln!("next: {next}");
}
