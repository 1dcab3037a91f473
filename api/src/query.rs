//! Query strings as Docker's clients send them: an empty value means "not given", and there are several ways to say yes.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::error::ApiError;
use crate::filters::Filters;

/// Most parameters of one request.
const MAX_PARAMETERS: usize = 1024;

/// The parameters of a request.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads what stands behind the question mark.
    ///
    /// # Errors
    /// There are too many parameters.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        let pairs: Vec<(String, String)> = form_urlencoded::parse(text.as_bytes())
            .take(MAX_PARAMETERS + 1)
            .map(|(k, v)| (k.into(), v.into()))
            .collect();
        if pairs.len() > MAX_PARAMETERS {
            return Err(ApiError::bad(format!("a request has at most {MAX_PARAMETERS} parameters")));
        }
        Ok(Self(pairs))
    }

    /// A parameter that is given and not empty.
    #[must_use]
    pub fn text<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).next()
    }

    /// All values of a parameter that are not empty.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(key, value)| key == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    /// A yes or no; no if it is not given.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        self.flag_or(name, false)
    }

    /// A yes or no with a default. As in Docker, anything but `0`, `no`, `false` and `none` is a yes.
    #[must_use]
    pub fn flag_or(&self, name: &str, default: bool) -> bool {
        self.text(name).map_or(default, |value| {
            !matches!(value.trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none")
        })
    }

    /// A whole number.
    ///
    /// # Errors
    /// It is something else.
    pub fn number(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let parse = |text: &str| {
            text.parse::<i64>().map_err(|_| ApiError::bad(format!("{name}: {text:?} is not a whole number")))
        };
        self.text(name).map(parse).transpose()
    }

    /// The parameter `filters`, of which these are known.
    ///
    /// # Errors
    /// It is not a map, or has other names.
    pub fn filters(&self, known: &[&str]) -> Result<Filters, ApiError> {
        Filters::parse(self.text("filters").unwrap_or_default(), known)
    }
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Self::parse(parts.uri.query().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_is_unset_and_yes_has_many_spellings() {
        let query = Query::parse("a=&b=1&c=0&d=False&e=true&t=5&t=6&n=x&s=a%20b").unwrap();
        assert_eq!(query.text("a"), None);
        assert!(query.flag("b") && query.flag("e"));
        assert!(!query.flag("a") && !query.flag("c") && !query.flag("d") && !query.flag("z"));
        assert!(query.flag_or("a", true) && query.flag_or("z", true) && !query.flag_or("c", true));
        assert_eq!(query.all("t").collect::<Vec<_>>(), ["5", "6"]);
        assert_eq!(query.number("t").unwrap(), Some(5));
        assert_eq!(query.number("a").unwrap(), None);
        assert_eq!(query.text("s"), Some("a b"));
        let error = query.number("n").unwrap_err();
        assert!(error.body.message.contains('n') && error.status == 400, "{error:?}");
    }

    #[test]
    fn parameters_are_bounded() {
        assert!(Query::parse(&"a=1&".repeat(MAX_PARAMETERS)).is_ok());
        assert!(Query::parse(&"a=1&".repeat(MAX_PARAMETERS + 1)).is_err());
    }
}
