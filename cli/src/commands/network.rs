//! `network create`, `ls`, `inspect`, `connect`, `disconnect`, `rm`, `prune`.

use api::client::{Client, Method, Target};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::common::{pairs, plain_date, text, with_filters};
use super::each;
use super::inspect::{self, Inspect, Kind};
use super::prune::{self, Prune};
use crate::complete;
use crate::failure::Failure;
use crate::format::Listing;
use crate::options::config::object;
use crate::options::values::{self, Object};
use crate::output;
use crate::table::short_id;

const LISTING: Listing<'static> = Listing {
    headings: &[
        ("ID", "NETWORK ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("Scope", "SCOPE"),
        ("IPv6", "IPV6"),
        ("Internal", "INTERNAL"),
        ("Labels", "LABELS"),
        ("CreatedAt", "CREATED AT"),
    ],
    columns: &["ID", "Name", "Driver", "Scope"],
    quiet: "ID",
};

/// Verbs of networks.
#[derive(Debug, Subcommand)]
pub enum Network {
    /// Create a network
    Create(Create),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show everything about networks
    Inspect(Inspect),
    /// Attach a container to a network
    Connect(Connect),
    /// Take a container from a network
    Disconnect(Disconnect),
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Remove networks that no container is in
    Prune(Prune),
}

/// Options of `network create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Containers may be attached by hand
    #[arg(long)]
    attachable: bool,
    /// Driver: bridge
    #[arg(short, long, value_name = "DRIVER", default_value = "bridge")]
    driver: String,
    /// Addresses, such as 10.1.0.0/16
    #[arg(long, value_name = "SUBNET")]
    subnet: Vec<String>,
    /// Address of the gateway in the subnet of the same place
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<String>,
    /// Part of the subnet of the same place from which addresses are given
    #[arg(long, value_name = "RANGE")]
    ip_range: Vec<String>,
    /// No way out of the network
    #[arg(long)]
    internal: bool,
    /// Rule for what may leave: deny-all, allow=NAME:443, deny=10.0.0.0/8
    #[arg(long, value_name = "RULE")]
    egress: Vec<String>,
    /// IPv6 addresses, too
    #[arg(long)]
    ipv6: bool,
    /// Set a label
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Option of the driver
    #[arg(short, long, value_name = "NAME=VALUE")]
    opt: Vec<String>,
    /// Name
    #[arg(value_name = "NAME")]
    name: String,
}

/// Options of `network ls`.
#[derive(Debug, Args)]
pub struct Ls {
    /// Show only those that pass, such as driver=bridge
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// json, table TEMPLATE, or a template such as '{{.Name}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Do not cut anything
    #[arg(long)]
    no_trunc: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
}

/// Options of `network connect`.
#[derive(Debug, Args)]
pub struct Connect {
    /// Further name in the network
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// Option of the driver
    #[arg(long, value_name = "NAME=VALUE")]
    driver_opt: Vec<String>,
    /// IPv4 address
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<String>,
    /// IPv6 address
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<String>,
    /// The network
    #[arg(value_name = "NETWORK", add = complete::networks())]
    network: String,
    /// The container
    #[arg(value_name = "CONTAINER", add = complete::containers())]
    container: String,
}

/// Options of `network disconnect`.
#[derive(Debug, Args)]
pub struct Disconnect {
    /// Whatever the container does
    #[arg(short, long)]
    force: bool,
    /// The network
    #[arg(value_name = "NETWORK", add = complete::networks())]
    network: String,
    /// The container
    #[arg(value_name = "CONTAINER", add = complete::containers())]
    container: String,
}

/// Options of `network rm`.
#[derive(Debug, Args)]
pub struct Rm {
    /// One that is not there is no failure
    #[arg(short, long)]
    force: bool,
    /// Names or ids
    #[arg(required = true, value_name = "NETWORK", add = complete::networks())]
    networks: Vec<String>,
}

pub async fn execute(client: &Client, verb: &Network) -> Result<u8, Failure> {
    match verb {
        Network::Create(args) => create(client, args).await,
        Network::Ls(args) => list(client, args).await,
        Network::Inspect(args) => inspect::execute(client, args, Some(Kind::Network)).await,
        Network::Connect(args) => connect(client, args).await,
        Network::Disconnect(args) => {
            let body = json!({ "Container": args.container, "Force": args.force });
            client
                .act_with(Method::POST, &Target::new(["networks", &args.network, "disconnect"]), &body)
                .await?;
            Ok(0)
        }
        Network::Rm(args) => remove(client, args).await,
        Network::Prune(args) => prune::networks(client, args).await,
    }
}

async fn create(client: &Client, args: &Create) -> Result<u8, Failure> {
    if args.gateway.len() > args.subnet.len() || args.ip_range.len() > args.subnet.len() {
        let why = "a gateway and a range belong to a subnet";
        return Err(Failure::option("--subnet", "", why, "give a --subnet for each of them"));
    }
    let subnet = |(number, subnet): (usize, &String)| {
        let mut entry = Object::default();
        entry.set("Subnet", subnet.clone());
        entry.set("Gateway", args.gateway.get(number).cloned());
        entry.set("IPRange", args.ip_range.get(number).cloned());
        Value::from(entry)
    };
    let subnets: Vec<Value> = args.subnet.iter().enumerate().map(subnet).collect();
    let mut body = Object::default();
    body.set("Name", args.name.clone());
    body.set("Driver", args.driver.clone());
    body.set("Attachable", args.attachable);
    body.set("Internal", args.internal);
    body.set("EnableIPv6", args.ipv6);
    body.set("Options", object(values::pairs("--opt", &args.opt)?));
    let labels = values::pairs("--label", &args.label)?;
    body.set("Labels", object(values::egress(labels, &args.egress)?));
    if !subnets.is_empty() {
        body.set("IPAM", json!({ "Config": subnets }));
    }
    let made: Value = client.post(&Target::new(["networks", "create"]), &Value::from(body)).await?;
    output::line(&text(&made["Id"]));
    Ok(0)
}

async fn list(client: &Client, args: &Ls) -> Result<u8, Failure> {
    let networks: Vec<Value> =
        client.get(&with_filters(Target::new(["networks"]), &args.filter, &[])?).await?;
    let row = |network: &Value| {
        let id = text(&network["Id"]);
        json!({
            "ID": if args.no_trunc { id.as_str() } else { short_id(&id) },
            "Name": network["Name"],
            "Driver": network["Driver"],
            "Scope": network["Scope"],
            "IPv6": network["EnableIPv6"].to_string(),
            "Internal": network["Internal"].to_string(),
            "Labels": pairs(&network["Labels"]),
            "CreatedAt": plain_date(&text(&network["Created"])),
        })
    };
    let mut rows: Vec<Value> = networks.iter().map(row).collect();
    rows.sort_by_key(|row| text(&row["Name"]));
    LISTING.print(args.format.as_deref(), args.quiet, &rows)?;
    Ok(0)
}

async fn connect(client: &Client, args: &Connect) -> Result<u8, Failure> {
    let mut place = Object::default();
    place.set("Aliases", args.alias.clone());
    let mut addresses = Object::default();
    addresses.set("IPv4Address", args.ip.clone());
    addresses.set("IPv6Address", args.ip6.clone());
    place.set("IPAMConfig", addresses);
    place.set("DriverOpts", object(values::pairs("--driver-opt", &args.driver_opt)?));
    let body = json!({ "Container": args.container, "EndpointConfig": Value::from(place) });
    client.act_with(Method::POST, &Target::new(["networks", &args.network, "connect"]), &body).await?;
    Ok(0)
}

async fn remove(client: &Client, args: &Rm) -> Result<u8, Failure> {
    let remove = async |name: &str| {
        match client.act(Method::DELETE, &Target::new(["networks", name])).await {
            Err(error) if args.force && error.status() == Some(404) => {}
            other => {
                other?;
                output::line(name);
            }
        }
        Ok(())
    };
    Ok(each(&args.networks, remove).await)
}
