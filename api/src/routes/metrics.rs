//! `metrics`: for Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use engine::model::Status;

use super::Answer;
use crate::App;
use crate::body::with_type;
use crate::observe::escape;

pub fn routes() -> Router<App> {
    Router::new().route("/metrics", get(metrics))
}

const STATES: [Status; 7] = [
    Status::Created,
    Status::Running,
    Status::Paused,
    Status::Restarting,
    Status::Exited,
    Status::Removing,
    Status::Dead,
];

async fn metrics(State(app): State<App>) -> Answer {
    let host = app.host();
    let mut states: BTreeMap<&str, u64> = STATES.into_iter().map(|state| (state.word(), 0)).collect();
    for container in app.engine.containers()? {
        *states.entry(container.state.status.word()).or_default() += 1;
    }
    let mut out = String::new();
    let mut gauge = |name: &str, help: &str, values: &[(String, String)]| {
        // Writing to a String does not fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (labels, value) in values {
            let _ = writeln!(out, "{name}{labels} {value}");
        }
    };
    let labels = format!(
        "{{version=\"{}\",accelerator=\"{}\",boundary=\"{}\"}}",
        env!("CARGO_PKG_VERSION"),
        escape(host.accelerator),
        escape(host.boundary)
    );
    gauge("bulkhead_info", "What runs here; always 1.", &[(labels, "1".into())]);
    let values: Vec<_> = states
        .into_iter()
        .map(|(state, count)| (format!("{{state=\"{state}\"}}"), count.to_string()))
        .collect();
    gauge("bulkhead_containers", "Containers by state.", &values);
    let uptime = app.started.elapsed().as_secs_f64().to_string();
    gauge("bulkhead_uptime_seconds", "Time since the server was started.", &[(String::new(), uptime)]);
    let listeners = app.listeners.load(std::sync::atomic::Ordering::Relaxed).to_string();
    gauge("bulkhead_event_listeners", "Open streams of events.", &[(String::new(), listeners)]);
    out.push_str(&app.metrics.text());
    Ok(with_type(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", Body::from(out)))
}
