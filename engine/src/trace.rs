//! The id of the request that something is done for. It goes with every question to a supervisor, and from there to the VMM that is
//! started for it, so that the log lines of all three can be put together.

/// Longest id in bytes.
pub const MAX_ID: usize = 64;

tokio::task_local! {
    static REQUEST: String;
}

/// Whether a text can be an id: a word of letters, digits, `-`, `_` and `.`, which means nothing to any log's reader.
#[must_use]
pub fn is_id(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !text.is_empty() && text.len() <= MAX_ID && text.bytes().all(plain)
}

/// Does something for a request; an empty id is that of no request.
pub async fn of_request<T>(id: String, work: impl Future<Output = T>) -> T {
    REQUEST.scope(id, work).await
}

/// The request that the current task works for.
#[must_use]
pub fn request() -> Option<String> {
    REQUEST.try_with(Clone::clone).ok().filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_id_is_known_within_its_request_only() {
        assert_eq!(request(), None);
        of_request("a-1".to_owned(), async { assert_eq!(request().as_deref(), Some("a-1")) }).await;
        assert_eq!(request(), None);
        for good in ["a", "4711-2f.x_y"] {
            assert!(is_id(good), "{good}");
        }
        let long = "x".repeat(MAX_ID + 1);
        for bad in ["", "a b", "a\nb", "ä", "a\"", long.as_str()] {
            assert!(!is_id(bad), "{bad}");
        }
    }
}
