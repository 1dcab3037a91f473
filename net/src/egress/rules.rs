//! Rules as people write them: `allow=example.org:443,allow=10.0.0.0/8,deny-all`.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::{Destination, Protocol};
use crate::address::Cidr;

/// Most rules of one policy.
pub const MAX_RULES: usize = 256;
/// Longest text of a policy in bytes.
pub const MAX_TEXT: usize = 16 << 10;
/// Longest name in bytes (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 253;

/// What becomes of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It goes through.
    Allow,
    /// It does not.
    Deny,
}

/// The rules of a network, or of a container. The first that fits decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
    otherwise: Action,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What it says.
    pub action: Action,
    /// Of whom.
    pub target: Target,
    /// Of which ports; all if absent.
    pub ports: Option<RangeInclusive<u16>>,
    /// Of which protocol; all if absent.
    pub protocol: Option<Protocol>,
}

/// Whom a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Everybody.
    Any,
    /// A range of addresses.
    Range(Cidr),
    /// Names, as our resolver answers for them.
    Name(NamePattern),
}

/// A name, or with `*.` before it all names below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern {
    /// Lower case, without a dot at its end.
    name: String,
    below: bool,
}

impl NamePattern {
    /// Whether a name (lower case, without a dot at its end) fits.
    #[must_use]
    pub fn fits(&self, name: &str) -> bool {
        if !self.below {
            return name == self.name;
        }
        name.strip_suffix(self.name.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.name)
    }
}

/// Why rules are refused. The text is shown to people as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// See the message.
    #[error("{0:?} is no rule: write allow-all, deny-all, allow=WHOM or deny=WHOM")]
    Word(String),
    /// See the message.
    #[error(
        "{0:?} is nobody: write an address, a range such as 10.0.0.0/8, a name such as example.org or *.example.org, or *, \
             then perhaps :PORT or :FIRST-LAST, then perhaps /tcp, /udp or /icmp; IPv6 addresses with a port in brackets"
    )]
    Target(String),
    /// See the message.
    #[error("more than {MAX_RULES} rules, or more than {MAX_TEXT} bytes")]
    TooMany,
}

impl Default for Policy {
    /// Everything that no wall stands before.
    fn default() -> Self {
        Self { rules: Vec::new(), otherwise: Action::Allow }
    }
}

impl Policy {
    /// What the rules say of a flow. `disguised`: the IPv4 address that its IPv6 address stands for.
    #[must_use]
    pub fn decide(&self, to: &Destination, disguised: Option<IpAddr>, names: &[&str]) -> Action {
        let rule = self.rules.iter().find(|rule| rule.fits(to, disguised, names));
        rule.map_or(self.otherwise, |rule| rule.action)
    }

    /// The rules, in order.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What becomes of a flow that no rule fits.
    #[must_use]
    pub fn otherwise(&self) -> Action {
        self.otherwise
    }

    /// Whether a rule is about names.
    #[must_use]
    pub fn knows_names(&self) -> bool {
        self.rules.iter().any(|rule| matches!(rule.target, Target::Name(_)))
    }

    /// Whether a name (lower case, without a dot at its end) may be asked for: only if an answer could be of use. A name can carry
    /// words to whoever answers for it, so that asking is a way out, too.
    #[must_use]
    pub fn may_ask(&self, name: &str) -> bool {
        for rule in &self.rules {
            match (&rule.target, rule.action) {
                (Target::Name(pattern), Action::Allow) if pattern.fits(name) => return true,
                // Ports that are not mentioned may still be reached by this name.
                (Target::Name(pattern), Action::Deny)
                    if pattern.fits(name) && rule.ports.is_none() && rule.protocol.is_none() =>
                {
                    return false;
                }
                (Target::Any | Target::Range(_), Action::Allow) => return true,
                (Target::Any, Action::Deny) if rule.ports.is_none() && rule.protocol.is_none() => {
                    return false;
                }
                _ => {}
            }
        }
        self.otherwise == Action::Allow
    }
}

impl Rule {
    fn fits(&self, to: &Destination, disguised: Option<IpAddr>, names: &[&str]) -> bool {
        let port = match (&self.ports, to.protocol) {
            (None, _) => true,
            (Some(_), Protocol::Icmp) => false,
            (Some(ports), _) => ports.contains(&to.port),
        };
        let target = match &self.target {
            Target::Any => true,
            Target::Range(range) => {
                // What is denied is denied in every disguise; what is allowed, only as itself.
                let hidden = self.action == Action::Deny && disguised.is_some_and(|v4| range.contains(v4));
                range.contains(to.address) || hidden
            }
            Target::Name(pattern) => names.iter().any(|name| pattern.fits(name)),
        };
        port && target && self.protocol.is_none_or(|protocol| protocol == to.protocol)
    }
}

impl FromStr for Policy {
    type Err = PolicyError;

    /// Rules, with commas or white space between. `deny-all` and `allow-all` say what holds where no rule fits; if neither is
    /// there, it is `deny-all` if something is allowed by name or range, else `allow-all`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_TEXT {
            return Err(PolicyError::TooMany);
        }
        let (mut rules, mut otherwise) = (Vec::new(), None);
        for word in text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty()) {
            match word {
                "deny-all" => otherwise = Some(Action::Deny),
                "allow-all" => otherwise = Some(Action::Allow),
                _ => rules.push(word.parse::<Rule>()?),
            }
            if rules.len() > MAX_RULES {
                return Err(PolicyError::TooMany);
            }
        }
        let allows = rules.iter().any(|rule| rule.action == Action::Allow);
        let otherwise = otherwise.unwrap_or(if allows { Action::Deny } else { Action::Allow });
        Ok(Self { rules, otherwise })
    }
}

impl FromStr for Rule {
    type Err = PolicyError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let (action, whom) = match word.split_once('=') {
            Some(("allow", whom)) => (Action::Allow, whom),
            Some(("deny", whom)) => (Action::Deny, whom),
            _ => return Err(PolicyError::Word(shortened(word))),
        };
        let wrong = || PolicyError::Target(shortened(whom));
        // A range has a slash, too, but digits behind it.
        let (rest, protocol) = match whom.rsplit_once('/') {
            Some((rest, "tcp")) => (rest, Some(Protocol::Tcp)),
            Some((rest, "udp")) => (rest, Some(Protocol::Udp)),
            Some((rest, "icmp")) => (rest, Some(Protocol::Icmp)),
            _ => (whom, None),
        };
        let (target, ports) = match rest.strip_prefix('[') {
            Some(bracketed) => {
                let (inner, after) = bracketed.split_once(']').ok_or_else(wrong)?;
                let ports = match after {
                    "" => None,
                    _ => Some(after.strip_prefix(':').ok_or_else(wrong)?),
                };
                (inner, ports)
            }
            // An IPv6 address without brackets has no port.
            None if rest.matches(':').count() > 1 => (rest, None),
            None => match rest.split_once(':') {
                Some((target, ports)) => (target, Some(ports)),
                None => (rest, None),
            },
        };
        let ports = ports.map(|text| port_range(text).ok_or_else(wrong)).transpose()?;
        if ports.is_some() && protocol == Some(Protocol::Icmp) {
            return Err(wrong());
        }
        let target = target_of(target).ok_or_else(wrong)?;
        Ok(Self { action, target, ports, protocol })
    }
}

fn target_of(text: &str) -> Option<Target> {
    if text == "*" {
        return Some(Target::Any);
    }
    if let Ok(range) = text.parse::<Cidr>() {
        return Some(Target::Range(range));
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let (name, below) = match name.strip_prefix("*.") {
        Some(name) => (name.to_owned(), true),
        None => (name, false),
    };
    let label = |label: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(plain)
    };
    // Four numbers are an address that went wrong, not a name.
    let numeric = name.split('.').all(|part| part.bytes().all(|b| b.is_ascii_digit()));
    let named = !numeric && name.len() <= MAX_NAME && name.split('.').all(label);
    named.then_some(Target::Name(NamePattern { name, below }))
}

fn port_range(text: &str) -> Option<RangeInclusive<u16>> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
    match text.split_once('-') {
        None => port(text).map(|port| port..=port),
        Some((first, last)) => {
            let (first, last) = (port(first)?, port(last)?);
            (first <= last).then_some(first..=last)
        }
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}
