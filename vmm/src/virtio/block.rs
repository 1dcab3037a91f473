//! The block device (virtio 1.2 section 5.2): raw bytes of files, laid end to end.
//!
//! Data goes straight between files and guest memory. A request that is wrong but has a status byte is answered with an error
//! status; one that leaves no place for an answer costs the driver its device.

mod disk;
pub mod extents;
mod limits;

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, fcntl};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use self::disk::Disk;
use self::extents::{Extent, ExtentError, ExtentMap};
use self::limits::Limits;
use super::command::{Command, CommandError, Counter};
use super::serve::serve;
use super::wake::Wake;
use super::{DeviceError, Interrupt, Io, VirtioDevice, read_config_bytes, stateless};
use crate::config::{DiskConfig, SECTOR_SIZE};
use crate::control;

/// Size of the request queue.
const QUEUE_SIZES: &[u16] = &[256];
/// Most data segments of a request, told to the driver; header and status come on top.
const SEG_MAX: u32 = 126;
/// Most bytes of a segment, told to the driver.
const SIZE_MAX: u32 = 256 << 10;
/// Most data bytes of a request that is served: what a driver that heeds the two limits above can ask for.
const MAX_DATA: u64 = SEG_MAX as u64 * SIZE_MAX as u64;
/// Most ranges in one discard or write-zeroes request.
const MAX_RANGES: u32 = 32;
/// Most sectors in one such range (1 GiB): bounds the time of one request.
const MAX_RANGE_SECTORS: u32 = 1 << 21;
/// Bytes of the configuration space up to and including write_zeroes_may_unmap and its padding.
const CONFIG_BYTES: usize = 60;

/// Why a block device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The extents are no disk.
    #[error("disk {index}: {source}")]
    Extents {
        /// Position of the disk.
        index: usize,
        /// What is wrong.
        source: ExtentError,
    },
    /// An extent names a descriptor that is not there.
    #[error("disk {index}: descriptor {fd} did not come with the configuration")]
    Descriptor {
        /// Position of the disk.
        index: usize,
        /// The descriptor's index.
        fd: u32,
    },
    /// A descriptor allows more or less than the disk.
    #[error(
        "disk {index}: descriptor {fd} must be opened {}",
        if *read_only { "read-only, as the disk is" } else { "for reading and writing" }
    )]
    Access {
        /// Position of the disk.
        index: usize,
        /// The descriptor's index.
        fd: u32,
        /// Whether the disk is read-only.
        read_only: bool,
    },
    /// The host refused an eventfd.
    #[error("disk {index}: cannot make an eventfd: {source}")]
    Event {
        /// Position of the disk.
        index: usize,
        /// The host's error.
        source: io::Error,
    },
}

/// A block device.
#[derive(Debug)]
pub struct Block {
    name: String,
    disk: Disk,
    limits: Limits,
    config: [u8; CONFIG_BYTES],
    wake: Wake,
    requests: u64,
    bytes: u64,
}

impl Block {
    /// Makes the device from extents laid end to end. `index` is its position among the machine's disks.
    ///
    /// # Errors
    /// The extents are no disk, or the host is out of descriptors.
    pub fn new(index: usize, extents: Vec<Extent>, read_only: bool) -> Result<Self, BlockError> {
        let map = ExtentMap::new(extents).map_err(|source| BlockError::Extents { index, source })?;
        let wake = Wake::new().map_err(|source| BlockError::Event { index, source })?;
        let config = config_space(map.size() / SECTOR_SIZE);
        let name = format!("block{index}");
        let disk = Disk { id: name.clone(), map, read_only, write_through: false };
        let limits = Limits::none();
        Ok(Self { name, disk, limits, config, wake, requests: 0, bytes: 0 })
    }

    /// Makes the device from its configuration; `files` are all descriptors that came with it, by index.
    ///
    /// # Errors
    /// As [`Self::new`], or an extent names a descriptor that is not there, or one that a read-only disk could be written by.
    pub fn from_config(index: usize, disk: &DiskConfig, files: &[Arc<File>]) -> Result<Self, BlockError> {
        let extents = disk.extents.iter().map(|extent| {
            let file = usize::try_from(extent.file.0).ok().and_then(|fd| files.get(fd));
            let file = file.ok_or(BlockError::Descriptor { index, fd: extent.file.0 })?;
            let access = fcntl(&**file, FcntlArg::F_GETFL).map_or(0, |flags| flags & libc::O_ACCMODE);
            if access != if disk.read_only { libc::O_RDONLY } else { libc::O_RDWR } {
                return Err(BlockError::Access { index, fd: extent.file.0, read_only: disk.read_only });
            }
            Ok(Extent { file: Arc::clone(file), offset: extent.offset, length: extent.length })
        });
        let mut block = Self::new(index, extents.collect::<Result<_, BlockError>>()?, disk.read_only)?;
        block.limits = Limits::new(disk);
        Ok(block)
    }
}

fn config_space(sectors: u64) -> [u8; CONFIG_BYTES] {
    let mut config = [0u8; CONFIG_BYTES];
    config[0..8].copy_from_slice(&sectors.to_le_bytes());
    let mut word = |at: usize, value: u32| config[at..at + 4].copy_from_slice(&value.to_le_bytes());
    word(8, SIZE_MAX);
    word(12, SEG_MAX);
    word(20, 512);
    // Topology: a physical block is 2^3 logical ones, no alignment offset, 8 blocks are the least sensible transfer.
    word(24, 3 | 8 << 16);
    // max_discard_sectors, max_discard_seg, discard_sector_alignment.
    word(36, MAX_RANGE_SECTORS);
    word(40, MAX_RANGES);
    word(44, 8);
    // max_write_zeroes_sectors, max_write_zeroes_seg, write_zeroes_may_unmap.
    word(48, MAX_RANGE_SECTORS);
    word(52, MAX_RANGES);
    word(56, 1);
    config
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let common = [
            VIRTIO_BLK_F_SIZE_MAX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
        ];
        let kind: &[u32] = if self.disk.read_only {
            &[VIRTIO_BLK_F_RO]
        } else {
            &[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]
        };
        common.iter().chain(kind).fold(0, |bits, bit| bits | 1 << bit)
    }

    fn set_features(&mut self, accepted: u64) {
        self.disk.write_through = accepted & (1 << VIRTIO_BLK_F_FLUSH) == 0;
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn queue_event(&mut self, index: usize, io: &mut Io<'_>) -> Result<(), DeviceError> {
        let Self { disk, limits, wake, requests, bytes, .. } = self;
        serve(index, io, wake, Some(limits), |memory, request| {
            let served = disk.execute(memory, request)?;
            *requests += 1;
            *bytes += served.moved;
            Ok(served)
        })
    }

    fn host_fd(&self) -> Option<RawFd> {
        Some(self.wake.as_raw_fd())
    }

    fn host_event(&mut self, io: &mut Io<'_>) -> Result<(), DeviceError> {
        self.wake.take()?;
        self.queue_event(0, io)
    }

    fn reset(&mut self) {
        self.disk.write_through = false;
    }

    fn save(&self) -> Result<Vec<u8>, control::Refusal> {
        // All that it knows of its driver are the features.
        Ok(Vec::new())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), control::Refusal> {
        stateless(self.name(), state)
    }

    fn command(&mut self, command: &Command, _interrupt: &dyn Interrupt) -> Result<(), CommandError> {
        match command {
            Command::LimitDisk(limit) => {
                limit.validate()?;
                self.limits.update(limit, &self.wake);
                Ok(())
            }
            Command::LimitDiskWays { read, write } => {
                read.validate()?;
                write.validate()?;
                self.limits.update_ways(read, write, &self.wake);
                Ok(())
            }
            _ => Err(CommandError::Unsupported(self.name.clone())),
        }
    }

    fn counters(&self) -> Vec<Counter> {
        vec![("requests", self.requests), ("bytes", self.bytes), ("throttled", self.limits.throttled())]
    }
}

#[cfg(test)]
mod tests;
