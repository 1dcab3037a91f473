//! `HostConfig`: what a container may use, and what follows its end.

use api::units::{parse_bytes, parse_milli_cpus};
use engine::options::MIN_MEMORY_BYTES;
use serde_json::{Value, json};

use super::config::{object, security_option};
use super::flags::{ContainerFlags, LimitFlags};
use super::values::{Object, bytes, bytes_or_unlimited, pairs};
use super::{mounts, network};
use crate::failure::Failure;
use crate::terminal;

/// Nanoseconds of CPU time in a second for one thousandth of a CPU.
const NANO_PER_MILLI: u64 = 1_000_000;

/// The object.
///
/// # Errors
/// A value is malformed.
pub fn body(flags: &ContainerFlags) -> Result<Value, Failure> {
    let mut host = Object::default();
    limits(&flags.limits, &mut host)?;
    host.set("Ulimits", ulimits(&flags.limits.ulimit)?);
    host.set("Sysctls", object(pairs("--sysctl", &flags.limits.sysctl)?));
    host.set("OomScoreAdj", flags.limits.oom_score_adj.filter(|score| *score != 0));
    host.set("AutoRemove", flags.end.rm);
    if let Some(policy) = &flags.end.restart {
        host.set("RestartPolicy", restart(policy)?);
    }
    let mut log = Object::default();
    log.set("Type", flags.end.log_driver.clone());
    log.set("Config", object(pairs("--log-opt", &flags.end.log_opt)?));
    host.set("LogConfig", log);
    host.set("Init", flags.init);
    host.set("GroupAdd", flags.group_add.clone());
    host.set("Annotations", object(pairs("--annotation", &flags.annotation)?));
    if flags.tty
        && let Some(size) = terminal::size()
    {
        host.set("ConsoleSize", vec![size.rows, size.columns]);
    }
    let security = &flags.security;
    host.set("Runtime", runtime(&security.accel, security.runtime.as_deref())?);
    host.set("Isolation", isolation(&security.isolation)?);
    host.set("CapAdd", security.cap_add.clone());
    host.set("CapDrop", security.cap_drop.clone());
    let options: Result<Vec<String>, _> = security.security_opt.iter().map(|o| security_option(o)).collect();
    host.set("SecurityOpt", options?);
    mounts::set(&flags.files, &mut host)?;
    network::set(&flags.network, &mut host)?;
    Ok(host.into())
}

/// The limits, which `update` changes, too.
///
/// # Errors
/// A value is malformed.
pub fn limits(flags: &LimitFlags, host: &mut Object) -> Result<(), Failure> {
    if let Some(text) = &flags.memory {
        let memory = bytes("--memory", text)?;
        if memory < MIN_MEMORY_BYTES {
            let why = "the least memory of a container is 6 MiB";
            return Err(Failure::option("--memory", text, why, "give a size such as 256m"));
        }
        host.set("Memory", memory);
    }
    if let Some(text) = &flags.memory_reservation {
        host.set("MemoryReservation", bytes("--memory-reservation", text)?);
    }
    if let Some(text) = &flags.memory_swap {
        host.set("MemorySwap", bytes_or_unlimited("--memory-swap", text)?);
    }
    if let Some(text) = &flags.cpus {
        let milli = parse_milli_cpus(text)
            .map_err(|why| Failure::option("--cpus", text, why, "give a number such as 0.5"))?;
        host.set("NanoCpus", u64::from(milli) * NANO_PER_MILLI);
    }
    host.set("CpuShares", flags.cpu_shares);
    host.set("CpuPeriod", flags.cpu_period);
    host.set("CpuQuota", flags.cpu_quota);
    host.set("CpusetCpus", flags.cpuset_cpus.clone());
    host.set("PidsLimit", flags.pids_limit);
    for (field, option, rates) in [
        ("BlkioDeviceReadBps", "--device-read-bps", &flags.device_read_bps),
        ("BlkioDeviceWriteBps", "--device-write-bps", &flags.device_write_bps),
        ("BlkioDeviceReadIOps", "--device-read-iops", &flags.device_read_iops),
        ("BlkioDeviceWriteIOps", "--device-write-iops", &flags.device_write_iops),
    ] {
        let rates: Result<Vec<Value>, _> = rates.iter().map(|text| rate(option, text)).collect();
        host.set(field, rates?);
    }
    Ok(())
}

fn rate(option: &str, text: &str) -> Result<Value, Failure> {
    let rate = text.rsplit_once(':').and_then(|(path, rate)| Some((path, parse_bytes(rate).ok()?)));
    match rate {
        Some((path, rate)) if path.starts_with('/') => Ok(json!({ "Path": path, "Rate": rate })),
        _ => Err(Failure::option(option, text, "it is not a disk and a rate", "write it as /dev/vdb:10m")),
    }
}

fn ulimits(texts: &[String]) -> Result<Vec<Value>, Failure> {
    let read = |text: &String| {
        let bad = || {
            let why = "it is not a name and one or two numbers";
            Failure::option("--ulimit", text, why, "write it as nofile=1024:2048")
        };
        let number = |text: &str| if text == "unlimited" { Ok(-1) } else { text.parse::<i64>() };
        let (name, limits) = text.split_once('=').ok_or_else(bad)?;
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let (soft, hard) = (number(soft).map_err(|_| bad())?, number(hard).map_err(|_| bad())?);
        Ok(json!({ "Name": name, "Soft": soft, "Hard": hard }))
    };
    texts.iter().map(read).collect()
}

/// A restart policy.
///
/// # Errors
/// It is none.
pub fn restart(text: &str) -> Result<Value, Failure> {
    let (name, count) = text.split_once(':').unwrap_or((text, "0"));
    let next = "use no, always, unless-stopped or on-failure[:TIMES]";
    let count: u32 = count
        .parse()
        .map_err(|_| Failure::option("--restart", text, "its number of times is no number", next))?;
    Ok(json!({ "Name": name, "MaximumRetryCount": count }))
}

fn runtime(accelerator: &str, runtime: Option<&str>) -> Result<Option<String>, Failure> {
    match accelerator {
        "auto" => Ok(runtime.map(str::to_owned)),
        "kvm" | "uml" => Ok(Some(accelerator.to_owned())),
        other => {
            let why = "there is no accelerator of that name";
            Err(Failure::option("--accel", other, why, "use auto, kvm or uml"))
        }
    }
}

fn isolation(wall: &str) -> Result<Option<&'static str>, Failure> {
    match wall {
        "any" | "default" => Ok(None),
        "vm" => Ok(Some("vm")),
        other => {
            let why = "there is no isolation of that name";
            Err(Failure::option("--isolation", other, why, "use any or vm"))
        }
    }
}
