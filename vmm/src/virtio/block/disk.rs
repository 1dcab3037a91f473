//! What a block request does to the disk. Knows no queue: everything here may run on any thread.

use std::io;

use nix::fcntl::{FallocateFlags, fallocate};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::Bytes;

use crate::memory::{GuestMemoryMmap, VolatileSlice};

use super::extents::{ExtentMap, Piece};
use super::{MAX_DATA, MAX_RANGE_SECTORS, MAX_RANGES};
use crate::config::SECTOR_SIZE;
use crate::virtio::chain::Request;
use crate::virtio::serve::Served;
use crate::virtio::{DeviceError, sys};

/// Bytes of a range: sector, number of sectors, flags (section 5.2.6).
const RANGE_BYTES: u64 = 16;
/// Bytes of a request header: type, reserved, sector.
const HEADER_BYTES: u64 = 16;

/// A status byte other than OK, and why.
#[derive(Debug)]
struct Refusal {
    status: u32,
}

impl Refusal {
    const IO: Self = Self { status: VIRTIO_BLK_S_IOERR };
    const UNSUPPORTED: Self = Self { status: VIRTIO_BLK_S_UNSUPP };
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        if error.raw_os_error() == Some(libc::EOPNOTSUPP) { Self::UNSUPPORTED } else { Self::IO }
    }
}

impl From<DeviceError> for Refusal {
    fn from(_: DeviceError) -> Self {
        Self::IO
    }
}

/// The disk behind a device.
#[derive(Debug)]
pub struct Disk {
    /// What GET_ID answers.
    pub id: String,
    /// Which file holds which bytes.
    pub map: ExtentMap,
    /// Every change is refused.
    pub read_only: bool,
    /// The driver will not send flushes: every write must be durable before it is answered (section 5.2.6.2).
    pub write_through: bool,
}

impl Disk {
    /// Serves a request and writes its status.
    ///
    /// # Errors
    /// There is no place for a status byte.
    pub fn execute(&self, memory: &GuestMemoryMmap, request: &Request) -> Result<Served, DeviceError> {
        let Some(data_bytes) = request.writable.len().checked_sub(1) else {
            return Err(DeviceError::Request("a block request without a status byte"));
        };
        let (status, moved) = match self.try_execute(memory, request, data_bytes) {
            Ok(moved) => (VIRTIO_BLK_S_OK, moved),
            Err(refusal) => (refusal.status, 0),
        };
        let status_byte = u8::try_from(status).unwrap_or(u8::MAX);
        request.writable.write(memory, data_bytes, &[status_byte])?;
        // The used length counts from the buffer's start, and after a failure its data is not written.
        let written = match (status, data_bytes) {
            (VIRTIO_BLK_S_OK, _) => u32::try_from(data_bytes + 1).unwrap_or(u32::MAX),
            (_, 0) => 1,
            _ => 0,
        };
        Ok(Served { written, moved })
    }

    /// Returns the bytes moved.
    fn try_execute(
        &self,
        memory: &GuestMemoryMmap,
        request: &Request,
        data_bytes: u64,
    ) -> Result<u64, Refusal> {
        let mut header = [0u8; 16];
        request.readable.read(memory, 0, &mut header)?;
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let mut sector = [0u8; 8];
        sector.copy_from_slice(&header[8..]);
        let start = u64::from_le_bytes(sector).checked_mul(SECTOR_SIZE).ok_or(Refusal::IO)?;
        let out_bytes = request.readable.len() - HEADER_BYTES;
        if self.read_only
            && [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES].contains(&kind)
        {
            return Err(Refusal::IO);
        }
        let mut slices = Vec::new();
        match kind {
            VIRTIO_BLK_T_IN => {
                check_data(data_bytes)?;
                request.writable.slices(memory, 0, data_bytes, &mut slices)?;
                self.read(start, data_bytes, slices)?;
                Ok(data_bytes)
            }
            VIRTIO_BLK_T_OUT => {
                check_data(out_bytes)?;
                request.readable.slices(memory, HEADER_BYTES, out_bytes, &mut slices)?;
                self.write(start, out_bytes, slices)?;
                Ok(out_bytes)
            }
            VIRTIO_BLK_T_FLUSH => self.flush().map(|()| 0),
            VIRTIO_BLK_T_GET_ID => {
                let mut id = [0u8; VIRTIO_BLK_ID_BYTES as usize];
                let name = self.id.as_bytes();
                let n = name.len().min(id.len());
                id[..n].copy_from_slice(&name[..n]);
                let n = usize::try_from(data_bytes).unwrap_or(usize::MAX).min(id.len());
                request.writable.write(memory, 0, &id[..n])?;
                Ok(0)
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => self.ranges(memory, request, kind, out_bytes),
            _ => Err(Refusal::UNSUPPORTED),
        }
    }

    fn read(&self, start: u64, length: u64, slices: Vec<VolatileSlice<'_>>) -> Result<(), Refusal> {
        let mut target = Cursor::new(slices);
        for piece in self.map.pieces(start, length).ok_or(Refusal::IO)? {
            let Piece { file, mut offset, length: mut left } = piece;
            while left > 0 {
                let read = sys::read_at(file, &target.next(left)?, offset)?;
                if read == 0 {
                    // Beyond the file's end.
                    target.zero(left)?;
                    break;
                }
                target.advance(read)?;
                offset += read as u64;
                left -= read as u64;
            }
        }
        Ok(())
    }

    fn write(&self, start: u64, length: u64, slices: Vec<VolatileSlice<'_>>) -> Result<(), Refusal> {
        let mut source = Cursor::new(slices);
        for piece in self.map.pieces(start, length).ok_or(Refusal::IO)? {
            let Piece { file, mut offset, length: mut left } = piece;
            while left > 0 {
                let written = sys::write_at(file, &source.next(left)?, offset)?;
                if written == 0 {
                    return Err(Refusal::IO);
                }
                source.advance(written)?;
                offset += written as u64;
                left -= written as u64;
            }
        }
        if self.write_through { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), Refusal> {
        if !self.read_only {
            for file in self.map.files() {
                file.sync_data()?;
            }
        }
        Ok(())
    }

    /// Discard and write-zeroes (section 5.2.6): all ranges are checked before the first is touched.
    fn ranges(
        &self,
        memory: &GuestMemoryMmap,
        request: &Request,
        kind: u32,
        bytes: u64,
    ) -> Result<u64, Refusal> {
        if bytes == 0 || !bytes.is_multiple_of(RANGE_BYTES) || bytes > RANGE_BYTES * u64::from(MAX_RANGES) {
            return Err(Refusal::IO);
        }
        let mut ranges = Vec::new();
        for position in (0..bytes).step_by(16) {
            let mut raw = [0u8; 16];
            request.readable.read(memory, HEADER_BYTES + position, &mut raw)?;
            let raw = u128::from_le_bytes(raw);
            let sector = u64::try_from(raw & u128::from(u64::MAX)).map_err(|_| Refusal::IO)?;
            let count = u32::try_from((raw >> 64) & u128::from(u32::MAX)).map_err(|_| Refusal::IO)?;
            let flags = u32::try_from(raw >> 96).map_err(|_| Refusal::IO)?;
            let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
            let reserved = flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
            if reserved || (unmap && kind == VIRTIO_BLK_T_DISCARD) {
                return Err(Refusal::UNSUPPORTED);
            }
            let start = sector.checked_mul(SECTOR_SIZE).ok_or(Refusal::IO)?;
            let length = u64::from(count) * SECTOR_SIZE;
            if count > MAX_RANGE_SECTORS || self.map.pieces(start, length).is_none() {
                return Err(Refusal::IO);
            }
            ranges.push((start, length, unmap));
        }
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        for (start, length, unmap) in ranges {
            let flags = if kind == VIRTIO_BLK_T_DISCARD || unmap { punch } else { zero };
            for piece in self.map.pieces(start, length).ok_or(Refusal::IO)? {
                let offset = i64::try_from(piece.offset).map_err(|_| Refusal::IO)?;
                let length = i64::try_from(piece.length).map_err(|_| Refusal::IO)?;
                fallocate(piece.file, flags, offset, length).map_err(io::Error::from)?;
            }
        }
        if self.write_through {
            self.flush()?;
        }
        Ok(0)
    }
}

/// Data must be whole sectors, and no more than a driver that heeds the limits asks for.
fn check_data(bytes: u64) -> Result<(), Refusal> {
    if bytes.is_multiple_of(SECTOR_SIZE) && bytes <= MAX_DATA { Ok(()) } else { Err(Refusal::IO) }
}

/// A position in a list of slices of guest memory.
struct Cursor<'m> {
    slices: std::vec::IntoIter<VolatileSlice<'m>>,
    current: Option<VolatileSlice<'m>>,
}

impl<'m> Cursor<'m> {
    fn new(slices: Vec<VolatileSlice<'m>>) -> Self {
        let mut slices = slices.into_iter();
        let current = slices.next();
        Self { slices, current }
    }

    /// The slices from the position on, at most [`sys::MAX_SLICES`], together at most `limit` bytes.
    fn next(&self, limit: u64) -> Result<Vec<VolatileSlice<'m>>, Refusal> {
        let mut left = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut out = Vec::new();
        for slice in self.current.iter().chain(self.slices.as_slice()).take(sys::MAX_SLICES) {
            let take = slice.len().min(left);
            if take > 0 {
                out.push(slice.subslice(0, take).map_err(|_| Refusal::IO)?);
            }
            left -= take;
            if left == 0 {
                break;
            }
        }
        Ok(out)
    }

    fn advance(&mut self, bytes: usize) -> Result<(), Refusal> {
        let mut left = bytes;
        while let Some(slice) = &self.current {
            if left < slice.len() {
                self.current = Some(slice.offset(left).map_err(|_| Refusal::IO)?);
                return Ok(());
            }
            left -= slice.len();
            self.current = self.slices.next();
        }
        Ok(())
    }

    fn zero(&mut self, bytes: u64) -> Result<(), Refusal> {
        const ZEROES: [u8; 4096] = [0; 4096];
        let mut left = bytes;
        while left > 0 {
            let slices = self.next(left)?;
            let mut done = 0;
            for slice in &slices {
                for at in (0..slice.len()).step_by(ZEROES.len()) {
                    let n = (slice.len() - at).min(ZEROES.len());
                    slice.write_slice(&ZEROES[..n], at).map_err(|_| Refusal::IO)?;
                }
                done += slice.len();
            }
            if done == 0 {
                return Err(Refusal::IO);
            }
            self.advance(done)?;
            left -= done as u64;
        }
        Ok(())
    }
}
