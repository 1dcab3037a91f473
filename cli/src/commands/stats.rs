//! `stats`: what containers use now.

use std::collections::BTreeMap;
use std::time::Duration;

use api::client::{Client, Target};
use clap::Args;
use serde_json::{Value, json};

use super::common::text;
use crate::complete;
use crate::failure::Failure;
use crate::format::Listing;
use crate::output;
use crate::progress::size;
use crate::table::short_id;

/// Time between two samples.
const PERIOD: Duration = Duration::from_secs(1);
/// Clears the screen.
const CLEAR: &[u8] = b"\x1b[H\x1b[2J";

const LISTING: Listing<'static> = Listing {
    headings: &[
        ("ID", "CONTAINER ID"),
        ("Container", "CONTAINER"),
        ("Name", "NAME"),
        ("CPUPerc", "CPU %"),
        ("MemUsage", "MEM USAGE / LIMIT"),
        ("MemPerc", "MEM %"),
        ("NetIO", "NET I/O"),
        ("BlockIO", "BLOCK I/O"),
        ("PIDs", "PIDS"),
    ],
    columns: &["ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"],
    quiet: "ID",
};

/// Options of `stats`.
#[derive(Debug, Args)]
pub struct Stats {
    /// Show all containers, not only those that run
    #[arg(short, long)]
    all: bool,
    /// json, table TEMPLATE, or a template such as '{{.Name}} {{.CPUPerc}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print once
    #[arg(long)]
    no_stream: bool,
    /// Do not cut anything
    #[arg(long)]
    no_trunc: bool,
    /// Names, ids, or unambiguous beginnings of ids; all that run if there are none
    #[arg(value_name = "CONTAINER", add = complete::containers())]
    containers: Vec<String>,
}

pub async fn execute(client: &Client, args: &Stats) -> Result<u8, Failure> {
    let mut before: BTreeMap<String, Value> = BTreeMap::new();
    loop {
        let names = match args.containers.as_slice() {
            [] => all(client, args.all).await?,
            names => names.to_vec(),
        };
        let mut rows = Vec::new();
        let mut now = BTreeMap::new();
        // Two samples tell how much CPU time is used: one command that prints once takes both.
        let samples = if args.no_stream {
            sampled_twice(client, &names, &mut before).await?
        } else {
            sampled(client, &names).await?
        };
        for (name, sample) in samples {
            rows.push(row(&name, &sample, before.get(&name), args.no_trunc));
            now.insert(name, sample);
        }
        if !args.no_stream && args.format.is_none() {
            output::write(CLEAR);
        }
        LISTING.print(args.format.as_deref(), false, &rows)?;
        if args.no_stream {
            return Ok(0);
        }
        before = now;
        tokio::time::sleep(PERIOD).await;
    }
}

/// Ids of all containers, or of those that run.
async fn all(client: &Client, all: bool) -> Result<Vec<String>, Failure> {
    let list: Vec<Value> =
        client.get(&Target::new(["containers", "json"]).with("all", u8::from(all))).await?;
    Ok(list.iter().map(|container| text(&container["Id"])).collect())
}

/// One sample of each.
async fn sampled(client: &Client, names: &[String]) -> Result<Vec<(String, Value)>, Failure> {
    let mut samples = Vec::new();
    for name in names {
        let target = Target::new(["containers", name, "stats"]).with("stream", 0).with("one-shot", 1);
        samples.push((name.clone(), client.get(&target).await?));
    }
    Ok(samples)
}

async fn sampled_twice(
    client: &Client,
    names: &[String],
    before: &mut BTreeMap<String, Value>,
) -> Result<Vec<(String, Value)>, Failure> {
    *before = sampled(client, names).await?.into_iter().collect();
    tokio::time::sleep(PERIOD).await;
    sampled(client, names).await
}

fn row(name: &str, sample: &Value, before: Option<&Value>, whole: bool) -> Value {
    let id = text(&sample["id"]);
    let memory = &sample["memory_stats"];
    // Pages of files that nobody uses now are given back when something else needs them.
    let idle = memory["stats"]["inactive_file"].as_u64().unwrap_or(0);
    let used = memory["usage"].as_u64().unwrap_or(0).saturating_sub(idle);
    let limit = memory["limit"].as_u64().unwrap_or(0);
    let networks = || sample["networks"].as_object().into_iter().flatten().map(|(_, network)| network);
    let network =
        |field: &str| networks().filter_map(|network| network[field].as_u64()).fold(0, u64::saturating_add);
    let disk = |op: &str| {
        let entries = sample["blkio_stats"]["io_service_bytes_recursive"].as_array().into_iter().flatten();
        let of = entries.filter(|entry| text(&entry["op"]).eq_ignore_ascii_case(op));
        of.filter_map(|entry| entry["value"].as_u64()).fold(0, u64::saturating_add)
    };
    json!({
        "ID": if whole { id.as_str() } else { short_id(&id) },
        "Container": name,
        "Name": text(&sample["name"]).trim_start_matches('/'),
        "CPUPerc": format!("{:.2}%", cpu(sample, before)),
        "MemUsage": format!("{} / {}", binary(used), binary(limit)),
        "MemPerc": format!("{:.2}%", if limit == 0 { 0.0 } else { ratio(used, limit) * 100.0 }),
        "NetIO": format!("{} / {}", size(network("rx_bytes")), size(network("tx_bytes"))),
        "BlockIO": format!("{} / {}", size(disk("read")), size(disk("write"))),
        "PIDs": sample["pids_stats"]["current"].as_u64().unwrap_or(0).to_string(),
    })
}

/// CPU time used between two samples, in hundredths of one CPU.
fn cpu(sample: &Value, before: Option<&Value>) -> f64 {
    let Some(before) = before else { return 0.0 };
    let grown = |pointer: &str| {
        let number = |value: &Value| value.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
        number(sample).saturating_sub(number(before))
    };
    let cpus = sample["cpu_stats"]["online_cpus"].as_u64().unwrap_or(1).max(1);
    let (used, all) = (grown("/cpu_stats/cpu_usage/total_usage"), grown("/cpu_stats/system_cpu_usage"));
    if all == 0 { 0.0 } else { ratio(used, all) * ratio(cpus, 1) * 100.0 }
}

#[allow(clippy::cast_precision_loss)] // two decimals are shown
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b as f64
}

/// A number of bytes in powers of 1024, as Docker shows memory.
fn binary(bytes: u64) -> String {
    let mut number = ratio(bytes, 1);
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if number < 1024.0 {
            let decimals = if unit == "B" || number >= 1000.0 {
                0
            } else if number >= 100.0 {
                1
            } else if number >= 10.0 {
                2
            } else {
                3
            };
            let shown = format!("{number:.decimals$}");
            let shown = if decimals > 0 { shown.trim_end_matches('0').trim_end_matches('.') } else { &shown };
            return format!("{shown}{unit}");
        }
        number /= 1024.0;
    }
    format!("{number:.3}TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_told_beside_the_time_of_all_cpus() {
        let sample = |used: u64, all: u64| json!({ "cpu_stats": { "cpu_usage": { "total_usage": used }, "system_cpu_usage": all, "online_cpus": 2 } });
        assert!((cpu(&sample(150, 1200), Some(&sample(100, 1000))) - 50.0).abs() < 1e-9);
        assert!(cpu(&sample(1, 1), None).abs() < 1e-9);
        assert!(cpu(&sample(1, 1), Some(&sample(1, 1))).abs() < 1e-9);
    }

    #[test]
    fn memory_is_told_in_powers_of_two() {
        for (bytes, text) in
            [(0, "0B"), (1023, "1023B"), (1 << 20, "1MiB"), (1_572_864, "1.5MiB"), (64 << 30, "64GiB")]
        {
            assert_eq!(binary(bytes), text);
        }
    }

    #[test]
    fn a_row_has_every_field_that_has_a_heading() {
        let row = row("x", &json!({}), None, false);
        assert!(LISTING.headings.iter().all(|(field, _)| row[field].is_string()), "{row}");
    }
}
