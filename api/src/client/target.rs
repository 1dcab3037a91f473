//! What a request is for: path and parameters, each encoded where it is put in.

use std::fmt::{self, Display};

/// A path with parameters.
///
/// ```
/// use api::client::Target;
/// let target = Target::new(["containers", "a b", "json"]).with("size", 1).with_some("name", None::<&str>);
/// assert_eq!(target.to_string(), "/containers/a%20b/json?size=1");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    path: String,
    query: String,
}

impl Target {
    /// A path of these segments. A slash within a segment stays one: names of images have some.
    pub fn new<'a>(segments: impl IntoIterator<Item = &'a str>) -> Self {
        let mut path = String::new();
        for segment in segments {
            path.push('/');
            for byte in segment.bytes() {
                match byte {
                    b'a'..=b'z'
                    | b'A'..=b'Z'
                    | b'0'..=b'9'
                    | b'-'
                    | b'.'
                    | b'_'
                    | b'~'
                    | b'/'
                    | b':'
                    | b'@' => {
                        path.push(char::from(byte));
                    }
                    _ => path.push_str(&format!("%{byte:02X}")),
                }
            }
        }
        Self { path, query: String::new() }
    }

    /// Adds a parameter.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Display) -> Self {
        let mut query = form_urlencoded::Serializer::new(self.query);
        query.append_pair(name, &value.to_string());
        self.query = query.finish();
        self
    }

    /// Adds a parameter if there is a value.
    #[must_use]
    pub fn with_some(self, name: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Adds filters, if there are any: names with their values.
    #[must_use]
    pub fn with_filters<'a>(self, filters: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut map = std::collections::BTreeMap::<&str, Vec<&str>>::new();
        for (name, value) in filters {
            map.entry(name).or_default().push(value);
        }
        if map.is_empty() {
            return self;
        }
        self.with("filters", serde_json::json!(map))
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        if self.query.is_empty() { Ok(()) } else { write!(f, "?{}", self.query) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_encoded_where_it_is_put_in() {
        let target = Target::new(["images", "localhost:5000/a/b?x#y", "json"]).with("a b", "c&d");
        assert_eq!(target.to_string(), "/images/localhost:5000/a/b%3Fx%23y/json?a+b=c%26d");
        let filters = Target::new(["x"]).with_filters([("label", "a"), ("label", "b")]);
        assert_eq!(filters.to_string(), "/x?filters=%7B%22label%22%3A%5B%22a%22%2C%22b%22%5D%7D");
        assert_eq!(Target::new(["x"]).with_filters([]).to_string(), "/x");
        assert_eq!(Target::new(["ü"]).to_string(), "/%C3%BC");
    }
}
