//! The network device (virtio 1.2 section 5.1): one interface with one pair of queues, at a cable that the supervisor opened.
//!
//! A frame is checked before it is passed on, in either direction: its length, what it leaves to the other side, and, if
//! so configured, that its sender is the guest's own address. What was checked is copied first, so that the guest cannot
//! change it afterwards; the rest goes straight from guest memory. A frame that is refused is dropped and counted, as a real
//! network would; only a broken queue costs the driver its device.

mod cable;
mod header;
mod receive;
mod send;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use self::cable::Cable;
use self::header::{ETHERNET_BYTES, Offloads, TAG_BYTES};
use self::receive::Receiver;
use self::send::Sender;
use super::command::{Command, CommandError, Counter};
use super::wake::Wake;
use super::{DeviceError, Interrupt, Io, VirtioDevice, read_config_bytes, stateless};
use crate::config::{NetBackend, NetConfig};
use crate::control::Refusal;

/// Queue of buffers for frames to the guest (section 5.1.2).
const QUEUE_RX: usize = 0;
/// Queue of frames from the guest.
const QUEUE_TX: usize = 1;
const QUEUE_SIZES: &[u16] = &[256, 256];
/// Most frames of each direction in one event: then other devices and the control socket get their turn.
const MAX_FRAMES: u32 = 128;
/// The cable's number among the descriptors that [`Wake`] watches.
const CABLE: u32 = 0;
/// Bytes of the configuration space up to and including the MTU.
const CONFIG_BYTES: usize = 12;

/// What both directions need to know.
#[derive(Debug)]
struct Port {
    cable: Cable,
    /// Most bytes of a frame that is not to be cut up.
    whole: usize,
    /// The supervisor has plugged the cable in.
    plugged: bool,
    /// The other end is gone for good.
    closed: bool,
}

impl Port {
    fn is_up(&self) -> bool {
        self.plugged && !self.closed
    }
}

/// A network device.
#[derive(Debug)]
pub struct Net {
    name: String,
    mac: [u8; 6],
    mtu: u16,
    port: Port,
    receiver: Receiver,
    sender: Sender,
    wake: Wake,
}

impl Net {
    /// Makes the device. `index` is its position among the machine's interfaces; `take` gives it a descriptor of the
    /// configuration's for its own.
    ///
    /// # Errors
    /// The descriptor is nothing that a cable can be, or the host is out of descriptors.
    pub fn new(index: usize, config: &NetConfig, backend: OwnedFd) -> io::Result<Self> {
        let cable = match config.backend {
            NetBackend::Socket { headers, .. } => Cable::socket(backend, headers)?,
            NetBackend::Tap { .. } => Cable::tap(File::from(backend))?,
        };
        let wake = Wake::new()?;
        wake.watch(cable.as_fd(), CABLE)?;
        let whole = usize::from(config.mtu) + ETHERNET_BYTES + TAG_BYTES;
        let only_from = config.check_source.then_some(config.mac);
        Ok(Self {
            name: format!("net{index}"),
            mac: config.mac,
            mtu: config.mtu,
            port: Port { cable, whole, plugged: true, closed: false },
            receiver: Receiver::new(&config.receive),
            sender: Sender::new(&config.send, only_from),
            wake,
        })
    }

    /// Moves frames both ways until there are no more, no room, or enough for one turn.
    fn pump(&mut self, io: &mut Io<'_>) -> Result<(), DeviceError> {
        let Self { port, receiver, sender, wake, .. } = self;
        let up = port.is_up();
        let again = sender.pump(port, wake, io)? | receiver.pump(port, wake, io)?;
        if again {
            wake.again();
        }
        if up && !port.is_up() {
            io.interrupt.config_changed();
        }
        Ok(())
    }

    fn config(&self) -> [u8; CONFIG_BYTES] {
        let mut config = [0; CONFIG_BYTES];
        config[..6].copy_from_slice(&self.mac);
        let status = if self.port.is_up() { VIRTIO_NET_S_LINK_UP } else { 0 };
        config[6..8].copy_from_slice(&status.to_le_bytes()[..2]);
        // One pair of queues.
        config[8..10].copy_from_slice(&1u16.to_le_bytes());
        config[10..12].copy_from_slice(&self.mtu.to_le_bytes());
        config
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let common = [
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
        ];
        // What is left undone in a frame is said in its header.
        let with_headers: &[u32] = if self.port.cable.has_headers() {
            &[
                VIRTIO_NET_F_CSUM,
                VIRTIO_NET_F_HOST_TSO4,
                VIRTIO_NET_F_HOST_TSO6,
                VIRTIO_NET_F_GUEST_CSUM,
                VIRTIO_NET_F_GUEST_TSO4,
                VIRTIO_NET_F_GUEST_TSO6,
            ]
        } else {
            &[]
        };
        common.iter().chain(with_headers).fold(0, |bits, bit| bits | 1 << bit)
    }

    fn set_features(&mut self, accepted: u64) {
        let has = |bit: u32| accepted & 1 << bit != 0;
        self.sender.agreed = Offloads {
            checksum: has(VIRTIO_NET_F_CSUM),
            tcp4: has(VIRTIO_NET_F_HOST_TSO4),
            tcp6: has(VIRTIO_NET_F_HOST_TSO6),
        };
        self.receiver.agreed = Offloads {
            checksum: has(VIRTIO_NET_F_GUEST_CSUM),
            tcp4: has(VIRTIO_NET_F_GUEST_TSO4),
            tcp6: has(VIRTIO_NET_F_GUEST_TSO6),
        };
        self.receiver.mergeable = has(VIRTIO_NET_F_MRG_RXBUF);
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    fn changes_config(&self) -> bool {
        true
    }

    fn queue_event(&mut self, _index: usize, io: &mut Io<'_>) -> Result<(), DeviceError> {
        self.pump(io)
    }

    fn host_fd(&self) -> Option<RawFd> {
        Some(self.wake.as_raw_fd())
    }

    fn host_event(&mut self, io: &mut Io<'_>) -> Result<(), DeviceError> {
        if self.wake.take()?.by(CABLE) {
            self.receiver.on_cable();
            self.sender.on_cable(&self.port, &self.wake)?;
        }
        self.pump(io)
    }

    fn reset(&mut self) {
        self.receiver.reset();
        self.sender.reset();
    }

    fn save(&self) -> Result<Vec<u8>, Refusal> {
        // Frames under way are lost, as on any wire; cable and limits are the host's.
        Ok(Vec::new())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Refusal> {
        stateless(self.name(), state)
    }

    fn command(&mut self, command: &Command, interrupt: &dyn Interrupt) -> Result<(), CommandError> {
        match command {
            Command::LimitNet { receive, send } => {
                receive.validate()?;
                send.validate()?;
                self.receiver.throttle.update(receive, &self.wake);
                self.sender.throttle.update(send, &self.wake);
            }
            Command::SetLink { up } => {
                let before = self.port.is_up();
                self.port.plugged = *up;
                if self.port.is_up() != before {
                    interrupt.config_changed();
                }
                self.wake.again();
            }
            _ => return Err(CommandError::Unsupported(self.name.clone())),
        }
        Ok(())
    }

    fn counters(&self) -> Vec<Counter> {
        let (received, sent) = (&self.receiver.counts, &self.sender.counts);
        vec![
            ("received_frames", received.frames),
            ("received_bytes", received.bytes),
            ("received_dropped", received.dropped),
            ("received_throttled", self.receiver.throttle.throttled()),
            ("sent_frames", sent.frames),
            ("sent_bytes", sent.bytes),
            ("sent_dropped", sent.dropped),
            ("sent_throttled", self.sender.throttle.throttled()),
        ]
    }
}

/// What one direction has counted.
#[derive(Debug, Default)]
struct Counts {
    frames: u64,
    bytes: u64,
    dropped: u64,
}

impl Counts {
    fn passed(&mut self, bytes: usize) {
        self.frames += 1;
        self.bytes += bytes as u64;
    }
}
