//! Times as image documents write them (RFC 3339).

use jiff::Timestamp;

/// Unix seconds as `2024-01-31T12:00:00Z`; the epoch for what no calendar has.
pub(crate) fn rfc3339(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or_default();
    Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

/// Unix seconds of a time in a document; `None` for what is not one.
pub(crate) fn seconds(text: &str) -> Option<i64> {
    text.parse::<Timestamp>().ok().map(Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_images_have() {
        assert_eq!(seconds("2024-01-31T12:00:00.123456789Z"), Some(1_706_702_400));
        assert_eq!(seconds("2024-01-31T13:00:00+01:00"), Some(1_706_702_400));
        assert_eq!(seconds("0001-01-01T00:00:00Z"), Some(-62_135_596_800));
        assert_eq!(seconds("yesterday"), None);
        assert_eq!(rfc3339(1_706_702_400), "2024-01-31T12:00:00Z");
        assert_eq!(rfc3339(u64::MAX), "1970-01-01T00:00:00Z");
    }
}
