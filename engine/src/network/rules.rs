//! What networks and containers say about what may leave, and how fast: by label or driver option, because Docker's API has no
//! fields for it.

use std::collections::BTreeMap;

use bulkhead_net::egress::Policy;
use vmm::config::{Bucket, MAX_BUCKET, RateLimit};

use crate::EngineError;

/// Rules for what may leave (docs/networks.md).
pub(crate) const EGRESS: &str = "bulkhead.egress";
/// Most bytes a second that a container receives, in each network.
const RECEIVE: &str = "bulkhead.net.receive";
/// Most bytes a second that it sends.
const SEND: &str = "bulkhead.net.send";
/// Most frames a second, each way.
const FRAMES: &str = "bulkhead.net.frames";
/// Least burst: one frame of the largest kind must always pass.
const LEAST_BURST: u64 = 64 << 10;

/// The rules in labels or options; empty if there are none.
///
/// # Errors
/// They are none.
pub(crate) fn egress(values: &BTreeMap<String, String>) -> Result<String, EngineError> {
    let Some(text) = values.get(EGRESS) else { return Ok(String::new()) };
    match text.parse::<Policy>() {
        Ok(_) => Ok(text.clone()),
        Err(error) => Err(EngineError::Option {
            option: format!("{EGRESS}={}", text.chars().take(80).collect::<String>()),
            why: error.to_string(),
            next: "write rules such as deny-all, allow=example.org:443 or deny=10.0.0.0/8".to_owned(),
        }),
    }
}

/// How much a container may receive and send.
///
/// # Errors
/// A value is no rate.
pub(crate) fn limits(labels: &BTreeMap<String, String>) -> Result<(RateLimit, RateLimit), EngineError> {
    let rate = |name: &str| labels.get(name).map(|text| rate(name, text)).transpose();
    let bucket = |per_second: u64| Bucket { per_second, burst: per_second.max(LEAST_BURST) };
    let operations = rate(FRAMES)?.map(|per_second| Bucket { per_second, burst: per_second });
    let limit = |bytes: Option<u64>| RateLimit { bytes: bytes.map(bucket), operations };
    Ok((limit(rate(RECEIVE)?), limit(rate(SEND)?)))
}

/// A number, perhaps with `k`, `m` or `g` (powers of 1024) behind it.
fn rate(name: &str, text: &str) -> Result<u64, EngineError> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    let number =
        digits.parse::<u64>().ok().filter(|_| plain).and_then(|number| number.checked_mul(1 << shift));
    number.filter(|number| (1..=MAX_BUCKET).contains(number)).ok_or_else(|| EngineError::Option {
        option: format!("{name}={}", text.chars().take(40).collect::<String>()),
        why: "a rate is a number a second, 1 or more".to_owned(),
        next: "write it as 500000, 500k or 10m".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_rules_are_read() {
        let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let (receive, send) = limits(&labels(&[(RECEIVE, "10m"), (FRAMES, "100")])).unwrap();
        assert_eq!(receive.bytes, Some(Bucket { per_second: 10 << 20, burst: 10 << 20 }));
        assert_eq!(send.bytes, None);
        assert_eq!(send.operations, Some(Bucket { per_second: 100, burst: 100 }));
        assert_eq!(limits(&labels(&[(SEND, "1k")])).unwrap().1.bytes.unwrap().burst, LEAST_BURST);
        for bad in ["", "0", "-1", "1t", "+1", "99999999999g", "k"] {
            assert!(limits(&labels(&[(SEND, bad)])).is_err(), "{bad}");
        }
        assert_eq!(egress(&labels(&[])).unwrap(), "");
        assert_eq!(egress(&labels(&[(EGRESS, "deny-all")])).unwrap(), "deny-all");
        assert!(
            egress(&labels(&[(EGRESS, "perhaps")]))
                .unwrap_err()
                .to_string()
                .contains("bulkhead.egress=perhaps")
        );
    }
}
