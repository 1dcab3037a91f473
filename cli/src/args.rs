//! The command line, with Docker's names and short flags.

use clap::{Args, Parser, Subcommand};

/// Runs every container in its own microVM.
#[derive(Debug, Parser)]
#[command(name = "bulkhead", version, about, max_term_width = 110, subcommand_required = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command in a new container
    Run(Box<Run>),
    /// List containers
    Ps(Ps),
    /// Stop containers: their image's stop signal, then the end of their machine
    Stop(Stop),
    /// Remove containers that do not run
    Rm(Rm),
    /// Serve Docker's API, and Bulkhead's own, until it is told to end
    Serve(Serve),
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

/// Options of `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Keep standard input open and pass it on
    #[arg(short, long)]
    pub interactive: bool,
    /// Allocate a pseudo terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set an environment variable (NAME alone takes the caller's value)
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User, and optionally group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Host name of the container
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Replace the image's entrypoint ("" clears it)
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Remove the container when it ends
    #[arg(long)]
    pub rm: bool,
    /// Memory limit, such as 512m
    #[arg(short, long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// CPU limit, such as 0.5
    #[arg(long, value_name = "N")]
    pub cpus: Option<String>,
    /// What executes the guest: auto, kvm or uml
    #[arg(long, value_name = "A", default_value = "auto")]
    pub accel: String,
    /// The weakest wall accepted: any, or vm for a hardware virtual machine only
    #[arg(long, value_name = "WALL", default_value = "any")]
    pub isolation: String,
    /// oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE or NAME[:TAG][@DIGEST]
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Command and arguments, instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Options of `ps`.
#[derive(Debug, Args)]
pub struct Ps {
    /// Show all containers, not only those that run
    #[arg(short, long)]
    pub all: bool,
    /// Print ids only
    #[arg(short, long)]
    pub quiet: bool,
}

/// Options of `stop`.
#[derive(Debug, Args)]
pub struct Stop {
    /// Seconds to wait before the machine is ended
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    pub time: u32,
    /// Ids, or unambiguous beginnings of them
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Options of `rm`.
#[derive(Debug, Args)]
pub struct Rm {
    /// Ids, or unambiguous beginnings of them
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Options of `serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Where to listen: unix://PATH, tcp://HOST:PORT, or fd:// for sockets of a service manager; repeatable
    #[arg(short = 'H', long, value_name = "ADDRESS")]
    pub host: Vec<String>,
    /// Group that may use the unix socket
    #[arg(short = 'G', long, value_name = "GROUP")]
    pub group: Option<String>,
    /// Directory with ca.pem, cert.pem and key.pem: clients on TCP must show a certificate of this authority
    #[arg(long, value_name = "DIR")]
    pub tls: Option<std::path::PathBuf>,
    /// File with the token that clients on TCP must show
    #[arg(long, value_name = "FILE")]
    pub token: Option<std::path::PathBuf>,
}
