//! A real machine and its agent, spoken to as the engine speaks to it, without anything in between.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent::protocol::spec::{Process, Spec};
use agent::protocol::{
    Answer, Call, Exec, ExitStatus, Failure, HostFile, Message, Prepare, ProcessId, STREAM_PORT, Start,
    Stream, StreamOpen, TerminalSize, VERSION,
};
use engine::accelerator;
use engine::client::{Client, open_stream};
use engine::machine::{Hardware, Machine, wait_readable};
use engine::options::{AcceleratorChoice, Isolation};
use engine::paths::Paths;
use image_unpack::{Image, Quiet};
use tempfile::TempDir;
use vmm::config::Accelerator;

use crate::Bulkhead;

/// A hang guard, far beyond what anything takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// Guest memory in MiB.
const MEMORY_MIB: u32 = 256;

/// A place for machines: an installation, an image, and a writable disk that outlives each machine.
pub struct Harbour {
    paths: Paths,
    image: Image,
    directory: TempDir,
    _bulkhead: Bulkhead,
}

impl Harbour {
    /// `None` where `make test` has not prepared anything (said loudly).
    #[must_use]
    pub fn new(image: &str) -> Option<Self> {
        let bulkhead = Bulkhead::new()?;
        let library = bulkhead.program.parent().unwrap().to_owned();
        let paths = Paths::at(bulkhead.root.path().to_owned(), library).unwrap();
        let image = engine::image::ensure(&paths.images(), image, &Quiet).unwrap();
        let directory = TempDir::new_in(bulkhead.root.path()).unwrap();
        engine::disk::ensure(&directory.path().join("writable.ext4"), None, &paths.cache_files()).unwrap();
        Some(Self { paths, image, directory, _bulkhead: bulkhead })
    }

    /// The image's configuration.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Where the installation's parts are.
    #[must_use]
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// A directory that lives as long as this.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The writable disk.
    #[must_use]
    pub fn writable(&self) -> PathBuf {
        self.directory.path().join("writable.ext4")
    }

    /// Boots a machine with the image and the writable disk, and waits for its agent's hello.
    #[must_use]
    pub fn boot(&self) -> Guest {
        let choice = AcceleratorChoice::Named(Accelerator::Uml);
        let chosen = accelerator::choose(choice, Isolation::Any, &self.paths.cache_files()).unwrap();
        let writable = self.writable();
        let directory = TempDir::new_in(self.directory.path()).unwrap();
        let hardware = Hardware {
            chosen,
            memory_mib: MEMORY_MIB,
            vcpus: 1,
            rootfs: Some(&self.image.disk),
            writable: Some(&writable),
            rates: engine::machine::DiskRates::default(),
            shares: Vec::new(),
            nets: Vec::new(),
        };
        let machine = Machine::start(&self.paths, directory.path(), hardware).unwrap();
        let client = Client::new(machine.agent().try_clone().unwrap());
        let mut guest = Guest {
            machine: Some(machine),
            client,
            messages: VecDeque::new(),
            processes: 0,
            _directory: directory,
        };
        assert_eq!(guest.next_message(), Message::Hello { version: VERSION });
        guest
    }

    /// A machine that is prepared.
    #[must_use]
    pub fn prepared(&self) -> Guest {
        let mut guest = self.boot();
        assert_eq!(guest.call(Call::Prepare(Box::new(prepare()))), Ok(Answer::Done));
        guest
    }
}

/// The disks of a [`Harbour`]'s machines, the host's clock, and the usual files of a container named `harbour`.
#[must_use]
pub fn prepare() -> Prepare {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Prepare {
        image: "vda".into(),
        writable: "vdb".into(),
        wall_clock: u64::try_from(since.as_nanos()).unwrap(),
        files: vec![
            file("/etc/hostname", "harbour\n"),
            file("/etc/hosts", "127.0.0.1\tlocalhost\n127.0.1.1\tharbour\n"),
        ],
        ..Prepare::default()
    }
}

/// A process's name.
#[must_use]
pub fn id(name: &str) -> ProcessId {
    ProcessId::try_from(name.to_owned()).unwrap()
}

/// A container's first process, with nothing special.
#[must_use]
pub fn start(spec: Spec) -> Start {
    Start {
        process: id("init"),
        spec,
        user: String::new(),
        groups: Vec::new(),
        terminal: None,
        stdin: false,
        init: false,
        seccomp: Vec::new(),
        network: Vec::new(),
    }
}

/// A further process, with nothing special.
#[must_use]
pub fn exec(name: &str, args: &[&str]) -> Exec {
    let spec = Process {
        args: args.iter().map(|a| (*a).to_owned()).collect(),
        env: vec!["PATH=/bin".to_owned()],
        cwd: "/".into(),
        ..Process::default()
    };
    Exec { process: id(name), spec, user: String::new(), groups: Vec::new(), terminal: None, stdin: false }
}

/// A machine whose agent has said hello.
pub struct Guest {
    machine: Option<Machine>,
    client: Client,
    messages: VecDeque<Message>,
    processes: u32,
    _directory: TempDir,
}

/// A process's ends of its pipes, and the request that starts it.
pub struct Running {
    /// The request.
    pub request: u64,
    /// Its name.
    pub process: ProcessId,
    /// Its input, if it has one.
    pub stdin: Option<UnixStream>,
    stdout: JoinHandle<Vec<u8>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

/// How a process ended, and what it wrote.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code, or 128 and the signal.
    pub code: u8,
    /// A process of the container was killed for lack of memory.
    pub oom_killed: bool,
    /// Its output.
    pub stdout: String,
    /// Its errors.
    pub stderr: String,
}

fn collect(mut stream: UnixStream) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        bytes
    })
}

impl Guest {
    /// The machine.
    ///
    /// # Panics
    /// It was ended.
    pub fn machine(&self) -> &Machine {
        self.machine.as_ref().unwrap()
    }

    /// Sends a request.
    pub fn send(&mut self, call: Call) -> u64 {
        self.client.send(call).unwrap()
    }

    /// The next message that nobody has waited for.
    pub fn next_message(&mut self) -> Message {
        match self.messages.pop_front() {
            Some(message) => message,
            None => self.read(),
        }
    }

    fn read(&mut self) -> Message {
        let deadline = Instant::now() + PATIENCE;
        let mut fresh = VecDeque::new();
        while fresh.is_empty() {
            assert!(wait_readable(self.machine().agent().as_fd(), deadline), "the agent is silent");
            fresh.extend(self.client.read().expect("the agent speaks"));
        }
        let first = fresh.pop_front().unwrap();
        self.messages.extend(fresh);
        first
    }

    /// Waits for a message that is wanted; others wait for whoever wants them.
    pub fn wait_for<T>(&mut self, mut wanted: impl FnMut(&Message) -> Option<T>) -> T {
        let mut passed = VecDeque::new();
        let found = loop {
            let message = self.next_message();
            match wanted(&message) {
                Some(found) => break found,
                None => passed.push_back(message),
            }
        };
        passed.append(&mut self.messages);
        self.messages = passed;
        found
    }

    /// Waits for the answer to a request.
    pub fn reply(&mut self, request: u64) -> Result<Answer, Failure> {
        self.wait_for(|m| match m {
            Message::Reply { id, result } if *id == request => Some(result.clone()),
            _ => None,
        })
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// The agent's own.
    pub fn call(&mut self, call: Call) -> Result<Answer, Failure> {
        let request = self.send(call);
        self.reply(request)
    }

    /// Opens a stream connection.
    pub fn stream(&self, open: &StreamOpen) -> UnixStream {
        open_stream(self.machine().connect(STREAM_PORT).unwrap(), open).unwrap()
    }

    fn pipes(&mut self, process: &ProcessId, stdin: bool, terminal: bool) -> Running {
        let open =
            |guest: &Self, stream| guest.stream(&StreamOpen::Process { process: process.clone(), stream });
        let stdout = collect(open(self, Stream::Stdout));
        let stderr = (!terminal).then(|| collect(open(self, Stream::Stderr)));
        let stdin = stdin.then(|| open(self, Stream::Stdin));
        Running { request: 0, process: process.clone(), stdin, stdout, stderr }
    }

    /// Sends a start, and opens its streams.
    pub fn begin(&mut self, start: Start) -> Running {
        let running = self.pipes(&start.process, start.stdin, start.terminal.is_some());
        Running { request: self.send(Call::Start(Box::new(start))), ..running }
    }

    /// Sends an exec, and opens its streams.
    pub fn begin_exec(&mut self, exec: Exec) -> Running {
        let running = self.pipes(&exec.process, exec.stdin, exec.terminal.is_some());
        Running { request: self.send(Call::Exec(Box::new(exec))), ..running }
    }

    /// Starts the container; its program must run.
    pub fn start(&mut self, start: Start) -> Running {
        let running = self.begin(start);
        assert_eq!(self.reply(running.request), Ok(Answer::Done));
        running
    }

    /// Waits for a process's end and all that it wrote.
    pub fn finish(&mut self, running: Running) -> Ended {
        drop(running.stdin);
        let (status, oom_killed) = self.wait_for(|m| match m {
            Message::Exited { process, status, oom_killed } if *process == running.process => {
                Some((*status, *oom_killed))
            }
            _ => None,
        });
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ended {
            code: ExitStatus::code(status),
            oom_killed,
            stdout: text(running.stdout.join().unwrap()),
            stderr: running.stderr.map(|s| text(s.join().unwrap())).unwrap_or_default(),
        }
    }

    /// Runs a further process to its end.
    pub fn run(&mut self, exec: Exec) -> Ended {
        let running = self.begin_exec(exec);
        assert_eq!(self.reply(running.request), Ok(Answer::Done));
        self.finish(running)
    }

    /// Runs a shell script in the container as root; returns what it wrote. It must succeed.
    pub fn shell(&mut self, script: &str) -> String {
        self.processes += 1;
        let ended = self.run(exec(&format!("shell{}", self.processes), &["sh", "-c", script]));
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{script}: {}", ended.stdout);
        ended.stdout
    }

    /// Kills a process and waits for its end.
    pub fn kill(&mut self, running: Running) -> Ended {
        assert_eq!(self.call(Call::Signal { process: running.process.clone(), signal: 9 }), Ok(Answer::Done));
        self.finish(running)
    }

    /// A transfer from the guest: its bytes, and its answer.
    pub fn download(&mut self, call: Call) -> (Vec<u8>, Result<Answer, Failure>) {
        let request = self.send(call);
        let bytes = collect(self.stream(&StreamOpen::Transfer { request }));
        let result = self.reply(request);
        (bytes.join().unwrap(), result)
    }

    /// A transfer to the guest.
    ///
    /// # Errors
    /// The agent's own.
    pub fn upload(&mut self, call: Call, bytes: &[u8]) -> Result<Answer, Failure> {
        let request = self.send(call);
        let mut stream = self.stream(&StreamOpen::Transfer { request });
        // A guest that refuses the archive closes the stream before it has read it all.
        let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
        self.reply(request)
    }

    /// Ends the machine cleanly: its disk is written.
    pub fn shutdown(mut self) {
        let machine = self.machine.take().unwrap();
        self.client.send(Call::Shutdown { method: machine.shutdown_method() }).unwrap();
        machine.finish(PATIENCE).expect("the machine reports its end");
    }
}

/// A terminal of the usual size.
#[must_use]
pub fn terminal() -> TerminalSize {
    TerminalSize { rows: 24, columns: 80 }
}

fn file(path: &str, content: &str) -> HostFile {
    HostFile { path: path.to_owned(), content: content.to_owned() }
}
