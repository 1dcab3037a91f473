//! Whom the host asks for names.

use std::fs;
use std::net::IpAddr;

/// Most bytes of /etc/resolv.conf that are read.
const MAX: usize = 64 << 10;
/// Most servers (resolv.conf(5): MAXNS is 3, but a switch asks them in turn).
const MAX_SERVERS: usize = bulkhead_net::protocol::MAX_RESOLVERS;

/// The host's resolvers, and the domains that short names are looked for in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    pub(crate) servers: Vec<IpAddr>,
    pub(crate) search: Vec<String>,
}

impl Resolver {
    /// The host's own, from `BULKHEAD_RESOLV_CONF`, else /etc/resolv.conf; none if it cannot be read.
    pub(crate) fn of_host() -> Self {
        let path = std::env::var_os("BULKHEAD_RESOLV_CONF").unwrap_or_else(|| "/etc/resolv.conf".into());
        let bytes = fs::read(path).unwrap_or_default();
        Self::read(&String::from_utf8_lossy(bytes.get(..MAX).unwrap_or(&bytes)))
    }

    fn read(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                // A link-local address has a zone behind it, and is no way out of a network.
                Some("nameserver") => {
                    resolver.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()));
                }
                Some("search" | "domain") => resolver.search = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        resolver.servers.truncate(MAX_SERVERS);
        resolver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read() {
        let text = "# comment\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\n nameserver 2001:db8::1 x\n\
                    search a.example b.example\noptions ndots:2\nnameserver\n";
        let resolver = Resolver::read(text);
        let servers: Vec<String> = resolver.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(resolver.search, ["a.example", "b.example"]);
        assert_eq!(Resolver::read(""), Resolver::default());
    }
}
