//! What can go wrong for a client.

use std::io;

use hyper::StatusCode;

use crate::error::ErrorBody;

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or nobody is let in.
    #[error("cannot connect to the server at {address}: {source}")]
    Connect {
        /// Where.
        address: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The server said no.
    #[error("{}", body.what.as_ref().unwrap_or(&body.message))]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// Its words.
        body: Box<ErrorBody>,
    },
    /// The connection broke.
    #[error("the connection to the server broke: {0}")]
    Broken(String),
    /// One side does not speak as the other expects.
    #[error("{0}")]
    Protocol(String),
}

impl ClientError {
    #[allow(clippy::needless_pass_by_value)] // it is given to `map_err`
    pub(super) fn broken(error: hyper::Error) -> Self {
        Self::Broken(error.to_string())
    }

    /// The server's status, if it answered.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(status.as_u16()),
            _ => None,
        }
    }

    /// The second and third line for people: why, and what to do next.
    #[must_use]
    pub fn advice(&self) -> (String, String) {
        match self {
            Self::Connect { source, .. } => {
                (source.to_string(), "see that the daemon runs: bulkhead serve, or leave -H out".to_owned())
            }
            Self::Refused { body, .. } => (
                body.why.clone().unwrap_or_else(|| body.message.clone()),
                body.next.clone().unwrap_or_else(|| "correct the command, then run it again".to_owned()),
            ),
            Self::Broken(why) => (why.clone(), "see the daemon's log, then try again".to_owned()),
            Self::Protocol(why) => (why.clone(), "see that client and daemon are of one version".to_owned()),
        }
    }

    /// The exit code of a command that ends with this error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { body, .. } => body.exit_code.unwrap_or(engine::error::EXIT_ENGINE),
            _ => engine::error::EXIT_ENGINE,
        }
    }

    /// The guest's last console lines, if the error is about its machine.
    #[must_use]
    pub fn console(&self) -> Option<&str> {
        match self {
            Self::Refused { body, .. } => body.console.as_deref(),
            _ => None,
        }
    }
}
