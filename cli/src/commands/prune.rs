//! `container prune`, `image prune`, `volume prune`, `network prune`, `system prune`.

use std::io::{self, BufRead, IsTerminal, Write};

use api::client::{Client, Method, Target};
use clap::Args;
use serde_json::Value;

use super::common::{text, with_filters};
use super::images::print_removed;
use crate::failure::Failure;
use crate::output;
use crate::progress::size;

/// Options of every `prune`.
#[derive(Debug, Default, Args)]
pub struct Prune {
    /// Remove only those that pass, such as until=24h or label=tier=front
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Options of `image prune` and `volume prune`.
#[derive(Debug, Args)]
pub struct PruneAll {
    /// Everything that no container uses, also with a name
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    prune: Prune,
}

/// Options of `system prune`.
#[derive(Debug, Args)]
pub struct PruneSystem {
    /// Volumes without a name, too
    #[arg(long)]
    volumes: bool,
    #[command(flatten)]
    all: PruneAll,
}

/// Asks whether to go on, unless the caller forces it.
fn agreed(args: &Prune, what: &str) -> Result<bool, Failure> {
    if args.force {
        return Ok(true);
    }
    eprint!("WARNING! This will remove {what}.\nAre you sure you want to continue? [y/N] ");
    let _ = io::stderr().flush();
    if !io::stdin().is_terminal() {
        eprintln!();
    }
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(Failure::io("reading the answer"))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Removes what is not used of one kind; returns what the server says of it.
async fn post(client: &Client, kind: &str, args: &Prune, own: &[(&str, &str)]) -> Result<Value, Failure> {
    let target = with_filters(Target::new([kind, "prune"]), &args.filter, own)?;
    Ok(client.ask(Method::POST, &target).await?)
}

fn names(title: &str, list: &Value) {
    let names: Vec<String> = list.as_array().into_iter().flatten().map(text).collect();
    if names.is_empty() {
        return;
    }
    output::line(title);
    names.iter().for_each(|name| output::line(name));
    output::line("");
}

fn reclaimed(bytes: u64) {
    output::line(&format!("Total reclaimed space: {}", size(bytes)));
}

fn bytes(answer: &Value) -> u64 {
    answer["SpaceReclaimed"].as_u64().unwrap_or(0)
}

pub async fn containers(client: &Client, args: &Prune) -> Result<u8, Failure> {
    if agreed(args, "all stopped containers")? {
        let answer = post(client, "containers", args, &[]).await?;
        names("Deleted Containers:", &answer["ContainersDeleted"]);
        reclaimed(bytes(&answer));
    }
    Ok(0)
}

pub async fn images(client: &Client, args: &PruneAll) -> Result<u8, Failure> {
    let what = if args.all {
        "all images without at least one container associated to them"
    } else {
        "all dangling images"
    };
    if agreed(&args.prune, what)? {
        let freed = prune_images(client, args).await?;
        reclaimed(freed);
    }
    Ok(0)
}

async fn prune_images(client: &Client, args: &PruneAll) -> Result<u64, Failure> {
    let dangling = if args.all { "false" } else { "true" };
    let answer = post(client, "images", &args.prune, &[("dangling", dangling)]).await?;
    let removed = answer["ImagesDeleted"].as_array().cloned().unwrap_or_default();
    if !removed.is_empty() {
        output::line("Deleted Images:");
        print_removed(&removed);
        output::line("");
    }
    Ok(bytes(&answer))
}

pub async fn volumes(client: &Client, args: &PruneAll) -> Result<u8, Failure> {
    let what = if args.all {
        "all local volumes not used by at least one container"
    } else {
        "anonymous local volumes not used by at least one container"
    };
    if agreed(&args.prune, what)? {
        reclaimed(prune_volumes(client, &args.prune, args.all).await?);
    }
    Ok(0)
}

async fn prune_volumes(client: &Client, args: &Prune, all: bool) -> Result<u64, Failure> {
    let own: &[(&str, &str)] = if all { &[("all", "true")] } else { &[] };
    let answer = post(client, "volumes", args, own).await?;
    names("Deleted Volumes:", &answer["VolumesDeleted"]);
    Ok(bytes(&answer))
}

pub async fn networks(client: &Client, args: &Prune) -> Result<u8, Failure> {
    if agreed(args, "all custom networks not used by at least one container")? {
        let answer = post(client, "networks", args, &[]).await?;
        names("Deleted Networks:", &answer["NetworksDeleted"]);
    }
    Ok(0)
}

pub async fn system(client: &Client, args: &PruneSystem) -> Result<u8, Failure> {
    let prune = &args.all.prune;
    let images = if args.all.all { "all images without a container" } else { "all dangling images" };
    let volumes = if args.volumes { ", anonymous volumes not used by a container" } else { "" };
    let what = format!("all stopped containers, all networks not used by a container{volumes}, {images}");
    if !agreed(prune, &what)? {
        return Ok(0);
    }
    let answer = post(client, "containers", prune, &[]).await?;
    let mut freed = bytes(&answer);
    names("Deleted Containers:", &answer["ContainersDeleted"]);
    let answer = post(client, "networks", prune, &[]).await?;
    names("Deleted Networks:", &answer["NetworksDeleted"]);
    if args.volumes {
        freed = freed.saturating_add(prune_volumes(client, prune, false).await?);
    }
    freed = freed.saturating_add(prune_images(client, &args.all).await?);
    reclaimed(freed);
    Ok(0)
}
