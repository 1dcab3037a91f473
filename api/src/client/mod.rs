//! The other end of the API: a small HTTP/1.1 client over a unix socket, TCP with or without TLS, or a pipe within this process.
//!
//! One connection for each request: a command line sends few, and a connection that is taken over cannot be used again.

mod auth;
mod connect;
mod error;
mod streams;
mod target;

use std::io;

use axum::Router;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
pub use hyper::Method;
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};

pub use auth::registry_auth;
pub use connect::Endpoint;
pub use error::ClientError;
pub use streams::{Hijacked, JsonLines};
pub use target::Target;

use crate::error::ErrorBody;
use crate::hijack::MULTIPLEXED;
use crate::server::Address;

/// Most bytes of an answer that is read as a whole.
const MAX_ANSWER: usize = 256 << 20;
/// Most bytes of an error's body.
const MAX_PROBLEM: usize = 1 << 20;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A client.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
    headers: HeaderMap,
}

impl Client {
    /// A client of whoever listens at an endpoint.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, headers: HeaderMap::new() }
    }

    /// A client of a router in this process: what the command line uses where no daemon runs.
    #[must_use]
    pub fn in_process(router: Router) -> Self {
        Self::new(Endpoint::InProcess(router))
    }

    /// Sends this header with every request, such as a request id or a token.
    ///
    /// # Errors
    /// It cannot be one.
    pub fn with_header(mut self, name: &str, value: &str) -> Result<Self, ClientError> {
        let bad = |_| ClientError::Protocol(format!("{name} is not a header"));
        let name: HeaderName =
            name.parse().map_err(|_| ClientError::Protocol(format!("{name} is not a header")))?;
        self.headers.insert(name, HeaderValue::from_str(value).map_err(bad)?);
        Ok(self)
    }

    /// Where it sends its requests, for people.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.endpoint {
            Endpoint::Unix(path) => Address::Unix(path.clone()).to_string(),
            Endpoint::Tcp { address, .. } => Address::Tcp(address.clone()).to_string(),
            Endpoint::InProcess(_) => "this process".to_owned(),
        }
    }

    /// Asks for JSON.
    ///
    /// # Errors
    /// The server cannot be reached, refuses, or answers something else.
    pub async fn get<T: DeserializeOwned>(&self, target: &Target) -> Result<T, ClientError> {
        read(self.send(Method::GET, target, empty(), None).await?).await
    }

    /// Sends JSON and asks for JSON.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        target: &Target,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        read(self.send(Method::POST, target, json(body)?, Some(JSON)).await?).await
    }

    /// Sends a request without a body whose answer has none, and tells whether something was changed (`false` for 304).
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn act(&self, method: Method, target: &Target) -> Result<bool, ClientError> {
        let response = self.send(method, target, empty(), None).await?;
        Ok(response.status() != StatusCode::NOT_MODIFIED)
    }

    /// Sends JSON; the answer has no body.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn act_with(
        &self,
        method: Method,
        target: &Target,
        body: &impl Serialize,
    ) -> Result<bool, ClientError> {
        let response = self.send(method, target, json(body)?, Some(JSON)).await?;
        Ok(response.status() != StatusCode::NOT_MODIFIED)
    }

    /// Sends a request without a body and asks for JSON.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn ask<T: DeserializeOwned>(&self, method: Method, target: &Target) -> Result<T, ClientError> {
        read(self.send(method, target, empty(), None).await?).await
    }

    /// The headers that a HEAD request is answered with.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn head(&self, target: &Target) -> Result<HeaderMap, ClientError> {
        Ok(self.send(Method::HEAD, target, empty(), None).await?.headers().clone())
    }

    /// Asks for lines of JSON, as they come.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn lines<T: DeserializeOwned>(
        &self,
        method: Method,
        target: &Target,
    ) -> Result<JsonLines<T>, ClientError> {
        Ok(JsonLines::new(reader(self.send(method, target, empty(), None).await?)))
    }

    /// Asks for bytes, as they come, with the answer's headers. A stream that breaks off is an error at its end.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn download(
        &self,
        target: &Target,
    ) -> Result<(HeaderMap, impl AsyncRead + Send + Unpin + use<>), ClientError> {
        let response = self.send(Method::GET, target, empty(), None).await?;
        Ok((response.headers().clone(), reader(response)))
    }

    /// Sends bytes, and asks for lines of JSON.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn upload<T: DeserializeOwned>(
        &self,
        method: Method,
        target: &Target,
        content: impl AsyncRead + Send + 'static,
    ) -> Result<JsonLines<T>, ClientError> {
        let frames = ReaderStream::with_capacity(content, 64 << 10).map_ok(Frame::data);
        let body = StreamBody::new(frames).boxed_unsync();
        Ok(JsonLines::new(reader(self.send(method, target, body, Some("application/x-tar")).await?)))
    }

    /// Takes a connection over: `attach`, or the start of an exec with its JSON.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn hijack(
        &self,
        target: &Target,
        body: Option<&impl Serialize>,
    ) -> Result<Hijacked, ClientError> {
        let (content, kind) = match body {
            Some(body) => (json(body)?, Some(JSON)),
            None => (empty(), None),
        };
        let mut request = self.request(Method::POST, target, content, kind)?;
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        request.headers_mut().insert(UPGRADE, HeaderValue::from_static("tcp"));
        let response = checked(self.exchange(request).await?).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(ClientError::Protocol(format!(
                "the server answered {} to an upgrade",
                response.status()
            )));
        }
        let framed = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == MULTIPLEXED);
        let connection = hyper::upgrade::on(response).await.map_err(ClientError::broken)?;
        Ok(Hijacked { connection: Box::new(TokioIo::new(connection)), framed })
    }

    /// Sends a request; an answer that is an error is an error.
    async fn send(
        &self,
        method: Method,
        target: &Target,
        body: Body,
        kind: Option<&'static str>,
    ) -> Result<Response<Incoming>, ClientError> {
        checked(self.exchange(self.request(method, target, body, kind)?).await?).await
    }

    fn request(
        &self,
        method: Method,
        target: &Target,
        body: Body,
        kind: Option<&'static str>,
    ) -> Result<Request<Body>, ClientError> {
        let bad = |e: hyper::http::Error| ClientError::Protocol(format!("{target} is not an address: {e}"));
        let mut request =
            Request::builder().method(method).uri(target.to_string()).body(body).map_err(bad)?;
        let headers = request.headers_mut();
        headers.extend(self.headers.clone());
        headers.insert(HOST, HeaderValue::from_static("bulkhead"));
        if let Some(token) = self.endpoint.authorization()? {
            headers.insert(hyper::header::AUTHORIZATION, token);
        }
        if let Some(kind) = kind {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        Ok(request)
    }

    async fn exchange(&self, request: Request<Body>) -> Result<Response<Incoming>, ClientError> {
        let stream = self.endpoint.connect().await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::broken)?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection broke");
            }
        });
        sender.send_request(request).await.map_err(ClientError::broken)
    }
}

const JSON: &str = "application/json";

fn empty() -> Body {
    full(Bytes::new())
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn json(value: &impl Serialize) -> Result<Body, ClientError> {
    let bytes = serde_json::to_vec(value).map_err(|e| ClientError::Protocol(format!("writing JSON: {e}")))?;
    Ok(full(bytes.into()))
}

/// Turns an answer that is an error into one.
async fn checked(response: Response<Incoming>) -> Result<Response<Incoming>, ClientError> {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return Ok(response);
    }
    let bytes = Limited::new(response.into_body(), MAX_PROBLEM).collect().await;
    let bytes = bytes.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(&bytes);
        ErrorBody { message: format!("{status} {}", text.trim()).trim().to_owned(), ..ErrorBody::default() }
    });
    Err(ClientError::Refused { status, body: Box::new(body) })
}

async fn read<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, ClientError> {
    let bytes = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await
        .map_err(|e| ClientError::Protocol(format!("the answer broke off: {e}")))?
        .to_bytes();
    serde_json::from_slice(&bytes)
        .map_err(|e| ClientError::Protocol(format!("the answer is not what was asked for: {e}")))
}

fn reader(response: Response<Incoming>) -> impl AsyncRead + Send + Unpin + use<> {
    let data = response.into_body().into_data_stream().map_err(io::Error::other);
    StreamReader::new(Box::pin(data))
}
