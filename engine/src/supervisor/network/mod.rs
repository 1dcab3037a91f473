//! A container's network cards: their cables, their places in networks, and the ports of the host that are passed on.
//!
//! Everything that a switch needs is kept here: a switch that was killed is started again and given the same cables and the same
//! listening sockets, so that no published port is ever lost.

mod card;
mod link;
mod reach;
mod relay;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};

use agent::protocol::{Call, Device, Interface, IpNetwork, MacAddress, Route};
use bulkhead_net::address::Cidr;
use bulkhead_net::protocol as switch;
use nix::fcntl::FlockArg;
use tokio::sync::oneshot;
use vmm::config::{MAX_NETS, RateLimit};

use self::card::{Card, End};
use self::link::{Link, Peers, Work};
use self::relay::Relays;
use super::Supervisor;
use super::guest::Guest;
use crate::EngineError;
use crate::directory::lock_file;
use crate::machine::NetCard;
use crate::model::{Container, Endpoint, Network, Place, PortBinding};
use crate::network::kernel::{self, Path, Seat};
use crate::network::{addresses, ports::Ports, resolver::Resolver, rules};
use crate::spec::MAX_NAMESERVERS;
use crate::verbs::all_networks;

/// Most bytes of a packet: Ethernet's, as Docker has it.
const MTU: u16 = 1500;

/// Network cards that a machine has beyond those in use, since none can be plugged in while it runs.
const SPARE: usize = 2;

/// The network cards of a machine.
pub(super) struct Networks {
    /// The container with its places, as it was started.
    pub(super) container: Container,
    plugs: Vec<NetCard>,
    interfaces: Vec<Interface>,
    joined: RefCell<BTreeMap<String, Joined>>,
    spare: RefCell<Vec<Card>>,
    ports: RefCell<Rc<Vec<(switch::Published, OwnedFd)>>>,
    /// The gateways that the container's resolver asks.
    asks_at: Vec<IpAddr>,
    ready: RefCell<Vec<oneshot::Receiver<Result<(), EngineError>>>>,
    peers: Peers,
}

/// A network that the container is in.
struct Joined {
    place: Place,
    card: Card,
    /// The container's way out is here, and so are its ports.
    default: bool,
    #[expect(dead_code, reason = "held for its drop")]
    link: Link,
    relays: Relays,
    /// The container's place, if the host's kernel carries the packets.
    seat: Option<Rc<Seat>>,
}

impl Networks {
    /// Gives a container its addresses and ports, makes its cables, and begins to connect them, while the machine boots.
    ///
    /// # Errors
    /// An address or a port cannot be had.
    pub(super) fn prepare(supervisor: &Supervisor, container: Container) -> Result<Self, EngineError> {
        let mut networks = Self {
            container,
            plugs: Vec::new(),
            interfaces: Vec::new(),
            joined: RefCell::default(),
            spare: RefCell::default(),
            ports: RefCell::default(),
            asks_at: Vec::new(),
            ready: RefCell::default(),
            peers: Peers::default(),
        };
        let all = all_networks(&supervisor.database)?;
        let members = members(&networks.container, &all)?;
        if members.is_empty() {
            return Ok(networks);
        }
        if members.len() > MAX_NETS {
            return Err(EngineError::Option {
                option: format!("{} networks", members.len()),
                why: format!("a machine has at most {MAX_NETS} network cards"),
                next: "disconnect the container from some".to_owned(),
            });
        }
        let ports = Ports::open(&networks.container)?;
        networks.ports = RefCell::new(Rc::new(ports.sockets));
        let (receive, send) = rules::limits(&networks.container.config.labels)?;
        let places = networks.reserve(supervisor, &members, ports.shown)?;
        networks.asks_at =
            places.iter().take(MAX_NAMESERVERS).filter_map(|place| place.gateway.parse().ok()).collect();
        // A spare card is of the kind that the container has already.
        let spare = if places.iter().any(|place| place.kernel) { Path::Kernel } else { Path::Switch };
        let mut routed = false;
        for (network, place) in members.iter().zip(places) {
            let default = !network.internal && !routed;
            routed |= default;
            let card = networks.plug(mac(&place)?, path(&place), receive, send)?;
            networks.interfaces.push(interface(&place, default)?);
            let ready = networks.join(supervisor, network, place, card, default, &all)?;
            networks.ready.borrow_mut().push(ready);
        }
        for index in 0..SPARE.min(MAX_NETS - members.len()) {
            let mac = Card::spare_mac(&networks.container.id, index);
            let card = networks.plug(mac, spare, receive, send)?;
            networks.spare.borrow_mut().push(card);
        }
        Ok(networks)
    }

    /// Gives the machine a card.
    fn plug(
        &mut self,
        mac: MacAddress,
        path: Path,
        receive: RateLimit,
        send: RateLimit,
    ) -> Result<Card, EngineError> {
        let (card, cable) = Card::make(mac, path)?;
        self.plugs.push(NetCard { mac: mac.0, mtu: MTU, cable, receive, send });
        Ok(card)
    }

    /// Begins to connect a card to a network's switch; or has the host's kernel connect it, and the switch answer for names.
    fn join(
        &self,
        supervisor: &Supervisor,
        network: &Network,
        place: Place,
        card: Card,
        default: bool,
        all: &[Network],
    ) -> Result<oneshot::Receiver<Result<(), EngineError>>, EngineError> {
        let mut attachment = attachment(&supervisor.container()?, network, &place, all, &self.asks_at)?;
        let ports = if default { Rc::clone(&self.ports.borrow()) } else { Rc::default() };
        // Whatever was here before is cut first: two links cannot have one address.
        let before = self.joined.borrow_mut().remove(&network.name);
        drop(before);
        let (mut relays, mut seat) = (Relays::default(), None);
        let work = match &card.end {
            End::Cable(cable) => Work { attachment, cable: Some(Rc::clone(cable)), ports, seat: Weak::new() },
            End::Tap(tap) => {
                let action = format!("passing ports on to the network {}", network.name);
                let named = ports.iter().map(|(port, socket)| kernel::Port::of(*port, socket));
                let named =
                    named.collect::<std::io::Result<Vec<_>>>().map_err(EngineError::io(action.clone()))?;
                let taken = Rc::new(Seat::take(
                    &supervisor.paths,
                    &network.id,
                    attachment.clone(),
                    Rc::clone(tap),
                    named,
                )?);
                relays = Relays::start(&ports, &taken).map_err(EngineError::io(action))?;
                attachment.room = Some(taken.key());
                let weak = Rc::downgrade(&taken);
                seat = Some(taken);
                Work { attachment, cable: None, ports: Rc::default(), seat: weak }
            }
        };
        let (link, ready) = Link::start(&supervisor.paths, &network.name, &network.id, work, &self.peers)?;
        let joined = Joined { place, card, default, link, relays, seat };
        self.joined.borrow_mut().insert(network.name.clone(), joined);
        Ok(ready)
    }

    /// Writes the container's places down, at a time when nobody else chooses one.
    fn reserve(
        &mut self,
        supervisor: &Supervisor,
        members: &[&Network],
        shown: BTreeMap<String, Vec<PortBinding>>,
    ) -> Result<Vec<Place>, EngineError> {
        let _alone = lock_file(&supervisor.paths.networks().join(".lock"), FlockArg::LockExclusive)?;
        let others = others(supervisor)?;
        let mut places = Vec::new();
        for (index, network) in members.iter().enumerate() {
            let nothing = Endpoint::default();
            let wanted = self.container.config.endpoints.get(&network.name).unwrap_or(&nothing);
            let mut place = addresses::place(network, wanted, others.iter(), None)?;
            place.interface = format!("eth{index}");
            place.kernel = kernel_path(network, &others)? == Path::Kernel;
            places.push(place);
        }
        self.container = supervisor.change(|c| {
            c.state.places = members.iter().map(|n| n.name.clone()).zip(places.iter().cloned()).collect();
            c.state.ports = shown;
        })?;
        Ok(places)
    }

    /// The machine's ends of the cables.
    pub(super) fn take_cards(&mut self) -> Vec<NetCard> {
        std::mem::take(&mut self.plugs)
    }

    /// What the agent is told of the container's interfaces.
    pub(super) fn interfaces(&self) -> Vec<Interface> {
        self.interfaces.clone()
    }

    /// Waits until all switches know the container.
    ///
    /// # Errors
    /// One cannot be had.
    pub(super) async fn attached(&self) -> Result<(), EngineError> {
        let waiting = std::mem::take(&mut *self.ready.borrow_mut());
        for ready in waiting {
            self.attached_one(ready).await?;
        }
        Ok(())
    }

    async fn attached_one(
        &self,
        ready: oneshot::Receiver<Result<(), EngineError>>,
    ) -> Result<(), EngineError> {
        ready.await.unwrap_or_else(|_| Err(EngineError::SupervisorGone(self.container.id.clone())))
    }

    /// Cuts all links; the ports of the host are free then.
    pub(super) async fn cut(&self) {
        let all = std::mem::take(&mut *self.joined.borrow_mut());
        for mut joined in all.into_values() {
            joined.relays.end().await;
        }
        *self.ports.borrow_mut() = Rc::default();
    }

    /// Connects the running container to a network that its configuration names, over a spare card.
    ///
    /// # Errors
    /// No card is left, or the network cannot be had.
    pub(super) async fn connect(
        &self,
        supervisor: &Supervisor,
        guest: &Guest,
        name: &str,
    ) -> Result<(), EngineError> {
        let container = supervisor.container()?;
        let all = all_networks(&supervisor.database)?;
        let wanted =
            container.config.endpoints.get(name).ok_or_else(|| EngineError::NoNetwork(name.to_owned()))?;
        let network = all.iter().find(|network| network.id == wanted.network && network.driver != "null");
        let network = network.ok_or_else(|| EngineError::NoNetwork(name.to_owned()))?;
        if self.joined.borrow().contains_key(name) {
            return Ok(());
        }
        let path = kernel_path(network, &others(supervisor)?)?;
        let card = self.spare.borrow().iter().rev().find(|card| card.path() == path).cloned();
        let card = card.ok_or_else(|| EngineError::Option {
            option: format!("connecting a running container to the network {name}"),
            why: if self.spare.borrow().is_empty() {
                "its machine has no network card left, and none can be plugged in while it runs".to_owned()
            } else {
                "one of the two is connected by the host's kernel and one by a switch: its cards are not of that kind"
                    .to_owned()
            },
            next: "disconnect it from another network, or stop it, connect it, and start it again".to_owned(),
        })?;
        if !wanted.mac.is_empty() && wanted.mac.parse() != Ok(card.mac) {
            return Err(EngineError::Option {
                option: format!("--mac-address {} of a running container", wanted.mac),
                why: "the network cards of a running machine have their addresses".to_owned(),
                next: "stop the container, connect it, and start it again".to_owned(),
            });
        }
        let place = {
            let _alone = lock_file(&supervisor.paths.networks().join(".lock"), FlockArg::LockExclusive)?;
            let mut place = addresses::place(network, wanted, others(supervisor)?.iter(), Some(card.mac))?;
            place.interface = self.free_interface();
            place.kernel = path == Path::Kernel;
            supervisor.change(|c| drop(c.state.places.insert(name.to_owned(), place.clone())))?;
            place
        };
        self.spare.borrow_mut().retain(|spare| spare.mac != card.mac);
        let default = !network.internal && !self.joined.borrow().values().any(|joined| joined.default);
        let connected = async {
            let ready = self.join(supervisor, network, place.clone(), card.clone(), default, &all)?;
            self.attached_one(ready).await?;
            guest.call(Call::NetworkAttach(Box::new(interface(&place, default)?))).await.map(drop)
        };
        let connected = connected.await;
        if connected.is_err() {
            self.leave(supervisor, name, card)?;
        }
        connected
    }

    /// Takes the running container out of a network. Its way out and its ports move to another one, if there is one.
    ///
    /// # Errors
    /// The guest does not let go, or the other network cannot be had.
    pub(super) async fn disconnect(
        &self,
        supervisor: &Supervisor,
        guest: &Guest,
        name: &str,
    ) -> Result<(), EngineError> {
        let found =
            self.joined.borrow().get(name).map(|j| (j.place.interface.clone(), j.card.clone(), j.default));
        let Some((interface_name, card, was_default)) = found else { return Ok(()) };
        guest.call(Call::NetworkDetach { name: interface_name }).await?;
        self.leave(supervisor, name, card)?;
        if !was_default {
            return Ok(());
        }
        let next = {
            let joined = self.joined.borrow();
            let next = joined.iter().find(|(_, joined)| !joined.place.internal);
            next.map(|(name, joined)| (name.clone(), joined.place.clone(), joined.card.clone()))
        };
        let Some((name, place, card)) = next else { return Ok(()) };
        let all = all_networks(&supervisor.database)?;
        let network = all.iter().find(|network| network.id == place.network);
        let network = network.ok_or_else(|| EngineError::NoNetwork(name.clone()))?;
        guest.call(Call::NetworkDetach { name: place.interface.clone() }).await?;
        let ready = self.join(supervisor, network, place.clone(), card, true, &all)?;
        self.attached_one(ready).await?;
        guest.call(Call::NetworkAttach(Box::new(interface(&place, true)?))).await.map(drop)
    }

    fn leave(&self, supervisor: &Supervisor, name: &str, card: Card) -> Result<(), EngineError> {
        let joined = self.joined.borrow_mut().remove(name);
        drop(joined);
        self.spare.borrow_mut().push(card);
        supervisor.change(|c| drop(c.state.places.remove(name))).map(drop)
    }

    fn free_interface(&self) -> String {
        let joined = self.joined.borrow();
        let free = (0..MAX_NETS).map(|n| format!("eth{n}"));
        let mut free = free.filter(|name| !joined.values().any(|joined| joined.place.interface == *name));
        free.next().unwrap_or_else(|| "eth".to_owned())
    }

    /// What the switches counted, by network.
    pub(super) async fn reports(&self) -> BTreeMap<String, switch::Report> {
        let keys: Vec<String> = self.joined.borrow().keys().cloned().collect();
        let mut reports = BTreeMap::new();
        for key in keys {
            let Some(mut report) = link::report(&self.peers, &key).await else { continue };
            let seat = self.joined.borrow().get(&key).and_then(|joined| joined.seat.clone());
            if let Some(Ok(counted)) = seat.map(|seat| seat.report()) {
                (report.sent, report.received, report.flows) =
                    (counted.sent, counted.received, counted.flows);
                for (reason, count) in counted.refused {
                    kernel::add_count(&mut report.refused, reason, count);
                }
            }
            reports.insert(key, report);
        }
        reports
    }
}

impl Supervisor {
    /// Connects the running container to a network that its configuration names.
    pub(super) async fn join_network(&self, network: &str) -> Result<(), EngineError> {
        let _turn = self.lifecycle.lock().await;
        let run = self.running()?;
        run.networks.connect(self, &run.booted.guest, network).await
    }

    /// Takes the running container out of a network.
    pub(super) async fn leave_network(&self, network: &str) -> Result<(), EngineError> {
        let _turn = self.lifecycle.lock().await;
        let run = self.running()?;
        run.networks.disconnect(self, &run.booted.guest, network).await
    }

    /// What the switches of its networks counted.
    pub(super) async fn count(&self) -> Result<BTreeMap<String, switch::Report>, EngineError> {
        Ok(self.running()?.networks.reports().await)
    }
}

/// The places of all other containers.
fn others(supervisor: &Supervisor) -> Result<Vec<Place>, EngineError> {
    let containers = supervisor.database.containers()?;
    let others = containers.into_iter().filter(|other| other.id != supervisor.id);
    Ok(others.flat_map(|other| other.state.places.into_values()).collect())
}

/// Who carries a network's packets: while anybody else is in it, it stays as it is.
fn kernel_path(network: &Network, others: &[Place]) -> Result<Path, EngineError> {
    Path::of(network, others.iter().find(|place| place.network == network.id).map(path))
}

fn path(place: &Place) -> Path {
    if place.kernel { Path::Kernel } else { Path::Switch }
}

/// The networks that a container is in; that of its network mode first, which is where its way out is.
fn members<'a>(container: &Container, all: &'a [Network]) -> Result<Vec<&'a Network>, EngineError> {
    let config = &container.config;
    let mut members = Vec::new();
    for (name, endpoint) in &config.endpoints {
        let network = all.iter().find(|network| network.id == endpoint.network);
        let network = network.ok_or_else(|| EngineError::NoNetwork(name.clone()))?;
        if network.driver != "null" {
            members.push(network);
        }
    }
    members.sort_by_key(|network| network.name != config.network_mode);
    Ok(members)
}

fn mac(place: &Place) -> Result<MacAddress, EngineError> {
    place.mac.parse().map_err(|_| EngineError::Invalid(format!("invalid MAC address: {}", place.mac)))
}

fn ip<T: std::str::FromStr>(text: &str) -> Result<T, EngineError> {
    text.parse().map_err(|_| EngineError::Invalid(format!("invalid address: {text}")))
}

/// What the agent is told.
fn interface(place: &Place, default: bool) -> Result<Interface, EngineError> {
    let wrong = || EngineError::Invalid(format!("invalid address: {}", place.ipv4));
    let mut interface = Interface {
        device: Device::Mac(mac(place)?),
        name: place.interface.clone(),
        addresses: Vec::new(),
        mtu: None,
        routes: Vec::new(),
    };
    let families = [
        (&place.ipv4, place.ipv4_prefix, &place.gateway, "0.0.0.0/0"),
        (&place.ipv6, place.ipv6_prefix, &place.gateway6, "::/0"),
    ];
    for (address, prefix, gateway, everywhere) in families {
        if address.is_empty() {
            continue;
        }
        interface.addresses.push(IpNetwork::new(ip(address)?, prefix).ok_or_else(wrong)?);
        if default {
            let destination = everywhere.parse().map_err(|_| wrong())?;
            interface.routes.push(Route { destination, gateway: Some(ip(gateway)?) });
        }
    }
    Ok(interface)
}

/// What the switch is told.
fn attachment(
    container: &Container,
    network: &Network,
    place: &Place,
    all: &[Network],
    asks_at: &[IpAddr],
) -> Result<switch::Attachment, EngineError> {
    let config = &container.config;
    let (four, six) = addresses::Range::both(network)?;
    let range = |range: &addresses::Range| (range.range, range.gateway);
    let ipv4 = match range(&four) {
        (range, IpAddr::V4(gateway)) => (range, gateway),
        _ => return Err(EngineError::Invalid(format!("network {} has no IPv4 subnet", network.name))),
    };
    let ipv6 = six.as_ref().map(range).and_then(|(range, gateway)| match gateway {
        IpAddr::V6(gateway) => Some((range, gateway)),
        IpAddr::V4(_) => None,
    });
    let networks: Vec<Cidr> =
        all.iter().flat_map(|n| &n.subnets).filter_map(|s| s.subnet.parse().ok()).collect();
    let mut values = network.options.clone();
    values.extend(network.labels.clone());
    // As with Docker, containers of the default network do not know each other.
    let names = network.id != crate::verbs::default_network().id;
    let endpoint = config.endpoints.get(&network.name);
    let mut own = vec![container.name.to_ascii_lowercase(), container.id.chars().take(12).collect()];
    own.extend(
        endpoint.iter().flat_map(|endpoint| &endpoint.aliases).map(|alias| alias.to_ascii_lowercase()),
    );
    own.push(crate::spec::hostname(container).to_ascii_lowercase());
    own.sort_by_key(|name| *name != container.name.to_ascii_lowercase());
    own.dedup();
    let mut resolvers: Vec<IpAddr> = config.dns.iter().filter_map(|server| server.parse().ok()).collect();
    if resolvers.is_empty() {
        resolvers = Resolver::of_host().servers;
    }
    resolvers.truncate(switch::MAX_RESOLVERS);
    Ok(switch::Attachment {
        network: switch::Network {
            name: network.name.clone(),
            ipv4,
            ipv6,
            internal: network.internal,
            names,
            egress: rules::egress(&values)?,
            networks: networks.into_iter().take(switch::MAX_NETWORKS).collect(),
            mtu: MTU,
        },
        container: container.name.clone(),
        mac: mac(place)?.0,
        ipv4: ip(&place.ipv4)?,
        ipv6: if place.ipv6.is_empty() { None } else { Some(ip(&place.ipv6)?) },
        names: own,
        egress: rules::egress(&config.labels)?,
        resolvers,
        // The supervisor knows of the others, and of those that are yet to come.
        elsewhere: true,
        room: None,
        asks_at: asks_at.to_vec(),
    })
}
