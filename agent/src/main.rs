//! PID 1 of a Bulkhead machine; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("bulkhead-agent: this is PID 1 of a Bulkhead machine; there is nothing for it to do here");
        eprintln!("why: it was started as process {}", std::process::id());
        eprintln!("next: use `bulkhead run IMAGE`");
        return ExitCode::from(125);
    }
    let Err(error) = agent::guest::run();
    agent::guest::report(&error);
    ExitCode::FAILURE
}
