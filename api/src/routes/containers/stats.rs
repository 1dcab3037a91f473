//! `containers/{id}/stats`: what a container uses, once or every second.

use std::collections::HashMap;
use std::time::Duration;

use agent::protocol::{CpuStats, Stats};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use bollard_stubs::models::{
    ContainerBlkioStatEntry, ContainerBlkioStats, ContainerCpuStats, ContainerCpuUsage, ContainerMemoryStats,
    ContainerNetworkStats, ContainerPidsStats, ContainerStatsResponse, ContainerStorageStats,
    ContainerThrottlingData,
};
use bytes::Bytes;
use engine::model::Container;
use engine::{Engine, EngineError};

use crate::App;
use crate::body::{self, json};
use crate::error::ApiError;
use crate::query::Query;
use crate::routes::Answer;
use crate::times;

/// Time between two samples.
const PERIOD: Duration = Duration::from_secs(1);

pub fn routes() -> Router<App> {
    Router::new().route("/containers/{id}/stats", get(stats))
}

async fn stats(State(app): State<App>, Path(id): Path<String>, query: Query) -> Answer {
    let container = app.engine.container(&id)?;
    let (stream, one_shot) = (query.flag_or("stream", true), query.flag("one-shot"));
    if one_shot && stream {
        return Err(ApiError::bad("cannot have stream=true and one-shot=true"));
    }
    let first = sample(&app.engine, &container).await?;
    if !stream {
        if one_shot || first.is_none() {
            return json(&show(&container, first.as_ref(), None));
        }
        // Two samples, so that a client can tell how much CPU time is used now.
        tokio::time::sleep(PERIOD).await;
        let second = sample(&app.engine, &container).await?;
        return json(&show(&container, second.as_ref(), first.as_ref()));
    }
    let state = (app.engine, container, None::<Stats>, Some(first));
    let lines = futures_util::stream::unfold(state, |(engine, container, before, ready)| async move {
        let now = match ready {
            Some(first) => first,
            None => {
                tokio::time::sleep(PERIOD).await;
                // A container that was removed meanwhile ends the stream.
                sample(&engine, &container).await.ok()?
            }
        };
        let mut line = serde_json::to_vec(&show(&container, now.as_ref(), before.as_ref())).ok()?;
        line.push(b'\n');
        Some((Ok::<_, std::io::Error>(Bytes::from(line)), (engine, container, now, None)))
    });
    Ok(body::with_type(StatusCode::OK, "application/json", Body::from_stream(lines)))
}

/// One sample; `None` for a container that does not run.
async fn sample(engine: &Engine, container: &Container) -> Result<Option<Stats>, ApiError> {
    match engine.stats(&container.id).await {
        Ok(stats) => Ok(Some(stats)),
        Err(EngineError::NotRunning(_) | EngineError::SupervisorGone(_)) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

fn show(container: &Container, now: Option<&Stats>, before: Option<&Stats>) -> ContainerStatsResponse {
    let read = |stats: Option<&Stats>| {
        let time = stats.and_then(|stats| i64::try_from(stats.wall_clock).ok()).unwrap_or_default();
        Some(times::rfc3339(time))
    };
    let empty = Stats::default();
    let stats = now.unwrap_or(&empty);
    ContainerStatsResponse {
        name: Some(format!("/{}", container.name)),
        id: Some(container.id.clone()),
        read: read(now),
        preread: read(before),
        pids_stats: Some(ContainerPidsStats {
            current: now.map(|stats| stats.pids.current),
            limit: now.map(|stats| stats.pids.limit.unwrap_or(u64::MAX)),
        }),
        blkio_stats: Some(disk(stats)),
        num_procs: Some(0),
        storage_stats: Some(ContainerStorageStats::default()),
        cpu_stats: Some(cpu(now.map(|stats| &stats.cpu))),
        precpu_stats: Some(cpu(before.map(|stats| &stats.cpu))),
        memory_stats: Some(now.map(memory).unwrap_or_default()),
        networks: now.map(networks),
    }
}

fn cpu(stats: Option<&CpuStats>) -> ContainerCpuStats {
    let empty = CpuStats::default();
    let cpu = stats.unwrap_or(&empty);
    let nanoseconds = |microseconds: u64| Some(microseconds.saturating_mul(1000));
    ContainerCpuStats {
        cpu_usage: Some(ContainerCpuUsage {
            total_usage: nanoseconds(cpu.usage),
            percpu_usage: None,
            usage_in_kernelmode: nanoseconds(cpu.system),
            usage_in_usermode: nanoseconds(cpu.user),
        }),
        system_cpu_usage: stats.and_then(|stats| nanoseconds(stats.machine)),
        online_cpus: stats.map(|stats| stats.online),
        throttling_data: Some(ContainerThrottlingData {
            periods: Some(cpu.periods),
            throttled_periods: Some(cpu.throttled_periods),
            throttled_time: nanoseconds(cpu.throttled),
        }),
    }
}

fn memory(stats: &Stats) -> ContainerMemoryStats {
    let memory = &stats.memory;
    ContainerMemoryStats {
        usage: Some(memory.current),
        stats: Some(memory.stat.clone().into_iter().collect()),
        limit: Some(memory.limit.unwrap_or(memory.machine)),
        ..ContainerMemoryStats::default()
    }
}

fn disk(stats: &Stats) -> ContainerBlkioStats {
    let mut bytes = Vec::new();
    for device in &stats.io {
        for (op, value) in [("read", device.read_bytes), ("write", device.write_bytes)] {
            bytes.push(ContainerBlkioStatEntry {
                major: Some(u64::from(device.major)),
                minor: Some(u64::from(device.minor)),
                op: Some(op.into()),
                value: Some(value),
            });
        }
    }
    ContainerBlkioStats { io_service_bytes_recursive: Some(bytes), ..ContainerBlkioStats::default() }
}

fn networks(stats: &Stats) -> HashMap<String, ContainerNetworkStats> {
    let interfaces = stats.networks.iter().filter(|interface| interface.name != "lo");
    let show = |interface: &agent::protocol::NetworkStats| ContainerNetworkStats {
        rx_bytes: Some(interface.rx_bytes),
        rx_packets: Some(interface.rx_packets),
        rx_errors: Some(interface.rx_errors),
        rx_dropped: Some(interface.rx_dropped),
        tx_bytes: Some(interface.tx_bytes),
        tx_packets: Some(interface.tx_packets),
        tx_errors: Some(interface.tx_errors),
        tx_dropped: Some(interface.tx_dropped),
        ..ContainerNetworkStats::default()
    };
    interfaces.map(|interface| (interface.name.clone(), show(interface))).collect()
}
