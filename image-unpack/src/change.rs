//! Changes to an image's configuration in the words of a Dockerfile, as `docker commit --change` and `docker import
//! --change` take them (docs.docker.com, "Dockerfile reference").

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

const WHAT: &str = "change";
/// Bytes of one change.
const MAX: usize = 64 << 10;
/// Ports of one EXPOSE.
const PORTS_MAX: u32 = 1 << 16;

/// One instruction: `CMD`, `ENTRYPOINT`, `ENV`, `EXPOSE`, `HEALTHCHECK`, `LABEL`, `ONBUILD`, `STOPSIGNAL`, `USER`, `VOLUME`
/// or `WORKDIR`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    text: String,
    what: Instruction,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Instruction {
    Cmd(Vec<String>),
    Entrypoint(Vec<String>),
    Env(Vec<(String, String)>),
    /// `80/tcp`
    Expose(Vec<String>),
    Healthcheck(Value),
    Label(BTreeMap<String, String>),
    OnBuild(String),
    StopSignal(String),
    User(String),
    Volume(Vec<String>),
    WorkDir(String),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Change {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |reason: String| Error::invalid(WHAT, text, reason);
        let text = text.trim();
        if text.len() > MAX {
            return Err(bad(format!("it is longer than {MAX} bytes")));
        }
        if text.contains(['\0', '\n']) {
            return Err(bad("it has a newline or a NUL".into()));
        }
        let (name, rest) = text.split_once([' ', '\t']).unwrap_or((text, ""));
        let rest = rest.trim();
        if rest.is_empty() {
            return Err(bad("it has nothing behind the instruction".into()));
        }
        let what = match name.to_ascii_uppercase().as_str() {
            "CMD" => Instruction::Cmd(command(rest)),
            "ENTRYPOINT" => Instruction::Entrypoint(command(rest)),
            "ENV" => Instruction::Env(pairs(rest).map_err(bad)?),
            "LABEL" => Instruction::Label(pairs(rest).map_err(bad)?.into_iter().collect()),
            "EXPOSE" => Instruction::Expose(ports(rest).map_err(bad)?),
            "HEALTHCHECK" => Instruction::Healthcheck(health(rest).map_err(bad)?),
            "ONBUILD" => Instruction::OnBuild(rest.to_owned()),
            "STOPSIGNAL" => Instruction::StopSignal(one_word(rest).map_err(bad)?),
            "USER" => Instruction::User(one_word(rest).map_err(bad)?),
            "WORKDIR" => Instruction::WorkDir(one_word(rest).map_err(bad)?),
            "VOLUME" => Instruction::Volume(match json_strings(rest) {
                Some(list) => list,
                None => words(rest).map_err(bad)?,
            }),
            _ => {
                let known = "CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR";
                return Err(bad(format!("the instruction is not one of {known}")));
            }
        };
        Ok(Self { text: text.to_owned(), what })
    }
}

impl Change {
    /// Applies changes to an image's `config` object, in order. As in a Dockerfile, an `ENTRYPOINT` forgets a `CMD` that
    /// was there before all of them.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a field to be changed has another type than it should.
    pub(crate) fn apply_all(changes: &[Self], config: &mut Map<String, Value>) -> Result<()> {
        let mut command_set = false;
        for change in changes {
            match &change.what {
                Instruction::Cmd(_) => command_set = true,
                Instruction::Entrypoint(_) if !command_set => {
                    config.remove("Cmd");
                }
                _ => {}
            }
            change.apply(config)?;
        }
        Ok(())
    }

    fn apply(&self, config: &mut Map<String, Value>) -> Result<()> {
        let wrong =
            |field: &str| Error::invalid(WHAT, &self.text, format!("`{field}` of the image is malformed"));
        let mut set = |field: &str, value: Value| {
            config.insert(field.to_owned(), value);
        };
        match &self.what {
            Instruction::Cmd(words) => set("Cmd", json!(words)),
            Instruction::Entrypoint(words) => set("Entrypoint", json!(words)),
            Instruction::Healthcheck(value) => set("Healthcheck", value.clone()),
            Instruction::StopSignal(signal) => set("StopSignal", json!(signal)),
            Instruction::User(user) => set("User", json!(user)),
            Instruction::WorkDir(path) => {
                let before = config.get("WorkingDir").and_then(Value::as_str).filter(|path| !path.is_empty());
                let path = join(before.unwrap_or("/"), path);
                config.insert("WorkingDir".into(), path.into());
            }
            Instruction::Env(pairs) => {
                let list = array(config, "Env").ok_or_else(|| wrong("Env"))?;
                for (name, value) in pairs {
                    let is_same = |entry: &Value| {
                        entry.as_str().and_then(|e| e.split_once('=')).is_some_and(|e| e.0 == name)
                    };
                    let entry = Value::from(format!("{name}={value}"));
                    match list.iter_mut().find(|entry| is_same(entry)) {
                        Some(old) => *old = entry,
                        None => list.push(entry),
                    }
                }
            }
            Instruction::OnBuild(trigger) => {
                array(config, "OnBuild").ok_or_else(|| wrong("OnBuild"))?.push(json!(trigger));
            }
            Instruction::Label(labels) => {
                let all = object(config, "Labels").ok_or_else(|| wrong("Labels"))?;
                all.extend(labels.iter().map(|(name, value)| (name.clone(), json!(value))));
            }
            Instruction::Expose(ports) => {
                let all = object(config, "ExposedPorts").ok_or_else(|| wrong("ExposedPorts"))?;
                all.extend(ports.iter().map(|port| (port.clone(), json!({}))));
            }
            Instruction::Volume(paths) => {
                let all = object(config, "Volumes").ok_or_else(|| wrong("Volumes"))?;
                all.extend(paths.iter().map(|path| (path.clone(), json!({}))));
            }
        }
        Ok(())
    }
}

/// A list of the configuration, made if it is absent or null.
fn array<'a>(config: &'a mut Map<String, Value>, field: &str) -> Option<&'a mut Vec<Value>> {
    let value = config.entry(field).or_insert(Value::Null);
    if value.is_null() {
        *value = json!([]);
    }
    value.as_array_mut()
}

fn object<'a>(config: &'a mut Map<String, Value>, field: &str) -> Option<&'a mut Map<String, Value>> {
    let value = config.entry(field).or_insert(Value::Null);
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut()
}

/// A path below another; absolute ones stand for themselves.
fn join(base: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let both = if path.starts_with('/') { vec![path] } else { vec![base, path] };
    for part in both.into_iter().flat_map(|path| path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}

fn json_strings(text: &str) -> Option<Vec<String>> {
    if text.starts_with('[') { serde_json::from_str(text).ok() } else { None }
}

/// The exec form (a JSON list), else the shell form.
fn command(text: &str) -> Vec<String> {
    json_strings(text).unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into(), text.to_owned()])
}

/// Words as a Dockerfile splits them: at blanks that no quote and no backslash protects.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut out, mut word) = (Vec::new(), None::<String>);
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => match chars.next() {
                // Within double quotes a backslash is itself, but before what it protects there.
                Some(next) if quote.is_some() && !matches!(next, '"' | '\\' | '$') => {
                    word.get_or_insert_default().extend(['\\', next]);
                }
                Some(next) => word.get_or_insert_default().push(next),
                None => return Err("it ends with a backslash".into()),
            },
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (' ' | '\t', None) => out.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".into());
    }
    out.extend(word);
    Ok(out)
}

fn one_word(text: &str) -> Result<String, String> {
    match <[String; 1]>::try_from(words(text)?) {
        Ok([word]) if !word.is_empty() => Ok(word),
        _ => Err("it takes exactly one word".into()),
    }
}

/// `name=value ...`, or the old form `name value`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let first = text.split([' ', '\t']).next().unwrap_or_default();
    if !first.contains('=') {
        let (name, value) = text.split_once([' ', '\t']).ok_or("a name without a value")?;
        return Ok(vec![(name.to_owned(), value.trim_start().to_owned())]);
    }
    words(text)?
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some(("", _)) => Err("a name is empty".to_owned()),
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(format!("`{word}` is not of the form name=value")),
        })
        .collect()
}

/// `80`, `443/tcp`, `8000-8010/udp`.
fn ports(text: &str) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    let mut left = PORTS_MAX;
    for word in words(text)? {
        let (range, protocol) = word.split_once('/').unwrap_or((&word, "tcp"));
        let protocol = protocol.to_ascii_lowercase();
        if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
            return Err(format!("`{word}`: the protocol is not tcp, udp or sctp"));
        }
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let port = |text: &str| text.parse::<u16>().ok().filter(|&port| port != 0);
        let (Some(first), Some(last)) = (port(first), port(last)) else {
            return Err(format!("`{word}` is not a port or a range of ports"));
        };
        if first > last {
            return Err(format!("`{word}`: the range goes backwards"));
        }
        let count = u32::from(last - first) + 1;
        left = left.checked_sub(count).ok_or("too many ports")?;
        out.extend((first..=last).map(|port| format!("{port}/{protocol}")));
    }
    Ok(out)
}

/// `NONE`, or options and `CMD` with a command.
fn health(text: &str) -> Result<Value, String> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(json!({"Test": ["NONE"]}));
    }
    let mut out = Map::new();
    let mut rest = text;
    while let Some(option) = rest.strip_prefix("--") {
        let (option, after) = option.split_once([' ', '\t']).ok_or("it has no CMD")?;
        rest = after.trim_start();
        let (name, value) = option.split_once('=').ok_or_else(|| format!("`--{option}` has no value"))?;
        let field = match name {
            "interval" => "Interval",
            "timeout" => "Timeout",
            "start-period" => "StartPeriod",
            "start-interval" => "StartInterval",
            "retries" => {
                let count: u32 =
                    value.parse().map_err(|_| format!("`{value}` is not a number of retries"))?;
                out.insert("Retries".into(), count.into());
                continue;
            }
            _ => return Err(format!("`--{name}` is not an option of a health check")),
        };
        let nanoseconds =
            duration(value).ok_or_else(|| format!("`{value}` is not a duration, as 30s or 1m30s"))?;
        out.insert(field.into(), nanoseconds.into());
    }
    let (kind, rest) = rest.split_once([' ', '\t']).ok_or("it has no CMD")?;
    if !kind.eq_ignore_ascii_case("cmd") {
        return Err("it is neither NONE nor CMD".into());
    }
    let rest = rest.trim();
    let test = match json_strings(rest) {
        Some(words) => [vec!["CMD".to_owned()], words].concat(),
        None => vec!["CMD-SHELL".into(), rest.to_owned()],
    };
    out.insert("Test".into(), json!(test));
    Ok(out.into())
}

/// A duration as Go writes it, in nanoseconds.
fn duration(text: &str) -> Option<u64> {
    let mut total = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|&n| n > 0)?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let unit: u64 = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        rest = after;
    }
    (total > 0 && i64::try_from(total).is_ok()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(start: Value, changes: &[&str]) -> Value {
        let changes: Vec<Change> = changes.iter().map(|text| text.parse().unwrap()).collect();
        let Value::Object(mut config) = start else { panic!() };
        Change::apply_all(&changes, &mut config).unwrap();
        config.into()
    }

    #[test]
    fn applies_in_order() {
        let start =
            json!({"Env": ["PATH=/bin", "A=1"], "Cmd": ["old"], "WorkingDir": "/srv", "Labels": null});
        let changes = [
            "ENTRYPOINT [\"/init\", \"-v\"]",
            "cmd echo $HOME",
            "ENV A=2 B=\"two words\" C=x\\ y",
            "ENV OLD form of it",
            "LABEL a.b='c d' e=",
            "EXPOSE 80 8000-8001/udp",
            "WORKDIR app/../data",
            "USER 1000:1000",
            "VOLUME /a /b",
            "VOLUME [\"/c d\"]",
            "STOPSIGNAL SIGINT",
            "ONBUILD RUN x",
        ];
        let expected = json!({
            "Entrypoint": ["/init", "-v"], "Cmd": ["/bin/sh", "-c", "echo $HOME"],
            "Env": ["PATH=/bin", "A=2", "B=two words", "C=x y", "OLD=form of it"],
            "Labels": {"a.b": "c d", "e": ""},
            "ExposedPorts": {"80/tcp": {}, "8000/udp": {}, "8001/udp": {}},
            "WorkingDir": "/srv/data", "User": "1000:1000",
            "Volumes": {"/a": {}, "/b": {}, "/c d": {}}, "StopSignal": "SIGINT", "OnBuild": ["RUN x"],
        });
        assert_eq!(applied(start, &changes), expected);
    }

    #[test]
    fn an_entrypoint_forgets_the_old_command_only() {
        let entrypoint = "ENTRYPOINT [\"/a\"]";
        assert_eq!(applied(json!({"Cmd": ["old"]}), &[entrypoint]), json!({"Entrypoint": ["/a"]}));
        let both = applied(json!({"Cmd": ["old"]}), &["CMD [\"new\"]", entrypoint]);
        assert_eq!(both, json!({"Entrypoint": ["/a"], "Cmd": ["new"]}));
    }

    #[test]
    fn health_checks() {
        let text = "HEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD curl -f localhost";
        let expected = json!({"Healthcheck": {"Interval": 90_000_000_000_u64, "Timeout": 500_000_000, "Retries": 3,
            "Test": ["CMD-SHELL", "curl -f localhost"]}});
        assert_eq!(applied(json!({}), &[text]), expected);
        assert_eq!(applied(json!({}), &["HEALTHCHECK NONE"]), json!({"Healthcheck": {"Test": ["NONE"]}}));
    }

    #[test]
    fn refuses_by_name() {
        for text in [
            "",
            "CMD",
            "RUN x",
            "FROM y",
            "ENV A",
            "ENV =x",
            "EXPOSE 0",
            "EXPOSE 1/icmp",
            "EXPOSE 9-1",
            "EXPOSE 99999",
            "USER a b",
            "LABEL a=\"b",
            "HEALTHCHECK --interval=x CMD y",
            "HEALTHCHECK --bogus=1 CMD y",
            "HEALTHCHECK x y",
            "EXPOSE 1-65535 1-65535",
            "ENV A=\\",
            "CMD a\nUSER b",
        ] {
            assert!(matches!(text.parse::<Change>(), Err(Error::Invalid { .. })), "{text}");
        }
        let mut config = Map::from_iter([("Env".to_owned(), json!("x"))]);
        let change: Change = "ENV A=1".parse().unwrap();
        assert!(Change::apply_all(&[change], &mut config).is_err());
    }
}
