//! What our resolver's answers called an address, for one container, as long as they are valid.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Most pairs of name and address that are remembered; the oldest goes first.
const MAX: usize = 4096;
/// An answer is remembered at least so long: a client that asked connects a moment later, even if its answer says zero.
const LEAST: Duration = Duration::from_secs(10);
/// And at most so long, whatever it says (RFC 8767 caps at a week; a day is enough for who asks again).
const MOST: Duration = Duration::from_secs(24 * 3600);

/// How long an answer is remembered that says so long.
#[must_use]
pub fn remembered(ttl: Duration) -> Duration {
    ttl.clamp(LEAST, MOST)
}

/// The answers that one container got.
#[derive(Debug, Default)]
pub struct Answers {
    names: HashMap<IpAddr, Vec<(String, Instant)>>,
    order: VecDeque<(IpAddr, String)>,
}

impl Answers {
    /// Remembers that `name` (lower case, no dot at its end) is `address` for so long.
    pub fn learn(&mut self, name: &str, address: IpAddr, ttl: Duration, now: Instant) {
        let until = now + remembered(ttl);
        let known = self.names.entry(address).or_default();
        if let Some((_, old)) = known.iter_mut().find(|(known, _)| known == name) {
            *old = until.max(*old);
            return;
        }
        known.push((name.to_owned(), until));
        self.order.push_back((address, name.to_owned()));
        while self.order.len() > MAX {
            let Some((address, name)) = self.order.pop_front() else { break };
            if let Some(known) = self.names.get_mut(&address) {
                known.retain(|(known, _)| *known != name);
                if known.is_empty() {
                    self.names.remove(&address);
                }
            }
        }
    }

    /// The names that an address has now.
    #[must_use]
    pub fn of(&self, address: IpAddr, now: Instant) -> Vec<&str> {
        let known = self.names.get(&address).map(Vec::as_slice).unwrap_or_default();
        known.iter().filter(|(_, until)| *until > now).map(|(name, _)| name.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_valid_for_their_time_and_not_longer() {
        let (mut answers, start) = (Answers::default(), Instant::now());
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        answers.learn("a.example", address, Duration::from_secs(60), start);
        answers.learn("b.example", address, Duration::ZERO, start);
        answers.learn("c.example", address, Duration::MAX, start);
        assert_eq!(answers.of(address, start), ["a.example", "b.example", "c.example"]);
        assert_eq!(answers.of(address, start + Duration::from_secs(11)), ["a.example", "c.example"]);
        assert!(answers.of(address, start + Duration::from_secs(25 * 3600)).is_empty());
        assert!(answers.of("192.0.2.2".parse().unwrap(), start).is_empty());
    }

    #[test]
    fn there_is_a_bound() {
        let (mut answers, now) = (Answers::default(), Instant::now());
        for n in 0..3 * MAX {
            let address = IpAddr::from(std::net::Ipv4Addr::from_bits(u32::try_from(n).unwrap()));
            answers.learn("x.example", address, LEAST, now);
        }
        assert_eq!((answers.order.len(), answers.names.len()), (MAX, MAX));
    }
}
