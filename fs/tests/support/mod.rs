//! A server in its jail, and what a guest's kernel says to it.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

pub const LOOKUP: u32 = 1;
pub const FORGET: u32 = 2;
pub const GETATTR: u32 = 3;
pub const SETATTR: u32 = 4;
pub const READLINK: u32 = 5;
pub const SYMLINK: u32 = 6;
pub const MKNOD: u32 = 8;
pub const MKDIR: u32 = 9;
pub const UNLINK: u32 = 10;
pub const RMDIR: u32 = 11;
pub const RENAME: u32 = 12;
pub const LINK: u32 = 13;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const WRITE: u32 = 16;
pub const SETXATTR: u32 = 21;
pub const GETXATTR: u32 = 22;
pub const LISTXATTR: u32 = 23;
pub const REMOVEXATTR: u32 = 24;
pub const LOCK: u32 = 31;
pub const INIT: u32 = 26;
pub const OPENDIR: u32 = 27;
pub const READDIR: u32 = 28;
pub const CREATE: u32 = 35;
pub const READDIRPLUS: u32 = 44;
pub const DESTROY: u32 = 38;
pub const ROOT: u64 = 1;

/// How long an answer may take on a busy host.
pub const PATIENCE: i64 = 30;

pub struct Server {
    pub child: Child,
    pub socket: OwnedFd,
    /// The folder lies in a directory that has more in it than the folder.
    pub outside: tempfile::TempDir,
    pub next: u64,
    pub uid: u32,
}

pub struct Options {
    pub read_only: bool,
    pub files: Option<u64>,
    pub user: Option<u32>,
    /// Only this file of the folder.
    pub file: Option<&'static str>,
}

pub const PLAIN: Options = Options { read_only: false, files: None, user: None, file: None };

impl Server {
    pub fn new(options: &Options) -> Self {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "outside").unwrap();
        let folder = outside.path().join("folder");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("file"), "content").unwrap();
        fs::create_dir(folder.join("sub")).unwrap();
        fs::write(folder.join("sub/inner"), "inner").unwrap();
        symlink(outside.path(), folder.join("out")).unwrap();
        symlink("../secret", folder.join("secret")).unwrap();
        let path = CString::new(folder.join("fifo").to_str().unwrap()).unwrap();
        // SAFETY: the path is ours.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o666) }, 0);
        if let Some(user) = options.user {
            fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o755)).unwrap();
            for name in ["", "file", "sub", "sub/inner"] {
                std::os::unix::fs::chown(folder.join(name), Some(user), Some(user)).unwrap();
            }
        }
        let (socket, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE)).unwrap();
        let directory = OwnedFd::from(fs::File::open(&folder).unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-fs"));
        command.args(["--socket", "0", "--folder", "1"]).stdin(theirs).stdout(directory);
        if let Some(name) = options.file {
            command.args(["--file", name]);
        }
        if options.read_only {
            command.arg("--read-only");
        }
        if let Some(user) = options.user {
            command.uid(user).gid(user);
        }
        if let Some(files) = options.files {
            // SAFETY: a system call that is async-signal-safe.
            unsafe {
                command.pre_exec(move || {
                    let limit = libc::rlimit { rlim_cur: files, rlim_max: files };
                    libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
                    Ok(())
                });
            }
        }
        let child = command.spawn().unwrap();
        Self { child, socket, outside, next: 1, uid: 0 }
    }

    /// A server that a guest has mounted; `None` if this host's users may not have namespaces.
    pub fn mounted(options: &Options) -> Option<Self> {
        let mut server = Self::new(options);
        let mut init = words(&[7, 31, 65536, u32::MAX]);
        init.extend([0; 48]);
        let (error, body) = server.try_call(INIT, 0, &init)?;
        assert_eq!(error, 0);
        // Neither larger requests nor anything of the second word of features.
        assert_eq!(word(&body, 12) & (1 << 22 | 1 << 30), 0);
        // But a guest does not write page by page, nor read one piece after the other.
        assert_eq!(word(&body, 12) & (1 | 1 << 5 | 1 << 18), 1 | 1 << 5 | 1 << 18);
        assert_eq!(word(&body, 20), 128 << 10);
        Some(server)
    }

    pub fn folder(&self) -> PathBuf {
        self.outside.path().join("folder")
    }

    pub fn send(&mut self, operation: u32, node: u64, body: &[u8]) -> u64 {
        let id = self.next;
        self.next += 1;
        let mut request = words(&[40 + body.len() as u32, operation]);
        request.extend(id.to_le_bytes());
        request.extend(node.to_le_bytes());
        request.extend(words(&[self.uid, self.uid, 1, 0]));
        request.extend(body);
        self.send_raw(&request);
        id
    }

    pub fn send_raw(&self, bytes: &[u8]) {
        send(self.socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).unwrap();
    }

    /// Error (positive) and body; `None` if the server is gone.
    pub fn try_call(&mut self, operation: u32, node: u64, body: &[u8]) -> Option<(i32, Vec<u8>)> {
        let id = self.send(operation, node, body);
        loop {
            let mut answer = vec![0; 1 << 18];
            let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap_or(0);
            if length == 0 {
                return None;
            }
            answer.truncate(length);
            assert_eq!(word(&answer, 0) as usize, length);
            // A malformed request may be answered twice; the VMM's device passes over the second.
            let of = double(&answer, 8);
            assert!(of <= id, "an answer to nothing");
            if of == id {
                return Some((-(word(&answer, 4) as i32), answer[16..].to_vec()));
            }
        }
    }

    pub fn call(&mut self, operation: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        match self.try_call(operation, node, body).expect("the server is gone") {
            (0, body) => Ok(body),
            (error, _) => Err(error),
        }
    }

    /// Node and host's inode of a name.
    pub fn lookup(&mut self, parent: u64, name: &str) -> Result<(u64, u64), i32> {
        let body = self.call(LOOKUP, parent, &text(&[name]))?;
        Ok((double(&body, 0), double(&body, 40)))
    }

    pub fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        self.call(OPEN, node, &words(&[flags as u32, 0])).map(|body| double(&body, 0))
    }

    pub fn read(&mut self, node: u64, handle: u64) -> Result<Vec<u8>, i32> {
        let mut body = [handle, 0].map(u64::to_le_bytes).concat();
        body.extend(words(&[4096, 0, 0, 0, 0, 0]));
        self.call(READ, node, &body)
    }

    /// Everything of the server's own process, which is a child of the one that was started.
    pub fn status(&self, name: &str) -> String {
        let pid = self.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("no such line");
        line.trim_start_matches(':').trim().to_owned()
    }

    pub fn pid(&self) -> u32 {
        let outer = self.child.id();
        let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap();
        children.split_ascii_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub fn text(names: &[&str]) -> Vec<u8> {
    names.iter().flat_map(|name| name.bytes().chain([0])).collect()
}

pub fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn double(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub fn with(head: &[u8], names: &[&str]) -> Vec<u8> {
    [head, &text(names)].concat()
}

/// Everything below a directory, as paths with kinds, sizes and links.
pub fn tree(path: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        all.push(format!("{} {:o} {} {}", path.display(), meta.mode(), meta.len(), meta.nlink()));
        if meta.is_dir() {
            all.extend(tree(&path));
        }
    }
    all.sort();
    all
}
