//! Frames from a container: checked against what its attachment says, then on to another container or to the gateway.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use super::{GATEWAY_MAC, Switch};
use crate::cable::Received;
use crate::frame::{
    ARP, ArpRequest, ETHERNET_BYTES, Frame, ICMP, ICMPV6, IPV4, IPV6, Mac, Packet, Rest, arp_reply, ethernet,
    neighbor_advertisement,
};
use crate::reactor::{Kind, Token};
use crate::reason::Reason;

/// Most frames of a container's in one turn.
const MAX_FRAMES: usize = 64;
/// Bytes of a VLAN tag, which the VMM's device lets pass on top of the MTU.
const TAG: usize = 4;

impl Switch {
    pub(super) fn on_cable(&mut self, id: u64, readable: bool, writable: bool) {
        if writable && let Some(member) = self.members.get_mut(&id) {
            member.cable.on_room();
            if !member.cable.is_full() {
                let now = Instant::now();
                let waiting: Vec<u64> = member.waiting.drain().collect();
                waiting.into_iter().for_each(|flow| self.turn(flow, now));
            }
        }
        if !readable {
            return;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        for count in 0.. {
            if count == MAX_FRAMES {
                self.reactor.again(Token { kind: Kind::Cable, id });
                break;
            }
            let Some(member) = self.members.get_mut(&id) else { break };
            match member.cable.receive(&mut buffer) {
                Received::Frame(length) => {
                    member.sent += 1;
                    let bytes = buffer.get(..length).unwrap_or_default();
                    let taken = Rest::split(bytes).and_then(|(rest, frame)| self.take_frame(id, rest, frame));
                    if let Err(reason) = taken {
                        self.count(id, reason);
                    }
                }
                Received::TooLong => member.counts.add(Reason::TooLong),
                Received::Nothing | Received::Closed => break,
            }
        }
        self.buffer = buffer;
    }

    /// Counts what was not let through.
    pub(super) fn count(&mut self, id: u64, reason: Reason) {
        if let Some(member) = self.members.get_mut(&id) {
            member.counts.add(reason);
        }
    }

    /// One frame of a container's.
    fn take_frame(&mut self, id: u64, rest: Rest, bytes: &[u8]) -> Result<(), Reason> {
        let (Some(member), Some(net)) = (self.members.get(&id), &self.network) else { return Ok(()) };
        let mtu = net.said.mtu;
        if bytes.len() > rest.most(mtu) + ETHERNET_BYTES + TAG {
            return Err(Reason::TooLong);
        }
        let frame = Frame::read(bytes).ok_or(Reason::Malformed)?;
        if frame.from != member.mac() {
            return Err(Reason::ForeignMac);
        }
        match frame.kind {
            ARP if !rest.is_done() => return Err(Reason::Malformed),
            ARP => return self.on_arp(id, &frame),
            IPV4 | IPV6 => {}
            _ => return Err(Reason::EtherType),
        }
        if frame.is_for_group() && frame.kind == IPV4 {
            return Err(Reason::Multicast);
        }
        let packet = Packet::read(frame.kind, frame.payload)?;
        if packet.payload.len() > rest.most(mtu) {
            return Err(Reason::TooLong);
        }
        let rest = rest.check(&packet, mtu)?;
        if packet.protocol == ICMPV6 && is_neighbor_discovery(&packet) {
            return self.on_neighbor_discovery(id, &packet);
        }
        if frame.is_for_group() {
            return Err(Reason::Multicast);
        }
        if !member.has(packet.source) {
            return Err(Reason::ForeignAddress);
        }
        if frame.to == GATEWAY_MAC {
            return self.take_packet(id, &packet);
        }
        // What it was padded with does not travel.
        let bytes = bytes.get(..ETHERNET_BYTES + packet.bytes.len()).ok_or(Reason::Malformed)?;
        self.pass_on(&frame, &packet, rest, bytes)
    }

    fn pass_on(
        &mut self,
        frame: &Frame<'_>,
        packet: &Packet<'_>,
        rest: Rest,
        bytes: &[u8],
    ) -> Result<(), Reason> {
        let other = self.by_mac.get(&frame.to).and_then(|other| self.members.get_mut(other));
        let other = other.filter(|other| other.has(packet.destination)).ok_or(Reason::NoMember)?;
        // Redirects: nobody here knows a better way.
        if packet.protocol == ICMP && packet.payload.first() == Some(&5) {
            return Err(Reason::Protocol);
        }
        if other.cable.offer(rest, bytes) { Ok(()) } else { Err(Reason::Full) }
    }

    /// Whose hardware address an address of the network has, as its asker may know it.
    fn owner(&self, asker: u64, address: IpAddr) -> Option<Mac> {
        if self.gateway(address.is_ipv6()) == Some(address) {
            return Some(GATEWAY_MAC);
        }
        let other = self.by_address.get(&address).filter(|other| **other != asker)?;
        self.members.get(other).map(super::member::Member::mac)
    }

    fn on_arp(&mut self, id: u64, frame: &Frame<'_>) -> Result<(), Reason> {
        // Replies that nobody asked for, and what else there is: no guest has anything to announce.
        let request = ArpRequest::read(frame.payload).ok_or(Reason::EtherType)?;
        let Some(member) = self.members.get(&id) else { return Ok(()) };
        let mac = member.mac();
        let own = [Ipv4Addr::UNSPECIFIED, member.place.ipv4];
        if request.sender_mac != mac {
            return Err(Reason::ForeignMac);
        }
        if !own.contains(&request.sender) {
            return Err(Reason::ForeignAddress);
        }
        if let Some(owner) = self.owner(id, request.target.into()) {
            let reply = arp_reply(&request, owner, mac);
            self.deliver_frame(id, &reply);
        }
        Ok(())
    }

    /// Neighbor discovery ends here: the switch answers for everybody, and no guest's words reach another.
    fn on_neighbor_discovery(&mut self, id: u64, packet: &Packet<'_>) -> Result<(), Reason> {
        let target = packet.solicited().ok_or(Reason::Multicast)?;
        let Some(member) = self.members.get(&id) else { return Ok(()) };
        let IpAddr::V6(source) = packet.source else { return Ok(()) };
        if source.is_unspecified() {
            // It asks whether somebody else has the address that it was given: nobody has.
            return Ok(());
        }
        // A kernel may ask by its link-local address, which only the answer goes to.
        let asks = member.place.ipv6 == Some(source) || source.is_unicast_link_local();
        if !asks {
            return Err(Reason::ForeignAddress);
        }
        let (to, gateway) = (member.mac(), self.gateway(true) == Some(target.into()));
        if let Some(owner) = self.owner(id, Ipv6Addr::into(target))
            && let Some(reply) = neighbor_advertisement(target, owner, source, gateway)
        {
            self.deliver_frame(id, &ethernet(to, owner, &reply));
        }
        Ok(())
    }

    /// Gives a container a frame.
    pub(super) fn deliver_frame(&mut self, id: u64, frame: &[u8]) {
        if let Some(member) = self.members.get_mut(&id)
            && !member.cable.offer(Rest::default(), frame)
        {
            member.counts.add(Reason::Full);
        }
    }

    /// Gives a container a packet, from the gateway.
    pub(super) fn deliver(&mut self, id: u64, packet: Option<Vec<u8>>) {
        let Some(packet) = packet else { return };
        let Some(mac) = self.members.get(&id).map(super::member::Member::mac) else { return };
        self.deliver_frame(id, &ethernet(mac, GATEWAY_MAC, &packet));
    }
}

/// Router and neighbor solicitations and advertisements, and redirects (RFC 4861 section 4).
fn is_neighbor_discovery(packet: &Packet<'_>) -> bool {
    packet.payload.first().is_some_and(|kind| (133..=137).contains(kind))
}
