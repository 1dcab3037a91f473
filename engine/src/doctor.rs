//! `doctor`: what this host can do, found out by doing it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agent::protocol::{self, Message};
use vmm::config::Accelerator;

use crate::accelerator::{self, Chosen, Kvm};
use crate::client::Client;
use crate::machine::{Hardware, Machine, boot_timeout, silent, wait_readable};
use crate::options::{AcceleratorChoice, Isolation};
use crate::paths::Paths;
use crate::{EngineError, disk};

/// The command that lifts the limit on memory mappings.
pub const RAISE_MAP_COUNT: &str = "sysctl -w vm.max_map_count=1048576";

/// Mappings that a large guest process needs (the figure that Elasticsearch asks for is of the same order).
const ENOUGH_MAPPINGS: u64 = 262_144;
/// Guest memory of the machines that are booted here, in MiB.
const TEST_MEMORY_MIB: u32 = 128;
/// Pages, and so mappings at worst, in a MiB.
const MAPPINGS_PER_MIB: u64 = 256;
const MAX_MAP_COUNT: &str = "/proc/sys/vm/max_map_count";

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It works.
    Good,
    /// It works, with a limit that matters to some.
    Limited,
    /// It does not work.
    Bad,
}

impl Verdict {
    /// The word in the table.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Limited => "limited",
            Self::Bad => "no",
        }
    }
}

/// One row of the table.
#[derive(Debug, Clone)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found, in one line.
    pub detail: String,
    /// What to do, if something should be done.
    pub next: Option<String>,
    /// How long it took.
    pub time: Duration,
}

/// The host's limit on memory mappings, if it is too low for large guest processes under `uml`.
#[must_use]
pub fn low_map_count() -> Option<u64> {
    read_map_count().filter(|n| *n < ENOUGH_MAPPINGS)
}

/// Why a low limit matters, in one line.
#[must_use]
pub fn why_low(mappings: u64) -> String {
    format!(
        "vm.max_map_count is {mappings}: under uml a process that touches over {} MiB at random dies",
        mappings / MAPPINGS_PER_MIB
    )
}

fn read_map_count() -> Option<u64> {
    fs::read_to_string(MAX_MAP_COUNT).ok()?.trim().parse().ok()
}

/// Runs every check, cheap ones first. The accelerators' rows come last and boot a machine each.
pub fn run(paths: &Paths) -> Vec<Check> {
    vec![
        timed("kvm device", check_kvm),
        timed("user namespaces", check_namespaces),
        timed("memory mappings", check_map_count),
        timed("writable disk", || check_disk(paths)),
        timed("accelerator uml", || check_boot(paths, Accelerator::Uml)),
        timed("accelerator kvm", || check_boot(paths, Accelerator::Kvm)),
    ]
}

type Found = (Verdict, String, Option<String>);

fn timed(name: &'static str, check: impl FnOnce() -> Found) -> Check {
    let start = Instant::now();
    let (verdict, detail, next) = check();
    Check { name, verdict, detail, next, time: start.elapsed() }
}

fn check_kvm() -> Found {
    match accelerator::probe() {
        Kvm::Hardware => (Verdict::Good, "runs guest kernels at hardware speed".to_owned(), None),
        Kvm::Software { nanoseconds } => (
            Verdict::Limited,
            format!(
                "executes guest kernels in software, {nanoseconds} ns an instruction: --accel auto takes uml"
            ),
            None,
        ),
        Kvm::Unusable { why } => (
            Verdict::Limited,
            format!("{why}: --accel auto takes uml"),
            Some("usermod -aG kvm $USER".to_owned()),
        ),
    }
}

fn check_namespaces() -> Found {
    let made = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "--pid", "--fork", "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match made {
        Ok(status) if status.success() => {
            (Verdict::Good, "the jail's namespaces can be made".to_owned(), None)
        }
        Ok(_) => (
            Verdict::Bad,
            "this user may not make user namespaces, which the jail needs".to_owned(),
            Some("sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=65536".to_owned()),
        ),
        Err(e) => (
            Verdict::Limited,
            format!("not checked: unshare: {e}"),
            Some("apt install util-linux".to_owned()),
        ),
    }
}

fn check_map_count() -> Found {
    match read_map_count() {
        Some(n) if n >= ENOUGH_MAPPINGS => (Verdict::Good, format!("vm.max_map_count is {n}"), None),
        Some(n) => (Verdict::Limited, why_low(n), Some(RAISE_MAP_COUNT.to_owned())),
        None => (Verdict::Limited, format!("{MAX_MAP_COUNT} cannot be read"), None),
    }
}

fn check_disk(paths: &Paths) -> Found {
    let path = paths.cache_files().join(format!("doctor-{}.ext4", std::process::id()));
    let made = disk::create(&path, disk::WRITABLE_BYTES, &paths.cache_files());
    let allocated = disk::allocated(&path).unwrap_or(0);
    let _ = fs::remove_file(&path);
    match made {
        Ok(()) => (
            Verdict::Good,
            format!("{} GiB, {} KiB on disk", disk::WRITABLE_BYTES >> 30, allocated >> 10),
            None,
        ),
        Err(e) => failed(&e),
    }
}

fn failed(error: &EngineError) -> Found {
    let advice = error.advice();
    (Verdict::Bad, format!("{error}: {}", advice.why), Some(advice.next))
}

fn check_boot(paths: &Paths, accelerator: Accelerator) -> Found {
    match boot(paths, accelerator) {
        Ok((time, boundary)) => (
            Verdict::Good,
            format!(
                "a machine's agent answered after {:.0} ms; boundary: {boundary}",
                time.as_secs_f64() * 1e3
            ),
            None,
        ),
        Err(e) => failed(&e),
    }
}

/// Boots a machine without disks to its agent's first word.
fn boot(paths: &Paths, accelerator: Accelerator) -> Result<(Duration, &'static str), EngineError> {
    let chosen: Chosen =
        accelerator::choose(AcceleratorChoice::Named(accelerator), Isolation::Any, &paths.cache_files())?;
    let boundary = chosen.boundary;
    let directory = ScratchDirectory::create(paths)?;
    let hardware = Hardware {
        chosen,
        memory_mib: TEST_MEMORY_MIB,
        vcpus: 1,
        rootfs: None,
        writable: None,
        rates: crate::machine::DiskRates::default(),
        shares: Vec::new(),
        nets: Vec::new(),
    };
    let start = Instant::now();
    let mut machine = Machine::start(paths, &directory.0, hardware)?;
    let timeout = boot_timeout(accelerator);
    let result = wait_for_hello(&mut machine, start + timeout);
    let time = start.elapsed();
    let report = machine.kill();
    match result {
        Ok(true) => Ok((time, boundary)),
        Ok(false) => Err(silent(timeout, report)),
        Err(e) => Err(e),
    }
}

fn wait_for_hello(machine: &mut Machine, deadline: Instant) -> Result<bool, EngineError> {
    use std::os::fd::AsFd;
    let agent = machine.agent().try_clone().map_err(EngineError::io("sharing a socket"))?;
    let mut client = Client::new(agent.try_clone().map_err(EngineError::io("sharing a socket"))?);
    while wait_readable(agent.as_fd(), deadline) {
        match client.read() {
            Ok(messages) if messages.is_empty() => {}
            Ok(messages) => return Ok(messages[0] == Message::Hello { version: protocol::VERSION }),
            // The connection ends with the machine: its report tells why.
            Err(e) => {
                while wait_readable(machine.events(), deadline) {
                    machine.read_event()?;
                }
                return Err(e.into());
            }
        }
    }
    Ok(false)
}

/// A directory that is gone when it is dropped.
struct ScratchDirectory(PathBuf);

impl ScratchDirectory {
    fn create(paths: &Paths) -> Result<Self, EngineError> {
        let path = paths.cache_files().join(format!("doctor-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(EngineError::io("making a directory for a test machine"))?;
        Ok(Self(path))
    }
}

impl Drop for ScratchDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
