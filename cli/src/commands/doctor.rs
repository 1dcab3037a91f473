//! `bulkhead doctor`.

use engine::doctor::{self, Verdict};

use crate::connect;
use crate::failure::Failure;
use crate::output;

/// Prints the table; the exit code tells whether any accelerator works.
pub fn execute() -> Result<u8, Failure> {
    let checks = doctor::run(&connect::paths()?);
    output::line(&format!("{:<18}{:<9}{:>10}  DETAIL", "CHECK", "RESULT", "TIME"));
    for check in &checks {
        let time = format!("{:.1} ms", check.time.as_secs_f64() * 1e3);
        output::line(&format!("{:<18}{:<9}{time:>10}  {}", check.name, check.verdict.word(), check.detail));
        if let Some(next) = &check.next {
            output::line(&format!("{:<37}  next: {next}", ""));
        }
    }
    let works = checks.iter().any(|c| c.name.starts_with("accelerator") && c.verdict == Verdict::Good);
    Ok(u8::from(!works))
}
