//! Messages of DNS: what is asked, what is answered here, and what came from a resolver.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use simple_dns::rdata::{A, AAAA, PTR, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};

/// The port of DNS.
pub const PORT: u16 = 53;
/// Bytes of a message's header.
const HEADER: usize = 12;
/// Most records of a message that is looked into.
const MAX_RECORDS: u16 = 512;
/// Seconds that an answer of ours may be kept: containers come and go.
const TTL: u32 = 5;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// The name of an address.
    NameOf(IpAddr),
    /// Something else.
    Other,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The asker's number for it.
    pub id: u16,
    /// Lower case, without a dot at its end.
    pub name: String,
    /// What is asked for.
    pub wanted: Wanted,
}

/// An answer of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The name has these addresses; perhaps none of the wanted family.
    Addresses(Vec<IpAddr>),
    /// The address has this name.
    Name(String),
    /// There is no such name.
    Unknown,
    /// It may not be asked, or its answer not be told.
    Refused,
    /// Nobody could be asked.
    Failed,
    /// It is too long: ask over TCP.
    TooLong,
}

/// The number of a message.
#[must_use]
pub fn id(message: &[u8]) -> Option<u16> {
    message.first_chunk::<2>().map(|id| u16::from_be_bytes(*id))
}

/// The message with another number.
#[must_use]
pub fn with_id(message: &[u8], id: u16) -> Vec<u8> {
    let mut message = message.to_vec();
    if let Some(place) = message.first_chunk_mut::<2>() {
        *place = id.to_be_bytes();
    }
    message
}

fn parse(message: &[u8]) -> Option<Packet<'_>> {
    let header = message.first_chunk::<HEADER>()?;
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    // The reader reserves memory for as many as there are said to be.
    let records = count(6).checked_add(count(8))?.checked_add(count(10))?;
    if count(4) != 1 || records > MAX_RECORDS {
        return None;
    }
    Packet::parse(message).ok()
}

fn name_of(name: &Name<'_>) -> Option<String> {
    let mut text = String::new();
    for label in name.as_bytes() {
        // What names of hosts and services are made of (RFC 952, RFC 2782): above all, no dots within.
        if !label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
    }
    Some(text)
}

/// Reads a question; `None` if it is none that this gateway answers or passes on.
#[must_use]
pub fn question(message: &[u8]) -> Option<Question> {
    let packet = parse(message)?;
    let [question] = packet.questions.as_slice() else { return None };
    let plain = !packet.has_flags(PacketFlag::RESPONSE)
        && packet.opcode() == simple_dns::OPCODE::StandardQuery
        && question.qclass == CLASS::IN.into()
        && packet.answers.is_empty();
    let name = name_of(&question.qname).filter(|_| plain)?;
    let wanted = match question.qtype {
        QTYPE::TYPE(TYPE::A) => Wanted::A,
        QTYPE::TYPE(TYPE::AAAA) => Wanted::Aaaa,
        QTYPE::TYPE(TYPE::PTR) => reversed(&name).map_or(Wanted::Other, Wanted::NameOf),
        // Whole zones and old kinds of all-at-once.
        QTYPE::TYPE(_) | QTYPE::ANY => Wanted::Other,
        _ => return None,
    };
    Some(Question { id: packet.id(), name, wanted })
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let parts: Vec<u8> = rest.split('.').rev().map(|part| part.parse().ok()).collect::<Option<_>>()?;
        return <[u8; 4]>::try_from(parts).ok().map(|octets| Ipv4Addr::from(octets).into());
    }
    let digits: Vec<&str> = name.strip_suffix(".ip6.arpa")?.split('.').rev().collect();
    if digits.len() != 32 || digits.iter().any(|digit| digit.len() != 1) {
        return None;
    }
    u128::from_str_radix(&digits.concat(), 16).ok().map(|bits| Ipv6Addr::from_bits(bits).into())
}

/// Makes the answer to a question; `None` if the question is none.
#[must_use]
pub fn answer(message: &[u8], reply: &Reply) -> Option<Vec<u8>> {
    let asked = parse(message)?;
    let [question] = asked.questions.as_slice() else { return None };
    let mut packet = Packet::new_reply(asked.id());
    packet.set_flags(PacketFlag::RECURSION_AVAILABLE);
    if asked.has_flags(PacketFlag::RECURSION_DESIRED) {
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    packet.questions.push(question.clone());
    let record = |data| ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL, data);
    match reply {
        Reply::Addresses(addresses) => {
            for address in addresses {
                match (address, question.qtype) {
                    (IpAddr::V4(v4), QTYPE::TYPE(TYPE::A)) => {
                        packet.answers.push(record(RData::A(A { address: v4.to_bits() })));
                    }
                    (IpAddr::V6(v6), QTYPE::TYPE(TYPE::AAAA)) => {
                        packet.answers.push(record(RData::AAAA(AAAA { address: v6.to_bits() })));
                    }
                    _ => {}
                }
            }
        }
        Reply::Name(name) => {
            let name = Name::new(name).ok()?;
            packet.answers.push(record(RData::PTR(PTR(name))));
            return packet.build_bytes_vec().ok();
        }
        Reply::Unknown => *packet.rcode_mut() = RCODE::NameError,
        Reply::Refused => *packet.rcode_mut() = RCODE::Refused,
        Reply::Failed => *packet.rcode_mut() = RCODE::ServerFailure,
        Reply::TooLong => packet.set_flags(PacketFlag::TRUNCATION),
    }
    packet.build_bytes_vec().ok()
}

/// Reads a resolver's answer to a question that was passed on under this number: the addresses in it, and how long they are valid.
/// `None` if it is no answer to that.
#[must_use]
pub fn examine(message: &[u8], id: u16, question: &Question) -> Option<Vec<(IpAddr, Duration)>> {
    let packet = parse(message)?;
    let [asked] = packet.questions.as_slice() else { return None };
    if packet.id() != id || !packet.has_flags(PacketFlag::RESPONSE) || name_of(&asked.qname)? != question.name
    {
        return None;
    }
    let records = packet.answers.iter().chain(&packet.additional_records);
    let addresses = records.filter_map(|record| {
        let address = match &record.rdata {
            RData::A(a) => IpAddr::V4(Ipv4Addr::from_bits(a.address)),
            RData::AAAA(aaaa) => IpAddr::V6(Ipv6Addr::from_bits(aaaa.address)),
            _ => return None,
        };
        Some((address, Duration::from_secs(record.ttl.into())))
    });
    Some(addresses.collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use simple_dns::Question as Asked;

    use super::*;

    fn ask(name: &str, kind: TYPE) -> Vec<u8> {
        let mut packet = Packet::new_query(7);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        packet.questions.push(Asked::new(Name::new(name).unwrap(), kind.into(), CLASS::IN.into(), false));
        packet.build_bytes_vec().unwrap()
    }

    #[test]
    fn questions_are_read() {
        let a = question(&ask("Web.Example", TYPE::A)).unwrap();
        assert_eq!(a, Question { id: 7, name: "web.example".into(), wanted: Wanted::A });
        assert_eq!(question(&ask("web", TYPE::AAAA)).unwrap().wanted, Wanted::Aaaa);
        let ptr = question(&ask("2.0.17.172.in-addr.arpa", TYPE::PTR)).unwrap();
        assert_eq!(ptr.wanted, Wanted::NameOf("172.17.0.2".parse().unwrap()));
        let six = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(
            question(&ask(six, TYPE::PTR)).unwrap().wanted,
            Wanted::NameOf("fd00::2".parse().unwrap())
        );
        // A dot within a label, which would look like another name.
        let mut dotted = ask("exampleXorg", TYPE::A);
        dotted[HEADER + 8] = b'.';
        assert_eq!(question(&dotted), None);
        let mut many = ask("a", TYPE::A);
        many[6..8].fill(0xff);
        assert_eq!(question(&many), None);
    }

    #[test]
    fn answers_are_made_and_examined() {
        let query = ask("web", TYPE::A);
        let asked = question(&query).unwrap();
        let addresses = vec!["172.18.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let answer_of = |reply| answer(&query, &reply).unwrap();
        let good = answer_of(Reply::Addresses(addresses));
        let seen = examine(&good, 7, &asked).unwrap();
        assert_eq!(seen, [("172.18.0.2".parse().unwrap(), Duration::from_secs(5))]);
        assert!(examine(&good, 8, &asked).is_none(), "another number");
        assert!(examine(&query, 7, &asked).is_none(), "no answer");
        let other = Question { name: "other".into(), ..asked.clone() };
        assert!(examine(&good, 7, &other).is_none(), "another question");
        assert_eq!(examine(&answer_of(Reply::Refused), 7, &asked).unwrap(), []);
        assert_eq!(answer_of(Reply::Unknown)[3] & 15, 3);
        assert_eq!(answer_of(Reply::Refused)[3] & 15, 5);
        assert_eq!(id(&with_id(&good, 99)), Some(99));
    }

    proptest! {
        #[test]
        fn noise_is_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), counts in any::<bool>()) {
            let mut bytes = bytes;
            if counts && bytes.len() >= HEADER {
                bytes[2..HEADER].copy_from_slice(&[1, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
            }
            if let Some(question) = question(&bytes) {
                let _ = answer(&bytes, &Reply::Unknown);
                let _ = examine(&bytes, question.id, &question);
            }
        }
    }
}
