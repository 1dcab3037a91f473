//! What several verbs need.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::client::Target;
use api::times;
use serde_json::Value;

use crate::failure::Failure;
use crate::options::values::duration;

/// Nanoseconds in a second.
const SECOND: i64 = 1_000_000_000;

/// A text of an answer; empty where there is none.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A map of texts, as `a=b,c=d`.
pub fn pairs(value: &Value) -> String {
    let map = value.as_object().into_iter().flatten();
    map.map(|(name, value)| format!("{name}={}", text(value))).collect::<Vec<_>>().join(",")
}

/// Adds `--filter` values, each `NAME=VALUE`, and what the command itself asks for.
///
/// # Errors
/// One has no value.
pub fn with_filters(target: Target, given: &[String], own: &[(&str, &str)]) -> Result<Target, Failure> {
    let mut filters = own.to_vec();
    for filter in given {
        let pair = filter.split_once('=').filter(|(name, _)| !name.is_empty());
        filters.push(pair.ok_or_else(|| {
            let why = "it is not a name and a value";
            Failure::option("--filter", filter, why, "write it as status=running")
        })?);
    }
    Ok(target.with_filters(filters))
}

/// Nanoseconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// How long ago a number of seconds since 1970 was: `5 minutes ago`.
pub fn ago(seconds: i64) -> String {
    format!("{} ago", times::human(now().saturating_sub(seconds.saturating_mul(SECOND))))
}

/// A number of seconds since 1970 as Docker prints it: `2026-01-02 03:04:05 +0000 UTC`.
pub fn date(seconds: i64) -> String {
    plain_date(&times::rfc3339(seconds.saturating_mul(SECOND)))
}

/// A time of RFC 3339 in UTC in the same shape.
pub fn plain_date(text: &str) -> String {
    text.replacen('T', " ", 1).replacen('Z', " +0000 UTC", 1)
}

/// A point in time as a person writes it: how long ago (`10m`), RFC 3339, a date, or seconds since 1970.
///
/// # Errors
/// It is none of them.
pub fn point(option: &str, text: &str) -> Result<String, Failure> {
    let nanoseconds = match duration(option, text) {
        Ok(ago) if text != "0" => now().saturating_sub(ago),
        _ => {
            // A date without a time, or a time without a zone, is one of UTC.
            let full = match text.len() {
                10 if text.contains('-') => format!("{text}T00:00:00Z"),
                16 | 19 if text.contains('T') => {
                    format!("{text}{}Z", if text.len() == 16 { ":00" } else { "" })
                }
                _ => text.to_owned(),
            };
            times::parse(option, &full).map_err(|_| {
                let why = "it is not a time";
                Failure::option(option, text, why, "write 10m, 2026-01-02T03:04:05Z or seconds since 1970")
            })?
        }
    };
    Ok(format!("{}.{:09}", nanoseconds / SECOND, nanoseconds % SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_people_write_them() {
        assert_eq!(point("--since", "2023-11-14T22:13:20Z").unwrap(), "1700000000.000000000");
        assert_eq!(point("--since", "2023-11-14T22:13").unwrap(), "1699999980.000000000");
        assert_eq!(point("--since", "2023-11-14").unwrap(), "1699920000.000000000");
        assert_eq!(point("--since", "1700000000.5").unwrap(), "1700000000.500000000");
        let ten: f64 = point("--since", "10m").unwrap().parse().unwrap();
        #[allow(clippy::cast_precision_loss)]
        let ago = now() as f64 / 1e9 - ten;
        assert!((599.0..700.0).contains(&ago), "{ago}");
        assert!(point("--since", "yesterday").is_err());
        assert_eq!(date(1_700_000_000), "2023-11-14 22:13:20 +0000 UTC");
    }

    #[test]
    fn filters_are_pairs() {
        let target =
            with_filters(Target::new(["x"]), &["label=a=b".into()], &[("dangling", "true")]).unwrap();
        let expected = Target::new(["x"]).with("filters", r#"{"dangling":["true"],"label":["a=b"]}"#);
        assert_eq!(target.to_string(), expected.to_string());
        assert!(with_filters(Target::new(["x"]), &["status".into()], &[]).is_err());
    }
}
