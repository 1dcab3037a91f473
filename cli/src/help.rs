//! The help of the whole: its commands in groups, as Docker's.

use clap::Command;

/// Groups, and what is in them. What is in none is in [`OTHERS`].
const GROUPS: [(&str, &[&str]); 3] = [
    (
        "Common Commands",
        &["run", "exec", "ps", "pull", "push", "images", "login", "logout", "version", "info"],
    ),
    ("Management Commands", &["container", "image", "network", "system", "volume"]),
    ("Bulkhead", &["accelerator", "completion", "doctor", "serve"]),
];
/// The group of the others, and before which one it stands.
const OTHERS: (&str, &str) = ("Commands", "Bulkhead");

/// The text.
pub fn grouped(command: &Command) -> String {
    let known: Vec<&Command> = command.get_subcommands().filter(|c| !c.is_hide_set()).collect();
    let width = known.iter().map(|c| c.get_name().len()).max().unwrap_or(0) + 2;
    let line = |c: &&Command| {
        let about = c.get_about().map(ToString::to_string).unwrap_or_default();
        format!("  {:<width$}{about}\n", c.get_name())
    };
    let mut text = String::from("Usage:  bulkhead [OPTIONS] COMMAND\n\n");
    if let Some(about) = command.get_about() {
        text.push_str(&format!("{about}\n"));
    }
    let mut others: Vec<&&Command> =
        known.iter().filter(|c| !GROUPS.iter().any(|(_, names)| names.contains(&c.get_name()))).collect();
    others.sort_by_key(|c| c.get_name());
    for (title, names) in GROUPS {
        if title == OTHERS.1 {
            text.push_str(&format!("\n{}:\n", OTHERS.0));
            others.iter().for_each(|c| text.push_str(&line(c)));
        }
        text.push_str(&format!("\n{title}:\n"));
        let named = names.iter().filter_map(|name| known.iter().find(|c| c.get_name() == *name));
        named.for_each(|c| text.push_str(&line(c)));
    }
    text.push_str("\nGlobal Options:\n");
    for option in command.get_arguments().filter(|option| !option.is_hide_set()) {
        let short = option.get_short().map_or("    ".to_owned(), |short| format!("-{short}, "));
        let value = option
            .get_value_names()
            .and_then(|names| names.first())
            .filter(|_| option.get_action().takes_values());
        let value = value.map_or(String::new(), |name| format!(" {name}"));
        let name = format!("{short}--{}{value}", option.get_long().unwrap_or_default());
        let about = option.get_help().map(ToString::to_string).unwrap_or_default();
        text.push_str(&format!("  {name:<24}{about}\n"));
    }
    text.push_str("  -h, --help              Print help\n  -V, --version           Print the version\n");
    text.push_str("\nRun 'bulkhead COMMAND --help' for more information on a command.\n");
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn every_command_is_in_one_group() {
        let command = Cli::command();
        let help = grouped(&command);
        for verb in command.get_subcommands() {
            let lines = help.lines().filter(|l| l.starts_with(&format!("  {} ", verb.get_name()))).count();
            assert_eq!(lines, usize::from(!verb.is_hide_set()), "{}", verb.get_name());
        }
        for (_, names) in GROUPS {
            assert!(names.iter().all(|name| help.contains(&format!("\n  {name} "))), "{names:?}");
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
