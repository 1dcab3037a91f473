//! `volume create`, `ls`, `inspect`, `rm`, `prune`.

use api::client::{Client, Method, Target};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::common::{pairs, text, with_filters};
use super::each;
use super::inspect::{self, Inspect, Kind};
use super::prune::{self, PruneAll};
use crate::complete;
use crate::failure::Failure;
use crate::format::Listing;
use crate::options::config::object;
use crate::options::values;
use crate::output;

const LISTING: Listing<'static> = Listing {
    headings: &[
        ("Driver", "DRIVER"),
        ("Name", "VOLUME NAME"),
        ("Scope", "SCOPE"),
        ("Mountpoint", "MOUNTPOINT"),
        ("Labels", "LABELS"),
    ],
    columns: &["Driver", "Name"],
    quiet: "Name",
};

/// Verbs of volumes.
#[derive(Debug, Subcommand)]
pub enum Volume {
    /// Create a volume
    Create(Create),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show everything about volumes
    Inspect(Inspect),
    /// Remove volumes
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Remove volumes that no container has
    Prune(PruneAll),
}

/// Options of `volume create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Driver: local
    #[arg(short, long, value_name = "DRIVER", default_value = "local")]
    driver: String,
    /// Set a label
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Option of the driver
    #[arg(short, long, value_name = "NAME=VALUE")]
    opt: Vec<String>,
    /// Name; one is made up if none is given
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// Options of `volume ls`.
#[derive(Debug, Args)]
pub struct Ls {
    /// Show only those that pass, such as dangling=true
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// json, table TEMPLATE, or a template such as '{{.Name}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
}

/// Options of `volume rm`.
#[derive(Debug, Args)]
pub struct Rm {
    /// One that is not there is no failure
    #[arg(short, long)]
    force: bool,
    /// Names
    #[arg(required = true, value_name = "VOLUME", add = complete::volumes())]
    volumes: Vec<String>,
}

pub async fn execute(client: &Client, verb: &Volume) -> Result<u8, Failure> {
    match verb {
        Volume::Create(args) => create(client, args).await,
        Volume::Ls(args) => list(client, args).await,
        Volume::Inspect(args) => inspect::execute(client, args, Some(Kind::Volume)).await,
        Volume::Rm(args) => remove(client, args).await,
        Volume::Prune(args) => prune::volumes(client, args).await,
    }
}

async fn create(client: &Client, args: &Create) -> Result<u8, Failure> {
    let mut body = values::Object::default();
    body.set("Name", args.name.clone());
    body.set("Driver", args.driver.clone());
    body.set("DriverOpts", object(values::pairs("--opt", &args.opt)?));
    body.set("Labels", object(values::pairs("--label", &args.label)?));
    let made: Value = client.post(&Target::new(["volumes", "create"]), &Value::from(body)).await?;
    output::line(&text(&made["Name"]));
    Ok(0)
}

async fn list(client: &Client, args: &Ls) -> Result<u8, Failure> {
    let answer: Value = client.get(&with_filters(Target::new(["volumes"]), &args.filter, &[])?).await?;
    let row = |volume: &Value| {
        json!({
            "Driver": volume["Driver"],
            "Name": volume["Name"],
            "Scope": volume["Scope"],
            "Mountpoint": volume["Mountpoint"],
            "Labels": pairs(&volume["Labels"]),
        })
    };
    let mut rows: Vec<Value> = answer["Volumes"].as_array().into_iter().flatten().map(row).collect();
    rows.sort_by_key(|row| text(&row["Name"]));
    LISTING.print(args.format.as_deref(), args.quiet, &rows)?;
    Ok(0)
}

async fn remove(client: &Client, args: &Rm) -> Result<u8, Failure> {
    let remove = async |name: &str| {
        let target = Target::new(["volumes", name]).with("force", u8::from(args.force));
        client.act(Method::DELETE, &target).await?;
        output::line(name);
        Ok(())
    };
    Ok(each(&args.volumes, remove).await)
}
