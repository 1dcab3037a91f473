//! Bodies of requests and answers: bounded JSON in, JSON and byte streams out.

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};

use crate::error::ApiError;
use crate::fields::Fields;

/// Most bytes of a request's JSON.
const MAX_JSON: usize = 4 << 20;
/// Bytes that are read at once from what is streamed.
const CHUNK: usize = 64 << 10;

/// The JSON of a request, not interpreted yet. An empty body is an empty object.
#[derive(Debug)]
pub struct JsonBody(Bytes);

impl JsonBody {
    /// The body as this type.
    ///
    /// # Errors
    /// It is not JSON of that shape.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        let text: &[u8] = if self.is_empty() { b"{}" } else { &self.0 };
        serde_json::from_slice(text).map_err(|e| ApiError::bad(format!("invalid JSON: {e}")))
    }

    /// The body as an object whose fields are taken one by one, so that none is overlooked.
    ///
    /// # Errors
    /// It is not a JSON object.
    pub fn fields(&self) -> Result<Fields, ApiError> {
        // As Go reads it, null changes nothing.
        Ok(Fields::new(self.read::<Option<_>>()?.unwrap_or_default()))
    }

    /// Nothing was sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.trim_ascii().is_empty()
    }
}

impl<S: Sync> FromRequest<S> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let kind = request.headers().get(header::CONTENT_TYPE).cloned();
        let bytes = to_bytes(request.into_body(), MAX_JSON).await.map_err(|e| {
            ApiError::bad(format!("the request's body cannot be read (at most {MAX_JSON} bytes): {e}"))
        })?;
        let text = kind.as_ref().map_or(Ok("application/json"), HeaderValue::to_str).unwrap_or_default();
        let essence = text.split(';').next().unwrap_or_default().trim();
        if !bytes.is_empty() && !essence.eq_ignore_ascii_case("application/json") {
            return Err(ApiError::bad(format!(
                "unsupported Content-Type header ({text}): must be 'application/json'"
            )));
        }
        Ok(Self(bytes))
    }
}

/// An answer of JSON.
///
/// # Errors
/// It cannot be written as JSON.
pub fn json(value: &impl Serialize) -> Result<Response<Body>, ApiError> {
    json_with(StatusCode::OK, value)
}

/// An answer of JSON with another status than 200.
///
/// # Errors
/// It cannot be written as JSON.
pub fn json_with(status: StatusCode, value: &impl Serialize) -> Result<Response<Body>, ApiError> {
    let mut bytes =
        serde_json::to_vec(value).map_err(|e| ApiError::internal(format!("writing JSON: {e}")))?;
    bytes.push(b'\n');
    Ok(with_type(status, "application/json", Body::from(bytes)))
}

/// 201, with the id of what was made. (The type that the models have for it writes the name in small letters, which only Go forgives.)
///
/// # Errors
/// It cannot be written as JSON.
pub fn made(id: &str) -> Result<Response<Body>, ApiError> {
    json_with(StatusCode::CREATED, &serde_json::json!({ "Id": id }))
}

/// An answer without a body.
#[must_use]
pub fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// An answer with a body of this type.
#[must_use]
pub fn with_type(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// An answer of bytes as they come. If reading fails, the connection is broken off, so that nobody takes half for whole.
#[must_use]
pub fn bytes(kind: &'static str, reader: impl AsyncRead + Send + 'static) -> Response<Body> {
    with_type(StatusCode::OK, kind, Body::from_stream(ReaderStream::with_capacity(reader, CHUNK)))
}

/// A request's body as bytes to read, without bound: it goes to disk or into a machine, never to memory.
#[must_use]
pub fn reader(body: Body) -> impl AsyncRead + Send + Unpin + 'static {
    use futures_util::TryStreamExt as _;
    StreamReader::new(Box::pin(body.into_data_stream().map_err(std::io::Error::other)))
}
