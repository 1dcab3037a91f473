//! Connections that stop being HTTP: `attach` and `exec` take the connection over for raw bytes in both directions.
//!
//! A client that sends `Upgrade` gets 101 and the connection. One that does not gets 200 and the output as the answer's
//! body; its input is the request's body.

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tracing::Instrument as _;

use crate::body;
use crate::detach::DetachKeys;
use crate::error::ApiError;

/// Bytes that are passed on at once.
const CHUNK: usize = 32 << 10;
/// Bytes of output that wait for a slow client that did not upgrade.
const BUFFER: usize = 64 << 10;
/// Content type of output with a terminal.
pub const RAW: &str = "application/vnd.docker.raw-stream";
/// Content type of output in frames, for clients that know it (1.42).
pub const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

/// Both directions of a connection.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// A request whose connection can be taken over.
pub struct Hijack {
    upgrade: Option<(HeaderValue, OnUpgrade)>,
    body: Body,
}

impl Hijack {
    /// The connection of a request whose body has been read already.
    #[must_use]
    pub fn of_parts(headers: &HeaderMap, upgrade: Option<OnUpgrade>, body: Body) -> Self {
        let asked = headers.get(header::UPGRADE).cloned();
        Self { upgrade: asked.zip(upgrade), body }
    }

    /// Answers, and runs `talk` with the connection. It ends when `talk` returns.
    #[must_use]
    pub fn answer<F, T>(self, kind: &'static str, talk: F) -> Response<Body>
    where
        F: FnOnce(Box<dyn Connection>) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let span = tracing::Span::current();
        let Some((protocol, upgrade)) = self.upgrade else {
            let (near, far) = tokio::io::duplex(BUFFER);
            let connection = tokio::io::join(body::reader(self.body), near);
            tokio::spawn(talk(Box::new(connection)).instrument(span));
            return body::bytes(kind, far);
        };
        let task = async move {
            match upgrade.await {
                Ok(connection) => talk(Box::new(TokioIo::new(connection))).await,
                Err(error) => {
                    tracing::debug!(%error, "the client went away before its connection was taken over");
                }
            }
        };
        tokio::spawn(task.instrument(span));
        let mut response = body::with_type(StatusCode::SWITCHING_PROTOCOLS, kind, Body::empty());
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        response.headers_mut().insert(header::UPGRADE, protocol);
        response
    }
}

impl<S: Sync> FromRequest<S> for Hijack {
    type Rejection = ApiError;

    async fn from_request(mut request: Request, _: &S) -> Result<Self, ApiError> {
        let upgrade = request.extensions_mut().remove::<OnUpgrade>();
        let (parts, body) = request.into_parts();
        Ok(Self::of_parts(&parts.headers, upgrade, body))
    }
}

/// Why passing bytes on ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// There is no more output, or nobody to read it.
    Output,
    /// The detach keys were typed.
    Detached,
}

/// What of a client's bytes is passed on.
#[derive(Debug)]
pub enum Input {
    /// Nothing: they are read and thrown away.
    Ignored,
    /// All.
    Passed,
    /// All but the keys that leave the terminal.
    Keys(DetachKeys),
}

/// Passes bytes between a client and an attached process, until the output ends or the keys to leave were typed. The end
/// of the client's bytes is passed on as the end of input; output goes on after it.
pub async fn pass(client: Box<dyn Connection>, process: UnixStream, input: Input) -> Ended {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut output, mut to_process) = process.into_split();
    let down = async {
        let mut bytes = vec![0; CHUNK];
        loop {
            let count = output.read(&mut bytes).await.unwrap_or(0);
            let Some(part) = bytes.get(..count).filter(|part| !part.is_empty()) else { break };
            if to_client.write_all(part).await.is_err() || to_client.flush().await.is_err() {
                break;
            }
        }
        // The client may be gone already.
        let _ = to_client.shutdown().await;
    };
    let up = async {
        let mut input = input;
        let mut bytes = vec![0; CHUNK];
        loop {
            let count = from_client.read(&mut bytes).await.unwrap_or(0);
            let Some(part) = bytes.get(..count).filter(|part| !part.is_empty()) else { break };
            let written = match &mut input {
                Input::Ignored => Ok(()),
                Input::Passed => to_process.write_all(part).await,
                Input::Keys(keys) => {
                    let typed = keys.typed(part);
                    let written = to_process.write_all(&typed.pass).await;
                    if typed.detached {
                        return Ended::Detached;
                    }
                    written
                }
            };
            if written.is_err() {
                // The process closed its input; its output still counts.
                break;
            }
        }
        if !matches!(input, Input::Ignored) {
            let _ = to_process.shutdown().await;
        }
        std::future::pending().await
    };
    tokio::select! {
        () = down => Ended::Output,
        ended = up => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_input_is_passed_on_and_output_goes_on_after_it() {
        let (client, mut far) = tokio::io::duplex(64);
        let (process, mut program) = UnixStream::pair().unwrap();
        let passing = tokio::spawn(pass(Box::new(client), process, Input::Passed));
        far.write_all(b"input").await.unwrap();
        far.shutdown().await.unwrap();
        let mut read = String::new();
        program.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "input");
        program.write_all(b"output").await.unwrap();
        drop(program);
        let mut read = String::new();
        far.read_to_string(&mut read).await.unwrap();
        assert_eq!((read.as_str(), passing.await.unwrap()), ("output", Ended::Output));
    }

    #[tokio::test]
    async fn the_keys_leave_while_the_program_runs() {
        let (client, mut far) = tokio::io::duplex(64);
        let (process, mut program) = UnixStream::pair().unwrap();
        let keys = Input::Keys(DetachKeys::parse(None).unwrap());
        let passing = tokio::spawn(pass(Box::new(client), process, keys));
        far.write_all(b"ls\x10\x11").await.unwrap();
        assert_eq!(passing.await.unwrap(), Ended::Detached);
        let mut read = String::new();
        program.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "ls");
    }

    #[tokio::test]
    async fn input_that_nobody_asked_for_is_thrown_away() {
        let (client, mut far) = tokio::io::duplex(64);
        let (process, mut program) = UnixStream::pair().unwrap();
        let passing = tokio::spawn(pass(Box::new(client), process, Input::Ignored));
        far.write_all(b"x").await.unwrap();
        far.shutdown().await.unwrap();
        program.write_all(b"still here").await.unwrap();
        let mut read = [0; 10];
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"still here");
        drop(program);
        assert_eq!(passing.await.unwrap(), Ended::Output);
    }
}
