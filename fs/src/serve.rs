//! The loop: a packet in, a packet out.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::passthrough::PassthroughFs;
use fuse_backend_rs::transport::{FuseBuf, FuseDevWriter, Reader, Writer};
use nix::sys::socket::{MsgFlags, recv, send};

use crate::gate::{self, MAX_REQUEST, Rules, Verdict};

/// Threads that serve requests: as many of them may wait for a slow disk at a time.
const THREADS: usize = 4;

/// A folder, ready to be served.
pub struct Folder {
    server: Server<PassthroughFs>,
    /// The mount that it lies in.
    _tree: OwnedFd,
    rules: Rules,
}

impl Folder {
    /// Serves this file system, which lies in this mount.
    #[must_use]
    pub fn new(files: PassthroughFs, tree: OwnedFd, rules: Rules) -> Self {
        Self { server: Server::new(files), _tree: tree, rules }
    }
}

/// Serves requests until the socket's other end is gone.
///
/// # Errors
/// The socket failed, or the host has no thread left.
pub fn serve(folder: Folder, socket: OwnedFd) -> io::Result<()> {
    let (folder, socket) = (Arc::new(folder), Arc::new(socket));
    let mut threads = Vec::new();
    for index in 1..THREADS {
        let (folder, socket) = (Arc::clone(&folder), Arc::clone(&socket));
        let thread = std::thread::Builder::new().name(format!("fs{index}"));
        threads.push(thread.spawn(move || work(&folder, &socket))?);
    }
    let outcome = work(&folder, &socket);
    for thread in threads {
        // A thread that panicked has ended the process already.
        let _ = thread.join();
    }
    outcome
}

fn work(folder: &Folder, socket: &OwnedFd) -> io::Result<()> {
    let mut request = vec![0; MAX_REQUEST];
    let mut reply = vec![0; MAX_REQUEST];
    loop {
        let length = match recv(socket.as_raw_fd(), &mut request, MsgFlags::empty()) {
            Ok(0) | Err(nix::Error::ECONNRESET) => return Ok(()),
            Ok(length) => length,
            Err(nix::Error::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let request = &mut request[..length];
        match gate::examine(request, folder.rules) {
            Verdict::Pass => pass(folder, socket, request, &mut reply),
            Verdict::Refuse { unique, errno } => {
                // If the other end is gone, the next read says so.
                let _ = send(socket.as_raw_fd(), &gate::error(unique, errno), MsgFlags::MSG_NOSIGNAL);
            }
            Verdict::Drop => {}
        }
    }
}

/// Has the file system answer; each answer is one write to the socket, and so one packet.
fn pass(folder: &Folder, socket: &OwnedFd, request: &mut [u8], reply: &mut [u8]) {
    let unique = u64::from_le_bytes(std::array::from_fn(|index| request[8 + index]));
    let destroy = request[4..8] == gate::DESTROY.to_le_bytes();
    let reader = Reader::<'_, ()>::from_fuse_buffer(FuseBuf::new(request));
    let writer = FuseDevWriter::<'_, ()>::new(socket.as_raw_fd(), reply);
    let (Ok(reader), Ok(writer)) = (reader, writer) else { return };
    // An error here is a request that was cut short or an answer that could not be written. The guest waits for an answer
    // all the same; a second one for the same request is passed over by the VMM.
    let outcome = folder.server.handle_message(reader, Writer::FuseDev(writer), None, None);
    let answer = match outcome {
        Err(_) => gate::error(unique, libc::EIO),
        Ok(_) if destroy => gate::error(unique, 0),
        Ok(_) => return,
    };
    let _ = send(socket.as_raw_fd(), &answer, MsgFlags::MSG_NOSIGNAL);
}
