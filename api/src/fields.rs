//! JSON objects whose fields are taken one by one. What is left at the end is an option that nobody honours: unless it has
//! a value that asks for nothing, it is refused by its name, before anything is created.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// An object that is being taken apart.
#[derive(Debug, Default)]
pub struct Fields {
    /// Where it is in the request, such as `HostConfig.`; empty for the request itself.
    path: String,
    map: Map<String, Value>,
}

/// An option that is not supported, and what to tell who asks for it.
#[derive(Debug, Clone, Copy)]
pub struct Refusal {
    /// Its path in the request, such as `HostConfig.Privileged`.
    pub field: &'static str,
    /// What people call it: the flag of the command line. Empty: the path.
    pub option: &'static str,
    /// Texts that ask for nothing, beside null, false, 0 and what is empty.
    pub neutral: &'static [&'static str],
    /// Why it is not supported: one clause.
    pub why: &'static str,
    /// What to do instead: one clause.
    pub instead: &'static str,
}

impl Fields {
    /// The object of a whole request.
    #[must_use]
    pub fn new(map: Map<String, Value>) -> Self {
        Self { path: String::new(), map }
    }

    /// Takes a field; the default where it is absent or null. Names are compared as Go does: exactly, else without case.
    ///
    /// # Errors
    /// It has another type.
    pub fn take<T: DeserializeOwned + Default>(&mut self, name: &str) -> Result<T, ApiError> {
        match self.value(name) {
            None | Some(Value::Null) => Ok(T::default()),
            Some(value) => serde_json::from_value(value)
                .map_err(|e| ApiError::bad(format!("invalid JSON: {}{name}: {e}", self.path))),
        }
    }

    /// Takes a text; `None` where it is absent, null or empty.
    ///
    /// # Errors
    /// It is not a text.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        Ok(self.take::<Option<String>>(name)?.filter(|text| !text.is_empty()))
    }

    /// Takes an object; an empty one where it is absent or null.
    ///
    /// # Errors
    /// It is not an object.
    pub fn object(&mut self, name: &str) -> Result<Self, ApiError> {
        Ok(Self { map: self.take(name)?, path: format!("{}{name}.", self.path) })
    }

    /// Takes a list of objects.
    ///
    /// # Errors
    /// It is something else.
    pub fn objects(&mut self, name: &str) -> Result<Vec<Self>, ApiError> {
        let list: Vec<Map<String, Value>> = self.take(name)?;
        let path = format!("{}{name}.", self.path);
        Ok(list.into_iter().map(|map| Self { map, path: path.clone() }).collect())
    }

    /// Takes an object of objects.
    ///
    /// # Errors
    /// It is something else.
    pub fn named(&mut self, name: &str) -> Result<Vec<(String, Self)>, ApiError> {
        let map: Map<String, Value> = self.take(name)?;
        let path = format!("{}{name}.", self.path);
        let entry = |(key, value): (String, Value)| match value {
            Value::Object(map) => Ok((key, Self { map, path: path.clone() })),
            Value::Null => Ok((key, Self { map: Map::new(), path: path.clone() })),
            _ => Err(ApiError::bad(format!("invalid JSON: {path}{key} is not an object"))),
        };
        map.into_iter().map(entry).collect()
    }

    /// Takes a field and forgets it: it asks for nothing that a server does.
    pub fn forget(&mut self, names: &[&str]) {
        for name in names {
            self.value(name);
        }
    }

    /// Whether a field is a text that is not empty.
    #[must_use]
    pub fn has_text(&self, name: &str) -> bool {
        let found = self.map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.and_then(|(_, value)| value.as_str()).is_some_and(|text| !text.is_empty())
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    fn value(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).or_else(|| {
            let key = self.map.keys().find(|key| key.eq_ignore_ascii_case(name))?.clone();
            self.map.remove(&key)
        })
    }

    /// Ends the taking.
    ///
    /// # Errors
    /// A field is left that asks for something; the error names it, why, and what to do instead.
    pub fn finish(self, table: &[Refusal]) -> Result<(), ApiError> {
        for (name, value) in self.map {
            let field = format!("{}{name}", self.path);
            let entry = table.iter().find(|entry| entry.field.eq_ignore_ascii_case(&field));
            if asks_nothing(&value, entry.map_or(&[], |entry| entry.neutral)) {
                continue;
            }
            return Err(match entry {
                Some(entry) => {
                    let shown = if entry.option.is_empty() { entry.field } else { entry.option };
                    ApiError::refused(&shown_with(shown, &value), entry.why, entry.instead)
                }
                None => ApiError::refused(
                    &shown_with(&field, &value),
                    "there is no option of that name here",
                    "leave it out",
                ),
            });
        }
        Ok(())
    }
}

/// The option's name, with its value where that is short.
fn shown_with(option: &str, value: &Value) -> String {
    match value {
        Value::String(text) if text.len() <= 64 => format!("{option} {text}"),
        Value::Number(number) => format!("{option} {number}"),
        _ => option.to_owned(),
    }
}

/// Whether a value asks for nothing.
fn asks_nothing(value: &Value, neutral: &[&str]) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => {
            number.as_f64() == Some(0.0) || neutral.contains(&number.to_string().as_str())
        }
        Value::String(text) => text.is_empty() || neutral.contains(&text.as_str()),
        Value::Array(list) => list.iter().all(|value| asks_nothing(value, neutral)),
        Value::Object(map) => map.values().all(|value| asks_nothing(value, neutral)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: [Refusal; 2] = [
        Refusal {
            field: "H.Privileged",
            option: "--privileged",
            neutral: &[],
            why: "no host",
            instead: "--cap-add",
        },
        Refusal {
            field: "H.Swappiness",
            option: "",
            neutral: &["-1", "default"],
            why: "no swap",
            instead: "nothing",
        },
    ];

    fn host(json: &str) -> Fields {
        let map = serde_json::from_str(&format!("{{\"H\":{json}}}")).unwrap();
        Fields::new(map).object("H").unwrap()
    }

    #[test]
    fn fields_are_taken_as_go_takes_them() {
        let mut fields = host(r#"{"Name":"a","name":"b","LIST":["x"],"None":null,"Empty":""}"#);
        assert_eq!(fields.take::<String>("Name").unwrap(), "a");
        assert_eq!(fields.take::<Vec<String>>("List").unwrap(), ["x"]);
        assert_eq!(fields.take::<u32>("None").unwrap(), 0);
        assert_eq!(fields.text("Empty").unwrap(), None);
        let error = host(r#"{"Name":3}"#).take::<String>("Name").unwrap_err();
        assert!(error.body.message.contains("H.Name"), "{error:?}");
    }

    #[test]
    fn what_is_left_is_refused_unless_it_asks_for_nothing() {
        for json in [
            "{}",
            r#"{"Privileged":false,"New":null,"Other":[],"More":{"A":"","B":0}}"#,
            r#"{"Swappiness":-1}"#,
            r#"{"swappiness":"default"}"#,
        ] {
            host(json).finish(&TABLE).unwrap();
        }
        let error = host(r#"{"Privileged":true}"#).finish(&TABLE).unwrap_err();
        assert_eq!(error.status, 400);
        assert_eq!(error.body.message, "--privileged cannot be done: no host (--cap-add)");
        let error = host(r#"{"Swappiness":60}"#).finish(&TABLE).unwrap_err();
        assert!(error.body.message.starts_with("H.Swappiness 60 cannot be done"), "{error:?}");
        let error = host(r#"{"Gizmo":{"A":true}}"#).finish(&TABLE).unwrap_err();
        assert!(error.body.message.starts_with("H.Gizmo cannot be done"), "{error:?}");
    }
}
