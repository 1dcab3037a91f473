//! How answers are printed: a table, JSON, or a template of the caller's.

use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::output;
use crate::table::lay_out;
use crate::template::{Template, TemplateError};

/// A list of things: each a JSON object with the fields that `headings` name.
pub struct Listing<'a> {
    /// Fields and their headings, in the order in which people see them.
    pub headings: &'a [(&'a str, &'a str)],
    /// Fields of the table that is printed if nothing else is asked for.
    pub columns: &'a [&'a str],
    /// The field that `-q` prints.
    pub quiet: &'a str,
}

impl Listing<'_> {
    /// Prints rows as the caller wants them.
    ///
    /// # Errors
    /// The format is none, or names a field that is not there.
    pub fn print(&self, format: Option<&str>, quiet: bool, rows: &[Value]) -> Result<(), Failure> {
        let text = match (quiet, format.filter(|text| !text.is_empty())) {
            (true, _) => rows.iter().map(|row| format!("{}\n", cell(row, self.quiet))).collect(),
            (false, None | Some("table")) => self.default_table(rows),
            (false, Some("json")) => rows.iter().map(|row| format!("{row}\n")).collect(),
            (false, Some(format)) => match format.strip_prefix("table ") {
                Some(columns) => self.table(columns, rows)?,
                None => each(format, rows)?,
            },
        };
        output::write(text.as_bytes());
        Ok(())
    }

    /// Whether a format may show a field, so that it is worth being asked for.
    pub fn shows(&self, format: Option<&str>, quiet: bool, field: &str) -> bool {
        match format.filter(|text| !text.is_empty()) {
            _ if quiet => false,
            None | Some("table") => self.columns.contains(&field),
            Some("json") => true,
            Some(format) => format.contains(field) || format.contains("json"),
        }
    }

    fn default_table(&self, rows: &[Value]) -> String {
        let heading = |field: &&str| {
            let known = self.headings.iter().find(|(name, _)| name == field);
            known.map_or_else(|| field.to_uppercase(), |(_, heading)| (*heading).to_owned())
        };
        let mut lines = vec![self.columns.iter().map(heading).collect()];
        lines.extend(rows.iter().map(|row| self.columns.iter().map(|field| cell(row, field)).collect()));
        lay_out(&lines)
    }

    /// `table {{.A}}\t{{.B}}`: the same template makes the heading.
    fn table(&self, columns: &str, rows: &[Value]) -> Result<String, Failure> {
        let template = parse(columns)?;
        let headings: Map<String, Value> =
            self.headings.iter().map(|(field, heading)| ((*field).to_owned(), (*heading).into())).collect();
        let cells = |line: String| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
        let heading = template.render(&headings.into()).map_err(|e| wrong(columns, &e))?;
        let mut lines = vec![cells(heading)];
        for row in rows {
            lines.push(cells(template.render(row).map_err(|e| wrong(columns, &e))?));
        }
        Ok(lay_out(&lines))
    }
}

/// Prints whole answers, as `inspect` does: indented JSON in a list, or a template for each.
///
/// # Errors
/// The format is none, or names a field that is not there.
pub fn inspected(format: Option<&str>, values: &[Value]) -> Result<(), Failure> {
    let text = match format.filter(|text| !text.is_empty()) {
        None => format!("{}\n", indented(&values.to_vec().into())),
        Some("json") => format!("{}\n", Value::from(values.to_vec())),
        Some(format) => each(format, values)?,
    };
    output::write(text.as_bytes());
    Ok(())
}

/// Prints one answer for people as `plain` words it, or as the caller wants it.
///
/// # Errors
/// As [`inspected`].
pub fn one(format: Option<&str>, value: &Value, plain: impl FnOnce(&Value) -> String) -> Result<(), Failure> {
    let text = match format.filter(|text| !text.is_empty()) {
        None => plain(value),
        Some("json") => format!("{value}\n"),
        Some(format) => each(format, std::slice::from_ref(value))?,
    };
    output::write(text.as_bytes());
    Ok(())
}

/// A template for each value, a line each.
fn each(format: &str, values: &[Value]) -> Result<String, Failure> {
    let template = parse(format)?;
    let mut text = String::new();
    for value in values {
        text.push_str(&template.render(value).map_err(|e| wrong(format, &e))?);
        text.push('\n');
    }
    Ok(text)
}

/// A template in which `\t` and `\n` mean what they say: shells do not turn them.
pub fn parse(format: &str) -> Result<Template, Failure> {
    Template::parse(&format.replace("\\t", "\t").replace("\\n", "\n")).map_err(|e| wrong(format, &e))
}

/// The failure for a template that does not fit.
pub fn wrong(format: &str, error: &TemplateError) -> Failure {
    let shown: String = format.chars().take(80).collect();
    let next = "see the fields with --format json";
    Failure::Engine(engine::EngineError::Option {
        option: format!("--format {shown:?}"),
        why: error.to_string(),
        next: next.to_owned(),
    })
}

/// JSON with the indentation of Docker's.
fn indented(value: &Value) -> String {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    // A value in memory can always be written.
    let _ = serde::Serialize::serialize(value, &mut serializer);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn cell(row: &Value, field: &str) -> String {
    match &row[field] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LISTING: Listing<'_> = Listing {
        headings: &[("ID", "CONTAINER ID"), ("Names", "NAMES")],
        columns: &["ID", "Names"],
        quiet: "ID",
    };

    #[test]
    fn a_table_has_headings_from_its_template() {
        let rows = [json!({ "ID": "1", "Names": "web" }), json!({ "ID": "22", "Names": "db" })];
        let text = LISTING.table("{{.Names}}\\t{{upper .ID}}", &rows).unwrap();
        assert_eq!(text, "NAMES   CONTAINER ID\nweb     1\ndb      22\n");
        assert_eq!(
            LISTING.default_table(&rows),
            "CONTAINER ID   NAMES\n1              web\n22             db\n"
        );
        assert_eq!(each("{{.ID}}-{{.Names}}", &rows).unwrap(), "1-web\n22-db\n");
        assert!(each("{{.Nope}}", &rows).unwrap_err().to_string().starts_with("--format"));
        assert!(LISTING.shows(None, false, "Names") && !LISTING.shows(Some("{{.ID}}"), false, "Names"));
    }
}
