//! Errors as HTTP answers: Docker's statuses and Docker's words, because its clients derive exit codes and advice from them.
//!
//! Every body has Docker's `message`. Bulkhead's own clients also find `what`, `why` and `next`, the three lines that a
//! person is shown, and `exit_code`.

use agent::protocol::{Failure, FailureKind};
use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use engine::EngineError;
use engine::error::Advice;
use image_unpack::Error as ImageError;
use serde::{Deserialize, Serialize};

/// Longest message in bytes; a longer one is cut.
const MAX_MESSAGE: usize = 16 << 10;

/// An answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// Its body.
    pub body: Box<ErrorBody>,
}

/// The JSON body of an error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// All of it in one line, in Docker's words where Docker has words for it.
    pub message: String,
    /// What happened, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub what: Option<String>,
    /// Why, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What to do next, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The last lines of the guest's console, if the error is about its machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<String>,
    /// Exit code of a command line that ends with this error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
}

impl ApiError {
    /// An error with this status and message.
    #[must_use]
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let mut message: String = message.into();
        if message.len() > MAX_MESSAGE {
            let end = (0..=MAX_MESSAGE).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
            message.truncate(end);
        }
        Self { status, body: Box::new(ErrorBody { message, ..ErrorBody::default() }) }
    }

    /// 400: the request is wrong.
    #[must_use]
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 409: it contradicts what is.
    #[must_use]
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// 500.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 501: Docker has it, this engine does not yet.
    #[must_use]
    pub fn missing(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, message)
    }

    /// 400 for an option that is not supported: its name, why not, and what to do instead.
    #[must_use]
    pub fn refused(option: &str, why: &str, next: &str) -> Self {
        EngineError::Option { option: option.to_owned(), why: why.to_owned(), next: next.to_owned() }.into()
    }

    fn with_advice(mut self, what: String, advice: Advice) -> Self {
        self.body.what = Some(what);
        self.body.why = Some(advice.why);
        self.body.next = Some(advice.next);
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        // Strings and numbers only: this cannot fail.
        let body = serde_json::to_vec(&self.body).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let (status, message) = words(&error);
        let mut answer = Self::new(status, message).with_advice(error.to_string(), error.advice());
        answer.body.console = error.console();
        answer.body.exit_code = Some(error.exit_code());
        answer
    }
}

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> Self {
        let (status, message) = image_words(&error);
        let advice = Advice { why: error.to_string(), next: error.hint() };
        Self::new(status, message).with_advice(error.to_string(), advice)
    }
}

/// Status and message of an engine's error.
fn words(error: &EngineError) -> (StatusCode, String) {
    use EngineError as E;
    match error {
        E::NoContainer(name) => (StatusCode::NOT_FOUND, format!("No such container: {name}")),
        E::NoImage(name) => (StatusCode::NOT_FOUND, format!("No such image: {}", with_tag(name))),
        E::NoExec(id) => (StatusCode::NOT_FOUND, format!("No such exec instance: {id}")),
        E::NoVolume(name) => (StatusCode::NOT_FOUND, format!("get {name}: no such volume")),
        E::NoNetwork(name) => (StatusCode::NOT_FOUND, format!("network {name} not found")),
        E::Ambiguous(name) => {
            (StatusCode::BAD_REQUEST, format!("multiple IDs found with provided prefix: {name}"))
        }
        E::NameTaken { name, id } => (
            StatusCode::CONFLICT,
            format!(
                "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You have to \
                 remove (or rename) that container to be able to reuse that name."
            ),
        ),
        E::NotRunning(name) => (StatusCode::CONFLICT, format!("container {name} is not running")),
        E::Paused(name) => (StatusCode::CONFLICT, format!("container {name} is paused, unpause it first")),
        E::Running(name) => (
            StatusCode::CONFLICT,
            format!(
                "cannot remove container \"{name}\": container is running: stop the container before removing or \
                 force remove"
            ),
        ),
        E::NotPaused(name) => (StatusCode::CONFLICT, format!("container {name} is not paused")),
        E::VolumeInUse { name, container } => {
            (StatusCode::CONFLICT, format!("remove {name}: volume is in use - [{container}]"))
        }
        E::NetworkInUse { name, why } => {
            (StatusCode::FORBIDDEN, format!("error while removing network: network {name}: {why}"))
        }
        E::Guest(failure) => (failure_status(failure), failure.text.clone()),
        E::Conflict(message) => (StatusCode::CONFLICT, message.clone()),
        E::NoCommand => (StatusCode::BAD_REQUEST, error.to_string()),
        E::Invalid(message) => (StatusCode::BAD_REQUEST, message.clone()),
        E::Option { option, why, next } => {
            (StatusCode::BAD_REQUEST, format!("{option} cannot be done: {why} ({next})"))
        }
        E::Start(failure) => (failure_status(failure), start_words(failure.kind, &failure.text)),
        E::Image { name, source } => {
            let (status, message) = image_words(source);
            (status, if message.contains(name.as_str()) { message } else { format!("{name}: {message}") })
        }
        other => (StatusCode::INTERNAL_SERVER_ERROR, format!("{other}: {}", other.advice().why)),
    }
}

fn failure_status(failure: &Failure) -> StatusCode {
    match failure.kind {
        FailureKind::NotFound | FailureKind::NotExecutable | FailureKind::Unsupported => {
            StatusCode::BAD_REQUEST
        }
        FailureKind::NotRunning | FailureKind::Paused => StatusCode::CONFLICT,
        FailureKind::NoSuchPath => StatusCode::NOT_FOUND,
        FailureKind::NotADirectory | FailureKind::ReadOnly | FailureKind::Other => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

/// Why a program could not be started, with the words that Docker's command line looks for when it chooses between
/// the exit codes 125, 126 and 127.
fn start_words(kind: FailureKind, text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let has = |words: [&str; 2]| words.iter().any(|word| lower.contains(word));
    let mark = match kind {
        FailureKind::NotFound if !has(["executable file not found", "no such file or directory"]) => {
            ": executable file not found in $PATH"
        }
        // An image for another CPU is not a matter of permissions, but it is exit code 126 all the same.
        FailureKind::NotExecutable if !has(["permission denied", "is a directory"]) => ": permission denied",
        _ => "",
    };
    format!("unable to start container process: {text}{mark}")
}

/// Status and message of an image store's error.
fn image_words(error: &ImageError) -> (StatusCode, String) {
    use ImageError as E;
    match error {
        E::NotFound { what } => (StatusCode::NOT_FOUND, format!("No such image: {}", with_tag(what))),
        E::NoSuchTag { tag, place, .. } => {
            (StatusCode::NOT_FOUND, format!("manifest for {place}:{tag} not found: manifest unknown"))
        }
        E::WrongPlatform { wanted, .. } => (
            StatusCode::NOT_FOUND,
            format!("no matching manifest for {wanted} in the manifest list entries: {error}"),
        ),
        E::Invalid { what: "image reference", input, reason } => {
            (StatusCode::BAD_REQUEST, format!("invalid reference format: {input}: {reason}"))
        }
        E::Invalid { .. } | E::Ambiguous { .. } => (StatusCode::BAD_REQUEST, error.to_string()),
        E::AuthNeeded { repository, reason, .. } => (
            StatusCode::NOT_FOUND,
            format!(
                "pull access denied for {repository}, repository does not exist or may require 'docker login': {reason}"
            ),
        ),
        E::InUse { what, by } => {
            (StatusCode::CONFLICT, format!("conflict: unable to delete {what} (must be forced) - {by}"))
        }
        E::Truncated { .. }
        | E::BadLayer { .. }
        | E::BadImage { .. }
        | E::Limit { .. }
        | E::Unsupported { .. } => (StatusCode::BAD_REQUEST, error.to_string()),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// A name as Docker repeats it: with its tag.
fn with_tag(name: &str) -> String {
    match name.parse::<image_unpack::Reference>() {
        Ok(reference) => reference.familiar(),
        Err(_) => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_that_docker_derives_exit_codes_from() {
        // docker run: 127 for either text, 126 for "permission denied" and "is a directory", else 125.
        let text = |kind, text: &str| ApiError::from(EngineError::Start(Failure::new(kind, text)));
        let missing = text(FailureKind::NotFound, "exec: \"nope\": no program of that name");
        assert!(missing.body.message.contains("executable file not found in $PATH"), "{missing:?}");
        assert_eq!((missing.status, missing.body.exit_code), (StatusCode::BAD_REQUEST, Some(127)));
        let denied = text(FailureKind::NotExecutable, "exec: \"/etc\": exec format error");
        assert!(denied.body.message.ends_with("permission denied"), "{denied:?}");
        assert_eq!(denied.body.exit_code, Some(126));
        let other = text(FailureKind::Other, "mounting /proc: EIO");
        assert!(!other.body.message.contains("not found") && !other.body.message.contains("denied"));
        assert_eq!(other.status, StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[test]
    fn statuses_are_dockers() {
        let cases = [
            (EngineError::NoContainer("x".into()), 404, "No such container: x"),
            (EngineError::NoImage("busybox:latest".into()), 404, "No such image: busybox:latest"),
            (EngineError::NotRunning("x".into()), 409, "container x is not running"),
            (EngineError::NoNetwork("x".into()), 404, "network x not found"),
            (EngineError::NoVolume("x".into()), 404, "get x: no such volume"),
        ];
        for (error, status, message) in cases {
            let answer = ApiError::from(error);
            assert_eq!((answer.status.as_u16(), answer.body.message.as_str()), (status, message));
            assert!(answer.body.why.is_some() && answer.body.next.is_some());
        }
        let taken = ApiError::from(EngineError::NameTaken { name: "web".into(), id: "f00".into() });
        assert_eq!(taken.status, StatusCode::CONFLICT);
        assert!(taken.body.message.starts_with("Conflict. The container name \"/web\" is already in use by"));
    }

    #[test]
    fn a_message_is_bounded() {
        let error = ApiError::bad("ä".repeat(MAX_MESSAGE));
        assert!(error.body.message.len() <= MAX_MESSAGE && error.body.message.ends_with('ä'));
    }
}
