//! `start` and `attach`.

use api::client::{Client, Target};
use clap::Args;
use serde_json::Value;

use super::{each, run};
use crate::attach::{Foreground, Signals};
use crate::complete;
use crate::failure::Failure;
use crate::options::config::Streams;
use crate::output;

/// Options of `start`.
#[derive(Debug, Args)]
pub struct Start {
    /// Attach to its output, and pass signals on
    #[arg(short, long)]
    attach: bool,
    /// Attach to its input, too
    #[arg(short, long)]
    interactive: bool,
    /// Keys that detach from it
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// Names, ids, or unambiguous beginnings of ids
    #[arg(required = true, value_name = "CONTAINER", add = complete::containers())]
    containers: Vec<String>,
}

/// Options of `attach`.
#[derive(Debug, Args)]
pub struct Attach {
    /// Leave its input alone
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on to the container
    #[arg(long, value_name = "YES", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// Keys that detach from it
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// Name, id, or an unambiguous beginning of the id
    #[arg(value_name = "CONTAINER", add = complete::containers())]
    container: String,
}

pub async fn start(client: &Client, args: &Start) -> Result<u8, Failure> {
    if !args.attach && !args.interactive {
        let start = async |name: &str| {
            run::start(client, name).await?;
            output::line(name);
            Ok(())
        };
        return Ok(each(&args.containers, start).await);
    }
    let [name] = args.containers.as_slice() else {
        let why = "one command has the streams of one container";
        return Err(Failure::option("--attach", "", why, "start the others without it"));
    };
    let shown: Value = client.get(&Target::new(["containers", name, "json"])).await?;
    let keys = args.detach_keys.as_deref();
    let foreground = foreground(client, name, &shown, args.interactive, true, keys).await?;
    let condition = if shown["HostConfig"]["AutoRemove"] == true { "removed" } else { "next-exit" };
    let wait = run::wait(client, name, condition).await?;
    foreground.run(run::start(client, name), wait).await.map_err(Failure::of_run)
}

pub async fn attach(client: &Client, args: &Attach) -> Result<u8, Failure> {
    let name = args.container.as_str();
    let shown: Value = client.get(&Target::new(["containers", name, "json"])).await?;
    match shown["State"]["Status"].as_str() {
        Some("running") => {}
        Some("paused") => return Err(engine::EngineError::Paused(name.to_owned()).into()),
        _ => return Err(engine::EngineError::NotRunning(name.to_owned()).into()),
    }
    let wait = run::wait(client, name, "not-running").await?;
    let keys = args.detach_keys.as_deref();
    let foreground = foreground(client, name, &shown, !args.no_stdin, args.sig_proxy, keys).await?;
    foreground.resize();
    foreground.run(async { Ok(()) }, wait).await
}

/// The streams of a container that was created before.
async fn foreground(
    client: &Client,
    name: &str,
    shown: &Value,
    input: bool,
    proxy: bool,
    keys: Option<&str>,
) -> Result<Foreground, Failure> {
    let is = |field: &str| shown["Config"][field] == true;
    let streams = Streams { stdin: input && is("OpenStdin"), stdout: true, stderr: true };
    run::check_terminal(is("Tty"), streams.stdin)?;
    let signals = proxy.then(Signals::listen).transpose()?;
    let hijacked = client.hijack(&run::attach_target(name, streams, keys), None::<&()>).await?;
    let foreground = Foreground::new(client, name, is("Tty"), streams.stdin, Some(hijacked));
    Ok(match signals {
        Some(signals) => foreground.with_signals(signals),
        None => foreground,
    })
}
