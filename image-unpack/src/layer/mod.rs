//! Layers: from a compressed tar stream to a data blob and an index, in one pass.

pub(crate) mod chunk;
pub(crate) mod data;
pub(crate) mod header;
pub(crate) mod index;
pub(crate) mod pass;
pub(crate) mod path;
pub(crate) mod pax;
pub(crate) mod pipe;
mod sparse;
mod xattr;
