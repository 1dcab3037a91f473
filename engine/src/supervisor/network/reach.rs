//! Reaching a network's switch, and starting one if there is none.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::FlockArg;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};

use crate::EngineError;
use crate::directory::lock_file;
use crate::paths::Paths;

/// Connections that a switch may take its time to accept.
const BACKLOG: i32 = 1024;
/// The listening socket's number in the switch.
const LISTENER: i32 = 3;
/// A log that is longer is begun anew by the next switch.
const MAX_LOG: u64 = 1 << 20;

/// A network's directory.
pub(super) struct SwitchDirectory {
    path: PathBuf,
    handle: File,
}

impl SwitchDirectory {
    /// The directory of the network with this id, made if it is missing.
    pub(super) fn open(paths: &Paths, network: &str) -> Result<Self, EngineError> {
        let path = paths.networks().join(network);
        let failed = || EngineError::io(format!("making the directory {}", path.display()));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed())?;
        let handle = File::open(&path).map_err(failed())?;
        Ok(Self { path, handle })
    }

    /// A path of the switch's socket that is short enough for a socket's address.
    fn socket(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/switch.sock", self.handle.as_raw_fd()))
    }

    /// A connection to the network's switch. It may be one that is just leaving: then it ends before the switch's first word.
    pub(super) fn connect(&self, program: &Path) -> Result<OwnedFd, EngineError> {
        let action = "connecting to the network's switch";
        if let Ok(connection) = self.dial() {
            return Ok(connection);
        }
        let _alone = lock_file(&self.path.join("lock"), FlockArg::LockExclusive)?;
        // Somebody else may have started it meanwhile.
        if let Ok(connection) = self.dial() {
            return Ok(connection);
        }
        let listener = self.listen().map_err(EngineError::io(action))?;
        let connection = self.dial().map_err(EngineError::io(action))?;
        self.start(program, &listener)?;
        Ok(connection)
    }

    fn dial(&self) -> io::Result<OwnedFd> {
        let socket = packet_socket()?;
        connect(socket.as_raw_fd(), &UnixAddr::new(&self.socket())?)?;
        Ok(socket)
    }

    fn listen(&self) -> io::Result<OwnedFd> {
        let path = self.socket();
        // Whoever made it is gone: nobody listens, and the lock is ours.
        let _ = fs::remove_file(&path);
        let socket = packet_socket()?;
        bind(socket.as_raw_fd(), &UnixAddr::new(&path)?)?;
        listen(&socket, Backlog::new(BACKLOG)?)?;
        Ok(socket)
    }

    fn start(&self, program: &Path, listener: &OwnedFd) -> Result<(), EngineError> {
        let action = || format!("starting {}", program.display());
        let log = self.path.join("switch.log");
        let long = fs::metadata(&log).is_ok_and(|metadata| metadata.len() > MAX_LOG);
        let mut options = OpenOptions::new();
        options.create(true).mode(0o600).append(!long).write(true).truncate(long);
        let log = options.open(log).map_err(EngineError::io(action()))?;
        let from = listener.as_raw_fd();
        let mut command = Command::new(program);
        command
            .args(["--listener", &LISTENER.to_string()])
            .env_clear()
            .current_dir("/")
            // A terminal's Ctrl-C is for the command that runs in it.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        // SAFETY: system calls that are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                // Onto itself, dup2 would leave it to be closed.
                let result = if from == LISTENER {
                    libc::fcntl(from, libc::F_SETFD, 0)
                } else {
                    libc::dup2(from, LISTENER)
                };
                if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        // It ends as soon as the switch is in its jail.
        let status = command.spawn().and_then(|mut child| child.wait()).map_err(EngineError::io(action()))?;
        if status.success() {
            return Ok(());
        }
        Err(EngineError::io(action())(io::Error::other(format!("{status}: {}", self.last_words()))))
    }

    /// The last line of the switch's log.
    pub(super) fn last_words(&self) -> String {
        let text = fs::read(self.path.join("switch.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(1024)..]).into_owned();
        text.lines().last().unwrap_or_default().to_owned()
    }
}

fn packet_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}
