//! `ps`, also `container ls`.

use std::collections::HashMap;

use api::client::{Client, Target};
use clap::Args;
use serde_json::{Value, json};

use super::common::{ago, date, pairs, text, with_filters};
use crate::failure::Failure;
use crate::format::Listing;
use crate::progress::size;
use crate::table::{short_id, shorten};

/// Most characters of a command in the table.
const COMMAND_WIDTH: usize = 20;

const LISTING: Listing<'static> = Listing {
    headings: &[
        ("ID", "CONTAINER ID"),
        ("Image", "IMAGE"),
        ("Command", "COMMAND"),
        ("RunningFor", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("Status", "STATUS"),
        ("State", "STATE"),
        ("Ports", "PORTS"),
        ("Boundary", "BOUNDARY"),
        ("Names", "NAMES"),
        ("Size", "SIZE"),
        ("Labels", "LABELS"),
        ("Mounts", "MOUNTS"),
        ("Networks", "NETWORKS"),
        ("LocalVolumes", "LOCAL VOLUMES"),
    ],
    columns: &["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Boundary", "Names"],
    quiet: "ID",
};

/// The same with the size.
const WITH_SIZE: [&str; 9] =
    ["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Boundary", "Names", "Size"];

/// Options of `ps`.
#[derive(Debug, Args)]
pub struct Ps {
    /// Show all containers, not only those that run
    #[arg(short, long)]
    all: bool,
    /// Show only those that pass, such as status=exited, name=web or label=tier=front
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// json, table TEMPLATE, or a template such as '{{.Names}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Show so many of the last created (with those that do not run)
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<u32>,
    /// Show the last created one
    #[arg(short, long)]
    latest: bool,
    /// Do not cut anything
    #[arg(long)]
    no_trunc: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Show sizes on disk
    #[arg(short, long)]
    size: bool,
}

pub async fn execute(client: &Client, args: &Ps) -> Result<u8, Failure> {
    let format = args.format.as_deref();
    let listing = if args.size { Listing { columns: &WITH_SIZE, ..LISTING } } else { LISTING };
    let sizes = args.size || (format.is_some() && LISTING.shows(format, args.quiet, ".Size"));
    let last = if args.latest { Some(1) } else { args.last };
    let target = Target::new(["containers", "json"])
        .with("all", u8::from(args.all))
        .with("size", u8::from(sizes))
        .with_some("limit", last);
    let containers: Vec<Value> = client.get(&with_filters(target, &args.filter, &[])?).await?;
    let boundaries =
        if listing.shows(format, args.quiet, "Boundary") { boundaries(client).await } else { HashMap::new() };
    let rows: Vec<Value> = containers.iter().map(|c| row(c, &boundaries, args.no_trunc)).collect();
    listing.print(format, args.quiet, &rows)?;
    Ok(0)
}

/// What stands between each container and the host. A server of Docker's own knows no answer.
async fn boundaries(client: &Client) -> HashMap<String, String> {
    let target = Target::new(["bulkhead", "v1", "machines"]);
    let machines: Vec<Value> = client.get(&target).await.unwrap_or_default();
    let boundary = |machine: &Value| {
        let words = format!("{} ({})", text(&machine["accelerator"]), text(&machine["boundary"]));
        (text(&machine["container"]), if machine["accelerator"].is_string() { words } else { String::new() })
    };
    machines.iter().map(boundary).collect()
}

fn row(container: &Value, boundaries: &HashMap<String, String>, whole: bool) -> Value {
    let id = text(&container["Id"]);
    let command = text(&container["Command"]);
    let names = container["Names"].as_array().into_iter().flatten();
    let names: Vec<String> = names.map(|name| text(name).trim_start_matches('/').to_owned()).collect();
    let created = container["Created"].as_i64().unwrap_or(0);
    let mounts: Vec<String> = container["Mounts"].as_array().into_iter().flatten().map(mount).collect();
    let volumes = container["Mounts"].as_array().into_iter().flatten();
    let volumes = volumes.filter(|mount| mount["Type"] == "volume").count();
    let networks = container["NetworkSettings"]["Networks"].as_object().into_iter().flatten();
    let networks: Vec<&str> = networks.map(|(name, _)| name.as_str()).collect();
    let bytes = |field: &str| size(container[field].as_u64().unwrap_or(0));
    let cut = |text: &str, width: usize| if whole { text.to_owned() } else { shorten(text, width) };
    json!({
        "ID": if whole { id.as_str() } else { short_id(&id) },
        "Image": container["Image"],
        "Command": format!("\"{}\"", cut(&command, COMMAND_WIDTH)),
        "CreatedAt": date(created),
        "RunningFor": ago(created),
        "Status": container["Status"],
        "State": container["State"],
        "Ports": ports(&container["Ports"]),
        "Boundary": boundaries.get(&id).cloned().unwrap_or_default(),
        "Names": names.join(","),
        "Size": format!("{} (virtual {})", bytes("SizeRw"), bytes("SizeRootFs")),
        "Labels": pairs(&container["Labels"]),
        "Mounts": mounts.iter().map(|name| cut(name, 15)).collect::<Vec<_>>().join(","),
        "Networks": networks.join(","),
        "LocalVolumes": volumes.to_string(),
    })
}

fn mount(mount: &Value) -> String {
    let name = text(&mount["Name"]);
    if name.is_empty() { text(&mount["Source"]) } else { name }
}

/// Ports as Docker lists them: `0.0.0.0:8080->80/tcp, 443/tcp`.
pub fn ports(ports: &Value) -> String {
    let mut shown: Vec<String> = Vec::new();
    for port in ports.as_array().into_iter().flatten() {
        let inner = format!("{}/{}", port["PrivatePort"], text(&port["Type"]));
        let line = match port["PublicPort"].as_u64().filter(|port| *port > 0) {
            Some(public) => {
                let ip = text(&port["IP"]);
                let ip = if ip.contains(':') { format!("[{ip}]") } else { ip };
                format!("{ip}:{public}->{inner}")
            }
            None => inner,
        };
        if !shown.contains(&line) {
            shown.push(line);
        }
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_listed_as_dockers() {
        let list = json!([
            { "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp", "IP": "0.0.0.0" },
            { "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp", "IP": "::" },
            { "PrivatePort": 53, "Type": "udp" },
        ]);
        assert_eq!(ports(&list), "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp, 53/udp");
        assert_eq!(ports(&Value::Null), "");
    }

    #[test]
    fn a_row_has_every_field_that_has_a_heading() {
        let row = row(
            &json!({ "Id": "a".repeat(64), "Names": ["/web"], "Command": "x".repeat(30) }),
            &HashMap::new(),
            false,
        );
        for (field, _) in LISTING.headings {
            assert!(row[field].is_string() || row[field].is_null(), "{field}");
            assert!(row.get(field).is_some(), "{field}");
        }
        assert_eq!((row["Names"].as_str(), row["ID"].as_str()), (Some("web"), Some("aaaaaaaaaaaa")));
        assert_eq!(row["Command"].as_str().unwrap().chars().count(), COMMAND_WIDTH + 2);
    }
}
