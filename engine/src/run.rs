//! `run`: from an image's name to a container's exit code.
//!
//! The calling process is the container's supervisor: it owns the machine, and the machine ends with it.

use std::time::Duration;

use agent::protocol::Call;
use image_unpack::{Image, Progress};
use vmm::config::Accelerator;
use vmm::control::ExitReason;

use crate::accelerator::{self, Chosen};
use crate::client::Client;
use crate::container::{Containers, Description, Owned, State, now};
use crate::error::Hint;
use crate::machine::{Hardware, Machine};
use crate::options::{DEFAULT_MEMORY_MIB, GUEST_OVERHEAD_MIB, RunOptions};
use crate::paths::Paths;
use crate::session::{Ended, Session};
use crate::signals::{self, Signals};
use crate::timings::Timings;
use crate::{EngineError, disk, image, run_spec as spec};

/// How long a guest may take to write its disks and end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a machine whose agent is gone may take to report its end.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The container's exit code, or 128 plus the signal that killed it.
    pub code: u8,
    /// What the caller should know beside it.
    pub hint: Option<Hint>,
}

/// What the caller is told on the way.
pub trait Observer {
    /// One line about how the container is run.
    fn notice(&self, line: &str);
    /// Progress of an image being fetched and unpacked.
    fn progress(&self) -> &dyn Progress;
}

/// Runs one container in the foreground, on the caller's standard streams.
///
/// # Errors
/// The container could not be started, or its machine failed. Nothing is left behind then.
pub fn run(paths: &Paths, options: &RunOptions, observer: &dyn Observer) -> Result<Outcome, EngineError> {
    let timings = Timings::new();
    let signals = Signals::block()?;
    let containers = Containers::new(paths.root().join("run"));
    containers.collect()?;
    let chosen = accelerator::choose(options.accelerator, options.isolation, &paths.cache_files())?;
    if let Some(notice) = &chosen.notice {
        observer.notice(notice);
    }
    let size = MachineSize::new(options, chosen.accelerator)?;
    // A missing kernel is told before an image is fetched for it.
    paths.kernel(chosen.accelerator)?;
    let image = image::ensure(&paths.images(), &options.image, observer.progress())?;
    timings.mark("image");
    let stop_signal =
        signals::stop_signal(image.config.config().as_ref().and_then(|c| c.stop_signal().as_deref()))?;

    let container = containers.create(|id| describe(id, &image, options, &chosen))?;
    let result = supervise(paths, options, &image, stop_signal, chosen, size, &container, &signals, &timings);
    let ended = finish(container, options.auto_remove, result);
    timings.mark("removed");
    ended
}

/// Guest memory and vCPUs for the limits that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MachineSize {
    memory_mib: u32,
    vcpus: u8,
}

impl MachineSize {
    fn new(options: &RunOptions, accelerator: Accelerator) -> Result<Self, EngineError> {
        let memory_mib = match options.memory {
            None => DEFAULT_MEMORY_MIB,
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
        let asked = options.milli_cpus.map_or(1, |milli| milli.div_ceil(1000).max(1));
        let most = if accelerator == Accelerator::Uml { 1 } else { u32::from(vmm::config::MAX_VCPUS) };
        if asked > most {
            return Err(EngineError::Option {
                option: format!("--cpus {}", f64::from(options.milli_cpus.unwrap_or(0)) / 1000.0),
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

fn describe(id: String, image: &Image, options: &RunOptions, chosen: &Chosen) -> Description {
    Description {
        id,
        image: options.image.clone(),
        command: spec::command_line(&image.config, options),
        created: now(),
        auto_remove: options.auto_remove,
        accelerator: chosen.accelerator.name().to_owned(),
        boundary: chosen.boundary.to_owned(),
        supervisor: std::process::id(),
        state: State::Created,
    }
}

/// Writes down how the container ended, or removes it.
fn finish(
    mut container: Owned,
    auto_remove: bool,
    result: Result<Ended, EngineError>,
) -> Result<Outcome, EngineError> {
    if auto_remove {
        container.remove()?;
    } else {
        let (code, oom_killed) = match &result {
            Ok(ended) => (ended.code, ended.oom_killed),
            Err(error) => (error.exit_code(), false),
        };
        container.description.state = State::Exited { code, finished: now(), oom_killed };
        container.save()?;
    }
    let ended = result?;
    Ok(Outcome { code: ended.code, hint: ended.hint() })
}

#[expect(clippy::too_many_arguments, reason = "the parts of one container, each used once")]
fn supervise(
    paths: &Paths,
    options: &RunOptions,
    image: &Image,
    stop_signal: u8,
    chosen: Chosen,
    size: MachineSize,
    container: &Owned,
    signals: &Signals,
    timings: &Timings,
) -> Result<Ended, EngineError> {
    let writable = container.directory().join("writable.ext4");
    disk::create(&writable, disk::WRITABLE_BYTES, &paths.cache_files())?;
    timings.mark("disk");
    let accelerator = chosen.accelerator;
    let hardware = Hardware {
        chosen,
        memory_mib: size.memory_mib,
        vcpus: size.vcpus,
        rootfs: Some(&image.disk),
        writable: Some(&writable),
    };
    let machine = Machine::start(paths, container.directory(), hardware)?;
    timings.mark("vmm");
    let hostname = options.hostname.clone().unwrap_or_else(|| container.description.short_id().to_owned());
    let spec = spec::build(&image.config, options, &hostname);
    let client = Client::new(machine.agent().try_clone().map_err(EngineError::io("sharing a socket"))?);
    let mut session = Session { client, machine, signals, stop_signal, accelerator, interrupts: 0 };
    let result = session.run(options, image, spec, timings);
    // The disk is thrown away with a temporary container: its machine need not write it.
    let report = match &result {
        Ok(_) if !options.auto_remove => {
            let method = session.machine.shutdown_method();
            let _ = session.client.send(Call::Shutdown { method });
            session.machine.finish(SHUTDOWN_TIMEOUT)
        }
        // A connection that broke is a machine that is ending: its report tells why.
        Err(EngineError::Agent(_)) => session.machine.finish(END_TIMEOUT),
        _ => session.machine.kill(),
    };
    timings.mark("ended");
    match result {
        // The VMM's own report knows more than a connection that broke.
        Err(EngineError::Agent(error)) => Err(match report {
            Some(report) if report.reason != ExitReason::Killed => EngineError::Machine(Box::new(report)),
            _ => EngineError::Agent(error),
        }),
        Err(EngineError::AgentSilent { seconds, report: empty }) => {
            Err(EngineError::AgentSilent { seconds, report: report.map_or(empty, Box::new) })
        }
        other => other,
    }
}
