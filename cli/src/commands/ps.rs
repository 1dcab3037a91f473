//! `ps`, also `container ls`.

use std::collections::HashMap;

use api::client::{Client, Target};
use clap::Args;
use serde_json::Value;

use crate::failure::Failure;
use crate::output;
use crate::table::{lay_out, short_id, shorten};

/// Most characters of a command in the table.
const COMMAND_WIDTH: usize = 20;

/// Options of `ps`.
#[derive(Debug, Args)]
pub struct Ps {
    /// Show all containers, not only those that run
    #[arg(short, long)]
    all: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
}

pub async fn execute(client: &Client, args: &Ps) -> Result<u8, Failure> {
    let target = Target::new(["containers", "json"]).with("all", u8::from(args.all));
    let containers: Vec<Value> = client.get(&target).await?;
    if args.quiet {
        let ids = containers.iter().map(|c| format!("{}\n", short_id(c["Id"].as_str().unwrap_or_default())));
        output::write(ids.collect::<String>().as_bytes());
        return Ok(0);
    }
    let machines: Vec<Value> =
        client.get(&Target::new(["bulkhead", "v1", "machines"])).await.unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let boundaries: HashMap<String, String> = machines
        .iter()
        .map(|m| (text(&m["container"]), format!("{} ({})", text(&m["accelerator"]), text(&m["boundary"]))))
        .collect();
    let heading = ["CONTAINER ID", "IMAGE", "COMMAND", "STATUS", "BOUNDARY", "NAMES"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for c in &containers {
        let id = text(&c["Id"]);
        rows.push(vec![
            short_id(&id).to_owned(),
            text(&c["Image"]),
            format!("\"{}\"", shorten(&text(&c["Command"]), COMMAND_WIDTH)),
            text(&c["Status"]),
            boundaries.get(&id).cloned().unwrap_or_default(),
            text(&c["Names"][0]).trim_start_matches('/').to_owned(),
        ]);
    }
    output::write(lay_out(&rows).as_bytes());
    Ok(0)
}
