//! `logs`.

use api::client::{Client, Target};
use clap::Args;
use serde_json::Value;

use super::common::point;
use crate::attach::receive;
use crate::complete;
use crate::failure::Failure;

/// Options of `logs`.
#[derive(Debug, Args)]
pub struct Logs {
    /// Go on with what is yet to come
    #[arg(short, long)]
    follow: bool,
    /// Lines from the end
    #[arg(short = 'n', long, value_name = "N", default_value = "all")]
    tail: String,
    /// From this time on (such as 10m, or 2026-01-02T03:04:05Z)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Up to this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// With the time of each line
    #[arg(short, long)]
    timestamps: bool,
    /// With details, of which there are none here
    #[arg(long)]
    details: bool,
    /// Name, id, or an unambiguous beginning of the id
    #[arg(value_name = "CONTAINER", add = complete::containers())]
    container: String,
}

pub async fn execute(client: &Client, args: &Logs) -> Result<u8, Failure> {
    if args.tail != "all" && args.tail.parse::<u64>().is_err() {
        return Err(Failure::option("--tail", &args.tail, "it is not a number of lines", "give one, or all"));
    }
    let time = |option: &str, text: &Option<String>| text.as_deref().map(|t| point(option, t)).transpose();
    let shown: Value = client.get(&Target::new(["containers", &args.container, "json"])).await?;
    let target = Target::new(["containers", &args.container, "logs"])
        .with("stdout", 1)
        .with("stderr", 1)
        .with("follow", u8::from(args.follow))
        .with("timestamps", u8::from(args.timestamps))
        .with("details", u8::from(args.details))
        .with("tail", &args.tail)
        .with_some("since", time("--since", &args.since)?)
        .with_some("until", time("--until", &args.until)?);
    let (_, stream) = client.download(&target).await?;
    // A reader that has seen enough is no failure.
    let _ = receive(stream, shown["Config"]["Tty"] != true).await;
    Ok(0)
}
