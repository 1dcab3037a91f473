//! `bulkhead ps`.

use engine::EngineError;
use engine::container::{Containers, Description, State, now};
use engine::paths::Paths;

use crate::args::Ps;

/// Most characters of a command in the table.
const COMMAND_WIDTH: usize = 20;

pub fn execute(paths: &Paths, args: &Ps) -> Result<u8, EngineError> {
    let containers = Containers::new(paths.root().join("run")).list()?;
    let shown = containers.iter().filter(|c| args.all || matches!(c.state, State::Running | State::Created));
    if args.quiet {
        shown.for_each(|c| println!("{}", c.short_id()));
        return Ok(0);
    }
    let row = |cells: [&str; 5]| {
        println!("{:<14}{:<30}{:<24}{:<26}{}", cells[0], cells[1], cells[2], cells[3], cells[4]);
    };
    row(["CONTAINER ID", "IMAGE", "COMMAND", "STATUS", "BOUNDARY"]);
    for c in shown {
        row([
            c.short_id(),
            &c.image,
            &command(c),
            &status(c),
            &format!("{} ({})", c.accelerator, c.boundary),
        ]);
    }
    Ok(0)
}

fn command(container: &Description) -> String {
    let mut text = container.command.join(" ");
    if text.chars().count() > COMMAND_WIDTH {
        text = text.chars().take(COMMAND_WIDTH - 1).chain(['…']).collect();
    }
    format!("\"{text}\"")
}

fn status(container: &Description) -> String {
    match &container.state {
        State::Created => "Created".to_owned(),
        State::Running => format!("Up {}", ago(now().saturating_sub(container.created))),
        State::Exited { code, finished, .. } => {
            format!("Exited ({code}) {} ago", ago(now().saturating_sub(*finished)))
        }
    }
}

fn ago(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_words() {
        assert_eq!(ago(1), "1 second");
        assert_eq!(ago(119), "1 minute");
        assert_eq!(ago(7200), "2 hours");
        assert_eq!(ago(200_000), "2 days");
    }
}
