//! `exec`: a further process in a container that runs.

use api::client::{Client, Method, Target};
use clap::Args;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::run::check_terminal;
use crate::attach::{copy, raw_mode};
use crate::complete;
use crate::failure::Failure;
use crate::options::values::{Object, environment};
use crate::terminal;

/// Options of `exec`.
#[derive(Debug, Args)]
#[command(override_usage = "bulkhead exec [OPTIONS] CONTAINER COMMAND [ARGUMENT]...")]
pub struct Exec {
    /// Let it run by itself
    #[arg(short, long)]
    detach: bool,
    /// Keys that detach from it
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// Set an environment variable (NAME alone takes the caller's value)
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<String>,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Allocate a pseudo terminal
    #[arg(short, long)]
    tty: bool,
    /// User, and optionally group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// The container, then the command
    #[arg(value_name = "CONTAINER", required = true, num_args = 2.., trailing_var_arg = true, add = complete::containers())]
    container_and_command: Vec<String>,
}

pub async fn execute(client: &Client, args: &Exec) -> Result<u8, Failure> {
    let (container, command) = super::create::split(&args.container_and_command);
    let stdin = args.interactive && !args.detach;
    check_terminal(args.tty, stdin)?;
    let mut body = Object::default();
    body.set("Cmd", command.to_vec());
    body.set("Env", environment(&args.env_file, &args.env)?);
    body.set("WorkingDir", args.workdir.clone());
    body.set("User", args.user.clone());
    body.set("Tty", args.tty);
    body.set("AttachStdin", stdin);
    body.set("AttachStdout", !args.detach);
    body.set("AttachStderr", !args.detach);
    body.set("DetachKeys", args.detach_keys.clone());
    let created: Value =
        client.post(&Target::new(["containers", container, "exec"]), &Value::from(body)).await?;
    let id = created["Id"].as_str().ok_or_else(|| Failure::answer("a process was made without an id"))?;
    let start = Target::new(["exec", id, "start"]);
    if args.detach {
        client.act_with(Method::POST, &start, &json!({ "Detach": true, "Tty": args.tty })).await?;
        return Ok(0);
    }
    let mut body = Object::default();
    body.put("Detach", false);
    body.put("Tty", args.tty);
    if let (true, Some(size)) = (args.tty, terminal::size()) {
        body.put("ConsoleSize", vec![size.rows, size.columns]);
    }
    let streams = client.hijack(&start, Some(&Value::from(body))).await?;
    let _raw = raw_mode(args.tty && stdin)?;
    if args.tty {
        follow_size(client, id)?;
    }
    // A reader of ours that is gone is no failure of the process; its exit code is what counts.
    let _ = copy(streams, stdin).await;
    let shown: Value = client.get(&Target::new(["exec", id, "json"])).await?;
    // Still running: the keys that detach were typed.
    let code = shown["ExitCode"].as_u64().unwrap_or(0);
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Passes changes of the terminal's size on for as long as this command runs.
fn follow_size(client: &Client, id: &str) -> Result<(), Failure> {
    let mut changes = signal(SignalKind::window_change()).map_err(Failure::io("listening to signals"))?;
    let (client, id) = (client.clone(), id.to_owned());
    tokio::spawn(async move {
        while changes.recv().await.is_some() {
            if let Some(size) = terminal::size() {
                let target =
                    Target::new(["exec", &id, "resize"]).with("h", size.rows).with("w", size.columns);
                // It may just have ended.
                let _ = client.act(Method::POST, &target).await;
            }
        }
    });
    Ok(())
}
