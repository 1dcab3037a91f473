//! Packets for the gateway: its own services, and the ways out.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::Switch;
use crate::egress::{Destination, Protocol, decide};
use crate::frame::{ICMP, ICMPV6, Packet, TCP, UDP, echo_reply, tcp_reset, unreachable};
use crate::gateway::{FlowKey, dns};
use crate::reason::Reason;

impl Switch {
    /// A packet that a container sent to the gateway's hardware address; its source is the container's own.
    pub(super) fn take_packet(&mut self, id: u64, packet: &Packet<'_>) -> Result<(), Reason> {
        if packet.fragment {
            return Err(Reason::Fragment);
        }
        let own = self.gateway(packet.destination.is_ipv6()) == Some(packet.destination)
            || self.members.get(&id).is_some_and(|member| member.place.asks_at.contains(&packet.destination));
        let key = self.key(id, packet);
        // A flow that stands was looked at when it began: one to a published port may come from anywhere.
        if let Some(flow) = key.and_then(|key| self.keys.get(&key).copied()) {
            return self.of_flow(flow, packet);
        }
        if own {
            return self.serve_own(id, packet);
        }
        let Some(key) = key else { return self.refuse(id, packet, Reason::Protocol) };
        // A segment of a flow that is no more.
        if key.protocol == Protocol::Tcp && !packet.tcp_flags().is_some_and(|flags| flags.opens()) {
            self.deliver(id, tcp_reset(packet));
            return Ok(());
        }
        let to = Destination { protocol: key.protocol, address: key.remote.ip(), port: key.remote.port() };
        if let Err(reason) = self.may_leave(id, &to) {
            return self.refuse(id, packet, reason);
        }
        match key.protocol {
            Protocol::Tcp => self.begin_stream(key, packet),
            Protocol::Udp | Protocol::Icmp => self.begin_datagrams(key, packet),
        }
    }

    /// The flow that a packet is of, whether there is one yet or not.
    fn key(&self, id: u64, packet: &Packet<'_>) -> Option<FlowKey> {
        let (protocol, guest, remote) = match packet.protocol {
            TCP | UDP => {
                let (guest, remote) = packet.ends()?;
                (if packet.protocol == TCP { Protocol::Tcp } else { Protocol::Udp }, guest, remote)
            }
            ICMP | ICMPV6 => {
                let echo = packet.echo()?;
                let guest = SocketAddr::new(packet.source, echo.identifier);
                (Protocol::Icmp, guest, SocketAddr::new(packet.destination, 0))
            }
            _ => return None,
        };
        Some(FlowKey { member: id, protocol, guest, remote })
    }

    fn of_flow(&mut self, flow: u64, packet: &Packet<'_>) -> Result<(), Reason> {
        if let Some(stream) = self.streams.get_mut(&flow) {
            let taken = stream.on_segment(packet.bytes);
            self.turn(flow, Instant::now());
            return if taken { Ok(()) } else { Err(Reason::Full) };
        }
        self.take_datagram(flow, packet)
    }

    /// The gateway's own services: names, and being there.
    fn serve_own(&mut self, id: u64, packet: &Packet<'_>) -> Result<(), Reason> {
        if let Some(echo) = packet.echo() {
            self.deliver(id, echo_reply(packet.destination, packet.source, &echo));
            return Ok(());
        }
        match (packet.protocol, packet.ends()) {
            (UDP, Some((guest, to))) if to.port() == dns::PORT => {
                let question = packet.datagram().ok_or(Reason::Malformed)?.to_vec();
                self.on_question(id, super::questions::Asker::Datagram(guest, to), &question)
            }
            (TCP, Some((guest, remote))) if to_dns(packet) => {
                self.begin_questions(FlowKey { member: id, protocol: Protocol::Tcp, guest, remote }, packet)
            }
            _ => self.refuse(id, packet, Reason::Gateway),
        }
    }

    /// Whether a container may begin this flow.
    pub(super) fn may_leave(&mut self, id: u64, to: &Destination) -> Result<(), Reason> {
        let (Some(member), Some(net)) = (self.members.get(&id), &mut self.network) else {
            return Err(Reason::Internal);
        };
        if net.said.ipv4.0.contains(to.address)
            || net.said.ipv6.is_some_and(|(range, _)| range.contains(to.address))
        {
            return Err(Reason::NoMember);
        }
        if net.said.internal {
            return Err(Reason::Internal);
        }
        net.around.host.clear();
        net.around.host.extend_from_slice(self.host.now());
        let names = member.answers.of(to.address, Instant::now());
        decide([&net.policy, &member.policy], &net.around, to, &names)
    }

    /// Tells a container that it may not, and the log.
    pub(super) fn refuse(&mut self, id: u64, packet: &Packet<'_>, reason: Reason) -> Result<(), Reason> {
        let answer = match packet.protocol {
            TCP => tcp_reset(packet),
            _ => {
                let gateway = self.gateway(packet.source.is_ipv6());
                let port = reason == Reason::Gateway;
                gateway.filter(|_| !is_error(packet)).and_then(|gateway| unreachable(gateway, packet, port))
            }
        };
        self.deliver(id, answer);
        self.log_refusal(id, packet.destination, packet.ports().map(|(_, to)| to), packet.protocol, reason);
        Err(reason)
    }

    fn log_refusal(&mut self, id: u64, to: IpAddr, port: Option<u16>, protocol: u8, reason: Reason) {
        let (Some(member), Some(net)) = (self.members.get(&id), &self.network) else { return };
        let protocol = match protocol {
            TCP => "tcp".to_owned(),
            UDP => "udp".to_owned(),
            ICMP | ICMPV6 => "icmp".to_owned(),
            other => format!("protocol {other}"),
        };
        let port = port.map(|port| format!(" port {port}")).unwrap_or_default();
        let (container, network) = (&member.place.container, &net.said.name);
        self.log.line(&format_args!("refused {reason}: {container} on {network} to {to}{port} {protocol}"));
    }
}

fn to_dns(packet: &Packet<'_>) -> bool {
    let opens = packet.tcp_flags().is_some_and(|flags| flags.opens());
    opens && packet.ports().is_some_and(|(_, to)| to == dns::PORT)
}

/// An ICMP message that is no request: nobody answers errors with errors (RFC 1122 section 3.2.2).
fn is_error(packet: &Packet<'_>) -> bool {
    matches!(packet.protocol, ICMP | ICMPV6) && packet.echo().is_none()
}
