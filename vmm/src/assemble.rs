//! From a configuration to a machine's parts: checks it, and turns its descriptors into devices.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::config::{CgroupConfig, ConfigError, Fd, MachineConfig, VsockConfig};
use crate::console::ConsoleRing;
use crate::jail::cgroup::{Cgroup, OutOfMemory};
use crate::machine::{Confinement, Parts};
use crate::virtio::VirtioDevice;
use crate::virtio::balloon::Balloon;
use crate::virtio::block::{Block, BlockError};
use crate::virtio::console::Console;
use crate::virtio::fs::Fs;
use crate::virtio::net::Net;
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;

/// Has the guest report free memory from 256 KiB on. Linux's own choice is 4 MiB, and it reports nothing before it has 32 pieces
/// of that size: so a guest with less than 128 MiB to spare would keep all of it.
const REPORTING_ORDER: &str = " page_reporting.page_reporting_order=6";

/// Why a machine cannot be assembled.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// A bound does not hold.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A disk cannot be used.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A device cannot be made.
    #[error("cannot make the {device} device: {error}")]
    Device {
        /// Its name.
        device: &'static str,
        /// The host's error.
        error: io::Error,
    },
    /// A descriptor cannot be copied.
    #[error("cannot take the configuration's descriptors: {0}")]
    Descriptors(io::Error),
}

/// Turns a configuration and its descriptors into a machine's parts.
///
/// # Errors
/// The configuration breaks a bound, or a device cannot be made from it.
pub fn assemble(
    mut config: MachineConfig,
    descriptors: Vec<OwnedFd>,
    console: &ConsoleRing,
) -> Result<Parts, AssembleError> {
    config.validate(descriptors.len())?;
    let files: Vec<Arc<File>> = descriptors.into_iter().map(|fd| Arc::new(File::from(fd))).collect();
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for (index, disk) in config.disks.iter().enumerate() {
        devices.push(Box::new(Block::from_config(index, disk, &files)?));
    }
    for (index, net) in config.nets.iter().enumerate() {
        let cable = OwnedFd::from(take(&files, net.backend.descriptor())?);
        let net = Net::new(index, net, cable);
        devices.push(Box::new(net.map_err(|error| AssembleError::Device { device: "net", error })?));
    }
    for (index, share) in config.shares.iter().enumerate() {
        let socket = OwnedFd::from(take(&files, share.socket)?);
        let fs = Fs::new(index, &share.tag, socket);
        devices.push(Box::new(fs.map_err(|error| AssembleError::Device { device: "fs", error })?));
    }
    if let Some(config) = &config.vsock {
        devices.push(Box::new(vsock(config, &files)?));
    }
    if let Some(balloon) = config.balloon {
        if balloon.free_page_reporting {
            config.cmdline.push_str(REPORTING_ORDER);
        }
        let balloon = Balloon::new(&balloon, config.memory_mib);
        devices.push(Box::new(balloon.map_err(|error| AssembleError::Device { device: "balloon", error })?));
    }
    if config.console {
        let port = Console::new(console.clone());
        devices.push(Box::new(port.map_err(|error| AssembleError::Device { device: "console", error })?));
    }
    let rng = Rng::new().map_err(|error| AssembleError::Device { device: "rng", error })?;
    devices.push(Box::new(rng));
    let kernel = take(&files, config.kernel)?;
    let initramfs = take(&files, config.initramfs)?;
    let kvm = config.kvm.map(|fd| take(&files, fd)).transpose()?;
    let cgroup = config.host.cgroup.as_ref().map(|group| cgroup(group, &files)).transpose()?;
    let cgroup = cgroup.unwrap_or_default();
    let events =
        cgroup.events.as_ref().map(File::try_clone).transpose().map_err(AssembleError::Descriptors)?;
    Ok(Parts {
        config,
        kernel,
        initramfs,
        kvm,
        devices,
        console: console.clone(),
        cgroup,
        out_of_memory: OutOfMemory::new(events),
        confinement: Confinement::default(),
        pagemap: None,
        restore: None,
    })
}

fn cgroup(config: &CgroupConfig, files: &[Arc<File>]) -> Result<Cgroup, AssembleError> {
    let take = |fd| take(files, fd);
    Ok(Cgroup {
        directory: config.directory.map(take).transpose()?,
        processes: config.processes.iter().copied().map(take).collect::<Result<_, _>>()?,
        events: config.events.map(take).transpose()?,
    })
}

fn vsock(config: &VsockConfig, files: &[Arc<File>]) -> Result<Vsock, AssembleError> {
    let listener = config.listener.map(|fd| take(files, fd).map(OwnedFd::from)).transpose()?;
    let ports = config
        .ports
        .iter()
        .map(|port| Ok((port.port, OwnedFd::from(take(files, port.socket)?))))
        .collect::<Result<Vec<_>, AssembleError>>()?;
    Vsock::new(config.guest_cid, listener, ports)
        .map_err(|error| AssembleError::Device { device: "vsock", error })
}

/// A descriptor of its own for one use: the configuration may name one several times.
fn take(files: &[Arc<File>], fd: Fd) -> Result<File, AssembleError> {
    let index = usize::try_from(fd.0).unwrap_or(usize::MAX);
    let file = files.get(index).ok_or(ConfigError::Descriptor(fd.0))?;
    file.try_clone().map_err(AssembleError::Descriptors)
}
