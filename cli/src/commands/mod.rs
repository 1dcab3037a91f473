//! The verbs, a file each.

mod doctor;
mod ps;
mod rm;
mod run;
mod serve;
mod stop;

use engine::EngineError;
use engine::accelerator;
use engine::options::{AcceleratorChoice, Isolation};
use engine::paths::Paths;

use crate::args::Command;

/// Executes a command and returns its exit code.
pub fn execute(command: Command) -> Result<u8, EngineError> {
    let paths = Paths::from_environment()?;
    match command {
        Command::Run(args) => run::execute(&paths, *args),
        Command::Ps(args) => ps::execute(&paths, &args),
        Command::Stop(args) => stop::execute(&paths, &args),
        Command::Rm(args) => rm::execute(&paths, &args),
        Command::Serve(args) => serve::execute(paths, &args),
        Command::Supervise { id } => engine::supervisor::supervise(paths, &id).map(|()| 0),
        Command::Doctor => Ok(doctor::execute(&paths)),
        Command::Accelerator => {
            let chosen = accelerator::choose(AcceleratorChoice::Auto, Isolation::Any, &paths.cache_files())?;
            println!("{}", chosen.accelerator.name());
            Ok(0)
        }
    }
}
