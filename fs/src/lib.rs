//! The file server behind one shared folder of one machine.
//!
//! The guest's kernel speaks FUSE; the VMM's virtio-fs device passes its requests on as packets of a socket, and this process
//! answers them. The requests are hostile. What holds, whatever they say, is the jail ([`jail`]): it has the folder, read-only if
//! the share is, with nothing above it, and can neither name, mount nor execute anything else. In front of the file system
//! ([`serve`]) stands a gate ([`gate`]) that lets only the requests of plain files and directories through.
//!
//! The file system itself is fuse-backend-rs' passthrough.

pub mod filter;
pub mod gate;
pub mod jail;
pub mod serve;
pub mod tree;
