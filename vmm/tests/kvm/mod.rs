//! What the tests of the `kvm` accelerator share: machines on the real /dev/kvm, bare-metal payloads, a driver for them.

// Each test binary uses a part; and a helper that fails fails its test.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod assembler;
pub mod driver;
pub mod files;
pub mod memory;
pub mod process;

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use vmm::config::{Accelerator, Fd, HostConfig, MachineConfig, NetBackend, NetConfig, RateLimit};
use vmm::console::ConsoleRing;
use vmm::control::{Client, ControlSocket, Event, ExitReport, Message, Request, Session};
use vmm::jail::cgroup::{Cgroup, OutOfMemory};
use vmm::kvm;
use vmm::machine::{Confinement, Parts, Restore};
use vmm::virtio::VirtioDevice;
use vmm::virtio::block::Block;
use vmm::virtio::block::extents::Extent;
use vmm::virtio::net::Net;

use self::files::memfd;

/// /dev/kvm, or `None` after saying loudly that the test is skipped.
pub fn device() -> Option<File> {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(file) => Some(file),
        Err(_) => {
            skip("no /dev/kvm");
            None
        }
    }
}

/// Says why a test is skipped, past the test harness, which keeps the output of tests that pass.
pub fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why} ({})", thread::current().name().unwrap_or("?"));
}

/// A machine to run.
pub struct Machine {
    pub kvm: Option<File>,
    pub kernel: File,
    pub initramfs: File,
    pub memory_mib: u32,
    pub vcpus: u8,
    pub cmdline: String,
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// Ends the machine if it has not ended by itself.
    pub deadline: Duration,
    pub host: HostConfig,
    pub restore: Option<Restore>,
}

impl Machine {
    /// A small machine that boots this ELF image; it has no devices.
    pub fn new(kvm: File, kernel: &[u8]) -> Self {
        Self {
            kvm: Some(kvm),
            kernel: memfd(kernel),
            initramfs: memfd(&[0; 512]),
            memory_mib: 32,
            vcpus: 1,
            cmdline: String::new(),
            devices: Vec::new(),
            deadline: Duration::from_secs(20),
            host: HostConfig::default(),
            restore: None,
        }
    }

    /// Adds a disk of one extent.
    pub fn disk(mut self, file: &Arc<File>, length: u64, read_only: bool) -> Self {
        let extent = Extent { file: Arc::clone(file), offset: 0, length };
        self.devices.push(Box::new(Block::new(self.devices.len(), vec![extent], read_only).unwrap()));
        self
    }

    /// Adds a network interface; returns the other end of its cable.
    pub fn net(self, mac: [u8; 6]) -> (Self, OwnedFd) {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
        let (ours, peer) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let config = NetConfig {
            mac,
            mtu: 1500,
            backend: NetBackend::Socket { socket: Fd(0), headers: false },
            check_source: true,
            receive: RateLimit::default(),
            send: RateLimit::default(),
        };
        (self.device(Net::new(0, &config, ours).unwrap()), peer)
    }

    /// Adds any device.
    pub fn device(mut self, device: impl VirtioDevice + 'static) -> Self {
        self.devices.push(Box::new(device));
        self
    }

    /// Runs it to its end.
    pub fn run(self) -> ExitReport {
        self.run_with(|_| {})
    }

    /// Runs it to its end; `supervise` runs beside it once the guest has started, with the supervisor's end of the control
    /// socket, which is closed when it returns only if it takes it.
    pub fn run_with(self, supervise: impl FnOnce(&mut Option<Client>) + Send) -> ExitReport {
        let (ours, theirs) = ControlSocket::pair().unwrap();
        let deadline = self.deadline;
        let config = MachineConfig {
            accelerator: Accelerator::Kvm,
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
            kernel: Fd(0),
            initramfs: Fd(1),
            cmdline: self.cmdline,
            kvm: Some(Fd(2)),
            disks: Vec::new(),
            nets: Vec::new(),
            shares: Vec::new(),
            balloon: None,
            console: false,
            vsock: None,
            host: self.host,
        };
        let parts = Parts {
            config,
            kernel: self.kernel,
            initramfs: self.initramfs,
            kvm: self.kvm,
            devices: self.devices,
            console: ConsoleRing::default(),
            cgroup: Cgroup::default(),
            out_of_memory: OutOfMemory::default(),
            confinement: Confinement::default(),
            pagemap: File::open("/proc/self/pagemap").ok(),
            restore: self.restore,
        };
        let (done, ended) = std::sync::mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                // A machine that could not be built sends nothing; then the socket's other end closes.
                let ours = Client::adopt(ours);
                let started = ours.receive().ok().flatten();
                let mut ours = Some(ours);
                if matches!(started, Some(Message::Event(Event::Started { .. }))) {
                    supervise(&mut ours);
                }
                if ended.recv_timeout(deadline) == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
                    && let Some(ours) = &mut ours
                {
                    let _ = ours.ask(Request::Kill, &[]);
                }
            });
            let mut session = Session::new(theirs);
            let report = kvm::run(parts, &mut session);
            drop(session);
            drop(done);
            report
        })
    }
}
