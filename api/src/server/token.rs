//! A token that clients on TCP must show: `Authorization: Bearer TOKEN`.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::middleware::Next;
use axum::response::IntoResponse as _;

use super::ServeError;
use crate::error::ApiError;

/// Least length of a token: 128 bits in hexadecimal digits.
const LEAST: usize = 32;
/// Greatest length.
const MOST: usize = 4096;

/// A token.
#[derive(Clone)]
pub struct Token(Arc<str>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the secret: this ends up in logs.
        f.write_str("Token")
    }
}

impl Token {
    /// Reads a token's file, which nobody but its owner may read.
    ///
    /// # Errors
    /// It cannot be read, others may read it, or it is no token.
    pub fn read(path: &Path) -> Result<Self, ServeError> {
        let wrong = |why: String| ServeError::File { path: path.to_owned(), why };
        let metadata = fs::metadata(path).map_err(|e| wrong(e.to_string()))?;
        if metadata.mode() & 0o077 != 0 {
            return Err(wrong("others than its owner can use it: chmod 600".into()));
        }
        if metadata.len() > MOST as u64 {
            return Err(wrong(format!("a token has at most {MOST} characters")));
        }
        let text = fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        let token = text.trim();
        if token.len() < LEAST || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(wrong(format!(
                "a token has at least {LEAST} characters and no spaces: openssl rand -hex 32"
            )));
        }
        Ok(Self(token.into()))
    }

    /// The token, for a client to send.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.0
    }

    /// Compares in a time that does not tell how much was right.
    fn is(&self, shown: &str) -> bool {
        let (mine, theirs) = (self.0.as_bytes(), shown.as_bytes());
        let differ = mine.iter().zip(theirs).fold(0u8, |differ, (a, b)| differ | (a ^ b));
        mine.len() == theirs.len() && std::hint::black_box(differ) == 0
    }
}

/// Lets those through who show the token.
pub(super) async fn check(State(token): State<Token>, request: Request, next: Next) -> Response<Body> {
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if shown.and_then(|value| value.strip_prefix("Bearer ")).is_some_and(|shown| token.is(shown.trim())) {
        return next.run(request).await;
    }
    let message = "unauthorized: this server wants a token (Authorization: Bearer TOKEN)";
    let mut response = ApiError::new(StatusCode::UNAUTHORIZED, message).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn tokens_are_secret_and_long() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        let write = |text: &str, mode: u32| {
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            Token::read(&file)
        };
        let secret = "0123456789abcdef0123456789abcdef";
        let token = write(&format!("{secret}\n"), 0o600).unwrap();
        assert!(
            token.is(secret) && !token.is("") && !token.is(&secret[1..]) && !token.is(&secret.to_uppercase())
        );
        assert!(!format!("{token:?}").contains("0123"));
        assert!(write(secret, 0o640).unwrap_err().to_string().contains("chmod 600"));
        assert!(write("short", 0o600).is_err() && write(&"a b".repeat(20), 0o600).is_err());
        assert!(write(&"a".repeat(5000), 0o600).is_err());
        assert!(Token::read(&directory.path().join("none")).is_err());
    }
}
