//! `bulkhead doctor`.

use engine::doctor::{self, Verdict};
use engine::paths::Paths;

/// Prints the table; the exit code tells whether any accelerator works.
pub fn execute(paths: &Paths) -> u8 {
    let checks = doctor::run(paths);
    println!("{:<18}{:<9}{:>10}  DETAIL", "CHECK", "RESULT", "TIME");
    for check in &checks {
        let time = format!("{:.1} ms", check.time.as_secs_f64() * 1e3);
        println!("{:<18}{:<9}{time:>10}  {}", check.name, check.verdict.word(), check.detail);
        if let Some(next) = &check.next {
            println!("{:<37}  next: {next}", "");
        }
    }
    let works = checks.iter().any(|c| c.name.starts_with("accelerator") && c.verdict == Verdict::Good);
    u8::from(!works)
}
