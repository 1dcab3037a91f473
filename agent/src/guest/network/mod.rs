//! The container's network: its loopback, and the machine's devices that it is given, with addresses and routes as the host wants them.

mod netlink;

use std::fs::File;
use std::io;

use nix::errno::Errno;

pub(crate) use netlink::Netlink;

use super::{Context, sys};
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
    sys::bring_up(LOOPBACK).context("bring the loopback interface up")?;
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
        let here = File::open("/proc/thread-self/ns/net").context(what("find the namespace of"))?;
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn ip(arguments: &str) -> Option<String> {
        let output = Command::new("ip").args(arguments.split_whitespace()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A cable between two namespaces that only this thread has: the machine's, and the container's.
    #[test]
    fn a_device_is_moved_in_set_up_and_given_back() {
        std::thread::spawn(|| {
            let cable = unshare(CloneFlags::CLONE_NEWNET).ok().and_then(|()| {
                ip("link add cable address 02:42:ac:11:00:02 type veth peer name far")?;
                ip("link set far up")
            });
            if cable.is_none() {
                eprintln!("skipped: no network namespace, no veth or no ip(8) here");
                return;
            }
            let machine = Netlink::open().unwrap();
            let machine_namespace = File::open("/proc/thread-self/ns/net").unwrap();
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let interface = Interface {
                device: Device::Mac("02:42:ac:11:00:02".parse().unwrap()),
                name: "eth0".into(),
                addresses: vec!["172.17.0.2/16".parse().unwrap(), "fd17::2/64".parse().unwrap()],
                mtu: Some(1400),
                routes: ["0.0.0.0/0 172.17.0.1", "::/0 fd17::1"]
                    .map(|route| route.split_once(' ').unwrap())
                    .map(|(to, by)| crate::protocol::Route {
                        destination: to.parse().unwrap(),
                        gateway: Some(by.parse().unwrap()),
                    })
                    .into(),
            };
            set_up(Some(&machine), std::slice::from_ref(&interface)).unwrap();
            let seen = ["address", "route", "-6 route"].map(|what| ip(what).unwrap()).concat();
            for wanted in [
                "eth0@",
                "mtu 1400",
                "inet 172.17.0.2/16 brd 172.17.255.255",
                "inet6 fd17::2/64",
                "default via 172.17.0.1",
                "default via fd17::1",
                "inet 127.0.0.1/8",
            ] {
                assert!(seen.contains(wanted), "{wanted}: {seen}");
            }
            assert!(attach(&machine, &interface).unwrap_err().text.contains("02:42:ac:11:00:02"));
            detach(&machine_namespace, "eth0").unwrap();
            assert!(detach(&machine_namespace, "eth0").is_err());
            let back = machine.links().unwrap();
            assert!(
                back.iter().any(|l| l.address == [2, 0x42, 0xac, 0x11, 0, 2] && l.name == "free0"),
                "{back:?}"
            );
            // And in again, under its new name.
            set_up(Some(&machine), &[Interface { device: Device::Name("free0".into()), ..interface }])
                .unwrap();
        })
        .join()
        .unwrap();
    }

    #[test]
    fn names_of_interfaces_are_names() {
        assert!(is_name("eth0") && is_name("a_b.c-d"));
        for bad in ["", ".", "..", "all", "default", "a/b", "a b", "sixteen-letters-"] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
