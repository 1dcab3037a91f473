//! The network cards of a machine, and what is at the other end of each: a switch, or a room of the host's kernel.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use agent::protocol::MacAddress;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::EngineError;
use crate::machine::Cable;
use crate::network::kernel::{Path, Tap};

/// A card of the machine's.
#[derive(Clone)]
pub(super) struct Card {
    pub(super) mac: MacAddress,
    pub(super) end: End,
}

/// What is at the other end of a card's cable.
#[derive(Clone)]
pub(super) enum End {
    /// The switch's end.
    Cable(Rc<OwnedFd>),
    /// A device of the host's kernel.
    Tap(Rc<Tap>),
}

impl Card {
    /// Makes a card, and the machine's end of it.
    pub(super) fn make(mac: MacAddress, path: Path) -> Result<(Self, Cable), EngineError> {
        let (end, cable) = match path {
            Path::Switch => {
                let flags = SockFlag::SOCK_CLOEXEC;
                let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags);
                let (near, far) = pair.map_err(|e| EngineError::io("making a cable")(e.into()))?;
                (End::Cable(Rc::new(far)), Cable::Socket(near))
            }
            Path::Kernel => {
                let (tap, near) = Tap::make().map_err(EngineError::io("making a tap device"))?;
                (End::Tap(Rc::new(tap)), Cable::Tap(near))
            }
        };
        Ok((Self { mac, end }, cable))
    }

    /// In which networks it can be.
    pub(super) fn path(&self) -> Path {
        match self.end {
            End::Cable(_) => Path::Switch,
            End::Tap(_) => Path::Kernel,
        }
    }

    /// The hardware address of a spare card: not one that goes with an address, and another in each machine.
    pub(super) fn spare_mac(id: &str, index: usize) -> MacAddress {
        let byte = |at: usize| {
            id.get(2 * at..2 * at + 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()).unwrap_or(0)
        };
        MacAddress([0x06, byte(0), byte(1), byte(2), byte(3), u8::try_from(index).unwrap_or(0)])
    }
}
