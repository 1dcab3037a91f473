//! Limits of memory, CPU time, processes and disk, and resource limits of processes.

use bollard_stubs::models::{HostConfig, ResourcesUlimits, ThrottleDevice};
use engine::model::{Limits, Ulimit};
use engine::options::MIN_MEMORY_BYTES;

use crate::error::ApiError;
use crate::fields::Fields;

/// How the writable disk is called where Docker shows a device.
const DISK: &str = "/dev/vdb";
/// Bounds of a period of CPU time, in microseconds.
const PERIOD: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;

/// Reads the limits of a `HostConfig`, or of an update, where all of them are at the top.
///
/// # Errors
/// One is out of its bounds, or limits something that a machine does not have.
pub fn read(host: &mut Fields) -> Result<Limits, ApiError> {
    let memory = positive(host, "Memory")?;
    if memory.is_some_and(|bytes| bytes < MIN_MEMORY_BYTES) {
        return Err(ApiError::bad("Minimum memory limit allowed is 6MB"));
    }
    swap(host, memory)?;
    let memory_reservation = positive(host, "MemoryReservation")?;
    if let (Some(limit), Some(wish)) = (memory, memory_reservation)
        && wish > limit
    {
        return Err(ApiError::bad(
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        ));
    }
    let nano_cpus = positive(host, "NanoCpus")?;
    let cpu_quota = host.take::<Option<i64>>("CpuQuota")?.filter(|&quota| quota != 0);
    let cpu_period = positive(host, "CpuPeriod")?;
    if nano_cpus.is_some() && (cpu_quota.is_some() || cpu_period.is_some()) {
        return Err(ApiError::bad("Conflicting options: Nano CPUs and CPU Period cannot both be set"));
    }
    if cpu_period.is_some_and(|period| !PERIOD.contains(&period)) {
        return Err(ApiError::bad(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        ));
    }
    if cpu_quota.is_some_and(|quota| quota > 0 && quota < 1000) {
        return Err(ApiError::bad("CPU cfs quota can not be less than 1ms (i.e. 1000)"));
    }
    let cpuset = host.text("CpusetCpus")?;
    if let Some(set) = &cpuset
        && !set.bytes().all(|b| b.is_ascii_digit() || matches!(b, b',' | b'-'))
    {
        return Err(ApiError::bad(format!("Invalid value {set} for cpuset cpus")));
    }
    Ok(Limits {
        memory,
        memory_reservation,
        nano_cpus,
        cpu_quota,
        cpu_period,
        cpu_shares: positive(host, "CpuShares")?,
        cpuset,
        pids: host.take::<Option<i64>>("PidsLimit")?.filter(|&limit| limit != 0),
        read_bps: rate(host, "BlkioDeviceReadBps")?,
        write_bps: rate(host, "BlkioDeviceWriteBps")?,
        read_iops: rate(host, "BlkioDeviceReadIOps")?,
        write_iops: rate(host, "BlkioDeviceWriteIOps")?,
    })
}

/// A number that is not negative; 0 and absent are `None`.
fn positive(host: &mut Fields, name: &str) -> Result<Option<u64>, ApiError> {
    match host.take::<i64>(name)? {
        0 => Ok(None),
        number => match u64::try_from(number) {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(ApiError::bad(format!("{name} cannot be negative: {number}"))),
        },
    }
}

/// A machine has no swap: a limit of it is honoured if it allows none, or does not count.
fn swap(host: &mut Fields, memory: Option<u64>) -> Result<(), ApiError> {
    match host.take::<i64>("MemorySwap")? {
        0 | -1 => Ok(()),
        _ if memory.is_none() => Err(ApiError::bad(
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        )),
        total if u64::try_from(total).ok() == memory => Ok(()),
        total if u64::try_from(total).is_ok_and(|total| Some(total) < memory) => {
            Err(ApiError::bad("Minimum memoryswap limit should be larger than memory limit, see usage"))
        }
        total => Err(ApiError::refused(
            &format!("--memory-swap {total}"),
            "a machine has memory of its own and no swap",
            "give it the same value as --memory, or leave it out",
        )),
    }
}

/// A rate for the writable disk. Docker names a device of the host; a machine has one disk to write to, so that one rate is enough.
fn rate(host: &mut Fields, name: &str) -> Result<Option<u64>, ApiError> {
    let mut rates = Vec::new();
    for mut device in host.objects(name)? {
        device.forget(&["Path"]);
        rates.push(positive(&mut device, "Rate")?);
    }
    match rates.as_slice() {
        [] => Ok(None),
        [one] => Ok(*one),
        _ => Err(ApiError::refused(
            &format!("HostConfig.{name} with several devices"),
            "a machine has one disk that it can write to",
            "give one rate",
        )),
    }
}

/// Reads `Ulimits`.
///
/// # Errors
/// There is none of that name, or the soft limit is above the hard one.
pub fn ulimits(host: &mut Fields) -> Result<Vec<Ulimit>, ApiError> {
    let mut read = Vec::new();
    for mut entry in host.objects("Ulimits")? {
        let limit =
            Ulimit { name: entry.take("Name")?, soft: entry.take("Soft")?, hard: entry.take("Hard")? };
        engine::spec::check_ulimit(&limit)?;
        read.push(limit);
    }
    Ok(read)
}

/// Writes limits into a `HostConfig`.
pub fn show(limits: &Limits, ulimits: &[Ulimit], host: &mut HostConfig) {
    let number = |value: Option<u64>| Some(value.map_or(0, |value| i64::try_from(value).unwrap_or(i64::MAX)));
    let throttle = |rate: Option<u64>| {
        rate.map(|rate| vec![ThrottleDevice { path: Some(DISK.into()), rate: i64::try_from(rate).ok() }])
    };
    host.memory = number(limits.memory);
    host.memory_reservation = number(limits.memory_reservation);
    host.memory_swap = number(limits.memory);
    host.nano_cpus = number(limits.nano_cpus);
    host.cpu_shares = number(limits.cpu_shares);
    host.cpu_period = number(limits.cpu_period);
    host.cpu_quota = Some(limits.cpu_quota.unwrap_or_default());
    host.cpuset_cpus = Some(limits.cpuset.clone().unwrap_or_default());
    host.cpuset_mems = Some(String::new());
    host.pids_limit = limits.pids;
    host.oom_kill_disable = Some(false);
    host.blkio_device_read_bps = throttle(limits.read_bps);
    host.blkio_device_write_bps = throttle(limits.write_bps);
    host.blkio_device_read_iops = throttle(limits.read_iops);
    host.blkio_device_write_iops = throttle(limits.write_iops);
    let shown = |limit: &Ulimit| ResourcesUlimits {
        name: Some(limit.name.clone()),
        soft: Some(limit.soft),
        hard: Some(limit.hard),
    };
    host.ulimits = Some(ulimits.iter().map(shown).collect());
}
