//! `rm`.

use api::client::{Client, Method, Target};
use clap::Args;

use super::each;
use crate::complete;
use crate::failure::Failure;
use crate::output;

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

pub async fn execute(client: &Client, args: &Rm) -> Result<u8, Failure> {
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
