//! The verbs: a file for each, or for each group of sisters. Every one has its flags and `execute`.

mod create;
mod doctor;
mod ps;
mod pull;
mod rm;
mod run;
mod serve;
mod stop;

use std::process::ExitCode;

use api::client::Client;
use clap::Subcommand;
use engine::accelerator;
use engine::options::{AcceleratorChoice, Isolation};

use crate::args::Cli;
use crate::failure::Failure;
use crate::{connect, logging, report};

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(flatten)]
    Container(ContainerVerb),
    /// List containers
    #[command(visible_alias = "list")]
    Ps(ps::Ps),
    /// Serve Docker's API, and Bulkhead's own, until it is told to end
    Serve(serve::Serve),
    /// Own one container: what the engine starts, not people
    #[command(hide = true)]
    Supervise {
        /// The container's id
        id: String,
    },
    /// Boot a machine on each accelerator and tell what this host can do
    Doctor,
    /// Print the accelerator that --accel auto takes on this host
    Accelerator,
}

/// Verbs of containers, with or without the noun.
#[derive(Debug, Subcommand)]
pub enum ContainerVerb {
    /// Create a container and run it
    Run(Box<run::Run>),
    /// Stop containers: their stop signal, then the end of their machine
    Stop(stop::Stop),
    /// Remove containers
    #[command(visible_alias = "remove")]
    Rm(rm::Rm),
}

/// Executes a command, tells what went wrong, and returns its exit code.
pub fn execute(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Serve(args) => serve::execute(&args).map_err(Failure::of_run),
        Command::Supervise { id } => supervise(&id).map_err(Failure::of_run),
        Command::Doctor => doctor::execute(),
        Command::Accelerator => print_accelerator().map_err(Failure::of_run),
        command => with_client(&cli.global, command),
    };
    ExitCode::from(result.unwrap_or_else(|error| report::error(&error)))
}

/// Executes what speaks to the API. One thread is enough, and quickly started.
fn with_client(global: &crate::args::Global, command: Command) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::io("starting the command"))?;
    let result = runtime.block_on(async {
        let client = connect::client(global)?;
        speak(&client, command).await
    });
    // A read of standard input must not hold up the end.
    runtime.shutdown_background();
    result
}

async fn speak(client: &Client, command: Command) -> Result<u8, Failure> {
    match command {
        Command::Container(verb) => container(client, verb).await,
        Command::Ps(args) => ps::execute(client, &args).await,
        Command::Serve(_) | Command::Supervise { .. } | Command::Doctor | Command::Accelerator => Ok(0),
    }
}

async fn container(client: &Client, verb: ContainerVerb) -> Result<u8, Failure> {
    match verb {
        ContainerVerb::Run(args) => run::execute(client, &args).await.map_err(Failure::of_run),
        ContainerVerb::Stop(args) => stop::execute(client, &args).await,
        ContainerVerb::Rm(args) => rm::execute(client, &args).await,
    }
}

fn supervise(id: &str) -> Result<u8, Failure> {
    // Its standard error is a file beside the container's log.
    logging::begin(logging::Format::Json, logging::Verbosity::Info);
    engine::supervisor::supervise(connect::paths()?, id)?;
    Ok(0)
}

fn print_accelerator() -> Result<u8, Failure> {
    let paths = connect::paths()?;
    let chosen = accelerator::choose(AcceleratorChoice::Auto, Isolation::Any, &paths.cache_files())?;
    crate::output::line(chosen.accelerator.name());
    Ok(0)
}

/// Does something to each of several, tells of each that failed, and goes on. Exit code 1 if one did.
pub async fn each<'a, F>(names: &'a [String], action: impl Fn(&'a str) -> F) -> u8
where
    F: Future<Output = Result<(), Failure>>,
{
    let mut code = 0;
    for name in names {
        if let Err(error) = action(name).await {
            code = report::error(&error).min(1);
        }
    }
    code
}
