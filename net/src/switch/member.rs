//! A container in the network.

use std::collections::HashSet;
use std::net::IpAddr;

use crate::cable::Cable;
use crate::egress::{Answers, Policy};
use crate::frame::Mac;
use crate::protocol::{Attachment, Report};
use crate::reason::Counts;

/// A container.
pub struct Member {
    /// What its supervisor said of it.
    pub place: Attachment,
    /// Its rules.
    pub policy: Policy,
    /// Its cable.
    pub cable: Cable,
    /// What our resolver told it.
    pub answers: Answers,
    /// What was not let through.
    pub counts: Counts,
    /// Frames that it sent.
    pub sent: u64,
    /// Flows that there were.
    pub flows: u64,
    /// TCP flows that there are.
    pub streams: usize,
    /// Flows of datagrams that there are.
    pub datagrams: usize,
    /// Questions that are under way.
    pub queries: usize,
    /// Flows that wait for room on the cable.
    pub waiting: HashSet<u64>,
}

impl Member {
    pub fn new(place: Attachment, policy: Policy, cable: Cable) -> Self {
        Self {
            place,
            policy,
            cable,
            answers: Answers::default(),
            counts: Counts::default(),
            sent: 0,
            flows: 0,
            streams: 0,
            datagrams: 0,
            queries: 0,
            waiting: HashSet::new(),
        }
    }

    pub fn mac(&self) -> Mac {
        self.place.mac
    }

    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [Some(IpAddr::V4(self.place.ipv4)), self.place.ipv6.map(IpAddr::V6)].into_iter().flatten()
    }

    /// Whether an address is its own.
    pub fn has(&self, address: IpAddr) -> bool {
        self.addresses().any(|own| own == address)
    }

    pub fn report(&self) -> Report {
        Report {
            sent: self.sent,
            received: self.cable.given,
            flows: self.flows,
            refused: self.counts.given().collect(),
        }
    }
}
