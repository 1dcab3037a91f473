//! A payload in a VMM process of its own, as a supervisor would start it.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use vmm::config::{Accelerator, DiskConfig, ExtentConfig, Fd, HostConfig, MachineConfig, RateLimit};
use vmm::control::{Client, ControlSocket, Event, ExitReport, Message, Request, RestoreRequest};

use super::files::memfd;

/// What to boot.
pub struct Setup {
    pub kvm: File,
    pub image: Vec<u8>,
    pub vcpus: u8,
    pub memory_mib: u32,
    /// A writable disk of this many bytes.
    pub disk: Option<u64>,
    pub host: HostConfig,
    /// Descriptors that the host's configuration names, from number 4 on.
    pub extra: Vec<File>,
    pub uid: Option<u32>,
    /// State and RAM.
    pub restore: Option<(File, File, bool)>,
}

/// A VMM, its supervisor's end.
pub struct Vmm {
    pub child: Child,
    pub client: Client,
}

/// The first descriptor number of [`Setup::extra`].
pub const EXTRA: u32 = 4;

impl Setup {
    pub fn new(kvm: File, image: &[u8]) -> Self {
        Self {
            kvm,
            image: image.to_vec(),
            vcpus: 1,
            memory_mib: 32,
            disk: None,
            host: HostConfig::default(),
            extra: Vec::new(),
            uid: None,
            restore: None,
        }
    }

    /// Starts the VMM; `before` is called with its process id before it is given its machine.
    pub fn boot(self, before: impl FnOnce(u32)) -> Vmm {
        self.boot_by(|_| {}, before)
    }

    /// As [`Self::boot`]; `prepare` changes how the process is started.
    pub fn boot_by(self, prepare: impl FnOnce(&mut Command), before: impl FnOnce(u32)) -> Vmm {
        let (control, theirs) = ControlSocket::pair().unwrap();
        let disk = memfd(b"");
        disk.set_len(self.disk.unwrap_or(0)).unwrap();
        let files = [memfd(&self.image), memfd(&[0; 512]), self.kvm, disk];
        let disks = self.disk.map(|length| DiskConfig {
            read_only: false,
            extents: vec![ExtentConfig { file: Fd(3), offset: 0, length }],
            limit: RateLimit::default(),
            read: RateLimit::default(),
            write: RateLimit::default(),
        });
        let config = MachineConfig {
            accelerator: Accelerator::Kvm,
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
            kernel: Fd(0),
            initramfs: Fd(1),
            cmdline: String::new(),
            kvm: Some(Fd(2)),
            disks: disks.into_iter().collect(),
            nets: Vec::new(),
            shares: Vec::new(),
            balloon: None,
            console: false,
            vsock: None,
            host: self.host,
        };
        let mut descriptors: Vec<BorrowedFd<'_>> = files.iter().chain(&self.extra).map(AsFd::as_fd).collect();
        let request = match &self.restore {
            None => Request::Boot(Box::new(config)),
            Some((state, memory, paused)) => {
                let first = u32::try_from(descriptors.len()).unwrap();
                descriptors.extend([state.as_fd(), memory.as_fd()]);
                Request::Restore(Box::new(RestoreRequest {
                    machine: config,
                    state: Fd(first),
                    memory: Fd(first + 1),
                    working_set: None,
                    paused: *paused,
                }))
            }
        };
        let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_bulkhead-vmm")));
        // As a supervisor does; and a library path would have the loader look through it, in system calls that are counted.
        command.env_clear();
        command.args(["--control-fd", "0"]).stdin(theirs.into_fd());
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        prepare(&mut command);
        let child = command.spawn().unwrap();
        before(child.id());
        let mut client = Client::new(control).unwrap();
        client.ask(request, &descriptors).unwrap();
        Vmm { child, client }
    }
}

impl Vmm {
    /// The next event.
    pub fn event(&self) -> Event {
        loop {
            match self.message() {
                Message::Event(event) => return event,
                Message::Reply { .. } => {}
            }
        }
    }

    /// The next message, within the time that anything may take.
    pub fn message(&self) -> Message {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut fds = [PollFd::new(self.client.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(Duration::from_secs(30)).unwrap();
        assert_eq!(poll(&mut fds, patience), Ok(1), "the VMM says nothing");
        self.client.receive().unwrap().expect("the VMM is gone without a word")
    }

    /// Waits for the start.
    pub fn started(&self) -> Event {
        match self.event() {
            Event::Ended(report) => panic!("{report:?}"),
            started => started,
        }
    }

    /// Waits for the end, and for the process's. Returns its exit code as well.
    pub fn ended(mut self) -> (ExitReport, Option<i32>) {
        loop {
            if let Event::Ended(report) = self.event() {
                return (report, self.child.wait().unwrap().code());
            }
        }
    }

    /// The process in the jail.
    pub fn inner(&self) -> i32 {
        let pid = self.child.id();
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        text.split_ascii_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
