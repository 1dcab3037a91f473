//! Networks: their names, ranges and members. Packets are another room's.

use std::collections::BTreeMap;

use bulkhead_net::address::Cidr;
use bulkhead_net::protocol::Report;
use nix::fcntl::FlockArg;

use crate::directory::lock_file;
use crate::model::{Container, Endpoint, Event, EventKind, Network, Status, Subnet, now};
use crate::network::addresses::Range;
use crate::network::{kernel, rules};
use crate::supervisor::wire::{Ask, Reply};
use crate::{Database, Engine, EngineError, ids, names};

/// The networks that are always there: name and driver.
const ALWAYS: [(&str, &str); 2] = [("bridge", "bridge"), ("none", "null")];

/// What a new network is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkOptions {
    /// Its name.
    pub name: String,
    /// `bridge`, or empty.
    pub driver: String,
    /// Its address ranges; one is found when there are none.
    pub subnets: Vec<Subnet>,
    /// It has no way out.
    pub internal: bool,
    /// It has IPv6 addresses.
    pub ipv6: bool,
    /// Containers may attach to it by hand.
    pub attachable: bool,
    /// Free names and values.
    pub labels: BTreeMap<String, String>,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
}

impl Engine {
    /// All networks, those that are always there first.
    ///
    /// # Errors
    /// The state database cannot be read.
    pub fn networks(&self) -> Result<Vec<Network>, EngineError> {
        all_networks(self.database())
    }

    /// One network, by name, id or unambiguous beginning of its id.
    ///
    /// # Errors
    /// There is none, or there are several.
    pub fn network(&self, name: &str) -> Result<Network, EngineError> {
        let all = self.networks()?;
        if let Some(exact) = all.iter().find(|network| network.name == name || network.id == name) {
            return Ok(exact.clone());
        }
        let mut beginning =
            all.into_iter().filter(|network| !name.is_empty() && network.id.starts_with(name));
        match (beginning.next(), beginning.next()) {
            (Some(network), None) => Ok(network),
            (None, _) => Err(EngineError::NoNetwork(name.to_owned())),
            (Some(_), Some(_)) => Err(EngineError::Ambiguous(name.to_owned())),
        }
    }

    /// Creates a network.
    ///
    /// # Errors
    /// Its name is taken or malformed, or its driver is not supported.
    pub fn create_network(&self, options: NetworkOptions) -> Result<Network, EngineError> {
        names::check_volume(&options.name)?;
        if !matches!(options.driver.as_str(), "" | "bridge" | "default") {
            return Err(EngineError::Option {
                option: format!("network driver {}", options.driver),
                why: "machines are connected by a switch of Bulkhead's own".to_owned(),
                next: "use the driver bridge".to_owned(),
            });
        }
        if ALWAYS.iter().any(|(name, _)| *name == options.name) || options.name == "host" {
            return Err(EngineError::Conflict(format!(
                "operation is not permitted on predefined {} network",
                options.name
            )));
        }
        let mut values = options.options.clone();
        values.extend(options.labels.clone());
        rules::egress(&values)?;
        if kernel::Path::asked(&values)? == Some(kernel::Path::Kernel) {
            kernel::try_out()?;
        }
        // Two who create a network at a time must not take the same range.
        let _alone = lock_file(&self.paths().networks().join(".lock"), FlockArg::LockExclusive)?;
        let taken: Vec<Cidr> =
            self.networks()?.iter().flat_map(|n| &n.subnets).filter_map(|s| s.subnet.parse().ok()).collect();
        let mut subnets = options.subnets;
        if !subnets.iter().any(|subnet| !subnet.subnet.contains(':')) {
            subnets.insert(0, free_subnet(&taken)?);
        }
        if options.ipv6 && !subnets.iter().any(|subnet| subnet.subnet.contains(':')) {
            subnets.push(free_subnet6()?);
        }
        let mut network = Network {
            id: ids::random()?,
            name: options.name,
            created: now(),
            driver: "bridge".to_owned(),
            subnets,
            internal: options.internal,
            ipv6: options.ipv6,
            attachable: options.attachable,
            labels: options.labels,
            options: options.options,
        };
        let (four, six) = Range::both(&network)?;
        for range in [Some(four), six].into_iter().flatten() {
            if let Some(other) = taken.iter().find(|other| other.overlaps(&range.range)) {
                return Err(EngineError::Conflict(format!(
                    "invalid pool request: Pool overlaps with other one on this address space: {other}"
                )));
            }
        }
        for subnet in &mut network.subnets {
            let range = Range::new(subnet)?;
            (subnet.subnet, subnet.gateway) = (range.range.to_string(), range.gateway.to_string());
        }
        self.database().insert_network(&network)?;
        self.network_event(&network, "create", None)?;
        Ok(network)
    }

    /// Removes a network without containers.
    ///
    /// # Errors
    /// It has containers, or is always there.
    pub fn remove_network(&self, name: &str) -> Result<(), EngineError> {
        let network = self.network(name)?;
        let refuse = |why: String| Err(EngineError::NetworkInUse { name: network.name.clone(), why });
        if ALWAYS.iter().any(|(name, _)| *name == network.name) {
            return refuse(format!("{} is a pre-defined network and cannot be removed", network.name));
        }
        if let Some(member) = self.members_of(&network)?.first() {
            return refuse(format!("network {} has active endpoints: {member}", network.name));
        }
        self.database().delete_network(&network.id)?;
        let _ = std::fs::remove_dir_all(self.paths().networks().join(&network.id));
        self.network_event(&network, "destroy", None)
    }

    /// Names of the running containers that are attached to a network.
    ///
    /// # Errors
    /// The state database cannot be read.
    pub fn members_of(&self, network: &Network) -> Result<Vec<String>, EngineError> {
        let attached = self.containers()?.into_iter().filter(|container| {
            container.state.status.is_running()
                && container.config.endpoints.values().any(|endpoint| endpoint.network == network.id)
        });
        Ok(attached.map(|container| container.name).collect())
    }

    /// Attaches a container to a network.
    ///
    /// # Errors
    /// It is attached already.
    pub async fn connect(
        &self,
        network: &str,
        container: &str,
        endpoint: Endpoint,
    ) -> Result<(), EngineError> {
        let (network, container) = (self.network(network)?, self.container(container)?);
        let private = container.config.network_mode == "none" || network.driver == "null";
        if private {
            return Err(EngineError::Conflict(
                "container cannot be connected to multiple networks with one of the networks in private (none) mode"
                    .to_owned(),
            ));
        }
        self.database().change_config(&container.id, |config| {
            if config.endpoints.contains_key(&network.name) {
                return Err(EngineError::Conflict(format!(
                    "endpoint with name {} already exists in network {}",
                    container.name, network.name
                )));
            }
            let endpoint = Endpoint { network: network.id.clone(), ..endpoint };
            config.endpoints.insert(network.name.clone(), endpoint);
            Ok(())
        })?;
        if has_machine(&container) {
            let ask = Ask::Connect { network: network.name.clone() };
            if let Err(error) = self.ask_running(&container.id, &ask).await {
                self.database().change_config(&container.id, |config| {
                    config.endpoints.remove(&network.name);
                    Ok(())
                })?;
                return Err(error);
            }
        }
        self.network_event(&network, "connect", Some(&container.id))
    }

    /// Detaches a container from a network. `force`: that it is not attached is no error.
    ///
    /// # Errors
    /// It is not attached.
    pub async fn disconnect(&self, network: &str, container: &str, force: bool) -> Result<(), EngineError> {
        let (network, container) = (self.network(network)?, self.container(container)?);
        if has_machine(&container) && container.config.endpoints.contains_key(&network.name) {
            let ask = Ask::Disconnect { network: network.name.clone() };
            self.ask_running(&container.id, &ask).await?;
        }
        self.database().change_config(&container.id, |config| {
            if config.endpoints.remove(&network.name).is_none() && !force {
                return Err(EngineError::Conflict(format!(
                    "container {} is not connected to network {}",
                    container.id, network.name
                )));
            }
            Ok(())
        })?;
        self.network_event(&network, "disconnect", Some(&container.id))
    }

    /// What the switches of a running container's networks counted, by network.
    ///
    /// # Errors
    /// It does not run.
    pub async fn network_counts(&self, container: &str) -> Result<BTreeMap<String, Report>, EngineError> {
        let container = self.container(container)?;
        match self.ask_running(&container.id, &Ask::Count).await? {
            Reply::Counted(counts) => Ok(counts),
            _ => Err(crate::engine::unexpected(&container)),
        }
    }

    fn network_event(
        &self,
        network: &Network,
        action: &str,
        container: Option<&str>,
    ) -> Result<(), EngineError> {
        let mut attributes: BTreeMap<String, String> =
            [("name".to_owned(), network.name.clone()), ("type".to_owned(), network.driver.clone())].into();
        attributes.extend(container.map(|id| ("container".to_owned(), id.to_owned())));
        self.record(&Event {
            sequence: 0,
            time: now(),
            kind: EventKind::Network,
            action: action.to_owned(),
            actor: network.id.clone(),
            attributes,
        })
    }
}

/// All networks, those that are always there first.
pub(crate) fn all_networks(database: &Database) -> Result<Vec<Network>, EngineError> {
    let mut all: Vec<Network> = ALWAYS.iter().map(|(name, driver)| always(name, driver)).collect();
    all.extend(database.networks()?);
    Ok(all)
}

/// The network that containers are in if nothing else is said.
pub(crate) fn default_network() -> Network {
    always("bridge", "bridge")
}

/// Whether a container has a machine now: one that waits to be started again has none.
fn has_machine(container: &Container) -> bool {
    matches!(container.state.status, Status::Running | Status::Paused)
}

/// A network that is always there; its id is made of its name, so that it is the same everywhere.
fn always(name: &str, driver: &str) -> Network {
    let hex: String = name.bytes().cycle().take(32).map(|byte| format!("{byte:02x}")).collect();
    let bridge = driver == "bridge";
    let subnet =
        Subnet { subnet: "172.17.0.0/16".into(), range: String::new(), gateway: "172.17.0.1".into() };
    Network {
        id: hex,
        name: name.to_owned(),
        created: 0,
        driver: driver.to_owned(),
        subnets: if bridge { vec![subnet] } else { Vec::new() },
        internal: false,
        ipv6: false,
        attachable: false,
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
    }
}

/// The first range of Docker's pools that no network has.
fn free_subnet(taken: &[Cidr]) -> Result<Subnet, EngineError> {
    let sixteen = (18..32).map(|n| (format!("172.{n}.0.0/16"), format!("172.{n}.0.1")));
    let twenty = (0..16).map(|n| (format!("192.168.{}.0/20", n * 16), format!("192.168.{}.1", n * 16)));
    let free = sixteen.chain(twenty).find(|(subnet, _)| {
        subnet.parse::<Cidr>().is_ok_and(|range| !taken.iter().any(|other| other.overlaps(&range)))
    });
    let (subnet, gateway) = free.ok_or_else(|| {
        EngineError::Conflict("all predefined address pools have been fully subnetted".to_owned())
    })?;
    Ok(Subnet { subnet, range: String::new(), gateway })
}

/// A range of the addresses that everybody may have (RFC 4193), with a number that nobody else is likely to have.
fn free_subnet6() -> Result<Subnet, EngineError> {
    let digits = ids::random()?;
    let part = |at: usize| digits.get(at..at + 4).unwrap_or("0").to_owned();
    let prefix = format!("fd{}:{}:{}:{}", &part(0)[..2], part(4), part(8), part(12));
    Ok(Subnet { subnet: format!("{prefix}::/64"), range: String::new(), gateway: String::new() })
}
