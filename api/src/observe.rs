//! What operators see: a request id in every answer and log line, and counters for Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Response};
use axum::middleware::Next;
use engine::trace;
use tracing::Instrument as _;

use crate::App;

/// Header with the request id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Upper bounds of the histogram of durations, in seconds.
const BUCKETS: [f64; 8] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0];

/// Gives every request an id: the client's own, if it is a plain word, else a new one.
pub async fn identify(request: Request, next: Next) -> Response<Body> {
    let given =
        request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(|id| trace::is_id(id));
    let id = given.map_or_else(new_id, str::to_owned);
    let span = tracing::info_span!("request", id, method = %request.method(), path = request.uri().path());
    let started = Instant::now();
    let work = async {
        let response = next.run(request).await;
        let milliseconds = started.elapsed().as_millis();
        tracing::debug!(status = response.status().as_u16(), milliseconds, "answered");
        response
    };
    let mut response = trace::of_request(id.clone(), work).instrument(span).await;
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Unique among the processes of a host.
fn new_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let time = engine::model::now() >> 10;
    format!("{:x}-{time:x}-{:x}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Counts a request under the pattern of its path.
pub async fn count(State(app): State<App>, request: Request, next: Next) -> Response<Body> {
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let method = request.method().to_string();
    let started = Instant::now();
    let response = next.run(request).await;
    app.metrics.record(&method, &route, response.status().as_u16(), started.elapsed());
    response
}

/// Counters of requests. The number of series is bounded: methods that have a route, times routes, times statuses.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<(String, String, u16), Durations>>,
}

#[derive(Debug, Default, Clone)]
struct Durations {
    count: u64,
    sum: Duration,
    /// Requests that took at most as long as the bound of the same place.
    below: [u64; BUCKETS.len()],
}

impl Metrics {
    fn record(&self, method: &str, route: &str, status: u16, took: Duration) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let durations = requests.entry((method.to_owned(), route.to_owned(), status)).or_default();
        durations.count += 1;
        durations.sum += took;
        for (count, bound) in durations.below.iter_mut().zip(BUCKETS) {
            *count += u64::from(took.as_secs_f64() <= bound);
        }
    }

    /// The counters in Prometheus' text format 0.0.4.
    #[must_use]
    pub fn text(&self) -> String {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let name = "bulkhead_http_request_duration_seconds";
        let mut out = format!(
            "# HELP {name} Time from a request's head to its answer's head.\n# TYPE {name} histogram\n"
        );
        for ((method, route, status), durations) in requests {
            let labels = format!("method=\"{method}\",route=\"{}\",status=\"{status}\"", escape(&route));
            // Writing to a String does not fail.
            for (count, bound) in durations.below.iter().zip(BUCKETS) {
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
            }
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", durations.count);
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}", durations.sum.as_secs_f64());
            let _ = writeln!(out, "{name}_count{{{labels}}} {}", durations.count);
        }
        out
    }
}

/// A label's value in Prometheus' text format.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_plain_words() {
        assert!(trace::is_id("abc-1_2.3") && trace::is_id(&new_id()));
        for bad in ["", "a b", "a\n", "ä", &"a".repeat(65)] {
            assert!(!trace::is_id(bad), "{bad:?}");
        }
        assert_ne!(new_id(), new_id());
    }

    #[test]
    fn durations_are_counted_in_buckets() {
        let metrics = Metrics::default();
        metrics.record("GET", "/info", 200, Duration::from_millis(2));
        metrics.record("GET", "/info", 200, Duration::from_secs(20));
        let text = metrics.text();
        let labels = r#"method="GET",route="/info",status="200""#;
        for line in [
            format!("bulkhead_http_request_duration_seconds_bucket{{{labels},le=\"0.001\"}} 0"),
            format!("bulkhead_http_request_duration_seconds_bucket{{{labels},le=\"0.005\"}} 1"),
            format!("bulkhead_http_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 2"),
            format!("bulkhead_http_request_duration_seconds_count{{{labels}}} 2"),
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
        }
        assert_eq!(escape("a\"b\\\n"), "a\\\"b\\\\\\n");
    }
}
