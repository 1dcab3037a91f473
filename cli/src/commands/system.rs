//! `info`, `version`, `events`, `system df`.

use api::client::{Client, Method, Target};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::common::{pairs, point, text, with_filters};
use super::prune::{self, PruneSystem};
use crate::failure::Failure;
use crate::format::{self, Listing};
use crate::output;
use crate::progress::size;

const USAGE: Listing<'static> = Listing {
    headings: &[
        ("Type", "TYPE"),
        ("TotalCount", "TOTAL"),
        ("Active", "ACTIVE"),
        ("Size", "SIZE"),
        ("Reclaimable", "RECLAIMABLE"),
    ],
    columns: &["Type", "TotalCount", "Active", "Size", "Reclaimable"],
    quiet: "Type",
};

/// Verbs of the whole.
#[derive(Debug, Subcommand)]
pub enum System {
    /// Tell what takes space on disk
    Df(Df),
    /// Show what happens
    Events(Events),
    /// Tell about the engine and the host
    Info(Format),
    /// Remove everything that is not used
    Prune(PruneSystem),
}

/// How to print one answer.
#[derive(Debug, Args)]
pub struct Format {
    /// json, or a template
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Options of `system df`.
#[derive(Debug, Args)]
pub struct Df {
    /// json, table TEMPLATE, or a template such as '{{.Type}} {{.Size}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Options of `events`.
#[derive(Debug, Args)]
pub struct Events {
    /// Show only those that pass, such as type=container or event=die
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// json, or a template such as '{{.Action}} {{.Actor.ID}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// With those since a time (such as 10m)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Until a time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

pub async fn execute(client: &Client, verb: &System) -> Result<u8, Failure> {
    match verb {
        System::Df(args) => df(client, args).await,
        System::Events(args) => events(client, args).await,
        System::Info(args) => info(client, args).await,
        System::Prune(args) => prune::system(client, args).await,
    }
}

pub async fn info(client: &Client, args: &Format) -> Result<u8, Failure> {
    let info: Value = client.get(&Target::new(["info"])).await?;
    let address = client.address();
    format::one(args.format.as_deref(), &info, |info| {
        let number = |field: &str| info[field].as_u64().unwrap_or(0);
        let list =
            |value: &Value| value.as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join(" ");
        let mut lines = vec![
            format!("Server: {address}"),
            format!("Containers: {}", number("Containers")),
            format!(" Running: {}", number("ContainersRunning")),
            format!(" Paused: {}", number("ContainersPaused")),
            format!(" Stopped: {}", number("ContainersStopped")),
            format!("Images: {}", number("Images")),
            format!("Server Version: {}", text(&info["ServerVersion"])),
            format!("Storage Driver: {}", text(&info["Driver"])),
        ];
        let status = info["DriverStatus"].as_array().into_iter().flatten();
        lines.extend(status.map(|pair| format!(" {}: {}", text(&pair[0]), text(&pair[1]))));
        lines.extend([
            format!("Logging Driver: {}", text(&info["LoggingDriver"])),
            format!(
                "Plugins: {}",
                ["Volume", "Network", "Log"].map(|kind| list(&info["Plugins"][kind])).join("; ")
            ),
            format!("Kernel Version: {}", text(&info["KernelVersion"])),
            format!("Operating System: {}", text(&info["OperatingSystem"])),
            format!("OSType: {}", text(&info["OSType"])),
            format!("Architecture: {}", text(&info["Architecture"])),
            format!("CPUs: {}", number("NCPU")),
            format!("Total Memory: {}", size(number("MemTotal"))),
            format!("Name: {}", text(&info["Name"])),
            format!("ID: {}", text(&info["ID"])),
            format!("Root Dir: {}", text(&info["DockerRootDir"])),
        ]);
        lines.join("\n") + "\n"
    })?;
    Ok(0)
}

pub async fn version(client: &Client, args: &Format) -> Result<u8, Failure> {
    let server: Value = client.get(&Target::new(["version"])).await?;
    let both = json!({
        "Client": { "Version": env!("CARGO_PKG_VERSION"), "Os": "linux", "Arch": std::env::consts::ARCH },
        "Server": server,
    });
    let address = client.address();
    format::one(args.format.as_deref(), &both, |both| {
        let (client, server) = (&both["Client"], &both["Server"]);
        let details = &server["Components"][0]["Details"];
        format!(
            "Client:\n Version:      {}\n OS/Arch:      {}/{}\n\nServer: {address}\n Version:      {}\n API version:  {} (minimum \
             version {})\n OS/Arch:      {}/{}\n Kernel:       {}\n Accelerator:  {}\n Boundary:     {}\n",
            text(&client["Version"]),
            text(&client["Os"]),
            text(&client["Arch"]),
            text(&server["Version"]),
            text(&server["ApiVersion"]),
            text(&server["MinAPIVersion"]),
            text(&server["Os"]),
            text(&server["Arch"]),
            text(&server["KernelVersion"]),
            text(&details["Accelerator"]),
            text(&details["Boundary"]),
        )
    })?;
    Ok(0)
}

pub async fn events(client: &Client, args: &Events) -> Result<u8, Failure> {
    let time = |option: &str, text: &Option<String>| text.as_deref().map(|t| point(option, t)).transpose();
    let target = Target::new(["events"])
        .with_some("since", time("--since", &args.since)?)
        .with_some("until", time("--until", &args.until)?);
    let target = with_filters(target, &args.filter, &[])?;
    let mut lines = client.lines::<Value>(Method::GET, &target).await?;
    while let Some(event) = lines.next().await? {
        format::one(args.format.as_deref(), &event, line)?;
        if args.format.as_deref().is_none_or(str::is_empty) {
            output::line("");
        }
    }
    Ok(0)
}

/// An event as Docker prints it.
fn line(event: &Value) -> String {
    let nanoseconds = event["timeNano"].as_i64().unwrap_or(0);
    let time = api::times::rfc3339_wide(nanoseconds);
    let actor = &event["Actor"];
    let attributes = pairs(&actor["Attributes"]).replace(',', ", ");
    let attributes = if attributes.is_empty() { String::new() } else { format!(" ({attributes})") };
    format!("{time} {} {} {}{attributes}", text(&event["Type"]), text(&event["Action"]), text(&actor["ID"]))
}

async fn df(client: &Client, args: &Df) -> Result<u8, Failure> {
    let usage: Value = client.get(&Target::new(["system", "df"])).await?;
    let list = |field: &str| usage[field].as_array().cloned().unwrap_or_default();
    let sum =
        |items: &[Value], bytes: &dyn Fn(&Value) -> u64| items.iter().map(bytes).fold(0, u64::saturating_add);
    let row = |name: &str, total: usize, active: usize, bytes: u64, free: u64| {
        let percent = free.saturating_mul(100).checked_div(bytes);
        let free = percent.map_or_else(|| size(free), |percent| format!("{} ({percent}%)", size(free)));
        json!({ "Type": name, "TotalCount": total.to_string(), "Active": active.to_string(), "Size": size(bytes), "Reclaimable": free })
    };
    let (images, containers, volumes) = (list("Images"), list("Containers"), list("Volumes"));
    let own = |image: &Value| {
        let shared = image["SharedSize"].as_u64().unwrap_or(0);
        image["Size"].as_u64().unwrap_or(0).saturating_sub(shared)
    };
    let used = |image: &&Value| image["Containers"].as_i64().is_some_and(|count| count > 0);
    let idle: Vec<Value> = images.iter().filter(|image| !used(image)).cloned().collect();
    let runs =
        |container: &&Value| matches!(container["State"].as_str(), Some("running" | "paused" | "restarting"));
    let stopped: Vec<Value> = containers.iter().filter(|c| !runs(c)).cloned().collect();
    let written = |container: &Value| container["SizeRw"].as_u64().unwrap_or(0);
    let held = |volume: &Value| volume["UsageData"]["Size"].as_u64().unwrap_or(0);
    let mounted = |volume: &&Value| volume["UsageData"]["RefCount"].as_i64().is_some_and(|count| count > 0);
    let loose: Vec<Value> = volumes.iter().filter(|volume| !mounted(volume)).cloned().collect();
    let rows = [
        row(
            "Images",
            images.len(),
            images.len() - idle.len(),
            usage["LayersSize"].as_u64().unwrap_or(0),
            sum(&idle, &own),
        ),
        row(
            "Containers",
            containers.len(),
            containers.len() - stopped.len(),
            sum(&containers, &written),
            sum(&stopped, &written),
        ),
        row(
            "Local Volumes",
            volumes.len(),
            volumes.len() - loose.len(),
            sum(&volumes, &held),
            sum(&loose, &held),
        ),
    ];
    USAGE.print(args.format.as_deref(), false, &rows)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let event = json!({ "Type": "container", "Action": "start", "timeNano": 1_700_000_000_000_000_000i64,
            "Actor": { "ID": "abc", "Attributes": { "image": "busybox", "name": "web" } } });
        assert_eq!(
            line(&event),
            "2023-11-14T22:13:20.000000000Z container start abc (image=busybox, name=web)"
        );
    }
}
