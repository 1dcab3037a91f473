//! Machines of `kvm` that are paused, written to files and restored, by a supervisor of the test's own.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent::protocol::{
    Answer, CONTROL_PORT, Call, Exec, Failure, Message, ProcessId, STREAM_PORT, Stream, StreamOpen, VERSION,
    write_frame,
};
use bulkhead_tests::guest::Harbour;
use engine::client;
use engine::machine::wait_readable;
use tempfile::TempDir;
use vmm::config::{
    Accelerator, DiskConfig, ExtentConfig, Fd, HostConfig, MachineConfig, RateLimit, VsockConfig, VsockPort,
};
use vmm::control::{
    Answer as Told, Client, ControlSocket, Event, Message as Word, Request, RestoreRequest, SnapshotKind,
    SnapshotRequest,
};

/// A hang guard, far beyond what anything takes.
const PATIENCE: Duration = Duration::from_secs(240);
/// Guest memory in MiB.
pub const MEMORY_MIB: u32 = 96;

/// A snapshot's files.
pub struct Snapshot {
    state: File,
    pub memory: File,
}

/// A machine, its VMM in a process of its own.
pub struct Machine {
    child: Child,
    control: Client,
    agent: UnixStream,
    client: client::Client,
    messages: VecDeque<Message>,
    directory: TempDir,
}

/// Descriptors for the VMM, by the numbers under which its configuration names them.
#[derive(Default)]
struct Descriptors(Vec<OwnedFd>);

impl Descriptors {
    fn add(&mut self, fd: impl Into<OwnedFd>) -> Fd {
        self.0.push(fd.into());
        Fd(u32::try_from(self.0.len() - 1).unwrap())
    }

    fn disk(&mut self, read_only: bool, extents: &[(&Path, u64, u64)]) -> DiskConfig {
        let extents = extents.iter().map(|(path, offset, length)| {
            let file = File::options().read(true).write(!read_only).open(path).unwrap();
            ExtentConfig { file: self.add(file), offset: *offset, length: *length }
        });
        DiskConfig {
            read_only,
            extents: extents.collect(),
            limit: RateLimit::default(),
            read: RateLimit::default(),
            write: RateLimit::default(),
        }
    }
}

impl Machine {
    /// Boots the harbour's image with this writable disk, or has it go on from a snapshot.
    pub fn start(harbour: &Harbour, writable: &Path, from: Option<&Snapshot>) -> Self {
        let directory = TempDir::new_in(harbour.directory()).unwrap();
        let paths = harbour.paths();
        let mut all = Descriptors::default();
        let open = |path: &Path| File::open(path).unwrap();
        let kernel = all.add(open(&paths.kernel(Accelerator::Kvm).unwrap()));
        let initramfs = all.add(open(&paths.initramfs().unwrap()));
        let kvm = all.add(File::options().read(true).write(true).open("/dev/kvm").unwrap());
        let rootfs: Vec<_> = harbour.image().disk.extents.iter().collect();
        let rootfs: Vec<_> = rootfs.iter().map(|e| (e.path.as_path(), e.offset, e.length)).collect();
        let length = writable.metadata().unwrap().len();
        let disks = vec![all.disk(true, &rootfs), all.disk(false, &[(writable, 0, length)])];
        let listener = UnixListener::bind(directory.path().join("vsock")).unwrap();
        let (agent, far) = UnixStream::pair().unwrap();
        let vsock = VsockConfig {
            guest_cid: 3,
            listener: Some(all.add(listener)),
            ports: vec![VsockPort { port: CONTROL_PORT, socket: all.add(far) }],
        };
        let config = MachineConfig {
            accelerator: Accelerator::Kvm,
            memory_mib: MEMORY_MIB,
            vcpus: 1,
            kernel,
            initramfs,
            cmdline: String::new(),
            kvm: Some(kvm),
            disks,
            nets: Vec::new(),
            shares: Vec::new(),
            balloon: None,
            console: false,
            vsock: Some(vsock),
            host: HostConfig::default(),
        };
        let request = match from {
            None => Request::Boot(Box::new(config)),
            Some(snapshot) => Request::Restore(Box::new(RestoreRequest {
                machine: config,
                state: all.add(snapshot.state.try_clone().unwrap()),
                memory: all.add(snapshot.memory.try_clone().unwrap()),
                working_set: None,
                paused: false,
            })),
        };
        let (control, theirs) = ControlSocket::pair().unwrap();
        let child = Command::new(paths.vmm().unwrap())
            .args(["--control-fd", "0"])
            .stdin(Stdio::from(theirs.into_fd()))
            .spawn()
            .unwrap();
        let mut control = Client::new(control).unwrap();
        let borrowed: Vec<BorrowedFd<'_>> = all.0.iter().map(AsFd::as_fd).collect();
        control.ask(request, &borrowed).unwrap();
        let client = client::Client::new(agent.try_clone().unwrap());
        let mut machine = Self { child, control, agent, client, messages: VecDeque::new(), directory };
        assert_eq!(machine.message(), Message::Hello { version: VERSION }, "the agent's first word");
        machine
    }

    /// Asks the VMM.
    fn ask(&mut self, request: Request, files: &[BorrowedFd<'_>]) -> Told {
        let asked = self.control.ask(request, files).unwrap();
        loop {
            assert!(wait_readable(self.control.as_fd(), Instant::now() + PATIENCE), "the VMM is silent");
            match self.control.receive().unwrap().expect("the VMM is there") {
                Word::Reply { id, answer } if id == asked => return answer,
                Word::Event(Event::Ended(report)) => panic!("{report:?}"),
                _ => {}
            }
        }
    }

    /// Pauses the machine, writes it down and ends it.
    pub fn into_snapshot(mut self) -> Snapshot {
        assert!(matches!(self.ask(Request::Pause, &[]), Told::Done));
        let snapshot =
            Snapshot { state: tempfile::tempfile().unwrap(), memory: tempfile::tempfile().unwrap() };
        let request = SnapshotRequest { state: Fd(0), memory: Fd(1), kind: SnapshotKind::Full };
        let files = [snapshot.state.as_fd(), snapshot.memory.as_fd()];
        let written = match self.ask(Request::Snapshot(request), &files) {
            Told::Snapshot(written) => written,
            other => panic!("{other:?}"),
        };
        eprintln!("a snapshot: {written:?}");
        assert!(matches!(self.ask(Request::Kill, &[]), Told::Done));
        snapshot
    }

    fn message(&mut self) -> Message {
        let deadline = Instant::now() + PATIENCE;
        while self.messages.is_empty() {
            if !wait_readable(self.agent.as_fd(), deadline) {
                let diagnosis = self.ask(Request::Diagnose, &[]);
                panic!("the agent is silent: {diagnosis:?}");
            }
            match self.client.read() {
                Ok(messages) => self.messages.extend(messages),
                Err(error) => panic!("the agent is gone: {error}; {:?}", self.control.receive()),
            }
        }
        self.messages.pop_front().unwrap()
    }

    /// Makes a call of the agent's and waits for its answer; other messages before it are passed over.
    pub fn call(&mut self, call: Call) -> Result<Answer, Failure> {
        let asked = self.client.send(call).unwrap();
        loop {
            if let Message::Reply { id, result } = self.message()
                && id == asked
            {
                return result;
            }
        }
    }

    /// Makes a call that must succeed.
    pub fn done(&mut self, call: Call) {
        assert_eq!(self.call(call), Ok(Answer::Done));
    }

    /// Opens a pipe of a process.
    pub fn stream(&mut self, process: &ProcessId, stream: Stream) -> UnixStream {
        let mut socket = UnixStream::connect(self.directory.path().join("vsock")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(format!("CONNECT {STREAM_PORT}\n").as_bytes()).unwrap();
        let line = self.line(&socket);
        assert!(line.starts_with("OK "), "{line}");
        write_frame(&socket, &StreamOpen::Process { process: process.clone(), stream }).unwrap();
        socket
    }

    /// The next line that a pipe says.
    pub fn line(&mut self, mut pipe: &UnixStream) -> String {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            if let Err(error) = pipe.read_exact(&mut byte) {
                panic!("no line comes ({error}): {line:?}, {:?}", self.ask(Request::Diagnose, &[]));
            }
            line.extend(byte);
        }
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }

    /// Runs a further process; returns what it wrote.
    pub fn run(&mut self, exec: Exec) -> String {
        let process = exec.process.clone();
        let mut pipes = [Stream::Stdout, Stream::Stderr].map(|stream| self.stream(&process, stream));
        self.done(Call::Exec(Box::new(exec)));
        let mut wrote = [String::new(), String::new()];
        for (pipe, wrote) in pipes.iter_mut().zip(&mut wrote) {
            pipe.read_to_string(wrote).unwrap();
        }
        let [stdout, stderr] = wrote;
        assert_eq!(stderr, "", "{stdout}");
        stdout
    }

    /// KiB of guest RAM that the machine has mapped, and of them those that are its own.
    pub fn memory(&self, snapshot: &Snapshot) -> (u64, u64) {
        let outer = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap();
        let inner = children.split_ascii_whitespace().next().unwrap();
        let inode = snapshot.memory.metadata().unwrap().ino().to_string();
        let (mut mapped, mut own, mut inside) = (0, 0, false);
        for line in std::fs::read_to_string(format!("/proc/{inner}/smaps")).unwrap().lines() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match words.first() {
                Some(first) if !first.ends_with(':') => inside = words.get(4) == Some(&inode.as_str()),
                Some(&"Rss:") if inside => mapped += words[1].parse::<u64>().unwrap(),
                Some(&"Anonymous:") if inside => own += words[1].parse::<u64>().unwrap(),
                _ => {}
            }
        }
        (mapped, own)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
