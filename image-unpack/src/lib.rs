//! Bulkhead's image store: OCI references, registries, layers, and EROFS rootfs disks.
//!
//! [`Store::ensure`] takes an image from a registry, an OCI layout or an archive to a [`RootfsDisk`]: a read-only
//! block device of EROFS metadata followed by the layers' data, which all images with a layer share.
//! [`Store::cached`] finds what is already here.
//!
//! Image bytes are hostile. Everything is bounded by [`Limits`], digests are verified before content is used, and no
//! path of a layer touches the host's file system.
//!
//! Modules, each using only those to its right (`registry` is one kind of `source`, and they know each other):
//! ```text
//! store (ensure, records, manage, archive, push) -> source, registry -> manifest -> reference -> digest -> error
//!   |-> erofs -> tree
//!   |-> merge -> tree -> layer::index
//!   \-> layer (pipe -> pass -> header, pax, path, sparse, xattr, data, index)
//! ```

mod digest;
mod disk;
mod erofs;
mod error;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
mod fuzz;
mod layer;
mod limits;
mod manifest;
mod merge;
mod progress;
mod reference;
mod registry;
mod source;
mod store;
mod tree;

pub use digest::Digest;
pub use disk::{Extent, RootfsDisk};
pub use error::{Error, Result};
pub use limits::Limits;
pub use manifest::Platform;
pub use oci_spec;
pub use progress::{Event, Progress, Quiet};
pub use reference::{Reference, Source};
pub use registry::{Credentials, DockerConfig, Registries};
pub use store::{Image, Removed, Store, Summary, Usage};
