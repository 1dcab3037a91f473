//! Versions of the API: the `/v1.N` in front of a path, and what every answer says about the server.

use axum::body::Body;
use axum::extract::Request;
use axum::http::uri::{PathAndQuery, Uri};
use axum::http::{HeaderName, HeaderValue, Response, header};
use axum::middleware::Next;
use axum::response::IntoResponse;

use crate::error::ApiError;

/// The newest version that is spoken.
pub const API_VERSION: &str = "1.50";
/// The oldest version that is spoken.
pub const MIN_API_VERSION: &str = "1.24";
/// What answers call the server.
pub const SERVER: &str = concat!("Bulkhead/", env!("CARGO_PKG_VERSION"), " (linux)");

/// The version that a request is in; the newest if it named none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u32,
    minor: u32,
}

impl Version {
    /// The newest version that is spoken.
    pub const NEWEST: Self = Self::new(1, 50);
    /// The oldest version that is spoken.
    pub const OLDEST: Self = Self::new(1, 24);

    /// A version.
    #[must_use]
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// Reads the first segment of a path, such as `v1.43`; `None` if it is none.
    fn of_segment(segment: &str) -> Option<Self> {
        let (major, minor) = segment.strip_prefix('v')?.split_once('.')?;
        let digits =
            |text: &str| !text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(major) || !digits(minor) {
            return None;
        }
        Some(Self::new(major.parse().ok()?, minor.parse().ok()?))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Takes the version from the path, refuses those that are not spoken, and marks every answer.
pub async fn negotiate(mut request: Request, next: Next) -> Response<Body> {
    let mut response = match strip(request.uri()) {
        Ok((version, uri)) => {
            if let Some(uri) = uri {
                *request.uri_mut() = uri;
            }
            request.extensions_mut().insert(version);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("api-version"), HeaderValue::from_static(API_VERSION));
    headers.insert(HeaderName::from_static("ostype"), HeaderValue::from_static("linux"));
    headers.insert(HeaderName::from_static("docker-experimental"), HeaderValue::from_static("false"));
    headers.insert(header::SERVER, HeaderValue::from_static(SERVER));
    response
}

/// The version of a path, and the address without it if it had one.
fn strip(uri: &Uri) -> Result<(Version, Option<Uri>), ApiError> {
    let path = uri.path();
    let segment = path.strip_prefix('/').unwrap_or(path).split('/').next().unwrap_or_default();
    let Some(version) = Version::of_segment(segment) else { return Ok((Version::NEWEST, None)) };
    if version > Version::NEWEST {
        return Err(ApiError::bad(format!(
            "client version {version} is too new. Maximum supported API version is {API_VERSION}"
        )));
    }
    if version < Version::OLDEST {
        return Err(ApiError::bad(format!(
            "client version {version} is too old. Minimum supported API version is {MIN_API_VERSION}, please upgrade \
             your client to a newer version"
        )));
    }
    let rest = path.get(1 + segment.len()..).filter(|rest| !rest.is_empty()).unwrap_or("/");
    let target = match uri.query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_owned(),
    };
    let target: PathAndQuery =
        target.parse().map_err(|e| ApiError::bad(format!("the address {path:?} is not one: {e}")))?;
    Ok((version, Some(Uri::from(target))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripped(text: &str) -> (Version, String) {
        let uri: Uri = text.parse().unwrap();
        let (version, new) = strip(&uri).unwrap();
        (version, new.unwrap_or(uri).to_string())
    }

    #[test]
    fn versions_are_taken_from_paths() {
        assert_eq!(
            stripped("/v1.43/containers/json?all=1"),
            (Version::new(1, 43), "/containers/json?all=1".into())
        );
        assert_eq!(stripped("/containers/json"), (Version::NEWEST, "/containers/json".into()));
        assert_eq!(stripped("/v1.24"), (Version::OLDEST, "/".into()));
        // These are not versions but paths.
        for path in ["/volumes", "/v1", "/v1.x/info", "/v1.123456/info"] {
            assert_eq!(stripped(path), (Version::NEWEST, path.into()));
        }
    }

    #[test]
    fn versions_that_are_not_spoken_are_refused_in_dockers_words() {
        let refused = |text: &str| strip(&text.parse().unwrap()).unwrap_err();
        let new = refused("/v1.51/info");
        assert_eq!(new.body.message, "client version 1.51 is too new. Maximum supported API version is 1.50");
        let old = refused("/v1.23/info");
        assert!(
            old.body
                .message
                .starts_with("client version 1.23 is too old. Minimum supported API version is 1.24")
        );
        assert!(refused("/v2.0/info").status == 400 && refused("/v0.9/info").status == 400);
        assert_eq!(Version::NEWEST.to_string(), API_VERSION);
        assert_eq!(Version::OLDEST.to_string(), MIN_API_VERSION);
    }
}
