//! `bulkhead run`.

use std::env;
use std::io::{self, IsTerminal};

use api::run::RunRequest;
use engine::paths::Paths;
use engine::run::{self, Observer};
use engine::{EngineError, RunOptions};
use image_unpack::{Event, Progress};

use crate::args::Run;
use crate::report;

pub fn execute(paths: &Paths, args: Run) -> Result<u8, EngineError> {
    let options = RunOptions::try_from(request(args))?;
    if options.interactive && options.terminal == engine::TerminalMode::Allocate && !io::stdin().is_terminal()
    {
        return Err(EngineError::Option {
            option: "-it".to_owned(),
            why: "the input device is not a TTY".to_owned(),
            next: "leave out -t, or run it from a terminal".to_owned(),
        });
    }
    let outcome = run::run(paths, &options, &Console)?;
    if let Some(hint) = outcome.hint {
        report::hint(&hint);
    }
    Ok(outcome.code)
}

fn request(args: Run) -> RunRequest {
    RunRequest {
        image: args.image,
        command: args.command,
        entrypoint: args.entrypoint,
        env: args.env.into_iter().filter_map(with_value).collect(),
        workdir: args.workdir,
        user: args.user,
        hostname: args.hostname,
        interactive: args.interactive,
        terminal: args.tty,
        auto_remove: args.rm,
        memory: args.memory,
        cpus: args.cpus,
        accelerator: Some(args.accel),
        isolation: Some(args.isolation),
    }
}

/// A name alone stands for the caller's own variable; an unset one is left out, as with Docker.
fn with_value(entry: String) -> Option<String> {
    if entry.contains('=') || entry.is_empty() {
        return Some(entry);
    }
    env::var(&entry).ok().map(|value| format!("{entry}={value}"))
}

/// Tells the person at the terminal what happens, on standard error.
struct Console;

impl Observer for Console {
    fn notice(&self, line: &str) {
        eprintln!("bulkhead: {line}");
    }

    fn progress(&self) -> &dyn Progress {
        self
    }
}

impl Progress for Console {
    fn event(&self, event: Event) {
        match event {
            Event::Resolved { layers, .. } => eprintln!("bulkhead: making the image ready ({layers} layers)"),
            Event::LayerDone { layer, .. } => eprintln!("bulkhead: layer {} is ready", layer + 1),
            Event::Retry { reason, attempt } => {
                eprintln!("bulkhead: trying again (attempt {attempt}): {reason}");
            }
            _ => {}
        }
    }
}
