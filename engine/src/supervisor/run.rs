//! One life of a container's machine: from the VMM's start to the end of the first process.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use agent::protocol::{Call, Prepare, ProcessId, Start, Stream};
use image_unpack::Image;
use tokio::sync::{Mutex, oneshot, watch};
use tokio::task::{JoinHandle, spawn_blocking, spawn_local};
use vmm::control::{ExitReason, ExitReport};

use super::Supervisor;
use super::fill::Filling;
use super::guest::{Exit, Guest, ProcessStreams};
use super::hub::Input;
use super::log::Log;
use super::network::Networks;
use super::shares::Shares;
use crate::accelerator::{self, Chosen};
use crate::machine::{DiskRates, Hardware, Machine, MachineSize, NetCard, Share, boot_timeout, silent};
use crate::model::{Container, MountKind, RunningMachine, Size};
use crate::timings::Timings;
use crate::{EngineError, disk, spec};

/// Name of the container's first process.
pub(super) const INIT: &str = "init";
/// How long a guest may take to answer a start: its disks are mounted and its program is read.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a guest may take to write its disks and end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a machine whose agent is gone may take to report its end.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// A machine whose agent answers.
pub(super) struct Booted {
    pub(super) guest: Rc<Guest>,
    pub(super) machine: RefCell<Option<Machine>>,
    pub(super) described: RunningMachine,
    /// The servers of its shared folders.
    shares: RefCell<Shares>,
    /// Its new volumes, until they are full.
    filling: RefCell<Filling>,
    /// The call that mounts its disks was answered.
    prepared: RefCell<Option<oneshot::Receiver<Result<agent::protocol::Answer, agent::protocol::Failure>>>>,
}

/// A container that runs.
pub(super) struct Run {
    pub(super) booted: Booted,
    pub(super) networks: Networks,
    pub(super) container: Container,
    pub(super) init: ProcessId,
    /// The stop signal of its image or its owner.
    pub(super) stop_signal: u8,
    exit: RefCell<Option<oneshot::Receiver<Exit>>>,
    pumps: RefCell<Vec<JoinHandle<()>>>,
    /// It has been decided that it ends now, and why.
    pub(super) condemned: watch::Sender<Option<String>>,
    /// Set when its end has been written down.
    pub(super) over: watch::Sender<bool>,
    /// A person asked for the end.
    pub(super) stopped: Cell<bool>,
}

/// How a run ended.
pub(super) enum Ending {
    /// The first process ended.
    Exited(Exit),
    /// The supervisor ended the machine under it.
    Condemned,
    /// The machine failed.
    Failed(EngineError),
}

impl Booted {
    /// Starts a machine with the container's disks and tells its agent to mount them; the answer comes later.
    pub(super) async fn boot(
        supervisor: &Supervisor,
        container: &Container,
        image: &Image,
        nets: Vec<NetCard>,
        timings: &Timings,
    ) -> Result<Self, EngineError> {
        supervisor.mounts.borrow_mut().ensure(&supervisor.paths, &supervisor.database, container)?;
        if Filling::needs_another_machine(&supervisor.paths, &supervisor.directory, container) {
            // The container's own machine cannot write to all of its volumes.
            let mut filler = container.clone();
            filler
                .config
                .mounts
                .iter_mut()
                .for_each(|mount| mount.read_only &= mount.kind == MountKind::Bind);
            let filler = Self::boot_now(supervisor, &filler, image, Vec::new(), timings).await?;
            let filled = filler.prepared().await;
            filler.shut_down().await;
            filled?;
        }
        Self::boot_now(supervisor, container, image, nets, timings).await
    }

    async fn boot_now(
        supervisor: &Supervisor,
        container: &Container,
        image: &Image,
        nets: Vec<NetCard>,
        timings: &Timings,
    ) -> Result<Self, EngineError> {
        let config = &container.config;
        let chosen =
            accelerator::choose(config.accelerator, config.isolation, &supervisor.paths.cache_files())?;
        let size = MachineSize::new(&config.limits, chosen.accelerator)?;
        let writable = supervisor.directory.disk();
        disk::ensure(&writable, config.storage_size, &supervisor.paths.cache_files())?;
        timings.mark("disk");
        let mut filling = Filling::begin(&supervisor.paths, &supervisor.directory, container).await?;
        let fill = std::mem::take(&mut filling.told);
        let rates = DiskRates::new(&config.limits);
        let (mut shares, devices) = Shares::start(&supervisor.paths, container)?;
        let devices = Devices { rates, shares: devices, nets };
        let (machine, described) = start_machine(supervisor, image, &writable, devices, chosen, size)?;
        timings.mark("vmm");
        let timeout = boot_timeout(machine.accelerator());
        let control = machine.take_agent()?;
        let (guest, hello) = Guest::new(control);
        let (told, volumes) = (std::mem::take(&mut shares.shares), std::mem::take(&mut shares.volumes));
        let booted = Self {
            guest,
            machine: RefCell::new(Some(machine)),
            described,
            shares: RefCell::new(shares),
            filling: RefCell::new(filling),
            prepared: RefCell::new(None),
        };
        match tokio::time::timeout(timeout, hello).await {
            Ok(Ok(())) => timings.mark("hello"),
            Ok(Err(_)) => {
                let broken = booted.guest.broken();
                return Err(booted.explain(broken).await);
            }
            Err(_) => {
                let report = booted.kill().await;
                return Err(silent(timeout, report));
            }
        }
        let prepare = Prepare {
            image: "vda".into(),
            writable: "vdb".into(),
            wall_clock: u64::try_from(crate::model::now()).unwrap_or(0),
            shares: told,
            volumes,
            fill,
            files: spec::files_of(container),
        };
        let (_, answer) = booted.guest.send(Call::Prepare(Box::new(prepare))).await?;
        *booted.prepared.borrow_mut() = Some(answer);
        Ok(booted)
    }

    /// Waits until the disks are mounted.
    pub(super) async fn prepared(&self) -> Result<(), EngineError> {
        let Some(answer) = self.prepared.borrow_mut().take() else { return Ok(()) };
        let prepared = self.guest.answer(answer).await?.map(drop).map_err(EngineError::Start);
        prepared.map_err(|error| self.shares.borrow().explain(error))?;
        self.filling.take().finish()
    }

    /// A new connection to the machine's vsock.
    pub(super) fn connect(&self) -> io::Result<std::os::unix::net::UnixStream> {
        match self.machine.borrow().as_ref() {
            Some(machine) => machine.vsock(),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Changes how much may be read from and written to the container's disk.
    pub(super) fn limit_disk(&self, rates: DiskRates) -> Result<(), EngineError> {
        self.machine.borrow_mut().as_mut().map_or(Ok(()), |machine| machine.limit_disk(rates))
    }

    /// Ends the machine at once.
    pub(super) async fn kill(&self) -> Option<ExitReport> {
        let machine = self.machine.borrow_mut().take();
        let report = match machine {
            Some(machine) => spawn_blocking(move || machine.kill()).await.ok().flatten(),
            None => None,
        };
        self.end_shares().await;
        report
    }

    /// Has the guest write its disks and end.
    pub(super) async fn shut_down(&self) -> Option<ExitReport> {
        let method = self.machine.borrow().as_ref().map(Machine::shutdown_method)?;
        let _ = self.guest.send(Call::Shutdown { method }).await;
        let machine = self.machine.borrow_mut().take()?;
        let report = spawn_blocking(move || machine.finish(SHUTDOWN_TIMEOUT)).await.ok().flatten();
        self.end_shares().await;
        report
    }

    /// Whether the guest may have something in its memory that belongs into a volume.
    pub(super) fn has_volumes(&self) -> bool {
        !self.shares.borrow().is_empty()
    }

    async fn end_shares(&self) {
        let mut shares = std::mem::take(&mut *self.shares.borrow_mut());
        shares.end().await;
    }

    /// The reason behind an error: the VMM's own report knows more than a connection that broke.
    pub(super) async fn explain(&self, error: EngineError) -> EngineError {
        let machine = self.machine.borrow_mut().take();
        let Some(machine) = machine else { return error };
        match (error, spawn_blocking(move || machine.finish(END_TIMEOUT)).await.ok().flatten()) {
            (EngineError::Agent(_), Some(report)) if report.reason != ExitReason::Killed => {
                EngineError::Machine(Box::new(report))
            }
            (error, _) => error,
        }
    }
}

impl Run {
    /// Starts the container's machine and its first process.
    pub(super) async fn start(
        supervisor: &Supervisor,
        container: Container,
        size: Option<Size>,
        timings: &Timings,
    ) -> Result<Rc<Self>, EngineError> {
        let image = crate::image::by_id(&supervisor.paths, &container.config)?;
        let stop_signal = crate::signals::stop_signal(container.config.stop_signal.as_deref())?;
        timings.mark("image");
        let log = Log::open(&supervisor.directory.log(), &container.config.log)
            .map_err(EngineError::io("opening the container's log"))?;
        let mut networks = Networks::prepare(supervisor, container)?;
        let container = networks.container.clone();
        timings.mark("networks");
        let cards = networks.take_cards();
        let booted = Booted::boot(supervisor, &container, &image, cards, timings).await?;
        match Self::begin(supervisor, &booted, &container, &networks, size, log, timings).await {
            Ok((init, exit, pumps)) => Ok(Rc::new(Self {
                booted,
                networks,
                container,
                init,
                stop_signal,
                exit: RefCell::new(Some(exit)),
                pumps: RefCell::new(pumps),
                condemned: watch::channel(None).0,
                over: watch::channel(false).0,
                stopped: Cell::new(false),
            })),
            Err(error) => {
                let error = booted.explain(error).await;
                booted.kill().await;
                Err(error)
            }
        }
    }

    /// Everything is sent before the first answer is awaited: the guest mounts while the streams are opened.
    async fn begin(
        supervisor: &Supervisor,
        booted: &Booted,
        container: &Container,
        networks: &Networks,
        size: Option<Size>,
        log: Log,
        timings: &Timings,
    ) -> Result<(ProcessId, oneshot::Receiver<Exit>, Vec<JoinHandle<()>>), EngineError> {
        let config = &container.config;
        let init = ProcessId::try_from(INIT.to_owned()).map_err(|e| EngineError::Invalid(e.to_owned()))?;
        let streams = ProcessStreams::request(|| booted.connect(), config.tty, config.open_stdin)?;
        let mut start: Start = spec::start(container, init.clone(), size)?;
        start.network = networks.interfaces();
        networks.attached().await?;
        timings.mark("attached");
        let exit = booted.guest.exit_of(&init);
        let (_, started) = booted.guest.send(Call::Start(Box::new(start))).await?;
        let streams = streams.open(&init).await?;
        timings.mark("streams");
        let answers = async {
            booted.prepared().await?;
            booted.guest.answer(started).await?.map(drop).map_err(EngineError::Start)
        };
        // Output may fill its pipe before the answer comes; but it is only shown once the program runs.
        tokio::time::timeout(START_TIMEOUT, answers)
            .await
            .unwrap_or_else(|_| Err(silent(START_TIMEOUT, None)))?;
        timings.mark("started");
        let log = Rc::new(RefCell::new(log));
        let mut pumps = Vec::new();
        for (stream, connection) in streams {
            if stream == Stream::Stdin {
                let (_, writer) = connection.into_split();
                let input: Input = Rc::new(Mutex::new(Some(writer)));
                supervisor.input.send_replace(Some(input));
            } else {
                let (hub, log, tty) = (Rc::clone(&supervisor.hub), Rc::clone(&log), config.tty);
                pumps.push(spawn_local(async move { hub.pump(stream, tty, connection, Some(log)).await }));
            }
        }
        Ok((init, exit, pumps))
    }

    /// Waits for the end of the first process, or of its machine, and until all that it wrote is out.
    pub(super) async fn finish(&self) -> Ending {
        let exit = self.exit.borrow_mut().take();
        let mut condemned = self.condemned.subscribe();
        let exited = async {
            match exit {
                Some(exit) => exit.await.map_err(|_| self.booted.guest.broken()),
                None => Err(self.booted.guest.broken()),
            }
        };
        let ending = tokio::select! {
            exited = exited => match exited {
                Ok(exit) => Ending::Exited(exit),
                Err(error) => Ending::Failed(self.booted.explain(error).await),
            },
            _ = condemned.wait_for(Option::is_some) => {
                self.booted.kill().await;
                Ending::Condemned
            }
        };
        let pumps = std::mem::take(&mut *self.pumps.borrow_mut());
        for mut pump in pumps {
            // A reader of ours that does not read must not keep a container that was to be killed.
            tokio::select! {
                _ = &mut pump => {}
                _ = condemned.wait_for(Option::is_some) => pump.abort(),
            }
        }
        ending
    }
}

/// What a container's machine has beside its disks.
struct Devices {
    rates: DiskRates,
    shares: Vec<Share>,
    nets: Vec<NetCard>,
}

fn start_machine(
    supervisor: &Supervisor,
    image: &Image,
    writable: &Path,
    devices: Devices,
    chosen: Chosen,
    size: MachineSize,
) -> Result<(Machine, RunningMachine), EngineError> {
    let (accelerator, boundary) = (chosen.accelerator.name().to_owned(), chosen.boundary.to_owned());
    let hardware = Hardware {
        chosen,
        memory_mib: size.memory_mib,
        vcpus: size.vcpus,
        rootfs: Some(&image.disk),
        writable: Some(writable),
        rates: devices.rates,
        shares: devices.shares,
        nets: devices.nets,
    };
    let machine = Machine::start(&supervisor.paths, supervisor.directory.path(), hardware)?;
    let described =
        RunningMachine { supervisor: std::process::id(), vmm: machine.process(), accelerator, boundary };
    Ok((machine, described))
}
