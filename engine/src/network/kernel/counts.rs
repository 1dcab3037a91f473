//! What a room's rules have counted for one container.

use bulkhead_net::protocol::Report;
use bulkhead_net::reason::Reason;
use serde_json::Value;

use super::netlink::Link;

/// Reads it from the tables as nft(8) lists them: sets named after reasons, whose elements are containers' numbers.
pub(super) fn report(number: u32, link: &Link, tables: [&Value; 2]) -> Report {
    let mut report = Report { sent: link.received, received: link.sent, ..Report::default() };
    for table in tables {
        let parts = table.get("nftables").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        for set in parts.iter().filter_map(|part| part.get("set")) {
            let name = set.get("name").and_then(Value::as_str).unwrap_or_default();
            let Some(word) = name.strip_prefix("n_") else { continue };
            let count = counted(set, number);
            if word == "flow" {
                report.flows += count;
            } else if let Some(reason) = Reason::ALL.iter().find(|reason| reason.word() == word)
                && count > 0
            {
                add(&mut report.refused, *reason, count);
            }
        }
    }
    report
}

/// Adds to what was counted for a reason.
pub(crate) fn add(refused: &mut Vec<(Reason, u64)>, reason: Reason, count: u64) {
    match refused.iter_mut().find(|(known, _)| *known == reason) {
        Some((_, sum)) => *sum = sum.saturating_add(count),
        None => refused.push((reason, count)),
    }
    refused.sort_unstable();
}

fn counted(set: &Value, number: u32) -> u64 {
    let elements = set.get("elem").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let of = |element: &Value| {
        let element = element.get("elem")?;
        (element.get("val")?.as_u64()? == u64::from(number))
            .then(|| element.get("counter")?.get("packets")?.as_u64())?
    };
    elements.iter().find_map(of).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_what_nft_lists() {
        let frames = serde_json::json!({"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"set": {"name": "n_foreign_mac", "elem": [
                {"elem": {"val": 3, "counter": {"packets": 7, "bytes": 9}}},
                {"elem": {"val": 4, "counter": {"packets": 1, "bytes": 9}}},
            ]}},
            {"set": {"name": "n_no_member"}}, {"set": {"name": "own4", "elem": [3]}}, {"chain": {"name": "n_flow"}},
        ]});
        let packets = serde_json::json!({"nftables": [
            {"set": {"name": "n_flow", "elem": [{"elem": {"val": 3, "counter": {"packets": 2}}}]}},
            {"set": {"name": "n_rule", "elem": [{"elem": {"val": 3, "counter": {"packets": 5}}}, 8, {"elem": 3}]}},
            {"set": {"name": "n_no_member", "elem": [{"elem": {"val": 3, "counter": {"packets": 1}}}]}},
        ]});
        let link = Link { sent: 10, received: 20, ..Link::default() };
        let got = report(3, &link, [&frames, &packets]);
        let refused = vec![(Reason::ForeignMac, 7), (Reason::NoMember, 1), (Reason::Rule, 5)];
        assert_eq!(got, Report { sent: 20, received: 10, flows: 2, refused });
        let nothing = serde_json::json!([1]);
        assert_eq!(report(3, &Link::default(), [&nothing, &nothing]), Report::default());
    }
}
