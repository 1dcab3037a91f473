//! The container's network: its loopback, and the machine's devices that it is given, with addresses and routes as the host wants them.

mod netlink;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

pub(crate) use netlink::Netlink;

use super::Context;
use crate::protocol::{Device, Failure, FailureKind, Interface, MAX_INTERFACE_NAME};

/// The namespace's own loopback.
const LOOPBACK: &str = "lo";
/// Names of devices that came back from a container.
const RETURNED: &str = "free%d";

/// Sets up the network namespace that the caller has entered. `machine` is a socket in the agent's own, where the machine's devices are.
///
/// # Errors
/// A device is missing, or the kernel refuses an address or a route.
pub(crate) fn set_up(machine: Option<&Netlink>, interfaces: &[Interface]) -> Result<(), Failure> {
    bring_loopback_up().context("bring the loopback interface up")?;
    let Some(machine) = machine else { return Ok(()) };
    interfaces.iter().try_for_each(|interface| attach(machine, interface))
}

/// Moves a device into the caller's network namespace and sets it up there.
///
/// # Errors
/// As of [`set_up`].
pub(crate) fn attach(machine: &Netlink, interface: &Interface) -> Result<(), Failure> {
    let name = &interface.name;
    if !is_name(name) {
        return Err(Failure::new(FailureKind::Unsupported, format!("{name:?} is no name of an interface")));
    }
    let what = |action: &str| format!("{action} the network interface {name}");
    let own = Netlink::open().context(what("open a socket for"))?;
    if !is_loopback(&interface.device) {
        let links = machine.links().context("list the machine's network devices")?;
        let found = links.iter().find(|link| match &interface.device {
            Device::Mac(mac) => link.address == mac.0 && link.name != LOOPBACK,
            Device::Name(device) => link.name == *device,
        });
        let Some(link) = found else {
            let device = match &interface.device {
                Device::Mac(mac) => mac.to_string(),
                Device::Name(device) => device.clone(),
            };
            let text = format!("the machine has no network device {device}");
            return Err(Failure::new(FailureKind::Unsupported, text));
        };
        let here = File::open("/proc/self/ns/net").context(what("find the namespace of"))?;
        machine.move_link(link.index, &here, name).context(what("move"))?;
    }
    let links = own.links().context(what("find"))?;
    let index = links.iter().find(|l| l.name == *name).map(|l| l.index);
    let index = index.ok_or(io::Error::from(Errno::ENODEV)).context(what("find"))?;
    own.bring_up(index, interface.mtu).context(what("bring up"))?;
    for address in &interface.addresses {
        own.add_address(index, address).context(format!("give {name} the address {address}"))?;
    }
    for route in &interface.routes {
        let to = route.destination;
        own.add_route(index, route).context(format!("add the route to {to} by way of {name}"))?;
    }
    Ok(())
}

/// Gives an interface of the caller's network namespace back to the machine.
///
/// # Errors
/// There is none of this name.
pub(crate) fn detach(machine: &File, name: &str) -> Result<(), Failure> {
    let own = Netlink::open().context("open a socket for the network")?;
    let links = own.links().context("list the network interfaces")?;
    let Some(link) = links.iter().find(|l| l.name == name && name != LOOPBACK) else {
        let text = format!("the container has no network interface {name:?} that could be taken out");
        return Err(Failure::new(FailureKind::Other, text));
    };
    own.move_link(link.index, machine, RETURNED).context(format!("move the network interface {name}"))?;
    Ok(())
}

fn is_loopback(device: &Device) -> bool {
    matches!(device, Device::Name(name) if name == LOOPBACK)
}

fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=MAX_INTERFACE_NAME).contains(&name.len())
        && name.bytes().all(plain)
        && !matches!(name, "." | ".." | "all" | "default")
}

fn bring_loopback_up() -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: ifreq is plain data; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(LOOPBACK.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or_default();
    // SAFETY: the pointer is to an ifreq that lives through the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })?;
    Ok(())
}
