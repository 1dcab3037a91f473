//! `run`: create, attach, wait, start; then the container's streams, signals and exit code are the caller's.

use std::io::{self, IsTerminal};

use api::client::{Client, JsonLines, Method, Target};
use clap::Args;
use engine::timings::Timings;
use serde_json::Value;

use super::create::{self, Image};
use crate::attach::{Foreground, Signals};
use crate::complete;
use crate::failure::Failure;
use crate::options::config::{Streams, streams};
use crate::options::{self, ContainerFlags};
use crate::output;

/// Options of `run`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, override_usage = "bulkhead run [OPTIONS] IMAGE [COMMAND] [ARGUMENT]...")]
pub struct Run {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Let it run by itself, and print its id
    #[arg(short, long)]
    detach: bool,
    /// Keys that detach from it, such as ctrl-p,ctrl-q
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// Pass signals on to the container
    #[arg(long, value_name = "YES", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    #[command(flatten)]
    flags: ContainerFlags,
    /// The image (NAME[:TAG][@DIGEST], oci:DIR[:TAG], oci-archive:FILE or docker-archive:FILE), then the command
    #[arg(value_name = "IMAGE", required = true, trailing_var_arg = true, add = complete::images())]
    image_and_command: Vec<String>,
}

pub async fn execute(client: &Client, args: &Run) -> Result<u8, Failure> {
    let timings = Timings::new();
    let flags = &args.flags;
    if args.detach && !flags.attach.is_empty() {
        let why = "it cannot be detached and attached at once";
        return Err(Failure::option("--attach", "", why, "leave out one of --detach and --attach"));
    }
    let wanted = streams(flags, args.detach)?;
    check_terminal(flags.tty, wanted.stdin)?;
    let (image, command) = create::split(&args.image_and_command);
    let body = options::body(flags, image, command, wanted)?;
    let id = create::create(client, flags, &Image::of(flags, image), &body).await?;
    timings.mark("created");
    if args.detach {
        start(client, &id).await?;
        output::line(&id);
        return Ok(0);
    }
    // From here on a signal is the container's.
    let signals = args.sig_proxy.then(Signals::listen).transpose()?;
    let streams = match wanted {
        Streams { stdin: false, stdout: false, stderr: false } => None,
        wanted => {
            Some(client.hijack(&attach_target(&id, wanted, args.detach_keys.as_deref()), None::<&()>).await?)
        }
    };
    let condition = if flags.end.rm { "removed" } else { "next-exit" };
    let wait = wait(client, &id, condition).await?;
    timings.mark("attached");
    let mut foreground = Foreground::new(client, &id, flags.tty, wanted.stdin, streams);
    if let Some(signals) = signals {
        foreground = foreground.with_signals(signals);
    }
    let start = async {
        let started = start(client, &id).await;
        timings.mark("started");
        started
    };
    let ended = foreground.run(start, wait).await;
    timings.mark("ended");
    ended
}

/// Whether a terminal can be passed on.
///
/// # Errors
/// Standard input is to be a terminal and is none.
pub fn check_terminal(tty: bool, stdin: bool) -> Result<(), Failure> {
    if tty && stdin && !io::stdin().is_terminal() {
        let next = "leave out -t, or run it from a terminal";
        return Err(Failure::option("-it", "", "the input device is not a TTY", next));
    }
    Ok(())
}

/// Where to attach to a container.
pub fn attach_target(id: &str, streams: Streams, detach_keys: Option<&str>) -> Target {
    Target::new(["containers", id, "attach"])
        .with("stream", 1)
        .with("stdin", u8::from(streams.stdin))
        .with("stdout", u8::from(streams.stdout))
        .with("stderr", u8::from(streams.stderr))
        .with_some("detachKeys", detach_keys)
}

/// Begins to wait for a container: when this returns, no end can be missed.
///
/// # Errors
/// There is no such container.
pub async fn wait(client: &Client, id: &str, condition: &str) -> Result<JsonLines<Value>, Failure> {
    let target = Target::new(["containers", id, "wait"]).with("condition", condition);
    Ok(client.lines(Method::POST, &target).await?)
}

/// Starts a container.
///
/// # Errors
/// It cannot be.
pub async fn start(client: &Client, id: &str) -> Result<(), Failure> {
    client.act(Method::POST, &Target::new(["containers", id, "start"])).await?;
    Ok(())
}
