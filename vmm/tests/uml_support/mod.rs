//! What the tests of the `uml` accelerator share: the test guest, and a supervisor in miniature.

#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use vmm::config::{
    Accelerator, BalloonConfig, DiskConfig, ExtentConfig, Fd, HostConfig, MachineConfig, NetBackend,
    NetConfig, RateLimit, ShareConfig, VsockConfig, VsockPort,
};
use vmm::control::{Answer, Client, ControlSocket, Event, ExitReport, Message, Request};

/// The port that the test guest connects to.
pub const PORT: u32 = 1024;
/// How long anything may take on a busy host.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The guest kernel; without it a test says so and passes.
pub fn kernel() -> Option<PathBuf> {
    let cache = || {
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
        Some(cache.join("bulkhead/kernels/uml/linux"))
    };
    let path = std::env::var_os("BULKHEAD_KERNEL_UML").map(PathBuf::from).or_else(cache);
    let found = path.filter(|path| path.exists());
    if found.is_none() {
        eprintln!("skipped: no uml kernel (run make kernel-uml)");
    }
    found
}

/// Leaves the test if there is no kernel.
#[macro_export]
macro_rules! kernel_or_skip {
    () => {
        match uml_support::kernel() {
            Some(kernel) => kernel,
            None => return,
        }
    };
}

/// The initramfs with the test guest, made once.
pub fn initramfs() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| made("guest", ".cpio", |program| cpio(&program)))
}

/// The program that stands in for a guest kernel and attacks, made once.
pub fn attacker() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| made("attacker", "", |program| program))
}

/// Compiles a program of this directory statically, once for each of its versions, and keeps what is made of it.
fn made(name: &str, suffix: &str, finish: impl FnOnce(Vec<u8>) -> Vec<u8>) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/uml_support/{name}.rs"));
    let stamp = std::fs::metadata(&source).unwrap().mtime();
    let product = directory.join(format!("uml-{name}-{stamp}{suffix}"));
    if !product.exists() {
        let unique = format!("uml_{name}_{stamp}_{}", std::process::id());
        let program = directory.join(&unique);
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let flags =
            ["--edition=2024", "-O", "-Ctarget-feature=+crt-static", "-Cpanic=abort", "-Cstrip=symbols"];
        let status = Command::new(rustc).args(flags).arg("-o").arg(&program).arg(&source).status().unwrap();
        assert!(status.success(), "{name} does not compile");
        let half = directory.join(format!("{unique}.half"));
        std::fs::write(&half, finish(std::fs::read(&program).unwrap())).unwrap();
        std::fs::set_permissions(&half, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::remove_file(program).unwrap();
        std::fs::rename(half, &product).unwrap();
    }
    product
}

/// A cpio archive (newc) with /init, /dev and what a program's start needs in it.
fn cpio(init: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut inode = 0;
    let mut add = |name: &str, mode: u32, device: (u32, u32), content: &[u8]| {
        inode += 1;
        let length = content.len() as u32;
        let name_length = name.len() as u32 + 1;
        let fields = [inode, mode, 0, 0, 1, 0, length, 0, 0, device.0, device.1, name_length, 0];
        archive.extend(b"070701");
        for field in fields {
            archive.extend(format!("{field:08x}").bytes());
        }
        archive.extend(name.bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    add("dev", 0o040_755, (0, 0), &[]);
    add("dev/console", 0o020_600, (5, 1), &[]);
    add("dev/null", 0o020_666, (1, 3), &[]);
    add("init", 0o100_755, (0, 0), init);
    add("TRAILER!!!", 0, (0, 0), &[]);
    archive
}

/// A running VMM, its control socket and the host's end of the guest's port.
pub struct Machine {
    pub vmm: Child,
    pub control: Client,
    pub stream: UnixStream,
    /// When the VMM's process was started.
    pub began: Instant,
    listener: Option<(tempfile::TempDir, PathBuf)>,
}

/// What to boot.
pub struct Setup {
    pub kernel: PathBuf,
    pub test: &'static str,
    pub memory_mib: u32,
    pub disk: Option<(OwnedFd, u64, bool)>,
    /// How much the disk may do.
    pub limit: RateLimit,
    pub listen: bool,
    /// Network interfaces: the cable's end, and the description without its descriptor.
    pub nets: Vec<(OwnedFd, NetConfig)>,
    /// Shared folders: tag, and the socket of the server.
    pub shares: Vec<(&'static str, OwnedFd)>,
    pub balloon: Option<BalloonConfig>,
    /// Run the VMM as this user.
    pub uid: Option<u32>,
    pub host: HostConfig,
}

impl Setup {
    pub fn new(kernel: &Path, test: &'static str) -> Self {
        Self {
            kernel: kernel.to_owned(),
            test,
            memory_mib: 64,
            disk: None,
            limit: RateLimit::default(),
            listen: false,
            nets: Vec::new(),
            shares: Vec::new(),
            balloon: None,
            uid: None,
            host: HostConfig::default(),
        }
    }

    /// Starts the VMM and sends it the machine.
    pub fn boot(self) -> Machine {
        self.boot_after(|_| {})
    }

    /// As [`Self::boot`]; `before` is called with the VMM's process id before it is given its machine.
    pub fn boot_after(self, before: impl FnOnce(u32)) -> Machine {
        let (control, theirs) = ControlSocket::pair().unwrap();
        let (stream, inner) = UnixStream::pair().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let files = (File::open(&self.kernel).unwrap(), File::open(initramfs()).unwrap());
        let mut descriptors: Vec<BorrowedFd<'_>> = vec![files.0.as_fd(), files.1.as_fd(), inner.as_fd()];
        let disks = self.disk.as_ref().map(|(file, length, read_only)| {
            descriptors.push(file.as_fd());
            let extents = vec![ExtentConfig { file: Fd(3), offset: 0, length: *length }];
            DiskConfig {
                read_only: *read_only,
                extents,
                limit: self.limit,
                read: RateLimit::default(),
                write: RateLimit::default(),
            }
        });
        let listener = self.listen.then(|| {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("vsock");
            (UnixListener::bind(&path).unwrap(), directory, path)
        });
        let listener_fd = listener.as_ref().map(|(listener, ..)| {
            descriptors.push(listener.as_fd());
            Fd(descriptors.len() as u32 - 1)
        });
        let mut shares = Vec::new();
        for (tag, socket) in &self.shares {
            descriptors.push(socket.as_fd());
            shares.push(ShareConfig { tag: (*tag).to_owned(), socket: Fd(descriptors.len() as u32 - 1) });
        }
        let mut nets = Vec::new();
        for (cable, net) in &self.nets {
            descriptors.push(cable.as_fd());
            let socket = Fd(descriptors.len() as u32 - 1);
            let NetBackend::Socket { headers, .. } = net.backend else { panic!("tests have sockets only") };
            nets.push(NetConfig { backend: NetBackend::Socket { socket, headers }, ..net.clone() });
        }
        let config = MachineConfig {
            accelerator: Accelerator::Uml,
            memory_mib: self.memory_mib,
            vcpus: 1,
            kernel: Fd(0),
            initramfs: Fd(1),
            cmdline: format!("test={}", self.test),
            kvm: None,
            disks: disks.into_iter().collect(),
            nets,
            shares,
            balloon: self.balloon,
            console: true,
            vsock: Some(VsockConfig {
                guest_cid: 3,
                listener: listener_fd,
                ports: vec![VsockPort { port: PORT, socket: Fd(2) }],
            }),
            host: self.host,
        };
        let began = Instant::now();
        let vmm = spawn(theirs, self.uid);
        before(vmm.id());
        let mut control = Client::new(control).unwrap();
        control.ask(Request::Boot(Box::new(config)), &descriptors).unwrap();
        drop(inner);
        let listener = listener.map(|(_, directory, path)| (directory, path));
        Machine { vmm, control, stream, began, listener }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "closed here, once the child has it")]
fn spawn(control: ControlSocket, uid: Option<u32>) -> Child {
    use std::os::fd::AsRawFd;
    let program = Path::new(env!("CARGO_BIN_EXE_bulkhead-vmm"));
    let mut command = Command::new(program);
    // As a supervisor does; and a library path would have the loader look through it, in system calls that are counted.
    command.env_clear().args(["--control-fd", "3"]);
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    let fd = control.as_raw_fd();
    // SAFETY: dup2 and fcntl are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            if fd == 3 {
                libc::fcntl(3, libc::F_SETFD, 0);
            } else if libc::dup2(fd, 3) != 3 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command.spawn().unwrap()
}

impl Machine {
    /// Waits for the start; returns its boundary.
    pub fn started(&self) -> String {
        match self.event() {
            Event::Started { boundary, .. } => boundary,
            Event::Ended(report) => panic!("ended before it started: {report:?}"),
        }
    }

    /// Waits for the end, and for the VMM's.
    pub fn ended(mut self) -> ExitReport {
        loop {
            if let Event::Ended(report) = self.event() {
                let status = self.vmm.wait().unwrap();
                assert!(status.success(), "{status}");
                return report;
            }
        }
    }

    /// The next event, within the time that anything may take.
    pub fn event(&self) -> Event {
        loop {
            match self.message() {
                Message::Event(event) => return event,
                Message::Reply { answer: Answer::Done | Answer::Hello { .. }, .. } => {}
                Message::Reply { answer: Answer::Refused(_), .. } => {}
                Message::Reply { answer, .. } => panic!("{answer:?}"),
            }
        }
    }

    /// The next message, within that time.
    pub fn message(&self) -> Message {
        use std::os::fd::AsRawFd;
        let fd = self.control.as_fd().as_raw_fd();
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let patience = PATIENCE.as_millis() as i32;
        // SAFETY: one entry.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, patience) }, 1, "the VMM says nothing");
        self.control.receive().unwrap().expect("the VMM is gone without a word")
    }

    /// Reads exactly this from the guest.
    pub fn expect(&mut self, text: &str) {
        let mut bytes = vec![0; text.len()];
        self.stream.read_exact(&mut bytes).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), text);
    }

    /// Reads a line from the guest.
    pub fn line(&self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while (&self.stream).read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// A client's connection to the guest's port.
    pub fn dial(&self, port: u32) -> UnixStream {
        let (_, path) = self.listener.as_ref().expect("no listener");
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        assert!(line.starts_with(b"OK "), "{}", String::from_utf8_lossy(&line));
        stream
    }

    /// The guest kernel's jail: its first process, the kernel, the guest's processes.
    pub fn guest(&self) -> Vec<i32> {
        let init = children(self.vmm.id() as i32)[0];
        std::iter::once(init).chain(below(init)).collect()
    }

    /// The VMM's process in its jail.
    pub fn inner(&self) -> i32 {
        children(self.vmm.id() as i32)[1]
    }

    /// All processes below the VMM, itself not included.
    pub fn descendants(&self) -> Vec<i32> {
        below(self.vmm.id() as i32)
    }
}

/// All processes below one.
fn below(pid: i32) -> Vec<i32> {
    {
        let mut all = Vec::new();
        let mut unseen = vec![pid];
        while let Some(pid) = unseen.pop() {
            let children = children(pid);
            all.extend(&children);
            unseen.extend(children);
        }
        all
    }
}

fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace().map(|word| word.parse().unwrap()).collect()
}

/// Bytes in which every part is different.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 + index / 4096) as u8).collect()
}
