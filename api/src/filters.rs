//! The `filters` parameter: `{"label":["a","b=c"]}`, or `{"label":{"a":true}}` as clients before 1.22 and some of today send it.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::error::ApiError;

/// Most bytes of the parameter.
const MAX_TEXT: usize = 64 << 10;

/// What a list is narrowed to. Values of one name are alternatives (labels: all must hold); names must all hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, Vec<String>>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    List(Vec<String>),
    Map(BTreeMap<String, bool>),
}

impl Filters {
    /// Reads the parameter's text; empty: no filters.
    ///
    /// # Errors
    /// It is not a map of lists or maps, or has a name that is not `known`.
    pub fn parse(text: &str, known: &[&str]) -> Result<Self, ApiError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        if text.len() > MAX_TEXT {
            return Err(ApiError::bad(format!("filters are at most {MAX_TEXT} bytes")));
        }
        let parsed: BTreeMap<String, Values> =
            serde_json::from_str(text).map_err(|e| ApiError::bad(format!("invalid filter: {e}")))?;
        let mut filters = BTreeMap::new();
        for (name, values) in parsed {
            if !known.contains(&name.as_str()) {
                return Err(ApiError::bad(format!("invalid filter '{name}'")));
            }
            let values = match values {
                Values::List(list) => list,
                Values::Map(map) => map.into_iter().filter(|(_, on)| *on).map(|(value, _)| value).collect(),
            };
            if !values.is_empty() {
                filters.insert(name, values);
            }
        }
        Ok(Self(filters))
    }

    /// The values of a filter; none if it is not set.
    #[must_use]
    pub fn values(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether a filter is set.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether a filter is not set, or one of its values passes.
    pub fn any(&self, name: &str, mut passes: impl FnMut(&str) -> bool) -> bool {
        let values = self.values(name);
        values.is_empty() || values.iter().any(|value| passes(value))
    }

    /// Whether `label` and `label!` let these labels through: every `name` or `name=value` of the first, none of the second.
    #[must_use]
    pub fn labels(&self, labels: &BTreeMap<String, String>) -> bool {
        let holds = |wanted: &String| match wanted.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|have| have == value),
            None => labels.contains_key(wanted),
        };
        self.values("label").iter().all(holds) && !self.values("label!").iter().any(holds)
    }

    /// A yes or no; `None` if it is not set.
    ///
    /// # Errors
    /// It is neither, or both.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        let mut found = None;
        for value in self.values(name) {
            let flag = match value.to_ascii_lowercase().as_str() {
                "1" | "t" | "true" => true,
                "0" | "f" | "false" => false,
                _ => return Err(ApiError::bad(format!("invalid filter '{name}={value}'"))),
            };
            if found.replace(flag).is_some_and(|before| before != flag) {
                return Err(ApiError::bad(format!("invalid filter '{name}': it is both true and false")));
            }
        }
        Ok(found)
    }
}

/// Whether a filter's value is found in a name, as Docker's regular expressions are mostly used: `^` and `$` bind it to
/// an end, everything else is literal.
#[must_use]
pub fn matches_name(pattern: &str, name: &str) -> bool {
    let (pattern, start) = pattern.strip_prefix('^').map_or((pattern, false), |rest| (rest, true));
    let (pattern, end) = pattern.strip_suffix('$').map_or((pattern, false), |rest| (rest, true));
    // Names are compared with and without the slash that inspect shows.
    let found = |name: &str| match (start, end) {
        (true, true) => name == pattern,
        (true, false) => name.starts_with(pattern),
        (false, true) => name.ends_with(pattern),
        (false, false) => name.contains(pattern),
    };
    found(name) || found(&format!("/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_maps_mean_the_same() {
        let list = Filters::parse(r#"{"label":["a","b=c"],"status":[]}"#, &["label", "status"]).unwrap();
        let map = Filters::parse(r#"{"label":{"a":true,"b=c":true,"d":false}}"#, &["label"]).unwrap();
        assert_eq!(list, map);
        assert!(!list.has("status"));
        let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        assert!(list.labels(&labels(&[("a", ""), ("b", "c"), ("z", "")])));
        assert!(!list.labels(&labels(&[("a", ""), ("b", "d")])));
        assert!(!list.labels(&labels(&[("b", "c")])));
    }

    #[test]
    fn what_is_no_filter_is_refused_by_name() {
        for (text, word) in [
            ("[]", "invalid filter"),
            (r#"{"x":["1"]}"#, "'x'"),
            (r#"{"id":3}"#, "invalid"),
            ("{", "invalid"),
        ] {
            let error = Filters::parse(text, &["id"]).unwrap_err();
            assert!(error.status == 400 && error.body.message.contains(word), "{text}: {error:?}");
        }
        assert!(Filters::parse(&" ".repeat(MAX_TEXT + 1), &[]).is_err());
        assert_eq!(Filters::parse("", &[]).unwrap(), Filters::default());
    }

    #[test]
    fn flags() {
        let filters =
            Filters::parse(r#"{"dangling":["true"],"both":["1","0"],"x":["y"]}"#, &["dangling", "both", "x"])
                .unwrap();
        assert_eq!(filters.flag("dangling").unwrap(), Some(true));
        assert_eq!(filters.flag("none").unwrap(), None);
        assert!(filters.flag("both").is_err() && filters.flag("x").is_err());
    }

    #[test]
    fn names_match_as_dockers_do() {
        for (pattern, name) in
            [("we", "web"), ("^web$", "web"), ("^/web$", "web"), ("b$", "web"), ("/w", "web")]
        {
            assert!(matches_name(pattern, name), "{pattern}");
        }
        for pattern in ["^eb", "we$", "^we$", "x"] {
            assert!(!matches_name(pattern, "web"), "{pattern}");
        }
    }
}
