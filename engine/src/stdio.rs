//! Between the caller's standard streams and the container's: one thread a direction.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

/// Bytes copied at a time.
const BUFFER: usize = 64 * 1024;

/// Copies standard input to a container until its end, or until dropped.
pub struct InputPump {
    /// Closing it ends the thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl InputPump {
    /// Starts the thread.
    ///
    /// # Errors
    /// The process is out of descriptors or threads.
    pub fn start(stream: UnixStream) -> io::Result<Self> {
        let (stopped, stop) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let thread =
            thread::Builder::new().name("stdin".into()).spawn(move || copy_input(stream, &stopped))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for InputPump {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn copy_input(mut stream: UnixStream, stopped: &OwnedFd) {
    let stdin = io::stdin();
    let mut buffer = vec![0u8; BUFFER];
    loop {
        let mut fds =
            [PollFd::new(stdin.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => break,
            Ok(_) => {}
        }
        if fds[1].revents().is_some_and(|r| !r.is_empty()) {
            return;
        }
        match nix::unistd::read(stdin.as_fd(), &mut buffer) {
            Ok(0) | Err(nix::errno::Errno::EIO) => break,
            Ok(n) => {
                // The container closed its standard input: nobody reads the rest.
                if stream.write_all(&buffer[..n]).is_err() {
                    return;
                }
            }
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::EAGAIN) => {}
            Err(_) => break,
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// Copies a container's output to one of the caller's streams until its end.
///
/// # Errors
/// The process is out of threads.
pub fn start_output(
    mut stream: UnixStream,
    mut to: impl Write + Send + 'static,
) -> io::Result<JoinHandle<io::Result<()>>> {
    thread::Builder::new().name("output".into()).spawn(move || {
        let mut buffer = vec![0u8; BUFFER];
        loop {
            let n = match stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // The machine went away; the main thread tells why.
                Err(_) => return Ok(()),
            };
            if let Err(e) = to.write_all(&buffer[..n]).and_then(|()| to.flush()) {
                // The reader of our output is gone: closing the stream lets the container know.
                let _ = stream.shutdown(Shutdown::Both);
                return Err(e);
            }
        }
    })
}
