//! What a caller hears while an image is made ready, loaded or pushed, and the same in the words of Docker's own
//! progress lines.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// One step of making an image ready or of pushing one.
///
/// For one layer the order is: [`Event::LayerPresent`] alone, or [`Event::LayerPending`], [`Event::LayerWaiting`]
/// (unless its turn comes at once), [`Event::LayerBytes`] (several), [`Event::LayerVerifying`],
/// [`Event::LayerFetched`], [`Event::LayerExtracting`], [`Event::LayerDone`]. In a push: [`Event::PushPreparing`],
/// [`Event::PushWaiting`], then [`Event::PushPresent`], [`Event::PushMounted`], or [`Event::PushBytes`] (several) and
/// [`Event::PushDone`]. Layers are worked on at once, so events of different layers mix.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The source was resolved to one image.
    Resolved {
        /// The image's configuration digest, which is its id.
        id: Digest,
        /// Digest of what the name stands for in its registry (a manifest, or an index of several platforms); `None`
        /// for local sources.
        digest: Option<Digest>,
        /// How many layers it has.
        layers: usize,
    },
    /// The store already has this layer.
    LayerPresent {
        /// Position, from 0 (the lowest).
        layer: usize,
        /// Its digest in the source.
        digest: Digest,
    },
    /// The store lacks this layer.
    LayerPending {
        /// Position, from 0 (the lowest).
        layer: usize,
        /// Its digest in the source.
        digest: Digest,
        /// Compressed bytes in all; 0 if the source does not say.
        total: u64,
    },
    /// The layer waits for others to be done.
    LayerWaiting {
        /// Position, from 0 (the lowest).
        layer: usize,
        /// Its digest in the source.
        digest: Digest,
    },
    /// A layer's bytes are being read (and unpacked as they come); sent at start, about every MiB, and at the end.
    LayerBytes {
        /// Position, from 0 (the lowest).
        layer: usize,
        /// Its digest in the source.
        digest: Digest,
        /// Compressed bytes read so far.
        done: u64,
        /// Compressed bytes in all; 0 if the source does not say.
        total: u64,
    },
    /// A layer's last byte is here; its digest is compared.
    LayerVerifying {
        /// Position, from 0 (the lowest).
        layer: usize,
        /// Its digest in the source.
        digest: Digest,
    },
    /// A layer's compressed bytes are here, and what they should be.
    LayerFetched {
        /// Position, from 0 (the lowest).
        layer: usize,
        /// Its digest in the source.
        digest: Digest,
    },
    /// The rest of a layer that is here is being unpacked.
    LayerExtracting {
        /// Position, from 0 (the lowest).
        layer: usize,
        /// Its digest in the source.
        digest: Digest,
        /// Compressed bytes given to the unpacker so far.
        done: u64,
        /// Compressed bytes in all.
        total: u64,
    },
    /// A layer is verified and stored.
    LayerDone {
        /// Position, from 0 (the lowest).
        layer: usize,
        /// Its digest in the source.
        digest: Digest,
    },
    /// A broken transfer is being taken up again.
    Retry {
        /// What went wrong.
        reason: String,
        /// Attempt number, from 1.
        attempt: u32,
    },
    /// The rootfs disk is ready.
    Ready {
        /// The image's configuration digest, which is its id.
        id: Digest,
        /// Whether the name meant another image before, or none.
        fresh: bool,
    },
    /// A layer is to be pushed.
    PushPreparing {
        /// Position, from 0 (the lowest).
        layer: usize,
        /// Digest of its compressed bytes.
        digest: Digest,
    },
    /// The layer waits for those before it.
    PushWaiting {
        /// Position, from 0 (the lowest).
        layer: usize,
        /// Digest of its compressed bytes.
        digest: Digest,
    },
    /// A layer's bytes are being sent; sent at start, about every MiB, and at the end.
    PushBytes {
        /// Position, from 0 (the lowest).
        layer: usize,
        /// Digest of its compressed bytes.
        digest: Digest,
        /// Bytes sent so far. Goes back when a broken transfer is taken up again.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A layer was sent and accepted.
    PushDone {
        /// Position, from 0 (the lowest).
        layer: usize,
        /// Digest of its compressed bytes.
        digest: Digest,
    },
    /// The registry took a layer from another of its repositories.
    PushMounted {
        /// Position, from 0 (the lowest).
        layer: usize,
        /// Digest of its compressed bytes.
        digest: Digest,
        /// The other repository.
        from: String,
    },
    /// The repository already has this layer.
    PushPresent {
        /// Position, from 0 (the lowest).
        layer: usize,
        /// Digest of its compressed bytes.
        digest: Digest,
    },
    /// The manifest is in the registry: the push is complete.
    Pushed {
        /// The tag, or the digest if the name has none.
        name: String,
        /// The manifest's digest.
        digest: Digest,
        /// Bytes of the manifest.
        size: u64,
    },
}

/// One line of the JSON stream that Docker's API sends while it pulls, loads or pushes (Docker Engine API, "Create an
/// image"; the `jsonmessage` of its clients).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusLine {
    /// The step.
    pub status: String,
    /// Layer id, shortened to 12 digits; none for lines about the whole image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Bytes so far and in all.
    #[serde(default, rename = "progressDetail", skip_serializing_if = "Option::is_none")]
    pub progress_detail: Option<ProgressDetail>,
}

/// How far a layer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressDetail {
    /// Bytes so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<u64>,
    /// Bytes in all, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
}

impl Event {
    /// The line that Docker would send for this event. Lines that need the image's name (the first and the last of a
    /// pull or push) are the caller's: [`Event::Resolved`] has the `Digest:`, [`Event::Ready`] tells `Downloaded newer
    /// image` from `Image is up to date`.
    pub fn status_line(&self) -> Option<StatusLine> {
        let plain = |status: &str, digest: &Digest| {
            Some(StatusLine {
                status: status.to_owned(),
                id: Some(short(digest)),
                progress_detail: Some(ProgressDetail::default()),
            })
        };
        let bytes = |status: &str, digest: &Digest, done: u64, total: u64| {
            let total = (total > 0).then_some(total);
            Some(StatusLine {
                status: status.to_owned(),
                id: Some(short(digest)),
                progress_detail: Some(ProgressDetail { current: Some(done), total }),
            })
        };
        match self {
            Self::LayerPresent { digest, .. } => plain("Already exists", digest),
            Self::LayerPending { digest, .. } => plain("Pulling fs layer", digest),
            Self::LayerWaiting { digest, .. } | Self::PushWaiting { digest, .. } => plain("Waiting", digest),
            Self::LayerBytes { digest, done, total, .. } => bytes("Downloading", digest, *done, *total),
            Self::LayerVerifying { digest, .. } => plain("Verifying Checksum", digest),
            Self::LayerFetched { digest, .. } => plain("Download complete", digest),
            Self::LayerExtracting { digest, done, total, .. } => bytes("Extracting", digest, *done, *total),
            Self::LayerDone { digest, .. } => plain("Pull complete", digest),
            Self::PushPreparing { digest, .. } => plain("Preparing", digest),
            Self::PushBytes { digest, done, total, .. } => bytes("Pushing", digest, *done, *total),
            Self::PushDone { digest, .. } => plain("Pushed", digest),
            Self::PushMounted { digest, from, .. } => plain(&format!("Mounted from {from}"), digest),
            Self::PushPresent { digest, .. } => plain("Layer already exists", digest),
            Self::Pushed { name, digest, size } => Some(StatusLine {
                status: format!("{name}: digest: {digest} size: {size}"),
                ..Default::default()
            }),
            Self::Retry { reason, attempt } => {
                Some(StatusLine { status: format!("Retrying ({attempt}): {reason}"), ..Default::default() })
            }
            Self::Resolved { .. } | Self::Ready { .. } => None,
        }
    }
}

/// The 12 digits that Docker shows of a digest.
fn short(digest: &Digest) -> String {
    digest.hex()[..12].to_owned()
}

/// Hears events, from several threads at once. Must return quickly: it is called from the threads that do the work.
pub trait Progress: Sync {
    /// Something happened.
    fn event(&self, event: Event);
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn event(&self, _event: Event) {}
}

impl<F: Fn(Event) + Sync> Progress for F {
    fn event(&self, event: Event) {
        self(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speaks_as_docker_does() {
        let digest = Digest::of(b"");
        let json = |event: Event| serde_json::to_string(&event.status_line().unwrap()).unwrap();
        assert_eq!(
            json(Event::LayerPending { layer: 0, digest, total: 9 }),
            r#"{"status":"Pulling fs layer","id":"e3b0c44298fc","progressDetail":{}}"#
        );
        assert_eq!(
            json(Event::LayerBytes { layer: 0, digest, done: 3, total: 9 }),
            r#"{"status":"Downloading","id":"e3b0c44298fc","progressDetail":{"current":3,"total":9}}"#
        );
        assert_eq!(
            json(Event::Pushed { name: "v1".into(), digest, size: 5 }),
            format!(r#"{{"status":"v1: digest: {digest} size: 5"}}"#)
        );
        assert_eq!(Event::Ready { id: digest, fresh: true }.status_line(), None);
    }
}
