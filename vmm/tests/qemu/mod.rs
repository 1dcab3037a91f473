//! QEMU as somebody else's machine around our devices and our way of starting a guest: for counting instructions, for devices under a
//! front-end that is not ours, and as the peer in benches.
//!
//! The machine is `microvm`. Guest memory is a file that is filled as our own VMM fills it (`vmm::kvm::fill`), and a firmware of a
//! few instructions enters the kernel in the state in which our VMM starts a vCPU. Our devices are served over vhost-user
//! by a thread of this process.

#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod agent;
pub mod cable;

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress};
use vmm::kvm::layout::MP_TABLE;
use vmm::memory::GuestMemoryMmap;
use vmm::transport::vhost_user::{Backend, FaultSlot};
use vmm::virtio::VirtioDevice;

const PROGRAM: &str = "qemu-system-x86_64";
/// Where `firmware.S` looks for the entry point.
const ENTRY: u64 = 0x6000;
/// The machine's virtio-mmio registers: base, bytes of each device, and interrupt line of the first.
pub const VIRTIO: u64 = 0xfeb0_0000;
pub const VIRTIO_BYTES: u64 = 512;
const VIRTIO_IRQ: u64 = 5;
/// Devices that the machine has room for.
pub const MAX_DEVICES: usize = 8;
/// The MP table's entries for interrupt lines follow a pointer, a header, and an entry each for CPU, bus and I/O APIC.
const MP_INTERRUPTS: u64 = MP_TABLE + 16 + 44 + 20 + 8 + 8;
/// QEMU's exit code when a payload writes 16 to the port that ends it: twice that, and one.
const DONE: i32 = 33;
/// How long anything may take on a busy host.
const PATIENCE: Duration = Duration::from_secs(180);

/// What executes the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// QEMU's translator, at the host's own pace. A second vCPU sleeps: for a single one QEMU before 8.1 leaves out the guest's memory
    /// barriers, which a device in another thread needs.
    Translator,
    /// The translator with a clock that advances by a nanosecond with each instruction: the guest sees the time, and so the timer's
    /// interrupts, of a CPU of 1 GHz that does one instruction each cycle, however slow QEMU is.
    Clockwork,
    /// /dev/kvm.
    Kvm,
}

/// A device of the machine.
pub enum Device {
    /// One of ours, behind the front-end that QEMU has for its kind.
    Ours { front_end: &'static str, device: Box<dyn VirtioDevice> },
    /// One of QEMU's own: `-device`, and what else it needs on the command line.
    Theirs { device: String, more: Vec<String>, descriptor: Option<OwnedFd> },
}

/// What to boot.
pub struct Qemu {
    pub accelerator: Accelerator,
    pub memory_mib: u32,
    pub kernel: File,
    pub initramfs: File,
    /// Added to the command line that our VMM gives to a kernel.
    pub cmdline: &'static str,
    pub devices: Vec<Device>,
    /// Count instructions.
    pub count: bool,
    /// Where to write how often each block of code was executed, at the end.
    pub profile: Option<PathBuf>,
}

/// Counted by the plugin, see `count.c`.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// From the kernel's entry point on.
    pub instructions: u64,
    /// Repetitions of string instructions, which are not among them.
    pub repetitions: u64,
    /// Those at addresses of user programs.
    pub user: u64,
}

/// A running machine.
pub struct Running {
    child: Child,
    directory: tempfile::TempDir,
    server: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    fault: Arc<Mutex<Option<String>>>,
}

/// Whether QEMU and what the rig is built with are installed; else says why not.
pub fn missing() -> Option<String> {
    [PROGRAM, "gcc"]
        .into_iter()
        .find(|program| Command::new(program).arg("--version").stdout(Stdio::null()).status().is_err())
        .map(|program| format!("{program} is not installed"))
}

/// Whether this QEMU cannot load the plugin; says why.
pub fn cannot_count() -> Option<String> {
    let version = Command::new(PROGRAM).arg("--version").output().ok()?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let major = version.split("version ").nth(1).and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    let help = Command::new(PROGRAM).arg("--help").output().ok()?;
    if !String::from_utf8_lossy(&help.stdout).contains("\n-plugin ") {
        return Some("this QEMU is built without plugins".to_owned());
    }
    // Plugins of version 1 were given up with QEMU 9.
    major
        .filter(|major| !(6..9).contains(major))
        .map(|major| format!("QEMU {major} has another plugin interface"))
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/qemu").join(name)
}

fn compile(arguments: &[&str], source: &Path, product: &Path) {
    let made = Command::new("gcc").args(arguments).arg("-o").arg(product).arg(source).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// What the guest of `payload.c` is to do.
pub struct Payload {
    /// Addresses of the registers of its disk, and of its network interface, if it has one.
    pub disk: u64,
    pub net: Option<u64>,
    /// Single requests of each kind, bursts of each kind, and requests in each burst (at least 64).
    pub rounds: usize,
    pub bursts: usize,
    pub burst: usize,
    /// Where on the disk it leaves what it noted, in bytes.
    pub result: u64,
}

impl Payload {
    /// Compiles it to an ELF image, loaded at 16 MiB.
    pub fn compile(&self, product: &Path) {
        let definitions = [
            format!("-DBLOCK={:#x}", self.disk),
            format!("-DNET={:#x}", self.net.unwrap_or(0)),
            format!("-DROUNDS={}", self.rounds),
            format!("-DBURSTS={}", self.bursts),
            format!("-DBURST={}", self.burst),
            format!("-DRESULT_SECTOR={}", self.result / 512),
        ];
        freestanding(&source("payload.c"), &definitions, product);
    }
}

fn freestanding(source: &Path, definitions: &[String], product: &Path) {
    let mut arguments = vec!["-O2", "-Wall", "-ffreestanding", "-nostdlib", "-static", "-fno-pic", "-no-pie"];
    // No vector registers: some KVMs do not execute them in kernel mode. No red zone, no canary, no notes.
    arguments.extend([
        "-mgeneral-regs-only",
        "-mno-red-zone",
        "-fno-stack-protector",
        "-fcf-protection=none",
    ]);
    arguments.extend([
        "-fno-asynchronous-unwind-tables",
        "-Wl,--build-id=none",
        "-Wl,-Ttext=0x1000000",
        "-Wl,-n",
    ]);
    arguments.extend(definitions.iter().map(String::as_str));
    compile(&arguments, source, product);
}

impl Qemu {
    pub fn new(accelerator: Accelerator, kernel: File, initramfs: File) -> Self {
        Self {
            accelerator,
            memory_mib: 128,
            kernel,
            initramfs,
            cmdline: "",
            devices: Vec::new(),
            count: false,
            profile: None,
        }
    }

    /// Starts it.
    pub fn start(mut self) -> Running {
        assert!(self.devices.len() <= MAX_DEVICES);
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        compile(
            &[
                "-nostdlib",
                "-static",
                "-no-pie",
                "-Wl,-Ttext=0xf0000",
                "-Wl,--build-id=none",
                "-Wl,-e,0",
                "-Wl,--oformat=binary",
            ],
            &source("firmware.S"),
            &at("firmware"),
        );
        let ram = File::from(memfd_create(c"guest-ram", MFdFlags::MFD_CLOEXEC).unwrap());
        let entry = self.fill(&ram);

        let mut command = Command::new(PROGRAM);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        // KVMs that are no hardware refuse some registers of the full model.
        command.args(["-cpu", if self.accelerator == Accelerator::Kvm { "qemu64" } else { "max" }]);
        command.args([
            "-machine",
            "microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on,auto-kernel-cmdline=off,memory-backend=ram",
        ]);
        let ram_path = format!("/proc/{}/fd/{}", std::process::id(), ram.as_raw_fd());
        let size = self.memory_mib;
        command.args([
            "-object",
            &format!("memory-backend-file,id=ram,size={size}M,mem-path={ram_path},share=on"),
        ]);
        command.arg("-bios").arg(at("firmware"));
        command.args(["-global", "virtio-mmio.force-legacy=false"]);
        // A payload says through this port that it is done.
        command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        command.arg("-serial").arg(format!("file:{}", at("serial").display()));
        command.args(["-accel", if self.accelerator == Accelerator::Kvm { "kvm" } else { "tcg" }]);
        match self.accelerator {
            Accelerator::Translator => command.args(["-smp", "2"]),
            Accelerator::Clockwork => command.args(["-icount", "shift=0"]),
            Accelerator::Kvm => &mut command,
        };
        if self.count {
            compile(&["-O2", "-Wall", "-shared", "-fPIC"], &source("count.c"), &at("count.so"));
            let mut plugin =
                format!("{},out={},entry={entry:#x}", at("count.so").display(), at("counts").display());
            if let Some(profile) = &self.profile {
                plugin += &format!(",profile={}", profile.display());
            }
            command.args(["-plugin", &plugin]);
        }

        let (mut ours, mut kept) = (Vec::new(), Vec::new());
        for (index, device) in std::mem::take(&mut self.devices).into_iter().enumerate() {
            let bus = format!("bus=virtio-mmio-bus.{index}");
            match device {
                Device::Ours { front_end, device } => {
                    let path = at(&format!("device{index}"));
                    ours.push((device, UnixListener::bind(&path).unwrap()));
                    command.arg("-chardev").arg(format!("socket,id=c{index},path={}", path.display()));
                    // An interface has two parts.
                    let front_end = if front_end.starts_with("virtio-net-device") {
                        command.args(["-netdev", &format!("vhost-user,id=n{index},chardev=c{index}")]);
                        format!("{front_end},netdev=n{index}")
                    } else {
                        format!("{front_end},chardev=c{index}")
                    };
                    command.args(["-device", &format!("{front_end},{bus}")]);
                }
                Device::Theirs { device, more, descriptor } => {
                    command.args(more).args(["-device", &format!("{device},{bus}")]);
                    kept.extend(descriptor);
                }
            }
        }
        let inherited: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
        // SAFETY: fcntl and prctl are async-signal-safe, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                for fd in &inherited {
                    libc::fcntl(*fd, libc::F_SETFD, 0);
                }
                // A test that is killed leaves nothing behind.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let (stop, fault) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        let limit = u64::from(self.memory_mib) << 20;
        let server = std::thread::spawn({
            let (stop, fault) = (Arc::clone(&stop), Arc::clone(&fault));
            move || serve(ours, limit, &stop, &fault)
        });
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(at("errors")).unwrap());
        let child = command.spawn().unwrap();
        let mut running = Running { child, directory, server: Some(server), stop, fault };
        // QEMU has opened the memory before it has connected to anything; until then the file must stay.
        let began = Instant::now();
        while running.serial().is_none() {
            running.check(began);
        }
        running
    }

    /// Fills guest memory; returns the entry point.
    fn fill(&mut self, ram: &File) -> u64 {
        let bytes = usize::try_from(self.memory_mib).unwrap() << 20;
        ram.set_len(bytes as u64).unwrap();
        let range = (GuestAddress(0), bytes, Some(FileOffset::new(ram.try_clone().unwrap(), 0)));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        let mut more = String::new();
        for (index, irq) in (0..self.devices.len() as u64).zip(VIRTIO_IRQ..) {
            let address = VIRTIO + VIRTIO_BYTES * index;
            more += &format!("virtio_mmio.device={VIRTIO_BYTES}@{address:#x}:{irq} ");
        }
        // The translator's local APIC cannot count by the TSC, as KVM's can, so that the kernel would measure its clock for 100 ms; the
        // timer chip need not be measured. A panic must end QEMU, which has no keyboard controller here.
        more += "nolapic_timer reboot=t ";
        more += self.cmdline;
        let line = vmm::kvm::command_line(0, 1_000_000, "", &more);
        let entry = vmm::kvm::fill(&memory, &mut self.kernel, &mut self.initramfs, &line, 1).unwrap();
        // As on every PC since the first APIC, the timer chip's line 0 is the I/O APIC's input 2. The sum stays what it is.
        memory.write_obj(2u8, GuestAddress(MP_INTERRUPTS + 7)).unwrap();
        memory.write_obj(0u8, GuestAddress(MP_INTERRUPTS + 2 * 8 + 7)).unwrap();
        memory.write_obj(entry, GuestAddress(ENTRY)).unwrap();
        entry
    }
}

/// The event loop of our devices.
fn serve(
    devices: Vec<(Box<dyn VirtioDevice>, UnixListener)>,
    limit: u64,
    stop: &AtomicBool,
    fault: &Mutex<Option<String>>,
) {
    let faults = FaultSlot::default();
    let mut manager = EventManager::new().unwrap();
    let mut ids = Vec::new();
    for (device, listener) in devices {
        ids.push(manager.add_subscriber(Backend::new(device, listener, limit, faults.clone()).unwrap()));
    }
    while !stop.load(Ordering::Relaxed) {
        match manager.run_with_timeout(50) {
            // Without its barriers (see `Accelerator`) a guest may think that it need not kick.
            Ok(0) => ids.iter().for_each(|id| manager.subscriber_mut(*id).unwrap().finish()),
            Ok(_) => {}
            Err(error) => {
                *fault.lock().unwrap() = Some(error.to_string());
                return;
            }
        }
        if let Some(broken) = faults.borrow_mut().take() {
            *fault.lock().unwrap() = Some(broken.to_string());
            return;
        }
    }
}

impl Running {
    /// Fails if the machine has ended, a device is broken, or too much time has passed since `began`; else waits a moment.
    fn check(&mut self, began: Instant) {
        let ended = self.child.try_wait().unwrap();
        let fault = self.fault.lock().unwrap().clone();
        let died = ended.is_some_and(|status| status.code() != Some(DONE));
        if died || fault.is_some() || began.elapsed() > PATIENCE {
            let (errors, serial) = (self.text("errors"), self.text("serial"));
            panic!("QEMU: {ended:?}, devices: {fault:?}\n{errors}\nguest: {serial}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }

    fn text(&self, name: &str) -> String {
        let bytes = std::fs::read(self.directory.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What the guest said on its serial port; nothing before QEMU has it.
    pub fn serial(&self) -> Option<String> {
        self.directory.path().join("serial").exists().then(|| self.text("serial"))
    }

    /// Reads exactly so much from the guest.
    pub fn read(&mut self, mut stream: &UnixStream, bytes: &mut [u8]) {
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (began, mut done) = (Instant::now(), 0);
        while done < bytes.len() {
            match stream.read(&mut bytes[done..]) {
                Ok(0) => {
                    // A device that broke has closed it; then that is told.
                    self.check(began);
                    panic!("the guest closed its connection: {}", self.text("serial"));
                }
                Ok(length) => done += length,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    self.check(began);
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        let bytes = std::fs::read(self.directory.path().join("counts")).unwrap();
        let number = |index: usize| u64::from_ne_bytes(bytes[8 * index..][..8].try_into().unwrap());
        assert!(number(4) > 0, "the kernel's entry point was never reached");
        Counts { instructions: number(0) - number(2), repetitions: number(1), user: number(3) - number(2) }
    }

    /// Waits until the payload has said that it is done.
    pub fn finished(&mut self) {
        let began = Instant::now();
        while self.child.try_wait().unwrap().and_then(|status| status.code()) != Some(DONE) {
            self.check(began);
        }
    }

    /// Ends QEMU in its orderly way, which writes the profile.
    pub fn end(mut self) -> io::Result<()> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.stop.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}
