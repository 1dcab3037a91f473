//! `stop`.

use api::client::{Client, Method, Target};
use clap::Args;

use super::each;
use crate::complete;
use crate::failure::Failure;
use crate::output;

/// Options of `stop`.
#[derive(Debug, Args)]
pub struct Stop {
    /// Signal to send first, instead of the container's own
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Seconds to wait before the machine is ended (-1: as long as it takes)
    #[arg(
        short = 't',
        long = "timeout",
        visible_alias = "time",
        value_name = "SECONDS",
        allow_negative_numbers = true
    )]
    timeout: Option<i64>,
    /// Names, ids, or unambiguous beginnings of ids
    #[arg(required = true, value_name = "CONTAINER", add = complete::containers())]
    containers: Vec<String>,
}

pub async fn execute(client: &Client, args: &Stop) -> Result<u8, Failure> {
    let stop = async |name: &str| {
        let target = Target::new(["containers", name, "stop"])
            .with_some("signal", args.signal.as_deref())
            .with_some("t", args.timeout);
        client.act(Method::POST, &target).await?;
        output::line(name);
        Ok(())
    };
    Ok(each(&args.containers, stop).await)
}
