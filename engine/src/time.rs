//! Points in time as text.

use jiff::Timestamp;

/// Nanoseconds since 1970 as RFC 3339 in UTC with all nine digits, as Docker writes log times. What no calendar has is 1970.
#[must_use]
pub fn rfc3339(nanoseconds: i64) -> String {
    format!("{:.9}", Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or_default())
}

/// Nanoseconds since 1970 of a point in time in RFC 3339.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    let point: Timestamp = text.parse().ok()?;
    i64::try_from(point.as_nanosecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for (nanoseconds, text) in [
            (7, "1970-01-01T00:00:00.000000007Z"),
            (951_868_799_000_000_000, "2000-02-29T23:59:59.000000000Z"),
            (-1, "1969-12-31T23:59:59.999999999Z"),
        ] {
            assert_eq!(rfc3339(nanoseconds), text);
            assert_eq!(parse_rfc3339(text), Some(nanoseconds));
        }
        assert_eq!(parse_rfc3339("yesterday"), None);
    }
}
