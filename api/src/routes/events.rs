//! `events`: what happened since, and what happens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use bytes::Bytes;
use engine::model::{Event, EventKind, now};
use serde::Serialize;

use super::Answer;
use crate::body;
use crate::error::ApiError;
use crate::filters::Filters;
use crate::query::Query;
use crate::{App, times};

const KNOWN: [&str; 14] = [
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];

pub fn routes() -> Router<App> {
    Router::new().route("/events", get(events))
}

/// An event as clients read it. `status`, `id` and `from` are what clients before 1.22 read, and some of today.
#[derive(Debug, Serialize)]
struct Message {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(rename = "Action")]
    action: String,
    #[serde(rename = "Actor")]
    actor: Actor,
    scope: &'static str,
    time: i64,
    #[serde(rename = "timeNano")]
    time_nano: i64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    attributes: BTreeMap<String, String>,
}

fn message(event: Event) -> Message {
    let old = matches!(event.kind, EventKind::Container | EventKind::Image);
    Message {
        status: old.then(|| event.action.clone()),
        id: old.then(|| event.actor.clone()),
        from: event.attributes.get("image").filter(|_| event.kind == EventKind::Container).cloned(),
        kind: event.kind.word(),
        action: event.action,
        actor: Actor { id: event.actor, attributes: event.attributes },
        scope: "local",
        time: event.time / 1_000_000_000,
        time_nano: event.time,
    }
}

/// Whether an event passes. Values of one filter are alternatives, filters must all hold; `container`, `image` and so on
/// also let no events of other kinds through.
fn passes(event: &Event, filters: &Filters) -> bool {
    let name = event.attributes.get("name").map_or("", String::as_str);
    let image = event.attributes.get("image").map_or("", String::as_str);
    let is = |kind: EventKind, value: &str| {
        event.kind == kind && (event.actor.starts_with(value) || name == value)
    };
    // `exec_create: ls` is found by `exec_create`, and `health_status: healthy` by both.
    let action = event.action.split(':').next().unwrap_or_default();
    let untagged = |value: &str| image.rsplit_once(':').is_some_and(|(image, _)| image == value);
    filters.any("type", |value| value == event.kind.word())
        && filters.any("event", |value| value == event.action || value == action)
        && filters.any("scope", |value| value == "local")
        && filters.any("container", |value| is(EventKind::Container, value))
        && filters.any("volume", |value| is(EventKind::Volume, value))
        && filters.any("network", |value| is(EventKind::Network, value))
        && filters.any("image", |value| is(EventKind::Image, value) || image == value || untagged(value))
        && ["config", "daemon", "node", "plugin", "secret", "service"].iter().all(|kind| !filters.has(kind))
        && filters.labels(&event.attributes)
}

/// Counts open streams.
struct Listener(Arc<AtomicUsize>);

impl Listener {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn events(State(app): State<App>, query: Query) -> Answer {
    let filters = query.filters(&KNOWN)?;
    let since = query.text("since").map(|text| times::parse("since", text)).transpose()?;
    let until =
        query.text("until").map(|text| times::parse("until", text)).transpose()?.filter(|&time| time > 0);
    if let (Some(since), Some(until)) = (since, until)
        && since > until
    {
        return Err(ApiError::bad(format!("`since` time ({since}) must be before `until` time ({until})")));
    }
    let stream = app.engine.events(since)?;
    let listener = Listener::new(app.listeners);
    let lines = futures_util::stream::unfold((stream, listener), move |(mut stream, listener)| {
        let filters = filters.clone();
        async move {
            loop {
                let event = match until {
                    None => stream.next().await,
                    Some(until) => {
                        // Events that were written down before the end count even if they are read after it.
                        let left = until.saturating_sub(now()).max(PATIENCE);
                        match tokio::time::timeout(Duration::from_nanos(left.unsigned_abs()), stream.next())
                            .await
                        {
                            Ok(event) => event,
                            Err(_) => return None,
                        }
                    }
                };
                let event = match event {
                    Ok(event) => event,
                    Err(error) => return Some((Err(std::io::Error::other(error)), (stream, listener))),
                };
                if until.is_some_and(|until| event.time > until) {
                    return None;
                }
                if passes(&event, &filters) {
                    let mut line = serde_json::to_vec(&message(event)).unwrap_or_default();
                    line.push(b'\n');
                    return Some((Ok(Bytes::from(line)), (stream, listener)));
                }
            }
        }
    });
    Ok(body::with_type(StatusCode::OK, "application/json", Body::from_stream(lines)))
}

/// How long events of the past are waited for, in nanoseconds.
const PATIENCE: i64 = 100_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventKind, action: &str, actor: &str, attributes: &[(&str, &str)]) -> Event {
        let attributes = attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Event {
            sequence: 1,
            time: 1_700_000_000_000_000_001,
            kind,
            action: action.into(),
            actor: actor.into(),
            attributes,
        }
    }

    #[test]
    fn filters_narrow_events() {
        let start = event(
            EventKind::Container,
            "exec_create: ls",
            "0123456789",
            &[("name", "web"), ("image", "busybox:1"), ("tier", "front")],
        );
        let pull = event(EventKind::Image, "pull", "busybox:1", &[("name", "busybox")]);
        let passed = |filters: &str| {
            let filters = Filters::parse(filters, &KNOWN).unwrap();
            (passes(&start, &filters), passes(&pull, &filters))
        };
        assert_eq!(passed(""), (true, true));
        assert_eq!(passed(r#"{"type":["container"]}"#), (true, false));
        assert_eq!(passed(r#"{"event":["exec_create","pull"]}"#), (true, true));
        assert_eq!(passed(r#"{"container":["web"]}"#), (true, false));
        assert_eq!(passed(r#"{"container":["0123"]}"#), (true, false));
        assert_eq!(passed(r#"{"container":["other"]}"#), (false, false));
        assert_eq!(passed(r#"{"image":["busybox:1"]}"#), (true, true));
        assert_eq!(passed(r#"{"label":["tier=front"]}"#), (true, false));
        assert_eq!(passed(r#"{"type":["container"],"event":["pull"]}"#), (false, false));
        assert_eq!(passed(r#"{"service":["x"]}"#), (false, false));
    }

    #[test]
    fn old_clients_find_their_fields() {
        let text =
            serde_json::to_value(message(event(EventKind::Container, "start", "id", &[("image", "i")])))
                .unwrap();
        assert_eq!(
            (&text["status"], &text["id"], &text["from"]),
            (&"start".into(), &"id".into(), &"i".into())
        );
        assert_eq!((&text["Type"], &text["Actor"]["ID"]), (&"container".into(), &"id".into()));
        assert_eq!(
            (&text["time"], &text["timeNano"]),
            (&1_700_000_000.into(), &1_700_000_000_000_000_001i64.into())
        );
        let volume = serde_json::to_value(message(event(EventKind::Volume, "create", "v", &[]))).unwrap();
        assert!(volume.get("status").is_none());
    }
}
