//! Every device with something behind it, and requests that look like its own.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use super::Input;
use crate::config::{BalloonConfig, Bucket, Fd, NetBackend, NetConfig, RateLimit};
use crate::console::ConsoleRing;
use crate::virtio::VirtioDevice;
use crate::virtio::balloon::Balloon;
use crate::virtio::block::Block;
use crate::virtio::block::extents::Extent;
use crate::virtio::console::Console;
use crate::virtio::fs::Fs;
use crate::virtio::net::Net;
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;

/// The devices that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A disk that may be written.
    Block,
    /// A disk that may not.
    ReadOnlyBlock,
    /// A network interface without headers.
    Net,
    /// A network interface with headers.
    NetHeaders,
    /// A shared folder.
    Fs,
    /// The socket device.
    Vsock,
    /// The balloon.
    Balloon,
    /// The console.
    Console,
    /// The entropy device.
    Rng,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Block,
        Self::ReadOnlyBlock,
        Self::Net,
        Self::NetHeaders,
        Self::Fs,
        Self::Vsock,
        Self::Balloon,
        Self::Console,
        Self::Rng,
    ];
}

impl Kind {
    /// The name of its fuzz target.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::ReadOnlyBlock => "block_read_only",
            Self::Net => "net",
            Self::NetHeaders => "net_headers",
            Self::Fs => "fs",
            Self::Vsock => "vsock",
            Self::Balloon => "balloon",
            Self::Console => "console",
            Self::Rng => "rng",
        }
    }
}

/// Content of the disks.
const DISK: usize = 64 << 10;
/// The guest's context id and the ports of the host that it may connect to.
const CID: u32 = 3;
const PORTS: std::ops::Range<u32> = 1024..1028;

/// The host's side of a device.
pub struct World {
    peers: Vec<OwnedFd>,
    file: Arc<File>,
    read_only: bool,
}

fn pair(kind: SockType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).expect("a socket pair")
}

/// Makes a device and what is behind it.
pub fn make(kind: Kind) -> (World, Box<dyn VirtioDevice>) {
    let mut file = File::from(memfd_create(c"disk", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
    file.write_all(&[0xa5; DISK]).expect("room for a disk");
    let mut world = World { peers: Vec::new(), file: Arc::new(file), read_only: false };
    let device: Box<dyn VirtioDevice> = match kind {
        Kind::Block | Kind::ReadOnlyBlock => {
            world.read_only = kind == Kind::ReadOnlyBlock;
            // Three pieces, out of order, the last of which lies behind the file's end.
            let parts = [(16 << 10, 8 << 10), (0, 4096), (60 << 10, 16 << 10)];
            let extents =
                parts.map(|(offset, length)| Extent { file: Arc::clone(&world.file), offset, length });
            Box::new(Block::new(0, extents.into(), world.read_only).expect("a disk"))
        }
        Kind::Net | Kind::NetHeaders => {
            let (ours, peer) = pair(SockType::SeqPacket);
            world.peers.push(peer);
            let limit = Bucket { per_second: 1 << 30, burst: 1 << 20 };
            let config = NetConfig {
                mac: [2, 0, 0, 0, 0, 1],
                mtu: 1500,
                backend: NetBackend::Socket { socket: Fd(0), headers: kind == Kind::NetHeaders },
                check_source: kind == Kind::NetHeaders,
                receive: RateLimit { bytes: Some(limit), operations: Some(limit) },
                send: RateLimit { bytes: Some(limit), operations: None },
            };
            Box::new(Net::new(0, &config, ours).expect("an interface"))
        }
        Kind::Fs => {
            let (ours, peer) = pair(SockType::SeqPacket);
            world.peers.push(peer);
            Box::new(Fs::new(0, "share", ours).expect("a folder"))
        }
        Kind::Vsock => {
            let ports = PORTS.map(|port| {
                let (ours, peer) = pair(SockType::Stream);
                world.peers.push(peer);
                (port, ours)
            });
            let ports: Vec<_> = ports.collect();
            Box::new(Vsock::new(CID, None, ports).expect("a socket device"))
        }
        Kind::Balloon => {
            let config = BalloonConfig { target_mib: 1, deflate_on_oom: true, free_page_reporting: true };
            Box::new(Balloon::new(&config, 1).expect("a balloon"))
        }
        Kind::Console => Box::new(Console::new(ConsoleRing::default()).expect("a console")),
        Kind::Rng => Box::new(Rng::new().expect("an entropy device")),
    };
    (world, device)
}

impl World {
    /// The other ends of a device's sockets.
    #[cfg(test)]
    pub fn peers(&self) -> &[OwnedFd] {
        &self.peers
    }

    /// The other end of the device does something.
    pub fn act(&mut self, input: &mut Input<'_>) -> Option<()> {
        let action = input.u8()?;
        let which = input.below(self.peers.len().max(1))?;
        let size = usize::from(input.u16()?);
        let Some(peer) = self.peers.get(which).map(AsRawFd::as_raw_fd) else { return Some(()) };
        let mut buffer = vec![action; size.min(4096)];
        match action % 8 {
            // What it says is as little to be trusted as what the guest says.
            0 | 1 => {
                let said = input.bytes(size % 64)?;
                let room = buffer.len();
                for (place, byte) in buffer.iter_mut().zip(said) {
                    *place = *byte;
                }
                if action % 8 == 1 {
                    // As a frame begins that leaves nothing undone.
                    buffer.iter_mut().take(12).for_each(|byte| *byte = 0);
                }
                let _ = send(peer, &buffer[..room], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
            }
            // An answer that is well-formed, to one of the first requests.
            2 => {
                let length = (size % 200).max(16);
                let mut answer = vec![0; length];
                answer[..4].copy_from_slice(&u32::try_from(length).unwrap_or(0).to_le_bytes());
                answer[8..10].copy_from_slice(&input.u16()?.to_le_bytes());
                let _ = send(peer, &answer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
            }
            // It goes away, rarely.
            3 if size < 64 => drop(self.peers.remove(which)),
            // It takes what there is.
            _ => {
                buffer.resize(64, 0);
                while recv(peer, &mut buffer, MsgFlags::MSG_DONTWAIT).is_ok_and(|length| length > 0) {
                    // A file server's answer to a driver's reset.
                    if buffer[4..8] == [38, 0, 0, 0] {
                        let answer = [&[16, 0, 0, 0, 0, 0, 0, 0], &buffer[8..16]].concat();
                        let _ = send(peer, &answer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
                    }
                }
            }
        }
        Some(())
    }

    /// What must hold at the end.
    pub fn check(&self) {
        if self.read_only {
            let mut content = vec![0; DISK + 1];
            let read = std::os::unix::fs::FileExt::read_at(&*self.file, &mut content, 0);
            assert_eq!(read.ok(), Some(DISK), "a read-only file has another size");
            assert!(content[..DISK].iter().all(|byte| *byte == 0xa5), "a read-only file was written");
        }
        let size = self.file.metadata().map_or(u64::MAX, |meta| meta.len());
        assert!(size <= 76 << 10, "a disk grew beyond its extents");
    }
}

/// Whether a queue is one of buffers to write to, and not of requests to read.
pub fn is_for_buffers(kind: Kind, queue: usize) -> bool {
    match kind {
        Kind::Net | Kind::NetHeaders | Kind::Console | Kind::Rng => queue == 0,
        Kind::Vsock => queue != 1,
        Kind::Balloon => queue == 3,
        Kind::Block | Kind::ReadOnlyBlock | Kind::Fs => false,
    }
}

/// Whether requests are answered in room of their own.
pub fn has_answers(kind: Kind) -> bool {
    matches!(kind, Kind::Block | Kind::ReadOnlyBlock | Kind::Fs)
}

/// The start of a request that the device may well take for one of its own.
pub fn header(kind: Kind, input: &mut Input<'_>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    match kind {
        Kind::Block | Kind::ReadOnlyBlock => {
            let operation = [0, 1, 4, 8, 11, 13, 2, u32::from(input.u8()?)][input.below(8)?];
            let sector = if input.u8()? < 200 { u64::from(input.u8()? % 60) } else { input.u64()? };
            bytes.extend(operation.to_le_bytes());
            bytes.extend([0; 4]);
            bytes.extend(sector.to_le_bytes());
            if operation > 10 {
                bytes.extend(u64::from(input.u8()? % 60).to_le_bytes());
                bytes.extend(u32::from(input.u8()? % 32).to_le_bytes());
                bytes.extend(u32::from(input.u8()? % 4).to_le_bytes());
            }
        }
        Kind::Net | Kind::NetHeaders => {
            let [flags, segments, _] = [input.u8()? % 3, [0, 0, 1, 4][input.below(4)?], 0];
            bytes.extend([flags, segments, 54, 0]);
            bytes.extend(input.u16()?.to_le_bytes());
            bytes.extend([34, 0, input.u8()? % 32, 0, 0, 0]);
            bytes.extend([0xff; 6]);
            bytes.extend([2, 0, 0, 0, 0, input.u8()? % 3]);
            bytes.extend([8, 0]);
        }
        Kind::Fs => {
            let operation = u32::from(input.u8()? % 54);
            let extra = usize::from(input.u8()? % 64);
            let length = u32::try_from(40 + extra).ok()?;
            bytes.extend(if input.u8()? < 230 { length } else { input.u32()? }.to_le_bytes());
            bytes.extend(operation.to_le_bytes());
            bytes.extend(input.u64()?.to_le_bytes());
            bytes.resize(40 + extra, 1);
        }
        Kind::Vsock => {
            let cids = [u64::from(CID), 2, 0, u64::MAX];
            bytes.extend(cids[usize::from(input.u8()? < 16) * 2].to_le_bytes());
            bytes.extend(cids[1 + usize::from(input.u8()? < 16) * 2].to_le_bytes());
            bytes.extend(u32::from(input.u8()? % 4).to_le_bytes());
            bytes.extend((1023 + u32::from(input.u8()? % 6)).to_le_bytes());
            let length = if input.u8()? < 230 { u32::from(input.u8()?) } else { input.u32()? };
            bytes.extend(length.to_le_bytes());
            bytes.extend([1, 0, input.u8()? % 9, 0]);
            bytes.extend(u32::from(input.u8()? % 4).to_le_bytes());
            bytes.extend((u32::from(input.u8()?) << 12).to_le_bytes());
            bytes.extend(u32::from(input.u16()?).to_le_bytes());
            bytes.resize(44 + usize::try_from(length).unwrap_or(0).min(256), 7);
        }
        Kind::Balloon => {
            for _ in 0..input.u8()? % 16 {
                let page = if input.u8()? < 250 { u32::from(input.u8()?) } else { input.u32()? };
                bytes.extend(page.to_le_bytes());
            }
        }
        Kind::Console | Kind::Rng => bytes.extend(input.bytes(8)?),
    }
    Some(bytes)
}
