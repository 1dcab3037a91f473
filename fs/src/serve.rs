//! The loop: a packet in, a packet out.

use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::passthrough::PassthroughFs;
use fuse_backend_rs::transport::{FuseBuf, FuseDevWriter, Reader, Writer};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::unistd::write;

use crate::gate::{self, MAX_REQUEST, Rules, Verdict};

/// Threads that serve requests: as many of them may wait for a slow disk at a time.
const THREADS: usize = 4;

/// A folder, ready to be served.
pub struct Folder {
    server: Server<PassthroughFs>,
    /// Where the library writes its answer to INIT, which is completed.
    inits: Mutex<(PipeReader, PipeWriter)>,
    /// The mount that it lies in.
    _tree: OwnedFd,
    rules: Rules,
}

impl Folder {
    /// Serves this file system, which lies in this mount.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn new(files: PassthroughFs, tree: OwnedFd, rules: Rules) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        // A library that answers nothing must not be waited for.
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { server: Server::new(files), inits: Mutex::new((reader, writer)), _tree: tree, rules })
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
            Verdict::Pass if is(request, gate::INIT) => init(folder, socket, request, &mut reply),
            Verdict::Pass => answer(folder, socket.as_fd(), request, &mut reply),
            Verdict::Refuse { unique, errno } => {
                // If the other end is gone, the next read says so.
                let _ = send(socket.as_raw_fd(), &gate::error(unique, errno), MsgFlags::MSG_NOSIGNAL);
            }
            Verdict::Drop => {}
        }
    }
}

fn is(request: &[u8], operation: u32) -> bool {
    request[4..8] == operation.to_le_bytes()
}

/// Has the file system answer to INIT, and completes the answer.
fn init(folder: &Folder, socket: &OwnedFd, request: &mut [u8], reply: &mut [u8]) {
    // A thread that panicked has ended the process already.
    let Ok(mut inits) = folder.inits.lock() else { return };
    let asked = gate::asked(request);
    answer(folder, inits.1.as_fd(), request, reply);
    if let Ok(length) = inits.0.read(reply) {
        let answer = &mut reply[..length];
        gate::complete_init(asked, answer);
        let _ = send(socket.as_raw_fd(), answer, MsgFlags::MSG_NOSIGNAL);
    }
}

/// Has the file system answer; each answer is one write, and so one packet of a socket.
fn answer(folder: &Folder, to: BorrowedFd<'_>, request: &mut [u8], reply: &mut [u8]) {
    let unique = u64::from_le_bytes(std::array::from_fn(|index| request[8 + index]));
    let destroy = is(request, gate::DESTROY);
    let reader = Reader::<'_, ()>::from_fuse_buffer(FuseBuf::new(request));
    let writer = FuseDevWriter::<'_, ()>::new(to.as_raw_fd(), reply);
    let (Ok(reader), Ok(writer)) = (reader, writer) else { return };
    // An error here is a request that was cut short or an answer that could not be written. The guest waits for an answer
    // all the same; a second one for the same request is passed over by the VMM.
    let outcome = folder.server.handle_message(reader, Writer::FuseDev(writer), None, None);
    let error = match outcome {
        Err(_) => gate::error(unique, libc::EIO),
        Ok(_) if destroy => gate::error(unique, 0),
        Ok(_) => return,
    };
    let _ = write(to, &error);
}
