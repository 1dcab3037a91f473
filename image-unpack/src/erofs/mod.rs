//! EROFS metadata images (Linux kernel documentation, `filesystems/erofs.rst`).

mod dirs;
mod format;
pub(crate) mod writer;

pub(crate) use format::BLOCK;
