//! Answers that grow: one JSON object a line, each line ended by `\r\n`. What fails before the first line is an ordinary
//! error; what fails later is a last line with `errorDetail`, because the status has been sent.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::body;
use crate::error::ApiError;

/// Lines that wait for a slow client before the work waits too.
const WAITING: usize = 256;

type Line = Result<Bytes, ApiError>;

/// Where lines are put.
#[derive(Debug, Clone)]
pub struct Lines(mpsc::Sender<Line>);

impl Lines {
    /// Puts a line, from a thread that may wait. `false`: the client is gone.
    pub fn put(&self, value: &impl Serialize) -> bool {
        encode(value).is_none_or(|line| self.0.blocking_send(Ok(line)).is_ok())
    }

    /// Puts a line of Docker's kind `stream`: text for people.
    pub fn text(&self, text: &str) -> bool {
        self.put(&json!({ "stream": text }))
    }

    /// Puts a line of Docker's kind `status`.
    pub fn status(&self, text: &str) -> bool {
        self.put(&json!({ "status": text }))
    }
}

fn encode(value: &impl Serialize) -> Option<Bytes> {
    let mut line = serde_json::to_vec(value).ok()?;
    line.extend_from_slice(b"\r\n");
    Some(line.into())
}

/// The line that tells of a failure.
fn failure(error: &ApiError) -> Value {
    json!({
        "errorDetail": { "message": error.body.message },
        "error": error.body.message,
        "what": error.body.what,
        "why": error.body.why,
        "next": error.body.next,
    })
}

/// Runs `work` in a thread that may wait, and answers with its lines.
///
/// # Errors
/// The work failed before its first line.
pub async fn answer<F>(work: F) -> Result<Response<Body>, ApiError>
where
    F: FnOnce(&Lines) -> Result<(), ApiError> + Send + 'static,
{
    let (sender, mut receiver) = mpsc::channel::<Line>(WAITING);
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || {
        let _entered = span.enter();
        if let Err(error) = work(&Lines(sender.clone())) {
            tracing::info!(error = error.body.message, "the work failed");
            // A client that is gone needs no error.
            let _ = sender.blocking_send(Err(error));
        }
    });
    let first = match receiver.recv().await {
        Some(Ok(line)) => line,
        Some(Err(error)) => return Err(error),
        None => Bytes::new(),
    };
    let rest = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let line = match receiver.recv().await? {
            Ok(line) => line,
            Err(error) => encode(&failure(&error)).unwrap_or_default(),
        };
        Some((Ok::<_, std::io::Error>(line), receiver))
    });
    let all = futures_util::StreamExt::chain(futures_util::stream::iter([Ok(first)]), rest);
    Ok(body::with_type(StatusCode::OK, "application/json", Body::from_stream(all)))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn text(response: Response<Body>) -> String {
        String::from_utf8(axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec())
            .unwrap()
    }

    #[tokio::test]
    async fn a_failure_is_a_status_before_the_first_line_and_a_line_after_it() {
        let early = answer(|_| Err(ApiError::not_found("no"))).await.unwrap_err();
        assert_eq!(early.status, 404);
        let late = answer(|lines| {
            lines.status("one");
            Err(ApiError::internal("broke"))
        })
        .await
        .unwrap();
        assert_eq!(late.status(), 200);
        let text = text(late).await;
        let lines: Vec<&str> = text.split_terminator("\r\n").collect();
        assert_eq!(lines[0], r#"{"status":"one"}"#);
        assert!(lines[1].contains(r#""errorDetail":{"message":"broke"}"#) && lines.len() == 2, "{text}");
    }

    #[tokio::test]
    async fn work_without_words_is_an_empty_answer() {
        let response = answer(|_| Ok(())).await.unwrap();
        assert_eq!((response.status().as_u16(), text(response).await.as_str()), (200, ""));
    }
}
