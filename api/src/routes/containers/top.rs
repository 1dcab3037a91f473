//! `containers/{id}/top`: the processes of a container, in the columns of ps(1).

use agent::protocol::ProcessInfo;
use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use bollard_stubs::models::ContainerTopResponse;
use engine::model::now;

use crate::App;
use crate::body::json;
use crate::error::ApiError;
use crate::query::Query;
use crate::routes::Answer;

pub fn routes() -> Router<App> {
    Router::new().route("/containers/{id}/top", get(top))
}

/// A column: its title, and a process's value in it.
type Column = (&'static str, fn(&ProcessInfo, &Clock) -> String);

/// What values are relative to.
struct Clock {
    now_ms: u64,
}

const FULL: [&str; 8] = ["uid", "pid", "ppid", "c", "stime", "tty", "time", "cmd"];
const BSD: [&str; 11] =
    ["user", "pid", "pcpu", "pmem", "vsz", "rss", "tty", "stat", "start", "time", "command"];
const SHORT: [&str; 4] = ["pid", "tty", "time", "comm"];

/// The column of a name, as of ps(1)'s `-o`.
fn column(name: &str) -> Option<Column> {
    let column: Column = match name {
        "uid" => ("UID", |p, _| p.uid.to_string()),
        "user" | "euser" => ("USER", |p, _| p.uid.to_string()),
        "gid" => ("GID", |p, _| p.gid.to_string()),
        "pid" => ("PID", |p, _| p.pid.to_string()),
        "ppid" => ("PPID", |p, _| p.ppid.to_string()),
        "nlwp" => ("NLWP", |p, _| p.threads.to_string()),
        "c" => ("C", |p, clock| (permille(p, clock) / 10).to_string()),
        "pcpu" | "%cpu" => ("%CPU", |p, clock| {
            let permille = permille(p, clock);
            format!("{}.{}", permille / 10, permille % 10)
        }),
        "pmem" | "%mem" => ("%MEM", |_, _| "0.0".into()),
        "vsz" => ("VSZ", |p, _| (p.size >> 10).to_string()),
        "rss" => ("RSS", |p, _| (p.resident >> 10).to_string()),
        "tty" | "tt" => ("TTY", |p, _| if p.tty.is_empty() { "?".into() } else { p.tty.clone() }),
        "stat" | "s" => ("STAT", |p, _| p.state.to_string()),
        "stime" => ("STIME", |p, _| clock_time(p)),
        "start" => ("START", |p, _| clock_time(p)),
        "etime" => ("ELAPSED", |p, clock| hours(clock.now_ms.saturating_sub(p.started_ms) / 1000)),
        "time" => ("TIME", |p, _| hours(p.cpu_ms / 1000)),
        "comm" | "ucmd" => ("CMD", |p, _| p.name.clone()),
        "cmd" => ("CMD", |p, _| p.command.clone()),
        "args" | "command" => ("COMMAND", |p, _| p.command.clone()),
        _ => return None,
    };
    Some(column)
}

/// CPU time per time since the start, in thousandths.
fn permille(process: &ProcessInfo, clock: &Clock) -> u64 {
    let age = clock.now_ms.saturating_sub(process.started_ms).max(1);
    process.cpu_ms.saturating_mul(1000) / age
}

/// Hours and minutes of the day, UTC.
fn clock_time(process: &ProcessInfo) -> String {
    let minutes = process.started_ms / 60_000;
    format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60)
}

fn hours(seconds: u64) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// The columns that the arguments of ps(1) ask for. Which processes are listed is not theirs to say: those of the container.
fn columns(arguments: &str) -> Result<Vec<Column>, ApiError> {
    let named = |names: &[&str]| names.iter().filter_map(|name| column(name)).collect();
    let refused = |word: &str| {
        ApiError::refused(
            &format!("ps argument {word}"),
            "the guest lists its processes itself, there is no ps that could be given arguments",
            "use -ef, aux, or -o with uid,user,gid,pid,ppid,nlwp,c,pcpu,vsz,rss,tty,stat,stime,etime,time,comm,cmd,args",
        )
    };
    let mut chosen: Vec<Column> = Vec::new();
    let mut format: Option<Vec<Column>> = None;
    let mut words = arguments.split([' ', ',', '\t']).filter(|word| !word.is_empty()).peekable();
    while let Some(word) = words.next() {
        let letters = word.trim_start_matches('-');
        if let Some(list) = letters.strip_suffix('o') {
            if !list.bytes().all(|b| b"eaxA".contains(&b)) {
                return Err(refused(word));
            }
            let mut list = Vec::new();
            while let Some(name) = words.next_if(|word| !word.starts_with('-')) {
                let name = name.split('=').next().unwrap_or_default();
                list.push(column(&name.to_ascii_lowercase()).ok_or_else(|| refused(name))?);
            }
            if list.is_empty() {
                return Err(refused(word));
            }
            format.get_or_insert_default().extend(list);
        } else if letters.contains('u') && letters.bytes().all(|b| b"auxwf".contains(&b)) {
            chosen = named(&BSD);
        } else if letters.contains('f') && letters.bytes().all(|b| b"eAaxwf".contains(&b)) {
            chosen = named(&FULL);
        } else if letters.bytes().all(|b| b"eAaxw".contains(&b)) {
            chosen = named(&SHORT);
        } else {
            return Err(refused(word));
        }
    }
    Ok(format.unwrap_or(chosen))
}

async fn top(State(app): State<App>, Path(id): Path<String>, query: Query) -> Answer {
    let columns = columns(query.text("ps_args").unwrap_or("-ef"))?;
    let list = app.engine.processes(&id).await?;
    let clock = Clock { now_ms: u64::try_from(now() / 1_000_000).unwrap_or_default() };
    let row = |process: &ProcessInfo| columns.iter().map(|(_, value)| value(process, &clock)).collect();
    json(&ContainerTopResponse {
        titles: Some(columns.iter().map(|(title, _)| (*title).to_owned()).collect()),
        processes: Some(list.processes.iter().map(row).collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_ps_choose_columns() {
        let titles = |text: &str| {
            columns(text).map(|columns| columns.iter().map(|(title, _)| *title).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(titles("-ef").unwrap(), "UID PID PPID C STIME TTY TIME CMD");
        assert_eq!(titles("aux").unwrap(), "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND");
        assert_eq!(titles("-e").unwrap(), "PID TTY TIME CMD");
        assert_eq!(titles("-o pid,comm").unwrap(), "PID CMD");
        assert_eq!(titles("-eo pid= -o args").unwrap(), "PID COMMAND");
        for bad in ["--forest", "-o", "-o nothing", "-p 1", "-u root"] {
            assert_eq!(titles(bad).unwrap_err().status, 400, "{bad}");
        }
        assert_eq!(hours(3_723), "01:02:03");
    }
}
