//! Bulkhead's image store: OCI references, registries, layers, and EROFS rootfs disks.
//!
//! [`Store::ensure`] takes an image from a registry, an OCI layout or an archive to a [`RootfsDisk`]: a read-only
//! block device of EROFS metadata followed by the layers' data, which all images with a layer share.
//! [`Store::cached`] finds what is already here.
//!
//! Image bytes are hostile. Everything is bounded by [`Limits`], digests are verified before content is used, and no
//! path of a layer touches the host's file system.
//!
//! # For those who build an API on it
//! Every type named here that is an answer is `serde` and has Docker's field names. Progress goes to a [`Progress`] (any
//! `Fn(Event) + Sync`); [`Event::status_line`] is Docker's JSON line for it.
//! ```text
//! Store::open(&Path) | open_with(&Path, Limits, Registries)      .with_quota(Option<u64>).with_registries(Registries)
//! ensure(&Source, &Platform, &dyn Progress) -> Image             pull, or make ready from a layout or archive
//! cached(&Source, &Platform) -> Option<Image>                    without network
//! find(&str) -> Image                                            name, id or beginning of an id, as Docker does
//! lookup(&Reference), by_id(Digest) -> Option<Image>
//! images() -> Vec<Summary>                                       GET /images/json
//! inspect(Digest) -> Inspect                                     GET /images/{}/json
//! history(Digest) -> Vec<HistoryEntry>                           GET /images/{}/history
//! df() -> DiskUsage; usage() -> Usage                            GET /system/df
//! tag(Digest, &Reference); untag(&Reference), remove(Digest, force), prune(dangling) -> Removed
//! hold(Digest, holder), release(holder), holds()                 keeps an image for a container whatever becomes of its names
//! push(Digest, &Reference, &dyn Progress) -> Digest              POST /images/{}/push
//! save(&[(Digest, Vec<Reference>)], impl Write)                  GET /images/get
//! load_stream(impl Read, &Platform, &dyn Progress) -> Vec<Image> POST /images/load; load_archive(&Path, ..) of a file
//! import(impl Read + Send, &ImportOptions) -> Image              POST /images/create?fromSrc=
//! commit(Option<Digest>, Option<Box<dyn Read + Send>>, &CommitOptions) -> Image
//!                                                                POST /commit: base, layer tar (as `diff` gives it), config
//! Registries::look(&Reference) -> Found                          GET /distribution/{}/json
//! verify() -> Vec<Digest>                                        damaged blobs, removed
//! Change: FromStr                                                `--change`, in a Dockerfile's words
//! DockerConfig::{of_user, at, get, set, remove}                  login and logout
//! Registries::with_credentials(registry, Credentials)            X-Registry-Auth
//! Registries::login(&self, registry, &Credentials)               POST /auth; what is right is then kept with DockerConfig::set
//! ```
//!
//! # Modules
//! Each uses only those to its right (`registry` is one kind of `source`, and they know each other):
//! ```text
//! store (ensure, layers, records, manage, inspect, df, holds, import, archive, spool, push, quota)
//!   |-> source, registry -> manifest -> reference -> digest -> error
//!   |-> erofs -> tree
//!   |-> merge -> tree -> layer::index
//!   |-> change, time, memory
//!   \-> layer (pipe -> pass -> header, pax, path, sparse, xattr, data, index)
//! ```

mod change;
mod digest;
mod disk;
mod erofs;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a target that fails must panic")]
pub mod fuzz;
mod layer;
mod limits;
mod manifest;
mod memory;
mod merge;
mod progress;
mod reference;
mod registry;
mod source;
mod store;
mod time;
mod tree;

pub use change::Change;
pub use digest::Digest;
pub use disk::{Extent, RootfsDisk};
pub use error::{Error, Result};
pub use limits::Limits;
pub use manifest::Platform;
pub use oci_spec;
pub use progress::{Event, Progress, ProgressDetail, Quiet, StatusLine};
pub use reference::{Reference, Source};
pub use registry::{Credentials, DockerConfig, Found, Registries};
pub use store::{
    CommitOptions, DiskUsage, HistoryEntry, Image, ImageUsage, ImportOptions, Inspect, LayerUsage,
    ManifestDescriptor, Metadata, Removed, RootFs, Store, Summary, Usage,
};
