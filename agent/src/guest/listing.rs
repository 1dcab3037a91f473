//! The container's processes, as /proc tells of them.

use std::fs;

use nix::time::ClockId;

use super::accounts::{clock, read_file, ticks_per_second};
use super::container::Cgroup;
use crate::protocol::{MAX_COMMAND, MAX_FRAME, MAX_LISTED, ProcessInfo, ProcessList};

/// Most bytes of the list's encoding: it has to fit into a frame, whatever the command lines hold.
const MAX_ENCODED: usize = MAX_FRAME / 2;
/// Major numbers of terminals.
const PTY_MAJORS: std::ops::RangeInclusive<u32> = 136..=143;

/// Lists the processes of a cgroup, as many as there is room for.
pub(crate) fn read(cgroup: &Cgroup) -> ProcessList {
    let clocks = Clocks {
        booted_ms: (clock(ClockId::CLOCK_REALTIME).saturating_sub(clock(ClockId::CLOCK_BOOTTIME)))
            / 1_000_000,
        ticks: ticks_per_second(),
        page: page_size(),
    };
    let mut pids: Vec<u32> = cgroup.read("cgroup.procs").lines().filter_map(|l| l.parse().ok()).collect();
    pids.sort_unstable();
    let mut list = ProcessList { processes: Vec::new(), truncated: false };
    let mut encoded = 0;
    for pid in pids {
        // A process may be gone by now.
        let Some(info) = read_process(pid, &clocks) else { continue };
        encoded += serde_json::to_vec(&info).map_or(MAX_ENCODED, |json| json.len() + 1);
        if list.processes.len() == MAX_LISTED || encoded > MAX_ENCODED {
            list.truncated = true;
            break;
        }
        list.processes.push(info);
    }
    list
}

struct Clocks {
    /// When the guest was booted, in milliseconds since 1970.
    booted_ms: u64,
    ticks: u64,
    page: u64,
}

fn page_size() -> u64 {
    use nix::unistd::{SysconfVar, sysconf};
    sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|n| u64::try_from(n).ok()).unwrap_or(4096)
}

fn read_process(pid: u32, clocks: &Clocks) -> Option<ProcessInfo> {
    let stat = read_file(&format!("/proc/{pid}/stat"));
    let status = read_file(&format!("/proc/{pid}/status"));
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    parse(pid, &stat, &status, &command, clocks)
}

/// proc(5): /proc/pid/stat has the name in parentheses (it may hold any), then numbers; /proc/pid/status has lines of `Name:\tvalues`.
fn parse(pid: u32, stat: &str, status: &str, command: &[u8], clocks: &Clocks) -> Option<ProcessInfo> {
    let (before, after) = stat.rsplit_once(')')?;
    let name = cut(before.split_once('(')?.1.to_owned(), 64);
    // The first field after the name is the third of the file.
    let fields: Vec<&str> = after.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    let line = |key: &str| status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    let column =
        |key: &str, column: usize| -> Option<u32> { line(key)?.split_whitespace().nth(column)?.parse().ok() };
    let milliseconds = |ticks: u64| ticks.saturating_mul(1000) / clocks.ticks;
    let mut words = String::from_utf8_lossy(command).trim_end_matches('\0').replace('\0', " ");
    if words.is_empty() {
        words = format!("[{name}]");
    }
    Some(ProcessInfo {
        pid,
        inner_pid: line("NSpid").and_then(|l| l.split_whitespace().last()?.parse().ok()).unwrap_or(0),
        ppid: u32::try_from(field(4)).unwrap_or(0),
        uid: column("Uid", 1).unwrap_or(0),
        gid: column("Gid", 1).unwrap_or(0),
        state: fields.first()?.chars().next()?,
        tty: terminal(u32::try_from(field(7)).unwrap_or(0)),
        started_ms: clocks.booted_ms.saturating_add(milliseconds(field(22))),
        cpu_ms: milliseconds(field(14).saturating_add(field(15))),
        threads: u32::try_from(field(20)).unwrap_or(0),
        size: field(23),
        resident: field(24).saturating_mul(clocks.page),
        name,
        command: cut(words, MAX_COMMAND),
    })
}

/// The terminal of a device number, as the kernel packs it in /proc.
fn terminal(device: u32) -> String {
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xf_ff00));
    match major {
        0 => String::new(),
        m if PTY_MAJORS.contains(&m) => format!("pts/{}", (m - PTY_MAJORS.start()) * 256 + minor),
        _ => format!("{major}:{minor}"),
    }
}

fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCKS: Clocks = Clocks { booted_ms: 1_000_000, ticks: 100, page: 4096 };

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = "42 (a) b (c)) S 7 42 42 34816 42 4194304 1 2 3 4 50 25 0 0 20 0 3 0 1234 8192 2 more";
        let status = "Name:\ta\nUid:\t0\t1000\t0\t0\nGid:\t0\t50\t0\t0\nNSpid:\t42\t5\n";
        let info = parse(42, stat, status, b"sh\0-c\0exit\0", &CLOCKS).unwrap();
        assert_eq!((info.name.as_str(), info.command.as_str()), ("a) b (c)", "sh -c exit"));
        assert_eq!((info.ppid, info.inner_pid, info.uid, info.gid, info.threads), (7, 5, 1000, 50, 3));
        assert_eq!((info.state, info.tty.as_str()), ('S', "pts/0"));
        assert_eq!((info.cpu_ms, info.started_ms), (750, 1_012_340));
        assert_eq!((info.size, info.resident), (8192, 8192));
        assert_eq!(parse(42, stat, status, b"", &CLOCKS).unwrap().command, "[a) b (c)]");
        let long = parse(42, stat, status, "é".repeat(9000).as_bytes(), &CLOCKS).unwrap().command;
        assert!(long.len() <= MAX_COMMAND && long.ends_with('é'));
    }

    #[test]
    fn what_is_cut_short_is_no_process() {
        for stat in ["", "42", "42 (x", "42 (x)"] {
            assert!(parse(42, stat, "", b"", &CLOCKS).is_none(), "{stat}");
        }
        assert_eq!(parse(1, "1 (x) R", "", b"", &CLOCKS).unwrap().ppid, 0);
    }
}
