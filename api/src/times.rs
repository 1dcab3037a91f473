//! Times as Docker writes and reads them.

use jiff::Timestamp;

use crate::error::ApiError;

/// How Docker writes "never".
pub const NEVER: &str = "0001-01-01T00:00:00Z";
/// Nanoseconds in a second.
const SECOND: i64 = 1_000_000_000;

/// Nanoseconds since 1970 as RFC 3339 in UTC; 0 is [`NEVER`].
#[must_use]
pub fn rfc3339(nanoseconds: i64) -> String {
    if nanoseconds == 0 {
        return NEVER.to_owned();
    }
    Timestamp::from_nanosecond(i128::from(nanoseconds))
        .map_or_else(|_| NEVER.to_owned(), |time| time.to_string())
}

/// As [`rfc3339`] with all nine digits: the time stamps of log lines, which are as wide as each other.
#[must_use]
pub fn rfc3339_wide(nanoseconds: i64) -> String {
    Timestamp::from_nanosecond(i128::from(nanoseconds))
        .map_or_else(|_| NEVER.to_owned(), |time| format!("{time:.9}"))
}

/// A point in time as a client writes it: seconds since 1970 with up to nine decimals, or RFC 3339. Empty and 0: 0.
///
/// # Errors
/// It is something else.
pub fn parse(name: &str, text: &str) -> Result<i64, ApiError> {
    let bad = || ApiError::bad(format!("{name}: {text:?} is not a time (seconds since 1970, or RFC 3339)"));
    if text.is_empty() {
        return Ok(0);
    }
    if let Some(nanoseconds) = seconds(text) {
        return Ok(nanoseconds);
    }
    let time: Timestamp = text.parse().map_err(|_| bad())?;
    i64::try_from(time.as_nanosecond()).map_err(|_| bad())
}

fn seconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = whole.parse().ok()?;
    if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let fraction: i64 = format!("{fraction:0<9}").parse().ok()?;
    Some(whole.saturating_mul(SECOND).saturating_add(if whole < 0 { -fraction } else { fraction }))
}

/// A span of time as `ps` tells it: "5 minutes", "About an hour", in Docker's steps.
#[must_use]
pub fn human(nanoseconds: i64) -> String {
    let seconds = nanoseconds.max(0) / SECOND;
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match () {
        () if seconds < 1 => "Less than a second".into(),
        () if seconds == 1 => "1 second".into(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".into(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".into(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", hours / 24 / 365),
    }
}

/// A length of time as Go writes it, such as `1h30m`, `300ms`, in nanoseconds.
#[must_use]
pub fn duration(text: &str) -> Option<i64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut total: i64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: i64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let units = [
            ("ns", 1),
            ("us", 1_000),
            ("ms", 1_000_000),
            ("s", SECOND),
            ("m", 60 * SECOND),
            ("h", 3600 * SECOND),
        ];
        let (unit, factor) = units.into_iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = rest.get(unit.len()..)?;
        total = total.checked_add(number.checked_mul(factor)?)?;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_and_read() {
        assert_eq!(rfc3339(0), NEVER);
        assert_eq!(rfc3339(1_700_000_000_120_000_000), "2023-11-14T22:13:20.12Z");
        assert_eq!(rfc3339_wide(1_700_000_000_120_000_000), "2023-11-14T22:13:20.120000000Z");
        for (text, nanoseconds) in [
            ("", 0),
            ("0", 0),
            ("1700000000", 1_700_000_000_000_000_000),
            ("9999999999999", i64::MAX),
            ("1700000000.5", 1_700_000_000_500_000_000),
            ("1700000000.000000001", 1_700_000_000_000_000_001),
            ("2023-11-14T22:13:20Z", 1_700_000_000_000_000_000),
            ("2023-11-14T23:13:20.25+01:00", 1_700_000_000_250_000_000),
        ] {
            assert_eq!(parse("since", text).unwrap(), nanoseconds, "{text}");
        }
        for text in ["x", "1.x", "1.0000000001", "99999999999999999999", "2023-13-01T00:00:00Z"] {
            assert!(parse("since", text).unwrap_err().body.message.starts_with("since:"), "{text}");
        }
    }

    #[test]
    fn spans_are_told_as_docker_tells_them() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (300, "5 minutes"),
            (3700, "About an hour"),
            (7200, "2 hours"),
            (86_400 * 3, "3 days"),
            (86_400 * 21, "3 weeks"),
            (86_400 * 90, "3 months"),
            (86_400 * 800, "2 years"),
        ] {
            assert_eq!(human(seconds * SECOND), text);
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("1h30m"), Some(5400 * SECOND));
        assert_eq!(duration("300ms"), Some(300_000_000));
        for text in ["", "5", "h", "1x", "-1s", "99999999999h"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
