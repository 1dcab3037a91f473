//! What can go wrong, told so that a person can act: every variant says what happened and where, and
//! [`Error::hint`] says what to do next.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every failure of the image store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not an image reference, source, platform or digest.
    #[error("`{input}` is not a valid {what}: {reason}")]
    Invalid {
        /// What was expected ("image reference", "platform", ...).
        what: &'static str,
        /// The text as given.
        input: String,
        /// Why it was refused.
        reason: String,
    },
    /// The image, archive or directory does not exist.
    #[error("image not found: {what}")]
    NotFound {
        /// What was looked for, and where.
        what: String,
    },
    /// Several images have ids that begin like this.
    #[error("image id `{prefix}` is ambiguous")]
    Ambiguous {
        /// The beginning as given.
        prefix: String,
        /// Up to 20 ids that begin so.
        matches: Vec<String>,
    },
    /// The image exists, but not under this tag.
    #[error("no tag `{tag}` in {place}")]
    NoSuchTag {
        /// The tag or name asked for.
        tag: String,
        /// Registry repository, directory or archive.
        place: String,
        /// Up to 20 of the tags there are, when known.
        have: Vec<String>,
    },
    /// The image has no variant for the platform asked for.
    #[error("{place} has no image for platform {wanted}")]
    WrongPlatform {
        /// The platform asked for.
        wanted: String,
        /// The platforms there are.
        have: Vec<String>,
        /// The image.
        place: String,
    },
    /// Content does not have the digest it was named by.
    #[error("{what}: expected {expected}, but its content is {found}")]
    DigestMismatch {
        /// What was read: "layer 2 of ...", "manifest", ...
        what: String,
        /// The digest that named it.
        expected: Digest,
        /// The digest of the bytes that came.
        found: Digest,
    },
    /// Content does not have the size its descriptor gave.
    #[error("{what}: expected {expected} bytes, got {found}")]
    SizeMismatch {
        /// What was read.
        what: String,
        /// Bytes promised.
        expected: u64,
        /// Bytes that came (at least).
        found: u64,
    },
    /// A layer's stream ended early.
    #[error("{layer}: truncated {}", in_entry(.entry, .reason))]
    Truncated {
        /// Which layer.
        layer: String,
        /// The tar entry being read, if one was.
        entry: Option<String>,
        /// What was cut.
        reason: String,
    },
    /// A layer holds something malformed or hostile.
    #[error("{layer}: {}", in_entry(.entry, .reason))]
    BadLayer {
        /// Which layer.
        layer: String,
        /// The tar entry at fault, if one is.
        entry: Option<String>,
        /// Why it was refused.
        reason: String,
    },
    /// A manifest, index, image configuration or archive is malformed.
    #[error("{what}: {reason}")]
    BadImage {
        /// The document at fault.
        what: String,
        /// Why it was refused.
        reason: String,
    },
    /// Well-formed, but of a kind this store does not handle.
    #[error("{what} is not supported")]
    Unsupported {
        /// The thing, by name.
        what: String,
    },
    /// The image is larger than a limit of [`crate::Limits`].
    #[error("{place}: {what} exceeds the limit of {limit}")]
    Limit {
        /// Layer, entry or document.
        place: String,
        /// The quantity.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// The registry could not be reached, or the connection broke too often.
    #[error("registry {registry} cannot be reached: {reason}")]
    Unreachable {
        /// Host and port.
        registry: String,
        /// What the network said.
        reason: String,
    },
    /// The registry wants credentials, or refuses those it got.
    #[error("registry {registry} refuses access to {repository}: {reason}")]
    AuthNeeded {
        /// Host and port.
        registry: String,
        /// The repository asked for.
        repository: String,
        /// The registry's words.
        reason: String,
    },
    /// The registry answered with an error of another kind.
    #[error("registry {registry} answered {status} to {request}: {reason}")]
    Registry {
        /// Host and port.
        registry: String,
        /// HTTP status.
        status: u16,
        /// Method and path.
        request: String,
        /// The registry's words.
        reason: String,
    },
    /// No space (or quota) left where the store lives.
    #[error("disk full while writing {path}")]
    DiskFull {
        /// The file being written.
        path: PathBuf,
    },
    /// The store's own quota is used up.
    #[error(
        "the image store's quota of {quota} bytes would be exceeded: {used} bytes are in use, {wanted} more are wanted"
    )]
    Quota {
        /// Bound, bytes on disk.
        quota: u64,
        /// In use, bytes on disk.
        used: u64,
        /// What was to be added, bytes; at least.
        wanted: u64,
    },
    /// Something in the store no longer has the content it was stored with.
    #[error("corrupt in the store: {path}: {reason}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The image is used (by another tag, or a container), so it was not removed.
    #[error("{what} is in use: {by}")]
    InUse {
        /// The image.
        what: String,
        /// What uses it.
        by: String,
    },
    /// The operating system refused something.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// Verb: "read", "create", ...
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

fn in_entry(entry: &Option<String>, reason: &str) -> String {
    match entry {
        Some(entry) => format!("entry `{entry}`: {reason}"),
        None => reason.to_owned(),
    }
}

impl Error {
    /// Wraps an I/O error; "no space left" and "quota exceeded" become [`Error::DiskFull`].
    /// An [`Error`] that went through [`io::Error`] comes out as it was.
    pub(crate) fn io(doing: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        let source = match source.downcast::<Self>() {
            Ok(error) => return error,
            Err(source) => source,
        };
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Io { doing, path, source },
        }
    }

    pub(crate) fn invalid(what: &'static str, input: &str, reason: impl Into<String>) -> Self {
        let shown: String = input.chars().take(200).collect();
        Self::Invalid { what, input: shown, reason: reason.into() }
    }

    pub(crate) fn bad_image(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::BadImage { what: what.into(), reason: reason.into() }
    }

    /// What a person can do about it, one line.
    pub fn hint(&self) -> String {
        match self {
            Self::Invalid { what, .. } => format!("correct the {what} and try again"),
            Self::NotFound { .. } => "check the name, or pull the image first".into(),
            Self::NoSuchTag { have, .. } if !have.is_empty() => format!("use one of: {}", have.join(", ")),
            Self::NoSuchTag { .. } => "check the tag; `skopeo list-tags` shows what a registry has".into(),
            Self::WrongPlatform { have, .. } => format!("use --platform with one of: {}", have.join(", ")),
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } | Self::Truncated { .. } => {
                "the source is damaged or altered: fetch or build it again".into()
            }
            Self::BadLayer { .. } | Self::BadImage { .. } => {
                "the image is malformed: rebuild it, or report it to whoever made it".into()
            }
            Self::Unsupported { .. } => "convert the image, for example with `skopeo copy`".into(),
            Self::Limit { .. } => "use a smaller image, or raise the limit".into(),
            Self::Quota { .. } => {
                "remove images that nobody needs (`bulkhead image prune`), or raise the quota".into()
            }
            Self::Ambiguous { matches, .. } => format!("use more digits; it may be {}", matches.join(" or ")),
            Self::Unreachable { registry, .. } => {
                format!("check the network and that {registry} is the right name and port")
            }
            Self::AuthNeeded { registry, .. } => {
                format!("check the name, or log in with `bulkhead login {registry}`")
            }
            Self::Registry { .. } => "try again later, or ask whoever runs the registry".into(),
            Self::DiskFull { .. } => "free some space, for example with `bulkhead image prune`".into(),
            Self::Corrupt { .. } => "run the command again: damaged content is fetched anew".into(),
            Self::InUse { .. } => "remove what uses it first, or use --force".into(),
            Self::Io { .. } => "check the path and its permissions".into(),
        }
    }
}
