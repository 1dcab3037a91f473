//! Quantities, names with values, and files of them.

use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::io::Read;

use api::units::parse_bytes;
use serde_json::{Map, Value};

use crate::failure::Failure;

/// The label in which Docker's API carries rules for what may leave.
const EGRESS: &str = "bulkhead.egress";
/// Most bytes of a file with variables, labels or a seccomp profile.
const MAX_FILE: u64 = 1 << 20;
/// Nanoseconds of the units of time that Docker knows, longest name first.
const UNITS: [(&str, f64); 7] =
    [("ms", 1e6), ("us", 1e3), ("µs", 1e3), ("ns", 1.0), ("h", 3600e9), ("m", 60e9), ("s", 1e9)];

/// A JSON object in which values that are not there are left out.
#[derive(Debug, Default)]
pub struct Object(Map<String, Value>);

impl Object {
    /// Sets a field, unless the value is null, false, empty, or an object without fields.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        let value = value.into();
        let nothing = match &value {
            Value::Null | Value::Bool(false) => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if !nothing {
            self.0.insert(name.to_owned(), value);
        }
    }

    /// Sets a field, whatever its value.
    pub fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }
}

impl From<Object> for Value {
    fn from(object: Object) -> Self {
        Self::Object(object.0)
    }
}

/// A size in bytes.
///
/// # Errors
/// It is none.
pub fn bytes(option: &str, text: &str) -> Result<u64, Failure> {
    parse_bytes(text).map_err(|why| Failure::option(option, text, why, "give a size such as 256m"))
}

/// A size in bytes, or -1.
///
/// # Errors
/// It is neither.
pub fn bytes_or_unlimited(option: &str, text: &str) -> Result<i64, Failure> {
    if text == "-1" {
        return Ok(-1);
    }
    let bytes = bytes(option, text)?;
    i64::try_from(bytes).map_err(|_| Failure::option(option, text, "it is too large", "give a smaller one"))
}

/// A time such as `1m30s`, in nanoseconds.
///
/// # Errors
/// It is none.
pub fn duration(option: &str, text: &str) -> Result<i64, Failure> {
    let bad = || Failure::option(option, text, "it is not a time with a unit", "give a time such as 30s");
    if text == "0" {
        return Ok(0);
    }
    let mut rest = text;
    let mut sum = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, after) = rest.split_at(digits);
        let (unit, factor) = UNITS.iter().find(|(unit, _)| after.starts_with(unit)).ok_or_else(bad)?;
        sum += number.parse::<f64>().map_err(|_| bad())? * factor;
        rest = after.get(unit.len()..).unwrap_or_default();
    }
    if text.is_empty() || !sum.is_finite() || sum > 1e18 {
        return Err(bad());
    }
    #[allow(clippy::cast_possible_truncation)] // at most 1e18, which an i64 holds
    Ok(sum as i64)
}

/// Environment variables: those of files, then those of the command line. A name alone takes the caller's value; one that the
/// caller does not have either is left out.
///
/// # Errors
/// A file cannot be read, or an entry is malformed.
pub fn environment(files: &[String], entries: &[String]) -> Result<Vec<String>, Failure> {
    let mut all = Vec::new();
    for file in files {
        for line in lines("--env-file", file)? {
            all.push(("--env-file", line));
        }
    }
    all.extend(entries.iter().map(|entry| ("--env", entry.clone())));
    let mut env = Vec::new();
    for (option, entry) in all {
        let name = entry.split('=').next().unwrap_or_default();
        if name.is_empty() || entry.contains('\0') || (option == "--env-file" && name.contains(' ')) {
            return Err(Failure::option(
                option,
                &entry,
                "it is not of the form NAME=value",
                "give NAME=value",
            ));
        }
        if entry.contains('=') {
            env.push(entry);
        } else if let Ok(value) = env::var(&entry) {
            env.push(format!("{entry}={value}"));
        }
    }
    Ok(env)
}

/// Labels: those of files, then those of the command line; a name alone has an empty value.
///
/// # Errors
/// A file cannot be read, or a name is empty.
pub fn labels(files: &[String], entries: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut all = Vec::new();
    for file in files {
        all.extend(lines("--label-file", file)?);
    }
    all.extend(entries.iter().cloned());
    pairs("--label", &all)
}

/// Labels with rules for what may leave, for which Docker's API has no field of its own.
///
/// # Errors
/// A label says rules as well.
pub fn egress(
    mut labels: BTreeMap<String, String>,
    rules: &[String],
) -> Result<BTreeMap<String, String>, Failure> {
    if rules.is_empty() {
        return Ok(labels);
    }
    let rules = rules.join(",");
    if labels.contains_key(EGRESS) {
        let why = format!("a label {EGRESS} says rules as well");
        return Err(Failure::option("--egress", &rules, why, "give all rules with --egress"));
    }
    labels.insert(EGRESS.to_owned(), rules);
    Ok(labels)
}

/// Names with values.
///
/// # Errors
/// A name is empty.
pub fn pairs(option: &str, entries: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let pair = |entry: &String| {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        if name.is_empty() {
            return Err(Failure::option(option, entry, "it has no name", "give NAME=VALUE"));
        }
        Ok((name.to_owned(), value.to_owned()))
    };
    entries.iter().map(pair).collect()
}

/// The lines of a file, without empty ones and those that begin with `#`.
fn lines(option: &str, path: &str) -> Result<Vec<String>, Failure> {
    let text = file(option, path)?;
    let line = |line: &str| line.trim_start().trim_end_matches('\r').to_owned();
    Ok(text.lines().map(line).filter(|line| !line.is_empty() && !line.starts_with('#')).collect())
}

/// A text file of at most 1 MiB.
///
/// # Errors
/// It cannot be read, is larger, or is no text.
pub fn file(option: &str, path: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    let next = "name a text file of at most 1 MiB";
    match read {
        Err(error) => Err(Failure::option(option, path, error.to_string(), next)),
        Ok(_) if text.len() as u64 > MAX_FILE => Err(Failure::option(option, path, "it is too large", next)),
        Ok(_) => Ok(text),
    }
}

/// The fields of a comma-separated value, in which a field with a comma stands in quotes.
///
/// # Errors
/// A quote is not closed.
pub fn fields(option: &str, text: &str) -> Result<Vec<(String, Option<String>)>, Failure> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                if let Some(field) = fields.last_mut() {
                    field.push('"');
                }
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            other => {
                if let Some(field) = fields.last_mut() {
                    field.push(other);
                }
            }
        }
    }
    if quoted {
        return Err(Failure::option(option, text, "a quote is not closed", "close it"));
    }
    let pair = |field: String| match field.split_once('=') {
        Some((name, value)) => (name.trim().to_ascii_lowercase(), Some(value.to_owned())),
        None => (field.trim().to_ascii_lowercase(), None),
    };
    Ok(fields.into_iter().map(pair).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, nanoseconds) in [
            ("30s", 30_000_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5h", 5_400_000_000_000),
            ("5ms", 5_000_000),
            ("0", 0),
        ] {
            assert_eq!(duration("-x", text).unwrap(), nanoseconds, "{text}");
        }
        for text in ["", "5", "s", "1x", "-1s", "1s2", "1e3s", "99999999999h"] {
            assert!(duration("-x", text).is_err(), "{text}");
        }
    }

    #[test]
    fn variables_come_from_files_the_caller_and_the_command_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("env");
        std::fs::write(&path, "# comment\n\n A=file\nB=file \nNO_SUCH_VARIABLE_HERE\n").unwrap();
        let files = [path.display().to_string()];
        let env = environment(&files, &["A=flag".into(), "PATH".into(), "C=".into()]).unwrap();
        assert_eq!(env[..3], ["A=file", "B=file ", "A=flag"]);
        assert!(env[3].starts_with("PATH=/") && env[4] == "C=", "{env:?}");
        for bad in ["", "=x"] {
            assert!(environment(&[], &[bad.to_owned()]).is_err(), "{bad}");
        }
        assert!(environment(&["/no/such/file".into()], &[]).is_err());
    }

    #[test]
    fn labels_may_have_no_value_but_a_name() {
        let labels = labels(&[], &["a=b=c".into(), "d".into()]).unwrap();
        assert_eq!((labels["a"].as_str(), labels["d"].as_str()), ("b=c", ""));
        assert!(pairs("--label", &["=x".into()]).is_err());
    }

    #[test]
    fn comma_separated_values_have_quotes() {
        let read = fields("--mount", r#"type=bind,"source=/a,b",readonly"#).unwrap();
        assert_eq!(read[1], ("source".to_owned(), Some("/a,b".to_owned())));
        assert_eq!(read[2], ("readonly".to_owned(), None));
        assert!(fields("--mount", "\"a").is_err());
    }

    #[test]
    fn an_object_has_only_what_is_there() {
        let mut object = Object::default();
        object.set("A", Value::Null);
        object.set("B", false);
        object.set("C", "");
        object.set("D", 0);
        object.put("E", "");
        assert_eq!(Value::from(object).to_string(), r#"{"D":0,"E":""}"#);
    }
}
