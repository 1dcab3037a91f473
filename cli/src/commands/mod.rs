//! The verbs: a file for each group of sisters. Every one has its flags and what executes them.

mod common;
pub mod completion;
mod cp;
mod create;
mod doctor;
mod exec;
mod files;
mod images;
mod inspect;
mod login;
mod logs;
mod look;
mod network;
mod prune;
mod ps;
mod run;
mod serve;
mod start;
mod state;
mod stats;
mod system;
mod transfer;
mod update;
mod volume;

use std::process::ExitCode;

use api::client::Client;
use clap::Subcommand;
use engine::accelerator;
use engine::options::{AcceleratorChoice, Isolation};

use crate::args::{Cli, Global};
use crate::failure::Failure;
use crate::{connect, logging, report};
use inspect::Kind;

/// The verbs.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant)] // there is one, and it is not passed around
pub enum Command {
    #[command(flatten)]
    Container(ContainerVerb),
    /// List containers
    Ps(ps::Ps),
    #[command(flatten)]
    Image(ImageVerb),
    /// List images
    Images(images::Images),
    /// Remove images
    Rmi(images::Rmi),
    /// Show everything about containers, images, volumes or networks
    Inspect(inspect::Inspect),
    /// Log in to a registry
    Login(login::Login),
    /// Log out of a registry
    Logout(login::Logout),
    /// Show what happens
    Events(system::Events),
    /// Tell about the engine and the host
    Info(system::Format),
    /// Tell the versions of command and engine
    Version(system::Format),
    /// Manage containers
    #[command(name = "container", subcommand)]
    ContainerNoun(ContainerNoun),
    /// Manage images
    #[command(name = "image", subcommand)]
    ImageNoun(ImageNoun),
    /// Manage volumes
    #[command(subcommand)]
    Volume(volume::Volume),
    /// Manage networks
    #[command(subcommand)]
    Network(network::Network),
    /// Manage the whole
    #[command(subcommand)]
    System(system::System),
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
    /// Print what makes a shell complete commands and names
    Completion(completion::Completion),
}

/// Verbs of containers, with or without the noun.
#[derive(Debug, Subcommand)]
pub enum ContainerVerb {
    /// Create a container and run it
    Run(Box<run::Run>),
    /// Create a container
    Create(Box<create::Create>),
    /// Start containers
    Start(start::Start),
    /// Attach to the streams of a container that runs
    Attach(start::Attach),
    /// Run a further process in a container
    Exec(exec::Exec),
    /// Show what a container wrote
    Logs(logs::Logs),
    /// Stop containers: their stop signal, then the end of their machine
    Stop(state::Stop),
    /// Stop containers and start them again
    Restart(state::Stop),
    /// Send containers a signal, else end them
    Kill(state::Kill),
    /// Freeze the processes of containers
    Pause(state::Names),
    /// Let frozen processes go on
    Unpause(state::Names),
    /// Wait for containers to end, and print their exit codes
    Wait(state::Names),
    /// Rename a container
    Rename(state::Rename),
    /// Remove containers
    Rm(state::Rm),
    /// Copy files between a container and here
    Cp(cp::Cp),
    /// Tell which files a container changed
    Diff(look::Diff),
    /// Write a container's files as a tar archive
    Export(files::Export),
    /// Make an image of what a container wrote
    Commit(files::Commit),
    /// List published ports
    Port(look::Port),
    /// List the processes of a container
    Top(look::Top),
    /// Tell what containers use
    Stats(stats::Stats),
    /// Change limits and restart policy of containers
    Update(Box<update::Update>),
}

/// `container`.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant)] // as `Command`
pub enum ContainerNoun {
    #[command(flatten)]
    Verb(ContainerVerb),
    /// List containers
    #[command(visible_aliases = ["ps", "list"])]
    Ls(ps::Ps),
    /// Show everything about containers
    Inspect(inspect::Inspect),
    /// Remove containers that do not run
    Prune(prune::Prune),
}

/// Verbs of images, with or without the noun.
#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// Pull an image from a registry, or make a file's image ready
    Pull(transfer::Pull),
    /// Push an image to its registry
    Push(transfer::Push),
    /// Load images from an archive
    Load(transfer::Load),
    /// Write images as an archive
    Save(transfer::Save),
    /// Make an image of a tar archive of files
    Import(transfer::Import),
    /// Give an image a further name
    Tag(images::Tag),
    /// Tell how an image was made
    History(images::History),
}

/// `image`.
#[derive(Debug, Subcommand)]
pub enum ImageNoun {
    #[command(flatten)]
    Verb(ImageVerb),
    /// List images
    #[command(visible_alias = "list")]
    Ls(images::Images),
    /// Show everything about images
    Inspect(inspect::Inspect),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(images::Rmi),
    /// Remove images that no container is made of
    Prune(prune::PruneAll),
}

/// Executes a command, tells what went wrong, and returns its exit code.
pub fn execute(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Serve(args) => serve::execute(&args).map_err(Failure::of_run),
        Command::Supervise { id } => supervise(&id).map_err(Failure::of_run),
        Command::Doctor => doctor::execute(),
        Command::Accelerator => print_accelerator().map_err(Failure::of_run),
        Command::Logout(args) => login::logout(&args),
        Command::Completion(args) => completion::execute(&args),
        command => with_client(&cli.global, command),
    };
    ExitCode::from(result.unwrap_or_else(|error| report::error(&error)))
}

/// Executes what speaks to the API. One thread is enough, and quickly started.
fn with_client(global: &Global, command: Command) -> Result<u8, Failure> {
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
        Command::Container(verb) | Command::ContainerNoun(ContainerNoun::Verb(verb)) => {
            container(client, verb).await
        }
        Command::Ps(args) | Command::ContainerNoun(ContainerNoun::Ls(args)) => {
            ps::execute(client, &args).await
        }
        Command::ContainerNoun(ContainerNoun::Inspect(args)) => {
            inspect::execute(client, &args, Some(Kind::Container)).await
        }
        Command::ContainerNoun(ContainerNoun::Prune(args)) => prune::containers(client, &args).await,
        Command::Image(verb) | Command::ImageNoun(ImageNoun::Verb(verb)) => image(client, verb).await,
        Command::Images(args) | Command::ImageNoun(ImageNoun::Ls(args)) => images::list(client, &args).await,
        Command::ImageNoun(ImageNoun::Inspect(args)) => {
            inspect::execute(client, &args, Some(Kind::Image)).await
        }
        Command::Rmi(args) | Command::ImageNoun(ImageNoun::Rm(args)) => images::rmi(client, &args).await,
        Command::ImageNoun(ImageNoun::Prune(args)) => prune::images(client, &args).await,
        Command::Inspect(args) => inspect::execute(client, &args, None).await,
        Command::Login(args) => login::login(client, &args).await,
        Command::Events(args) => system::events(client, &args).await,
        Command::Info(args) => system::info(client, &args).await,
        Command::Version(args) => system::version(client, &args).await,
        Command::Volume(verb) => volume::execute(client, &verb).await,
        Command::Network(verb) => network::execute(client, &verb).await,
        Command::System(verb) => system::execute(client, &verb).await,
        // These need no client, and have been executed.
        Command::Serve(_)
        | Command::Supervise { .. }
        | Command::Doctor
        | Command::Accelerator
        | Command::Completion(_)
        | Command::Logout(_) => Ok(0),
    }
}

async fn container(client: &Client, verb: ContainerVerb) -> Result<u8, Failure> {
    use ContainerVerb as V;
    match verb {
        V::Run(args) => run::execute(client, &args).await.map_err(Failure::of_run),
        V::Create(args) => create::execute(client, &args).await,
        V::Start(args) => start::start(client, &args).await,
        V::Attach(args) => start::attach(client, &args).await,
        V::Exec(args) => exec::execute(client, &args).await,
        V::Logs(args) => logs::execute(client, &args).await,
        V::Stop(args) => state::stop(client, &args, "stop").await,
        V::Restart(args) => state::stop(client, &args, "restart").await,
        V::Kill(args) => state::kill(client, &args).await,
        V::Pause(args) => state::pause(client, &args, "pause").await,
        V::Unpause(args) => state::pause(client, &args, "unpause").await,
        V::Wait(args) => state::wait(client, &args).await,
        V::Rename(args) => state::rename(client, &args).await,
        V::Rm(args) => state::rm(client, &args).await,
        V::Cp(args) => cp::execute(client, &args).await,
        V::Diff(args) => look::diff(client, &args).await,
        V::Export(args) => files::export(client, &args).await,
        V::Commit(args) => files::commit(client, &args).await,
        V::Port(args) => look::port(client, &args).await,
        V::Top(args) => look::top(client, &args).await,
        V::Stats(args) => stats::execute(client, &args).await,
        V::Update(args) => update::execute(client, &args).await,
    }
}

async fn image(client: &Client, verb: ImageVerb) -> Result<u8, Failure> {
    use ImageVerb as V;
    match verb {
        V::Pull(args) => transfer::pull(client, &args).await,
        V::Push(args) => transfer::push(client, &args).await,
        V::Load(args) => transfer::load(client, &args).await,
        V::Save(args) => transfer::save(client, &args).await,
        V::Import(args) => transfer::import(client, &args).await,
        V::Tag(args) => images::tag(client, &args).await,
        V::History(args) => images::history(client, &args).await,
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
