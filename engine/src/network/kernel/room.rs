//! A network's room: a namespace with a bridge, and a container's seat in it.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bulkhead_net::host::HostAddresses;
use bulkhead_net::protocol::{Attachment, Report};
use bulkhead_net::switch::GATEWAY_MAC;
use nix::fcntl::FlockArg;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};

use super::book::{Book, Member, Port, began, tap_name};
use super::namespace::{Namespace, set};
use super::packets::{self, BRIDGE, WAY_OUT};
use super::{counts, frames, host, nft};
use crate::EngineError;
use crate::directory::lock_file;
use crate::paths::Paths;

/// The port of DNS.
const NAMES: u16 = 53;
/// Connections for questions that a switch may take its time to accept.
const BACKLOG: i32 = 128;

/// A tap device of a machine's, which the supervisor moves: into rooms, and back to where nobody is.
#[derive(Debug)]
pub(crate) struct Tap {
    closet: Namespace,
    name: &'static str,
}

impl Tap {
    /// Makes one, in a namespace of its own; and its descriptor, for the VMM, with which it lives and dies.
    pub(crate) fn make() -> io::Result<(Self, OwnedFd)> {
        let tap = Self { closet: Namespace::make()?, name: "tap" };
        let file = tap.closet.add_tap(tap.name)?;
        Ok((tap, file.into()))
    }

    fn enter(&self, room: &Namespace, name: &str) -> io::Result<()> {
        self.closet.links(|links| links.send_away(links.link(self.name)?.index, room.as_fd(), name))
    }

    fn leave(&self, room: &Namespace, name: &str) -> io::Result<()> {
        room.links(|links| links.send_away(links.link(name)?.index, self.closet.as_fd(), self.name))
    }
}

/// A container's place in a room. It is given up when this is dropped; the room goes with the last one, and with whoever holds one.
#[derive(Debug)]
pub(crate) struct Seat {
    lock: PathBuf,
    networks: PathBuf,
    directory: PathBuf,
    place: Attachment,
    room: Namespace,
    key: u64,
    member: Member,
    tap: Rc<Tap>,
    /// Sockets for questions, if it was here that they were made: duplicates, so that questions wait in them while a switch is away.
    names: RefCell<Vec<OwnedFd>>,
}

impl Seat {
    /// Takes a seat for a container in a network's room, which is made if there is none. `ports` are those of the host that are the
    /// container's.
    ///
    /// # Errors
    /// The host refuses a step, which is told.
    pub(crate) fn take(
        paths: &Paths,
        network: &str,
        place: Attachment,
        tap: Rc<Tap>,
        ports: Vec<Port>,
    ) -> Result<Self, EngineError> {
        let failed = EngineError::io(format!("entering the room of the network {}", place.network.name));
        let (networks, lock) = (paths.networks(), paths.networks().join(".rooms"));
        let alone = lock_file(&lock, FlockArg::LockExclusive)?;
        let taken = (|| {
            let directory = networks.join(network);
            fs::create_dir_all(&directory)?;
            let (mut book, room) = enter(&directory, network, &place)?;
            let member = Member {
                process: std::process::id(),
                began: began(std::process::id()).ok_or(io::ErrorKind::NotFound)?,
                descriptor: room.number(),
                number: book.next,
                mac: place.mac,
                ipv4: place.ipv4,
                ipv6: place.ipv6,
                egress: place.egress.clone(),
                asks_at: place.asks_at.clone(),
                ports,
            };
            book.next = book.next.checked_add(1).ok_or_else(|| io::Error::other("the room is worn out"))?;
            book.members.push(member.clone());
            book.write(&directory)?;
            let seat = Self {
                lock,
                networks,
                directory,
                place,
                room,
                key: book.key,
                member,
                tap,
                names: RefCell::default(),
            };
            let sat = seat.sit(&mut book);
            Ok((seat, sat))
        })();
        // A seat that was not taken to the end undoes what was done: for that it takes the lock itself.
        drop(alone);
        let (seat, sat) = taken.map_err(failed)?;
        sat.map_err(EngineError::io(format!(
            "entering the room of the network {}",
            seat.place.network.name
        )))?;
        Ok(seat)
    }

    /// Which room it is.
    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    /// The rules first, then the cable.
    fn sit(&self, book: &mut Book) -> io::Result<()> {
        self.declare(book)?;
        book.write(&self.directory)?;
        host::declare(&self.networks)?;
        let (member, tap) = (&self.member, tap_name(self.member.number));
        self.tap.enter(&self.room, &tap)?;
        let mtu = u32::from(self.place.network.mtu);
        self.room.links(|links| {
            let (port, bridge) = (links.link(&tap)?.index, links.link(BRIDGE)?.index);
            links.add_port(port, bridge, mtu)?;
            links.set_port_of(port, member.mac)?;
            for address in member.addresses() {
                links.set_neighbor(bridge, address, member.mac)?;
            }
            links.bring_up(port)
        })
    }

    /// Has the room's rules say what the book says.
    fn declare(&self, book: &mut Book) -> io::Result<()> {
        let mut known = HostAddresses::open()?;
        let mut script = frames::script(book, self.place.network.ipv6.map(|(_, gateway)| gateway));
        script.push_str(&packets::script(book, &self.place.network, known.now())?);
        self.room.inside(|| nft::apply(&script))
    }

    /// Whether the sockets for questions were made here.
    pub(crate) fn has_name_sockets(&self) -> bool {
        !self.names.borrow().is_empty()
    }

    /// Sockets for questions, at port 53 of the gateway: datagrams, and listening. None if somebody else has them.
    pub(crate) fn name_sockets(&self) -> io::Result<Vec<OwnedFd>> {
        if !self.has_name_sockets() {
            match self.make_name_sockets() {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Ok(Vec::new()),
                made => *self.names.borrow_mut() = made?,
            }
        }
        self.names.borrow().iter().map(OwnedFd::try_clone).collect()
    }

    fn make_name_sockets(&self) -> io::Result<Vec<OwnedFd>> {
        let network = &self.place.network;
        let gateways =
            [Some(IpAddr::V4(network.ipv4.1)), network.ipv6.map(|(_, gateway)| IpAddr::V6(gateway))];
        self.room.inside(|| {
            let mut sockets = Vec::new();
            for gateway in gateways.into_iter().flatten() {
                for kind in [SockType::Datagram, SockType::Stream] {
                    sockets.push(name_socket(gateway, kind)?);
                }
            }
            Ok(sockets)
        })
    }

    /// A socket in the room, where a container can be reached, not connected yet.
    pub(crate) fn socket(&self, six: bool, stream: bool) -> io::Result<OwnedFd> {
        self.room.inside(|| new_socket(six, if stream { SockType::Stream } else { SockType::Datagram }))
    }

    /// The container's end of a published port.
    pub(crate) fn end(&self, port: u16, six: bool) -> SocketAddr {
        let own = self.member.ipv6.filter(|_| six).map_or(IpAddr::V4(self.member.ipv4), IpAddr::V6);
        SocketAddr::new(own, port)
    }

    /// Opens addresses to the container that a resolver called by this name.
    pub(crate) fn learn(&self, name: &str, addresses: &[(IpAddr, u64)]) -> io::Result<()> {
        match packets::learned(&self.member, &self.place.network, name, addresses) {
            Some(script) => self.room.inside(|| nft::apply(&script)),
            None => Ok(()),
        }
    }

    /// What was counted.
    pub(crate) fn report(&self) -> io::Result<Report> {
        let tap = self.member.tap();
        let (link, frames, packets) = self.room.inside(|| {
            let link = super::netlink::Netlink::open()?.link(&tap)?;
            Ok((link, nft::list("bridge", "room")?, nft::list("inet", "room")?))
        })?;
        Ok(counts::report(self.member.number, &link, [&frames, &packets]))
    }

    fn stand_up(&self) -> io::Result<()> {
        let _alone = lock_file(&self.lock, FlockArg::LockExclusive).map_err(io::Error::other)?;
        // The machine may be gone, and its device with it.
        let _ = self.tap.leave(&self.room, &self.member.tap());
        let mut book = Book::read(&self.directory)?;
        book.members.retain(|member| member.number != self.member.number);
        if book.key != self.key {
            return Ok(());
        }
        if !book.members.is_empty() {
            let member = &self.member;
            let _ = self.room.links(|links| {
                let bridge = links.link(BRIDGE)?.index;
                member.addresses().try_for_each(|address| links.remove_neighbor(bridge, address))
            });
            self.declare(&mut book)?;
        }
        book.write(&self.directory)?;
        host::declare(&self.networks)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Err(error) = self.stand_up() {
            tracing::warn!(network = self.place.network.name, %error, "leaving the network's room");
        }
    }
}

/// Writes down who is in no room any more, and has the host forget them.
pub(super) fn tidy(networks: &Path) -> io::Result<()> {
    let directories = || -> io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(networks)?.flatten().map(|entry| entry.path());
        Ok(entries.filter(|path| path.is_dir()).collect())
    };
    if !directories()?.iter().any(|directory| Book::is_old(directory)) {
        return Ok(());
    }
    let _alone = lock_file(&networks.join(".rooms"), FlockArg::LockExclusive).map_err(io::Error::other)?;
    for directory in directories()?.iter().filter(|directory| Book::is_old(directory)) {
        Book::read(directory)?.write(directory)?;
    }
    host::declare(networks)
}

/// The words at the bridge that tell a room from all others.
fn sign(network: &str, key: u64) -> String {
    format!("bulkhead {network} {key:016x}")
}

/// The room that somebody in the book holds. What the book says is believed only if the room says so, too.
fn find(book: &Book, network: &str) -> Option<Namespace> {
    let sign = sign(network, book.key);
    book.members.iter().find_map(|member| {
        let room = Namespace::of_process(member.process, member.descriptor).ok()?;
        let alias = room.links(|links| links.link(BRIDGE)).ok()?.alias;
        (alias == sign).then_some(room)
    })
}

/// The network's room: the one that there is, or a new one.
fn enter(directory: &Path, network: &str, place: &Attachment) -> io::Result<(Book, Namespace)> {
    let book = Book::read(directory)?;
    if let Some(room) = find(&book, network) {
        return Ok((book, room));
    }
    let mut book = Book { key: key()?, next: 1, ..Book::default() };
    let room = make(&mut book, network, place)?;
    Ok((book, room))
}

fn key() -> io::Result<u64> {
    let digits = crate::ids::random().map_err(io::Error::other)?;
    let key = digits.get(..16).and_then(|hex| u64::from_str_radix(hex, 16).ok());
    key.filter(|key| *key != 0).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Makes a room: the bridge with the gateway's addresses, and the way out.
fn make(book: &mut Book, network: &str, place: &Attachment) -> io::Result<Namespace> {
    let room = Namespace::make()?;
    let six = place.network.ipv6;
    if !place.network.internal {
        book.transit = Some(host::connect(&room, book.key, six.is_some())?);
    }
    let (sign, transit) = (sign(network, book.key), book.transit);
    let (range, gateway) = place.network.ipv4;
    room.links(|links| {
        settings(six.is_some())?;
        links.bring_up(links.link("lo")?.index)?;
        links.add_bridge(BRIDGE, GATEWAY_MAC)?;
        let bridge = links.link(BRIDGE)?.index;
        links.set_alias(bridge, &sign)?;
        if six.is_some() {
            // Taps have no addresses of their own, ever.
            set("ipv6/conf/br/disable_ipv6", "0")?;
            set("ipv6/conf/up/disable_ipv6", "0")?;
        }
        links.add_address(bridge, gateway.into(), range.prefix())?;
        if let Some((range, gateway)) = six {
            links.add_address(bridge, gateway.into(), range.prefix())?;
        }
        links.bring_up(bridge)?;
        let Some(number) = transit else {
            // So that what wants to leave comes as far as the rule that tells why it cannot.
            links.add_default_route(bridge, false, None)?;
            return six.map_or(Ok(()), |_| links.add_default_route(bridge, true, None));
        };
        let up = links.link(WAY_OUT)?.index;
        links.add_address(up, host::transit_4(number).1.into(), 30)?;
        if six.is_some() {
            links.add_address(up, host::transit_6(number).1.into(), 64)?;
        }
        links.bring_up(up)?;
        links.add_default_route(up, false, Some(host::transit_4(number).0.into()))?;
        six.map_or(Ok(()), |_| links.add_default_route(up, true, Some(host::transit_6(number).0.into())))
    })?;
    Ok(room)
}

/// The settings of a room's own kernel parts, before there is anything in it.
fn settings(six: bool) -> io::Result<()> {
    for name in ["all", "default"] {
        for (what, value) in
            [("send_redirects", "0"), ("accept_redirects", "0"), ("accept_source_route", "0")]
        {
            set(&format!("ipv4/conf/{name}/{what}"), value)?;
        }
        for (what, value) in [("accept_ra", "0"), ("accept_redirects", "0"), ("accept_source_route", "0")] {
            set(&format!("ipv6/conf/{name}/{what}"), value)?;
        }
    }
    set("ipv4/ip_forward", "1")?;
    if six {
        set("ipv6/conf/all/forwarding", "1")?;
    }
    set("ipv6/conf/default/disable_ipv6", "1")?;
    // Where the host has it that bridges ask the rules for packets: not here, where frames have rules of their own.
    for name in ["iptables", "ip6tables", "arptables"] {
        set(&format!("bridge/bridge-nf-call-{name}"), "0")?;
    }
    Ok(())
}

fn new_socket(six: bool, kind: SockType) -> io::Result<OwnedFd> {
    let family = if six { AddressFamily::Inet6 } else { AddressFamily::Inet };
    Ok(socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?)
}

fn name_socket(gateway: IpAddr, kind: SockType) -> io::Result<OwnedFd> {
    let socket = new_socket(gateway.is_ipv6(), kind)?;
    if kind == SockType::Stream {
        // Connections to a switch that was killed may still be ending.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(gateway, NAMES)))?;
    if kind == SockType::Stream {
        listen(&socket, Backlog::new(BACKLOG)?)?;
    }
    Ok(socket)
}
