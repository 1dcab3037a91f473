//! Verbs that change where containers are in their life: `stop`, `restart`, `kill`, `pause`, `unpause`, `wait`, `rename`, `rm`.

use api::client::{Client, Method, Target};
use clap::Args;
use serde_json::Value;

use super::{each, run};
use crate::complete;
use crate::failure::Failure;
use crate::output;

/// Options of `stop` and `restart`.
#[derive(Debug, Args)]
pub struct Stop {
    /// Signal to send first, instead of the container's own
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Seconds to wait before the machine is ended (-1: as long as it takes)
    #[arg(short, long, visible_alias = "time", value_name = "SECONDS", allow_negative_numbers = true)]
    timeout: Option<i64>,
    /// Names, ids, or unambiguous beginnings of ids
    #[arg(required = true, value_name = "CONTAINER", add = complete::containers())]
    containers: Vec<String>,
}

/// Options of `kill`.
#[derive(Debug, Args)]
pub struct Kill {
    /// Signal to send
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    /// Names, ids, or unambiguous beginnings of ids
    #[arg(required = true, value_name = "CONTAINER", add = complete::containers())]
    containers: Vec<String>,
}

/// Some containers.
#[derive(Debug, Args)]
pub struct Names {
    /// Names, ids, or unambiguous beginnings of ids
    #[arg(required = true, value_name = "CONTAINER", add = complete::containers())]
    containers: Vec<String>,
}

/// Options of `rename`.
#[derive(Debug, Args)]
pub struct Rename {
    /// Its name or id
    #[arg(value_name = "CONTAINER", add = complete::containers())]
    container: String,
    /// Its new name
    #[arg(value_name = "NAME")]
    name: String,
}

/// Options of `rm`.
#[derive(Debug, Args)]
pub struct Rm {
    /// End containers that run, too
    #[arg(short, long)]
    force: bool,
    /// Remove their volumes without a name, too
    #[arg(short, long)]
    volumes: bool,
    /// Names, ids, or unambiguous beginnings of ids
    #[arg(required = true, value_name = "CONTAINER", add = complete::containers())]
    containers: Vec<String>,
}

/// Does something to each container, and prints its name.
async fn posted(client: &Client, names: &[String], target: impl Fn(&str) -> Target) -> u8 {
    let post = async |name: &str| {
        client.act(Method::POST, &target(name)).await?;
        output::line(name);
        Ok(())
    };
    each(names, post).await
}

pub async fn stop(client: &Client, args: &Stop, verb: &str) -> Result<u8, Failure> {
    let target = |name: &str| {
        Target::new(["containers", name, verb])
            .with_some("signal", args.signal.as_deref())
            .with_some("t", args.timeout)
    };
    Ok(posted(client, &args.containers, target).await)
}

pub async fn kill(client: &Client, args: &Kill) -> Result<u8, Failure> {
    let target = |name: &str| Target::new(["containers", name, "kill"]).with("signal", &args.signal);
    Ok(posted(client, &args.containers, target).await)
}

/// `pause` and `unpause`.
pub async fn pause(client: &Client, args: &Names, verb: &str) -> Result<u8, Failure> {
    Ok(posted(client, &args.containers, |name| Target::new(["containers", name, verb])).await)
}

pub async fn wait(client: &Client, args: &Names) -> Result<u8, Failure> {
    let wait = async |name: &str| {
        let mut answer = run::wait(client, name, "not-running").await?;
        let end: Value = answer.next().await?.ok_or_else(|| Failure::answer("the end was not told"))?;
        output::line(&end["StatusCode"].to_string());
        Ok(())
    };
    Ok(each(&args.containers, wait).await)
}

pub async fn rename(client: &Client, args: &Rename) -> Result<u8, Failure> {
    let target = Target::new(["containers", &args.container, "rename"]).with("name", &args.name);
    client.act(Method::POST, &target).await?;
    Ok(0)
}

pub async fn rm(client: &Client, args: &Rm) -> Result<u8, Failure> {
    let remove = async |name: &str| {
        let target = Target::new(["containers", name])
            .with("force", u8::from(args.force))
            .with("v", u8::from(args.volumes));
        client.act(Method::DELETE, &target).await?;
        output::line(name);
        Ok(())
    };
    Ok(each(&args.containers, remove).await)
}
