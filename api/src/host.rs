//! What is told about the host.

use std::fs;

use engine::Engine;
use engine::accelerator;
use engine::options::{AcceleratorChoice, Isolation};
use vmm::config::Accelerator;

/// The host, as it was when it was first asked for.
#[derive(Debug, Clone)]
pub struct Host {
    /// Name of the host.
    pub name: String,
    /// Names the state directory among those of all hosts.
    pub id: String,
    /// What `auto` takes here: `kvm` or `uml`.
    pub accelerator: &'static str,
    /// What stands between a guest and the host, for people.
    pub boundary: &'static str,
    /// Release of the host's kernel.
    pub kernel: String,
    /// Name and version of the host's operating system.
    pub os: String,
    /// CPUs that may be used.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
}

impl Host {
    /// Looks around. The first time since the host's boot, the accelerator is measured, which takes some milliseconds.
    #[must_use]
    pub fn new(engine: &Engine) -> Self {
        let cache = engine.paths().cache_files();
        let chosen = accelerator::choose(AcceleratorChoice::Auto, Isolation::Any, &cache);
        let (accelerator, boundary) =
            chosen.map_or(("none", "none"), |chosen| (name(chosen.accelerator), chosen.boundary));
        let uname = nix::sys::utsname::uname().ok();
        let text = |value: Option<&std::ffi::OsStr>| {
            value.map_or_else(String::new, |v| v.to_string_lossy().into_owned())
        };
        let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        Self {
            name: text(uname.as_ref().map(nix::sys::utsname::UtsName::nodename)),
            id: format!("{}:{}", machine.trim(), engine.paths().root().display()),
            accelerator,
            boundary,
            kernel: text(uname.as_ref().map(nix::sys::utsname::UtsName::release)),
            os: os().unwrap_or_else(|| "Linux".to_owned()),
            cpus: std::thread::available_parallelism()
                .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
            memory: memory().unwrap_or_default(),
        }
    }
}

fn name(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Uml => "uml",
    }
}

fn os() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches('"').to_owned())
}

fn memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kilobytes: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    kilobytes.checked_mul(1024)
}
