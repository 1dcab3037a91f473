//! Who is in a room: written down beside the network's switch, under the lock of all rooms, so that whoever comes next finds the room
//! with those who are in it, and leaves out those who are no more.

use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bulkhead_net::egress::Protocol;
use bulkhead_net::frame::Mac;
use bulkhead_net::protocol::Published;
use nix::sys::socket::{SockaddrStorage, getsockname};
use serde::{Deserialize, Serialize};

/// The file's name in the network's directory.
const FILE: &str = "room";
/// Most bytes of it that are read.
const MAX: u64 = 64 << 20;

/// A room and who is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Book {
    /// Tells the room from all that the network had before; zero: there is none.
    pub(super) key: u64,
    /// Which of the host's transit ranges it has; none: it has no way out.
    pub(super) transit: Option<u16>,
    /// The number that the next container gets. None is given twice.
    pub(super) next: u32,
    /// Containers that the rules may still know.
    pub(super) declared: Vec<u32>,
    /// Names that the rules may still know.
    pub(super) named: Vec<String>,
    pub(super) members: Vec<Member>,
}

/// A container in a room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Member {
    /// Its supervisor: process, when that began, and which descriptor of its is the room.
    pub(super) process: u32,
    pub(super) began: u64,
    pub(super) descriptor: i32,
    /// What its frames are marked with.
    pub(super) number: u32,
    pub(super) mac: Mac,
    pub(super) ipv4: Ipv4Addr,
    pub(super) ipv6: Option<Ipv6Addr>,
    /// Its rules.
    pub(super) egress: String,
    /// Gateways of other networks that it asks for names.
    pub(super) asks_at: Vec<IpAddr>,
    pub(super) ports: Vec<Port>,
}

/// A port of the host's that is passed on to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Port {
    pub(super) protocol: Protocol,
    /// Where the host hears it.
    pub(super) host: SocketAddr,
    /// The container's port.
    pub(super) port: u16,
}

impl Port {
    /// A published port by its socket.
    pub(crate) fn of(published: Published, socket: &OwnedFd) -> io::Result<Self> {
        let bound = getsockname::<SockaddrStorage>(socket.as_raw_fd())?;
        let host = bulkhead_net::gateway::datagrams::address(&bound).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self { protocol: published.protocol, host, port: published.port })
    }
}

impl Member {
    /// Its addresses.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [Some(IpAddr::V4(self.ipv4)), self.ipv6.map(IpAddr::V6)].into_iter().flatten()
    }

    /// The name of its tap device in the room.
    pub(super) fn tap(&self) -> String {
        tap_name(self.number)
    }

    fn lives(&self) -> bool {
        began(self.process).is_some_and(|began| began == self.began)
    }
}

/// The name of a tap device in a room.
pub(super) fn tap_name(number: u32) -> String {
    format!("c{number}")
}

impl Book {
    /// Reads the book of a network's directory, without those whose supervisors are gone. One that cannot be read is as none: whoever
    /// wrote it was cut short.
    pub(super) fn read(directory: &Path) -> io::Result<Self> {
        let mut book = Self::read_all(directory)?;
        book.members.retain(Member::lives);
        Ok(book)
    }

    fn read_all(directory: &Path) -> io::Result<Self> {
        let path = directory.join(FILE);
        let bytes = match fs::metadata(&path) {
            Ok(metadata) if metadata.len() <= MAX => fs::read(&path)?,
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => return Ok(Self::default()),
        };
        Ok(serde_json::from_slice(&bytes).unwrap_or_default())
    }

    /// Whether somebody is in it whose supervisor is gone.
    pub(super) fn is_old(directory: &Path) -> bool {
        Self::read_all(directory).is_ok_and(|book| !book.members.iter().all(Member::lives))
    }

    /// Writes it, in place of what was there before; an empty one is no file.
    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        let path = directory.join(FILE);
        if self.members.is_empty() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let aside: PathBuf = directory.join("room.new");
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(aside, path)
    }

    /// The ports that the host's kernel passes on by itself: of those that have one number at several of the host's addresses, the first.
    /// Loopback addresses have no way into a room, nor have those of a family that the container has not.
    pub(super) fn passed(&self) -> Vec<(&Member, &Port)> {
        let mut passed: Vec<(&Member, &Port)> = Vec::new();
        for member in &self.members {
            for port in &member.ports {
                let family = port.host.is_ipv4() || member.ipv6.is_some();
                let same = |other: &Port| {
                    (other.protocol, other.host.port(), other.host.is_ipv4())
                        == (port.protocol, port.host.port(), port.host.is_ipv4())
                };
                if family && !port.host.ip().is_loopback() && !passed.iter().any(|(_, other)| same(other)) {
                    passed.push((member, port));
                }
            }
        }
        passed
    }
}

/// When a process began, in clock ticks since boot: field 22 of proc_pid_stat(5). With its number it names a process for good.
pub(super) fn began(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field, the program's name, may have anything in it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(process: u32, number: u32, ports: &[(&str, u16)]) -> Member {
        Member {
            process,
            began: began(process).unwrap_or(1),
            descriptor: 3,
            number,
            mac: [2, 0, 0, 0, 0, 1],
            ipv4: Ipv4Addr::new(10, 0, 0, 2),
            ipv6: None,
            egress: String::new(),
            asks_at: Vec::new(),
            ports: ports
                .iter()
                .map(|(host, port)| Port {
                    protocol: Protocol::Tcp,
                    host: host.parse().unwrap(),
                    port: *port,
                })
                .collect(),
        }
    }

    #[test]
    fn the_dead_are_left_out_and_what_is_broken_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Book::read(directory.path()).unwrap(), Book::default());
        let alive = member(std::process::id(), 1, &[]);
        let reborn = Member { began: alive.began + 1, number: 2, ..alive.clone() };
        let gone = member(u32::MAX, 3, &[]);
        let book = Book { key: 7, members: vec![alive.clone(), reborn, gone], ..Book::default() };
        book.write(directory.path()).unwrap();
        let read = Book::read(directory.path()).unwrap();
        assert_eq!((read.key, read.members), (7, vec![alive]));
        fs::write(directory.path().join(FILE), b"{\"key\":").unwrap();
        assert_eq!(Book::read(directory.path()).unwrap(), Book::default());
        Book::default().write(directory.path()).unwrap();
        assert!(!directory.path().join(FILE).exists());
    }

    #[test]
    fn one_port_at_two_addresses_is_passed_on_once() {
        let first = member(1, 1, &[("127.0.0.1:80", 1), ("0.0.0.0:8080", 2), ("[::]:8080", 2)]);
        let second = member(1, 2, &[("192.0.2.1:8080", 3), ("192.0.2.1:8081", 4)]);
        let book = Book { members: vec![first, second], ..Book::default() };
        let passed: Vec<(u32, u16)> = book.passed().iter().map(|(m, p)| (m.number, p.host.port())).collect();
        assert_eq!(passed, [(1, 8080), (2, 8081)]);
    }
}
