//! `update`: limits and restart policy of containers, also of those that run.

use api::client::{Client, Target};
use clap::Args;
use serde_json::Value;

use super::each;
use crate::complete;
use crate::failure::Failure;
use crate::options::flags::LimitFlags;
use crate::options::host;
use crate::options::values::Object;
use crate::output;

/// Options of `update`.
#[derive(Debug, Args)]
pub struct Update {
    #[command(flatten)]
    limits: LimitFlags,
    /// Start it again: no, always, unless-stopped or on-failure[:TIMES]
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
    /// Names, ids, or unambiguous beginnings of ids
    #[arg(required = true, value_name = "CONTAINER", add = complete::containers())]
    containers: Vec<String>,
}

pub async fn execute(client: &Client, args: &Update) -> Result<u8, Failure> {
    let mut body = Object::default();
    host::limits(&args.limits, &mut body)?;
    if let Some(policy) = &args.restart {
        body.set("RestartPolicy", host::restart(policy)?);
    }
    let body = Value::from(body);
    let update = async |name: &str| {
        let answer: Value = client.post(&Target::new(["containers", name, "update"]), &body).await?;
        for warning in answer["Warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            eprintln!("bulkhead: {warning}");
        }
        output::line(name);
        Ok(())
    };
    Ok(each(&args.containers, update).await)
}
