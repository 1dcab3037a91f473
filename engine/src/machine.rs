//! The VMM as a process: it is given descriptors and a configuration, and reports one end.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent::protocol::{CONTROL_PORT, ShutdownMethod};
use image_unpack::RootfsDisk;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm::config::{
    Accelerator, Bucket, DiskConfig, ExtentConfig, Fd, HostConfig, MAX_BUCKET, MachineConfig, NetBackend,
    NetConfig, RateLimit, SECTOR_SIZE, ShareConfig, VsockConfig, VsockPort,
};
use vmm::control::{Answer, Client, ControlSocket, Event, ExitReason, ExitReport, Message, Request};
use vmm::virtio::command::Command as DeviceCommand;

use crate::EngineError;
use crate::accelerator::Chosen;
use crate::model::Limits;
use crate::options::{DEFAULT_MEMORY_MIB, GUEST_OVERHEAD_MIB};
use crate::paths::Paths;
use crate::trace;

/// The guest's context id. Machines have no way to each other, so all may have the same.
const GUEST_CID: u32 = 3;
/// How long a VMM may take to end after it was told to.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// The writable disk's name in the VMM.
const WRITABLE: &str = "block1";
/// Which part of a second's worth of reads or writes may pass at once.
const BURST_PART: u64 = 10;
/// Billionths of a CPU in one CPU.
const NANO_CPU: u64 = 1_000_000_000;
/// Most bytes of the VMM's own log that an error shows.
const LOG_TAIL: usize = 512;

/// What a machine is made of.
pub struct Hardware<'a> {
    /// What executes it.
    pub chosen: Chosen,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// The image's disk; none for a machine that only boots.
    pub rootfs: Option<&'a RootfsDisk>,
    /// The writable disk.
    pub writable: Option<&'a Path>,
    /// How much may be read from and written to the writable disk.
    pub rates: DiskRates,
    /// Folders of the host.
    pub shares: Vec<Share>,
    /// Network cards.
    pub nets: Vec<NetCard>,
}

/// How much may be read from and written to a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskRates {
    /// What the guest reads.
    pub read: RateLimit,
    /// What it writes.
    pub write: RateLimit,
}

impl DiskRates {
    /// The rates of a container with these limits. A tenth of a second's worth may pass at once.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        let bucket = |rate: Option<u64>| {
            let per_second = rate.filter(|rate| *rate > 0)?.min(MAX_BUCKET);
            Some(Bucket { per_second, burst: per_second.div_ceil(BURST_PART) })
        };
        let rate = |bytes, operations| RateLimit { bytes: bucket(bytes), operations: bucket(operations) };
        Self {
            read: rate(limits.read_bps, limits.read_iops),
            write: rate(limits.write_bps, limits.write_iops),
        }
    }
}

/// A shared folder, with its file server at the other end of a socket.
pub struct Share {
    /// What the guest mounts it by.
    pub tag: String,
    /// The machine's end.
    pub socket: OwnedFd,
}

/// The machine's end of a network card's cable.
#[derive(Debug)]
pub enum Cable {
    /// A packet socket, one frame a packet, to a switch.
    Socket(OwnedFd),
    /// A tap device whose frames have headers, in the host's kernel.
    Tap(OwnedFd),
}

/// A network card.
pub struct NetCard {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Most bytes of an IP packet.
    pub mtu: u16,
    /// Its cable.
    pub cable: Cable,
    /// How much the machine may receive.
    pub receive: RateLimit,
    /// How much it may send.
    pub send: RateLimit,
}

/// A machine that runs, or ran.
pub struct Machine {
    child: Child,
    control: Client,
    agent: UnixStream,
    directory: File,
    log: PathBuf,
    accelerator: Accelerator,
    ended: Option<ExitReport>,
    refused: Option<String>,
    /// Microseconds from the configuration's arrival to the first guest instruction, once it has run.
    pub started_micros: Option<u64>,
}

/// Descriptors on their way to the VMM.
#[derive(Default)]
struct Descriptors(Vec<OwnedFd>);

impl Descriptors {
    fn add(&mut self, fd: impl Into<OwnedFd>) -> Fd {
        self.0.push(fd.into());
        Fd(u32::try_from(self.0.len() - 1).unwrap_or(u32::MAX))
    }
}

/// Guest memory and vCPUs for the limits that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineSize {
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Number of vCPUs.
    pub vcpus: u8,
}

impl MachineSize {
    /// The machine that a container with these limits fits in.
    ///
    /// # Errors
    /// No machine of this accelerator is that large.
    pub fn new(limits: &Limits, accelerator: Accelerator) -> Result<Self, EngineError> {
        let memory_mib = match limits.memory {
            None | Some(0) => DEFAULT_MEMORY_MIB,
            Some(bytes) => u32::try_from(bytes.div_ceil(1 << 20))
                .ok()
                .and_then(|mib| mib.checked_add(GUEST_OVERHEAD_MIB))
                .filter(|mib| *mib <= vmm::config::MAX_MEMORY_MIB)
                .ok_or_else(|| EngineError::Option {
                    option: format!("--memory {bytes}"),
                    why: format!("a machine has at most {} MiB", vmm::config::MAX_MEMORY_MIB),
                    next: "ask for less memory".to_owned(),
                })?,
        };
        let asked = limits.nano_cpus.map_or(1, |nano| nano.div_ceil(NANO_CPU).max(1));
        let most = if accelerator == Accelerator::Uml { 1 } else { u64::from(vmm::config::MAX_VCPUS) };
        if asked > most {
            return Err(EngineError::Option {
                option: format!("--cpus {asked}"),
                why: format!(
                    "a machine of the {} accelerator has at most {most} vCPU(s)",
                    accelerator.name()
                ),
                next: format!("ask for at most {most}, or use another --accel"),
            });
        }
        Ok(Self { memory_mib, vcpus: u8::try_from(asked).unwrap_or(1) })
    }
}

impl Machine {
    /// Starts the VMM and gives it its machine. `directory` is the container's own, where the vsock's socket is made.
    ///
    /// # Errors
    /// A part is missing or a file cannot be opened.
    pub fn start(paths: &Paths, directory: &Path, hardware: Hardware<'_>) -> Result<Self, EngineError> {
        let accelerator = hardware.chosen.accelerator;
        let (vmm, initramfs, kernel) = (paths.vmm()?, paths.initramfs()?, paths.kernel(accelerator)?);
        let mut descriptors = Descriptors::default();
        let kernel = descriptors.add(open_read_only(&kernel)?);
        let initramfs = descriptors.add(open_read_only(&initramfs)?);
        let kvm = hardware.chosen.kvm.map(|file| descriptors.add(file));
        let mut disks = Vec::new();
        if let Some(rootfs) = hardware.rootfs {
            disks.push(image_disk(rootfs, &mut descriptors)?);
        }
        if let Some(writable) = hardware.writable {
            disks.push(writable_disk(writable, hardware.rates, &mut descriptors)?);
        }
        let shares = hardware.shares.into_iter();
        let shares = shares
            .map(|share| ShareConfig { tag: share.tag, socket: descriptors.add(share.socket) })
            .collect();

        let nets = hardware.nets.into_iter().map(|card| net_card(card, &mut descriptors)).collect();

        let action = "making the machine's sockets";
        let directory_file = open_read_only(directory)?;
        // The directory's own path may be longer than a socket's address may be.
        let socket_path = socket_path(&directory_file);
        // A machine before this one may have been killed too hard to remove its own.
        let _ = fs::remove_file(&socket_path);
        let listener = UnixListener::bind(&socket_path).map_err(EngineError::io(action))?;
        let (agent, agent_far) = UnixStream::pair().map_err(EngineError::io(action))?;
        let (control, control_far) = ControlSocket::pair().map_err(EngineError::io(action))?;
        let vsock = VsockConfig {
            guest_cid: GUEST_CID,
            listener: Some(descriptors.add(listener)),
            ports: vec![VsockPort { port: CONTROL_PORT, socket: descriptors.add(agent_far) }],
        };
        let config = MachineConfig {
            accelerator,
            memory_mib: hardware.memory_mib,
            vcpus: hardware.vcpus,
            kernel,
            initramfs,
            cmdline: String::new(),
            kvm,
            disks,
            nets,
            shares,
            balloon: None,
            console: false,
            vsock: Some(vsock),
            host: HostConfig::default(),
        };

        let log = directory.join("vmm.log");
        let log_file = File::create(&log).map_err(EngineError::io("making the VMM's log"))?;
        let child = Command::new(&vmm)
            .args(["--control-fd", "0"])
            .args(trace::request().iter().flat_map(|id| ["--request-id", id]))
            .env_clear()
            .stdin(Stdio::from(control_far.into_fd()))
            .stdout(Stdio::null())
            .stderr(log_file)
            .spawn()
            .map_err(EngineError::io(format!("starting {}", vmm.display())))?;
        let client = Client::new(control);
        let control = client.map_err(EngineError::io("greeting the VMM"))?;
        let mut machine = Self {
            child,
            control,
            agent,
            directory: directory_file,
            log,
            accelerator,
            ended: None,
            refused: None,
            started_micros: None,
        };
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.0.iter().map(AsFd::as_fd).collect();
        if let Err(error) = machine.control.ask(Request::Boot(Box::new(config)), &borrowed) {
            return Err(machine.died(&error));
        }
        Ok(machine)
    }

    /// The agent's control connection. Readable when the agent speaks, at its end when the machine is gone.
    #[must_use]
    pub fn agent(&self) -> &UnixStream {
        &self.agent
    }

    /// The VMM's process number.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// What executes it.
    #[must_use]
    pub fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    /// The agent's control connection for a tokio runtime; its end is the machine's.
    ///
    /// # Errors
    /// No descriptors are left, or it is called outside a runtime.
    pub fn take_agent(&self) -> Result<tokio::net::UnixStream, EngineError> {
        let taken = self.agent.try_clone().and_then(|agent| {
            agent.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(agent)
        });
        taken.map_err(EngineError::io("sharing a socket"))
    }

    /// A new connection to the machine's vsock, where `CONNECT PORT` is said.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn vsock(&self) -> io::Result<UnixStream> {
        UnixStream::connect(socket_path(&self.directory))
    }

    /// Changes how much may be read from and written to the writable disk, at once.
    ///
    /// The answer is not waited for: it is among the events, and a VMM that runs does not refuse rates within bounds.
    ///
    /// # Errors
    /// The VMM is gone.
    pub fn limit_disk(&mut self, rates: DiskRates) -> Result<(), EngineError> {
        let command = DeviceCommand::LimitDiskWays { read: rates.read, write: rates.write };
        let request = Request::Device { name: WRITABLE.to_owned(), command };
        self.control.ask(request, &[]).map(drop).map_err(EngineError::io("limiting the disk"))
    }

    /// The descriptor that becomes readable when the VMM has something to say.
    #[must_use]
    pub fn events(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// Takes one event from the VMM. Returns the error that the machine's end is.
    ///
    /// # Errors
    /// The machine ended.
    pub fn read_event(&mut self) -> Result<(), EngineError> {
        match self.control.receive() {
            Ok(Some(Message::Event(Event::Started { micros, .. }))) => {
                self.started_micros = Some(micros);
                Ok(())
            }
            Ok(Some(Message::Reply { answer: Answer::Refused(refusal), .. })) => {
                // A refused start is followed by the report, which tells more; a refused greeting by nothing.
                self.refused = Some(refusal.text);
                Ok(())
            }
            Ok(Some(Message::Reply { .. })) => Ok(()),
            Ok(Some(Message::Event(Event::Ended(report)))) => {
                self.ended = Some(report.clone());
                Err(EngineError::Machine(Box::new(report)))
            }
            Ok(None) => Err(self.died(&io::Error::from(io::ErrorKind::UnexpectedEof))),
            Err(e) => Err(self.died(&e)),
        }
    }

    /// Connects to a port of the guest.
    ///
    /// # Errors
    /// The machine is gone, or nothing listens there.
    pub fn connect(&self, port: u32) -> io::Result<PendingConnection> {
        PendingConnection::request(self.vsock()?, port)
    }

    /// How this machine's guest ends itself.
    #[must_use]
    pub fn shutdown_method(&self) -> ShutdownMethod {
        match self.accelerator {
            Accelerator::Uml => ShutdownMethod::PowerOff,
            Accelerator::Kvm => ShutdownMethod::Reset,
        }
    }

    /// Waits for the machine to end by itself, then makes sure that it has. Returns its report if it gave one.
    pub fn finish(mut self, timeout: Duration) -> Option<ExitReport> {
        let deadline = Instant::now() + timeout;
        while self.ended.is_none() && wait_readable(self.control.as_fd(), deadline) {
            if self.read_event().is_err() {
                break;
            }
        }
        self.kill()
    }

    /// Ends the machine and waits until its process is gone. Returns its report if it gave one.
    pub fn kill(mut self) -> Option<ExitReport> {
        if self.ended.is_none() && self.control.ask(Request::Kill, &[]).is_ok() {
            let deadline = Instant::now() + KILL_TIMEOUT;
            while self.ended.is_none() && wait_readable(self.control.as_fd(), deadline) {
                if self.read_event().is_err() {
                    break;
                }
            }
        }
        self.ended.take()
    }

    /// The error for a VMM that went away without a word.
    fn died(&mut self, cause: &io::Error) -> EngineError {
        let _ = self.child.kill();
        let status = self.child.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL)..]).into_owned();
        let log = if log.trim().is_empty() { cause.to_string() } else { log };
        let log = self.refused.take().unwrap_or(log);
        self.ended = Some(ExitReport {
            reason: ExitReason::Internal,
            detail: format!("the VMM process ended with {status}"),
            console: String::new(),
        });
        EngineError::VmmDied { status, log }
    }
}

impl Drop for Machine {
    /// No machine outlives its supervisor, whatever happened to it.
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// A connection to the guest that has been asked for and not answered yet.
pub struct PendingConnection(UnixStream);

impl PendingConnection {
    fn request(mut stream: UnixStream, port: u32) -> io::Result<Self> {
        io::Write::write_all(&mut stream, format!("CONNECT {port}\n").as_bytes())?;
        Ok(Self(stream))
    }

    /// Waits for the answer.
    ///
    /// # Errors
    /// Nothing listens there, or the machine is gone.
    pub fn accept(mut self) -> io::Result<UnixStream> {
        // Byte by byte: what follows the line belongs to the stream.
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            let mut byte = [0u8; 1];
            if io::Read::read(&mut self.0, &mut byte)? == 0 || line.len() > 64 {
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionRefused,
                    "the guest refused the connection",
                ));
            }
            line.push(byte[0]);
        }
        if !line.starts_with(b"OK ") {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the guest refused the connection"));
        }
        Ok(self.0)
    }
}

/// Waits until a descriptor is readable; false when the time is over.
pub fn wait_readable(fd: BorrowedFd<'_>, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) if left.is_zero() => return false,
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
}

/// How long a guest may take to its agent's first word. `BULKHEAD_BOOT_TIMEOUT` (seconds) changes it.
pub(crate) fn boot_timeout(accelerator: Accelerator) -> Duration {
    let default = match accelerator {
        Accelerator::Uml => 30,
        Accelerator::Kvm => 120,
    };
    let asked = env::var("BULKHEAD_BOOT_TIMEOUT").ok().and_then(|s| s.parse().ok()).filter(|s| *s > 0);
    Duration::from_secs(asked.unwrap_or(default))
}

/// The error for an agent that said nothing in time; `report` is the machine's own, once it was ended.
pub(crate) fn silent(timeout: Duration, report: Option<ExitReport>) -> EngineError {
    let empty = || ExitReport { reason: ExitReason::Killed, detail: String::new(), console: String::new() };
    EngineError::AgentSilent { seconds: timeout.as_secs(), report: Box::new(report.unwrap_or_else(empty)) }
}

fn socket_path(directory: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/vsock", directory.as_raw_fd()))
}

fn open_read_only(path: &Path) -> Result<File, EngineError> {
    File::open(path).map_err(EngineError::io(format!("opening {}", path.display())))
}

fn net_card(card: NetCard, descriptors: &mut Descriptors) -> NetConfig {
    NetConfig {
        mac: card.mac,
        mtu: card.mtu,
        backend: match card.cable {
            Cable::Socket(socket) => NetBackend::Socket { socket: descriptors.add(socket), headers: true },
            Cable::Tap(tap) => NetBackend::Tap { tap: descriptors.add(tap) },
        },
        check_source: true,
        receive: card.receive,
        send: card.send,
    }
}

fn image_disk(disk: &RootfsDisk, descriptors: &mut Descriptors) -> Result<DiskConfig, EngineError> {
    let mut extents = Vec::with_capacity(disk.extents.len());
    for extent in &disk.extents {
        let file = descriptors.add(open_read_only(&extent.path)?);
        extents.push(ExtentConfig { file, offset: extent.offset, length: extent.length });
    }
    Ok(DiskConfig {
        read_only: true,
        extents,
        limit: RateLimit::default(),
        read: RateLimit::default(),
        write: RateLimit::default(),
    })
}

fn writable_disk(
    path: &Path,
    rates: DiskRates,
    descriptors: &mut Descriptors,
) -> Result<DiskConfig, EngineError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(EngineError::io(format!("opening {}", path.display())))?;
    let length = file.metadata().map_err(EngineError::io("measuring the writable disk"))?.len();
    let length = length - length % SECTOR_SIZE;
    Ok(DiskConfig {
        read_only: false,
        extents: vec![ExtentConfig { file: descriptors.add(file), offset: 0, length }],
        limit: RateLimit::default(),
        read: rates.read,
        write: rates.write,
    })
}
