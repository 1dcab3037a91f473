//! Functions of templates: Go's own, and those that Docker adds.

use std::cmp::Ordering;

use serde_json::Value;

use super::{MAX_OUTPUT, TemplateError};

/// Whether a value counts as true: not null, false, 0 or empty.
pub fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(yes) => *yes,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// A value as Go prints it.
pub fn display(value: &Value) -> String {
    let all = |list: Vec<String>| list.join(" ");
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::Bool(yes) => yes.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", all(list.iter().map(display).collect())),
        Value::Object(map) => {
            format!("map[{}]", all(map.iter().map(|(n, v)| format!("{n}:{}", display(v))).collect()))
        }
    }
}

/// A label, from a map or from `a=b,c=d`; nothing if there is none.
pub fn label(labels: &Value, name: &str) -> Value {
    match labels {
        Value::Object(map) => map.get(name).cloned().unwrap_or_else(|| "".into()),
        Value::String(text) => {
            let mut pairs = text.split(',').filter_map(|pair| pair.split_once('='));
            pairs.find(|(label, _)| *label == name).map_or("", |(_, value)| value).into()
        }
        _ => "".into(),
    }
}

fn wrong(why: impl Into<String>) -> TemplateError {
    TemplateError::Value(why.into())
}

/// Calls a function.
///
/// # Errors
/// There is none of that name, or it does not take these arguments.
pub fn call(name: &str, arguments: &[Value]) -> Result<Value, TemplateError> {
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        other => Err(wrong(format!("{name} takes a text, not {}", display(other)))),
    };
    let number = |value: &Value| {
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
        number.ok_or_else(|| wrong(format!("{name} takes a number, not {}", display(value))))
    };
    Ok(match (name, arguments) {
        ("json", [value]) => Value::String(serde_json::to_string(value).unwrap_or_default()),
        ("prettyjson", [value]) => Value::String(serde_json::to_string_pretty(value).unwrap_or_default()),
        ("lower", [value]) => text(value)?.to_lowercase().into(),
        ("upper", [value]) => text(value)?.to_uppercase().into(),
        ("title", [value]) => title(&text(value)?).into(),
        ("join", [Value::Null, _]) => "".into(),
        ("join", [Value::Array(list), separator]) => {
            list.iter().map(display).collect::<Vec<_>>().join(&text(separator)?).into()
        }
        ("split", [value, separator]) => {
            let (value, separator) = (text(value)?, text(separator)?);
            value.split(separator.as_str()).map(Value::from).collect::<Vec<_>>().into()
        }
        ("pad", [value, before, after]) => {
            let (before, after) = (number(before)?, number(after)?);
            if before.max(after) > MAX_OUTPUT / 4 {
                return Err(TemplateError::Bounds("64 MiB of output"));
            }
            let value = text(value)?;
            if value.is_empty() {
                value
            } else {
                format!("{}{value}{}", " ".repeat(before), " ".repeat(after))
            }
            .into()
        }
        ("truncate", [value, length]) => {
            text(value)?.chars().take(number(length)?).collect::<String>().into()
        }
        ("len", [value]) => length(value)?.into(),
        ("index", [value, indexes @ ..]) => index(value, indexes)?,
        ("slice", [Value::String(value), from, rest @ ..]) => {
            let to = rest.first().map_or(Ok(value.len()), number)?;
            value.get(number(from)?..to).ok_or_else(|| wrong("slice: out of bounds"))?.into()
        }
        ("slice", [Value::Array(list), from, rest @ ..]) => {
            let to = rest.first().map_or(Ok(list.len()), number)?;
            list.get(number(from)?..to).ok_or_else(|| wrong("slice: out of bounds"))?.to_vec().into()
        }
        ("print", all) => all.iter().map(display).collect::<String>().into(),
        ("println", all) => format!("{}\n", all.iter().map(display).collect::<Vec<_>>().join(" ")).into(),
        ("printf", [format, rest @ ..]) => printf(&text(format)?, rest)?.into(),
        ("not", [value]) => (!truthy(value)).into(),
        ("and", [first, rest @ ..]) => chosen(first, rest, false),
        ("or", [first, rest @ ..]) => chosen(first, rest, true),
        ("eq", [first, rest @ ..]) if !rest.is_empty() => rest.iter().any(|v| equal(first, v)).into(),
        ("ne", [a, b]) => (!equal(a, b)).into(),
        ("lt", [a, b]) => (order(a, b)? == Ordering::Less).into(),
        ("le", [a, b]) => (order(a, b)? != Ordering::Greater).into(),
        ("gt", [a, b]) => (order(a, b)? == Ordering::Greater).into(),
        ("ge", [a, b]) => (order(a, b)? != Ordering::Less).into(),
        (known, all) if KNOWN.contains(&known) => {
            return Err(wrong(format!("{known} does not take {} such argument(s)", all.len())));
        }
        (unknown, _) => return Err(TemplateError::Syntax(format!("there is no function {unknown}"))),
    })
}

const KNOWN: [&str; 23] = [
    "json",
    "prettyjson",
    "lower",
    "upper",
    "title",
    "join",
    "split",
    "pad",
    "truncate",
    "len",
    "index",
    "slice",
    "print",
    "println",
    "printf",
    "not",
    "and",
    "or",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
];

fn title(text: &str) -> String {
    let mut begins = true;
    let letter = |c: char| {
        let upper = if begins { c.to_uppercase().collect::<String>() } else { c.to_string() };
        begins = !c.is_alphanumeric();
        upper
    };
    text.chars().map(letter).collect()
}

fn length(value: &Value) -> Result<usize, TemplateError> {
    match value {
        Value::Null => Ok(0),
        Value::String(text) => Ok(text.len()),
        Value::Array(list) => Ok(list.len()),
        Value::Object(map) => Ok(map.len()),
        other => Err(wrong(format!("{} has no length", display(other)))),
    }
}

fn index(value: &Value, indexes: &[Value]) -> Result<Value, TemplateError> {
    let mut value = value.clone();
    for index in indexes {
        value = match (value, index) {
            (Value::Array(list), Value::Number(n)) => {
                let at = n.as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
                list.get(at).cloned().ok_or_else(|| wrong(format!("index out of range: {n}")))?
            }
            (Value::Object(mut map), Value::String(name)) => map.remove(name).unwrap_or(Value::Null),
            (Value::Null, _) => Value::Null,
            (other, index) => {
                return Err(wrong(format!("{} has no element {}", display(&other), display(index))));
            }
        };
    }
    Ok(value)
}

/// `and` and `or`: the first that decides, else the last.
fn chosen(first: &Value, rest: &[Value], decides: bool) -> Value {
    let mut all = std::iter::once(first).chain(rest);
    let last = rest.last().unwrap_or(first);
    all.find(|value| truthy(value) == decides).unwrap_or(last).clone()
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.total_cmp(&b) == Ordering::Equal,
        _ => a == b,
    }
}

fn order(a: &Value, b: &Value) -> Result<Ordering, TemplateError> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => Ok(a.cmp(b)),
        _ => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => Ok(a.total_cmp(&b)),
            _ => Err(wrong(format!("{} and {} cannot be compared", display(a), display(b)))),
        },
    }
}

/// `%s`, `%v`, `%d`, `%q` and `%%`, with a width of at most three digits.
fn printf(format: &str, arguments: &[Value]) -> Result<String, TemplateError> {
    let mut text = String::new();
    let mut arguments = arguments.iter();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        text.push_str(before);
        let (left, after) = after.strip_prefix('-').map_or((false, after), |after| (true, after));
        let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let (width, after) = after.split_at(digits.min(3));
        let width: usize = width.parse().unwrap_or(0);
        let verb = after.chars().next().ok_or_else(|| wrong("printf: % at the end"))?;
        rest = after.get(verb.len_utf8()..).unwrap_or_default();
        if verb == '%' {
            text.push('%');
            continue;
        }
        let value = arguments.next().ok_or_else(|| wrong("printf: too few values"))?;
        let shown = match verb {
            's' | 'v' | 'd' => display(value),
            'q' => serde_json::to_string(&display(value)).unwrap_or_default(),
            other => return Err(wrong(format!("printf: %{other} means nothing"))),
        };
        text.push_str(&if left { format!("{shown:<width$}") } else { format!("{shown:>width$}") });
    }
    text.push_str(rest);
    Ok(text)
}
