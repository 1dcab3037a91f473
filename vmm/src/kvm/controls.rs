//! A running machine in the hands of its supervisor.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use kvm_ioctls::VmFd;

use super::bus::Bus;
use super::exit::registers;
use super::memory::Ram;
use super::state::MachineState;
use super::threads::Threads;
use crate::config::{Fd, MachineConfig};
use crate::console::ConsoleRing;
use crate::control::{
    Controlled, Diagnosis, Refusal, RefusalKind, SnapshotKind, SnapshotRequest, SnapshotWritten, Statistics,
    counters,
};
use crate::machine::Confinement;
use crate::snapshot::{SnapshotError, format, ram, working_set};
use crate::transport::mmio::MmioDevice;
use crate::virtio::command::Command;

/// All that a supervisor's requests concern.
pub struct Controls<'a> {
    /// The vCPUs.
    pub threads: Threads,
    /// KVM's side.
    pub vm: &'a VmFd,
    /// Guest RAM.
    pub ram: &'a Ram,
    /// In the order of the configuration.
    pub devices: &'a [Arc<MmioDevice>],
    /// The serial port is there.
    pub bus: &'a Bus,
    /// The guest's console.
    pub console: &'a ConsoleRing,
    /// Knows since when it runs.
    pub confinement: &'a Confinement,
    /// The machine's description.
    pub config: &'a MachineConfig,
    /// Model-specific registers to save.
    pub msrs: &'a [u32],
    /// Tells which pages were touched, where the host lets it be known.
    pub pagemap: Option<&'a File>,
    /// Whether the guest rests.
    pub paused: bool,
}

impl Controls<'_> {
    fn state(&self) -> Result<MachineState, Refusal> {
        let vcpus = self.threads.vcpus();
        MachineState::save(self.vm, vcpus, self.bus.save_serial(), self.devices, self.config, self.msrs)
    }
}

impl Controlled for Controls<'_> {
    fn pause(&mut self) -> Result<(), Refusal> {
        self.threads.pause();
        self.paused = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Refusal> {
        self.paused = false;
        self.threads.resume();
        Ok(())
    }

    fn is_paused(&self) -> bool {
        self.paused
    }

    fn snapshot(&mut self, to: SnapshotRequest, files: Vec<OwnedFd>) -> Result<SnapshotWritten, Refusal> {
        if !self.paused {
            return Err(Refusal::new(RefusalKind::State, "a snapshot needs a machine that is paused"));
        }
        let began = Instant::now();
        let files: Vec<File> = files.into_iter().map(File::from).collect();
        let state = file(&files, to.state)?;
        let memory = file(&files, to.memory)?;
        if to.kind == SnapshotKind::Diff && !self.config.host.track_changes {
            let why = "a diff snapshot: the machine was started without track_changes";
            return Err(Refusal::new(RefusalKind::State, why));
        }
        let state_bytes = format::write(state, &self.state()?).map_err(SnapshotError::into_refusal)?;
        let dirty = ram::dirty_pages(self.vm, &self.ram.memory, self.config.host.track_changes);
        let dirty = dirty.map_err(SnapshotError::into_refusal)?;
        let memory_bytes = match to.kind {
            SnapshotKind::Full => ram::write_full(self.ram, memory),
            SnapshotKind::Diff => ram::write_diff(&self.ram.memory, &dirty, memory),
        };
        let memory_bytes = memory_bytes.map_err(SnapshotError::into_refusal)?;
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(SnapshotWritten { state_bytes, memory_bytes, micros })
    }

    fn working_set(&mut self, to: Fd, files: Vec<OwnedFd>) -> Result<(), Refusal> {
        let files: Vec<File> = files.into_iter().map(File::from).collect();
        let to = file(&files, to)?;
        let pagemap = self.pagemap.ok_or_else(|| {
            Refusal::unsupported("working set: the host does not tell which pages were touched")
        })?;
        working_set::record(&self.ram.memory, pagemap, to).map_err(SnapshotError::into_refusal)
    }

    fn device(&mut self, name: &str, command: &Command) -> Result<(), Refusal> {
        let device = self.devices.iter().find(|device| device.name() == name);
        device.ok_or_else(|| Refusal::no_device(name))?.command(command).map_err(Refusal::from)
    }

    fn statistics(&mut self) -> Statistics {
        let devices =
            self.devices.iter().map(|device| (device.name().to_owned(), counters(device.counters())));
        Statistics {
            uptime_micros: self.confinement.micros(),
            paused: self.paused,
            memory_bytes: u64::from(self.config.memory_mib) << 20,
            exits: self.threads.exits(),
            devices: devices.collect(),
        }
    }

    /// Stops the guest for the moment that it takes to read its registers.
    fn diagnose(&mut self) -> Diagnosis {
        let statistics = self.statistics();
        if !self.paused {
            self.threads.pause();
        }
        let vcpus = self.threads.vcpus().map(|vcpu| registers(&vcpu.fd)).collect();
        if !self.paused {
            self.threads.resume();
        }
        let devices = self.devices.iter().map(|device| device.describe()).collect();
        Diagnosis { statistics, vcpus, devices, console: self.console.text() }
    }
}

fn file(files: &[File], fd: Fd) -> Result<&File, Refusal> {
    let index = usize::try_from(fd.0).unwrap_or(usize::MAX);
    files.get(index).ok_or_else(|| {
        let text = format!("descriptor {} is named by the request, but did not come with it", fd.0);
        Refusal::new(RefusalKind::Invalid, text)
    })
}
