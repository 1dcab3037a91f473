//! `containers/{id}/logs`.

use axum::Extension;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use engine::model::LogDriver;
use engine::{LogLine, LogOptions};

use super::attach::{channel, kind};
use crate::App;
use crate::body;
use crate::error::ApiError;
use crate::frames::{Channel, frame};
use crate::query::Query;
use crate::routes::Answer;
use crate::times;
use crate::version::Version;

pub fn routes() -> Router<App> {
    Router::new().route("/containers/{id}/logs", get(logs))
}

fn options(query: &Query) -> Result<LogOptions, ApiError> {
    let options = LogOptions {
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        follow: query.flag("follow"),
        since: query.text("since").map_or(Ok(0), |text| times::parse("since", text))?,
        until: query.text("until").map_or(Ok(0), |text| times::parse("until", text))?,
        // Docker takes anything that is no number for "all".
        tail: query.text("tail").and_then(|text| text.parse().ok()),
    };
    if !options.stdout && !options.stderr {
        return Err(ApiError::bad("Bad parameters: you must choose at least one stream"));
    }
    Ok(options)
}

async fn logs(
    State(app): State<App>,
    Path(id): Path<String>,
    Extension(version): Extension<Version>,
    query: Query,
) -> Answer {
    let options = options(&query)?;
    let (timestamps, details) = (query.flag("timestamps"), query.flag("details"));
    let container = app.engine.container(&id)?;
    if container.config.log.driver == LogDriver::None {
        return Err(ApiError::new(
            StatusCode::NOT_IMPLEMENTED,
            "configured logging driver does not support reading",
        ));
    }
    let tty = container.config.tty;
    let stream = app.engine.logs(&container.id, options).await?;
    let lines = futures_util::stream::unfold(stream, move |mut stream| async move {
        let part = match stream.next().await? {
            Ok(line) => {
                let text = text(&line, timestamps, details);
                if tty { text.into() } else { frame(channel(line.stderr), &text) }
            }
            Err(error) => {
                let message = format!("error grabbing logs: {error}\n");
                if tty { message.into() } else { frame(Channel::System, message.as_bytes()) }
            }
        };
        Some((Ok::<_, std::io::Error>(part), stream))
    });
    Ok(body::with_type(StatusCode::OK, kind(tty, version), Body::from_stream(lines)))
}

/// A line with what was asked for in front of it. Lines have no details here: their place stays empty.
fn text(line: &LogLine, timestamps: bool, details: bool) -> Vec<u8> {
    let mut text = Vec::with_capacity(line.text.len() + 32);
    if timestamps {
        text.extend_from_slice(times::rfc3339_wide(line.time).as_bytes());
        text.push(b' ');
    }
    if details {
        text.push(b' ');
    }
    text.extend_from_slice(&line.text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        let read = |text: &str| options(&Query::parse(text).unwrap());
        assert_eq!(read("follow=1").unwrap_err().status, 400);
        let options = read("stdout=1&tail=all&since=1.5").unwrap();
        assert_eq!((options.tail, options.since, options.follow), (None, 1_500_000_000, false));
        assert_eq!(read("stderr=true&tail=0").unwrap().tail, Some(0));
        let line = LogLine { time: 1_700_000_000_000_000_000, stderr: false, text: b"hi\n".to_vec() };
        assert_eq!(text(&line, true, false), b"2023-11-14T22:13:20.000000000Z hi\n");
        assert_eq!(text(&line, false, false), b"hi\n");
    }
}
