//! The container's accounts: what its cgroup, its network namespace and the guest's kernel count.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::thread::available_parallelism;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

use super::container::cgroup::numbers;
use super::container::{Cgroup, Container};
use crate::protocol::{
    CpuStats, IoStats, MAX_COUNTERS, MAX_DEVICES, MAX_INTERFACE_NAME, MemoryStats, NetworkStats, PidsStats,
    Stats,
};

/// Most bytes that are read of a file of /proc.
const MAX_FILE: u64 = 256 * 1024;
/// Microseconds in a second.
const MICROSECONDS: u64 = 1_000_000;

/// Reads all accounts. What the kernel does not count is zero.
pub(crate) fn read(container: &Container) -> Stats {
    let cgroup = &container.cgroup;
    Stats {
        wall_clock: clock(ClockId::CLOCK_REALTIME),
        monotonic: clock(ClockId::CLOCK_BOOTTIME),
        memory: memory(cgroup),
        cpu: cpu(cgroup),
        pids: PidsStats { current: number(cgroup, "pids.current"), limit: limit(cgroup, "pids.max") },
        io: parse_io(&cgroup.read("io.stat")),
        networks: parse_networks(&read_file(&format!("/proc/{}/net/dev", container.pid))),
    }
}

/// Reads a file of the kernel's; an absent one is empty.
pub(crate) fn read_file(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        let _ = file.take(MAX_FILE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A clock in nanoseconds.
pub(crate) fn clock(clock: ClockId) -> u64 {
    let Ok(time) = clock_gettime(clock) else { return 0 };
    let (seconds, nanoseconds) =
        (u64::try_from(time.tv_sec()).unwrap_or(0), u64::try_from(time.tv_nsec()).unwrap_or(0));
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// Ticks of the kernel's clock in a second, as /proc counts them.
pub(crate) fn ticks_per_second() -> u64 {
    sysconf(SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .and_then(|n| u64::try_from(n).ok())
        .filter(|n| *n > 0)
        .unwrap_or(100)
}

fn number(cgroup: &Cgroup, file: &str) -> u64 {
    cgroup.read(file).trim().parse().unwrap_or(0)
}

fn limit(cgroup: &Cgroup, file: &str) -> Option<u64> {
    cgroup.read(file).trim().parse().ok()
}

fn table(text: &str) -> BTreeMap<String, u64> {
    numbers(text).take(MAX_COUNTERS).map(|(name, number)| (name.to_owned(), number)).collect()
}

fn memory(cgroup: &Cgroup) -> MemoryStats {
    let machine = read_file("/proc/meminfo");
    let total = machine.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    MemoryStats {
        current: number(cgroup, "memory.current"),
        peak: number(cgroup, "memory.peak"),
        limit: limit(cgroup, "memory.max"),
        machine: total.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0).saturating_mul(1024),
        stat: table(&cgroup.read("memory.stat")),
        events: table(&cgroup.read("memory.events")),
    }
}

fn cpu(cgroup: &Cgroup) -> CpuStats {
    let stat = table(&cgroup.read("cpu.stat"));
    let of = |name: &str| stat.get(name).copied().unwrap_or(0);
    CpuStats {
        usage: of("usage_usec"),
        user: of("user_usec"),
        system: of("system_usec"),
        periods: of("nr_periods"),
        throttled_periods: of("nr_throttled"),
        throttled: of("throttled_usec"),
        machine: machine_cpu(&read_file("/proc/stat"), ticks_per_second()),
        online: available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
    }
}

/// The first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal, in ticks. What follows is counted in them already.
fn machine_cpu(text: &str, ticks: u64) -> u64 {
    let Some(line) = text.lines().next().and_then(|l| l.strip_prefix("cpu ")) else { return 0 };
    let sum =
        line.split_whitespace().take(8).filter_map(|n| n.parse::<u64>().ok()).fold(0u64, u64::saturating_add);
    sum.saturating_mul(MICROSECONDS / ticks.clamp(1, MICROSECONDS))
}

/// Lines of `major:minor name=number ...`.
fn parse_io(text: &str) -> Vec<IoStats> {
    let parse = |line: &str| {
        let (device, rest) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        let mut io = IoStats { major: major.parse().ok()?, minor: minor.parse().ok()?, ..IoStats::default() };
        for (name, number) in rest.split_whitespace().filter_map(|pair| pair.split_once('=')) {
            let number = number.parse().unwrap_or(0);
            match name {
                "rbytes" => io.read_bytes = number,
                "wbytes" => io.write_bytes = number,
                "rios" => io.reads = number,
                "wios" => io.writes = number,
                _ => {}
            }
        }
        Some(io)
    };
    text.lines().filter_map(parse).take(MAX_DEVICES).collect()
}

/// Lines of `name: eight numbers received, eight numbers sent`, after two lines of headings.
fn parse_networks(text: &str) -> Vec<NetworkStats> {
    let parse = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let name = name.trim();
        let numbers: Vec<u64> = rest.split_whitespace().map(|n| n.parse().unwrap_or(0)).collect();
        let [
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            _,
            _,
            _,
            _,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
            ..,
        ] = *numbers.as_slice()
        else {
            return None;
        };
        (name.len() <= MAX_INTERFACE_NAME).then(|| NetworkStats {
            name: name.to_owned(),
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
        })
    };
    text.lines().skip(2).filter_map(parse).take(MAX_DEVICES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let io = parse_io("254:16 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n254:0 \nnonsense\n");
        assert_eq!(
            io[0],
            IoStats { major: 254, minor: 16, read_bytes: 4096, write_bytes: 8192, reads: 1, writes: 2 }
        );
        assert_eq!((io.len(), io[1].read_bytes), (2, 0));

        let text = "Inter-|   Receive  |  Transmit\n face |bytes\n    lo:  10  2 0 1 0 0 0 0  30 4 5 6 0 0 0 0\n eth0: 1 2\n";
        let networks = parse_networks(text);
        assert_eq!(networks.len(), 1);
        assert_eq!((networks[0].name.as_str(), networks[0].rx_bytes, networks[0].tx_dropped), ("lo", 10, 6));

        assert_eq!(machine_cpu("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1\n", 100), 360_000);
        assert_eq!(machine_cpu("", 100), 0);
        assert_eq!(table("anon 5\nbad\nx y\n"), BTreeMap::from([("anon".to_owned(), 5)]));
    }
}
