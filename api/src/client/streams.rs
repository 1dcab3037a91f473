//! Answers that go on.

use std::marker::PhantomData;
use std::pin::Pin;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, BufReader};

use super::ClientError;
use crate::error::ErrorBody;
use crate::hijack::Connection;

/// Longest line in bytes.
const MAX_LINE: usize = 16 << 20;

/// A connection that was taken over.
pub struct Hijacked {
    /// Both directions.
    pub connection: Box<dyn Connection>,
    /// Output is in frames ([`crate::frames::FrameReader`]), else raw bytes.
    pub framed: bool,
}

/// Lines of JSON as they come.
pub struct JsonLines<T> {
    lines: Pin<Box<dyn AsyncBufRead + Send>>,
    line: Vec<u8>,
    kind: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> JsonLines<T> {
    pub(super) fn new(reader: impl AsyncRead + Send + 'static) -> Self {
        Self { lines: Box::pin(BufReader::new(reader)), line: Vec::new(), kind: PhantomData }
    }

    /// The next line; `None` at the end. It may be given up and called again: no part of a line is lost.
    ///
    /// # Errors
    /// The stream broke, a line is not what was asked for, or it tells that the work failed.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            let part = self.lines.fill_buf().await.map_err(|e| ClientError::Broken(e.to_string()))?;
            let end = part.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(part.len(), |end| end + 1);
            self.line.extend_from_slice(part.get(..taken).unwrap_or_default());
            self.lines.consume(taken);
            if self.line.len() > MAX_LINE {
                return Err(ClientError::Protocol(format!(
                    "a line of the answer is longer than {MAX_LINE} bytes"
                )));
            }
            let ended = taken == 0;
            if end.is_none() && !ended {
                continue;
            }
            let line = std::mem::take(&mut self.line);
            if !line.trim_ascii().is_empty() {
                return read(&line).map(Some);
            }
            if ended {
                return Ok(None);
            }
        }
    }
}

fn read<T: DeserializeOwned>(line: &[u8]) -> Result<T, ClientError> {
    #[derive(serde::Deserialize)]
    struct Failure {
        error: Option<String>,
        what: Option<String>,
        why: Option<String>,
        next: Option<String>,
    }
    if let Ok(Failure { error: Some(message), what, why, next }) = serde_json::from_slice(line) {
        let body = ErrorBody { message, what, why, next, ..ErrorBody::default() };
        return Err(ClientError::Refused { status: hyper::StatusCode::OK, body: Box::new(body) });
    }
    serde_json::from_slice(line).map_err(|e| ClientError::Protocol(format!("a line of the answer: {e}")))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[tokio::test]
    async fn lines_are_read_however_they_are_cut_and_failures_are_errors() {
        let (mut feed, reader) = tokio::io::duplex(3);
        let writer = tokio::spawn(async move {
            let wire = b"{\"a\":1}\r\n\r\n{\"a\":2}\n{\"error\":\"broke\",\"why\":\"x\"}\r\n{\"a\":3}";
            tokio::io::AsyncWriteExt::write_all(&mut feed, wire).await.unwrap();
        });
        let mut lines = JsonLines::<Value>::new(reader);
        assert_eq!(lines.next().await.unwrap().unwrap()["a"], 1);
        assert_eq!(lines.next().await.unwrap().unwrap()["a"], 2);
        let error = lines.next().await.unwrap_err();
        assert_eq!((error.to_string().as_str(), error.advice().0.as_str()), ("broke", "x"));
        assert_eq!(lines.next().await.unwrap().unwrap()["a"], 3);
        assert!(lines.next().await.unwrap().is_none());
        writer.await.unwrap();
    }
}
