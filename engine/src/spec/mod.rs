//! From a container's configuration to what the agent is told: an OCI runtime specification with Docker's defaults.
//!
//! `merge` fills in what the image says when the container is created; [`start`] and [`exec`] translate what was created.

mod capabilities;
mod merge;
mod resources;

pub use capabilities::capability;
pub use merge::merge;
pub use resources::check_ulimit;
pub(crate) use resources::{resources, rlimits};

use std::collections::BTreeMap;

use agent::protocol::spec::{Capabilities, Linux, Mount, Namespace, NamespaceKind, Process, Root, Spec};
use agent::protocol::{Exec, HostFile, Instruction, ProcessId, Start, TerminalSize};

use crate::EngineError;
use crate::model::{Container, ContainerConfig, ExecConfig, Place, Size};
use crate::network::resolver::Resolver;

/// Version of the OCI runtime specification that the engine writes.
const OCI_VERSION: &str = "1.2.0";
/// Digits of an id that are the host name of a container that has no other.
const SHORT_ID: usize = 12;
/// Servers that a resolver looks at (resolv.conf(5), MAXNS).
pub(crate) const MAX_NAMESERVERS: usize = 3;
/// Size of /dev/shm when nobody says, in bytes.
const SHM_SIZE: u64 = 64 << 20;

const NAMESPACES: [NamespaceKind; 6] = [
    NamespaceKind::Mount,
    NamespaceKind::Pid,
    NamespaceKind::Network,
    NamespaceKind::Ipc,
    NamespaceKind::Uts,
    NamespaceKind::Cgroup,
];

const MASKED_PATHS: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/scsi",
    "/sys/firmware",
];

const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Kernel parameters that Docker sets in every network namespace of a container's own: low ports and ping need no privilege there.
const SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// Terminal size of a client that does not say.
const TERMINAL: TerminalSize = TerminalSize { rows: 24, columns: 80 };

/// The container's first process.
///
/// # Errors
/// A capability or limit that does not exist, a broken seccomp profile.
pub(crate) fn start(
    container: &Container,
    process: ProcessId,
    size: Option<Size>,
) -> Result<Start, EngineError> {
    let config = &container.config;
    Ok(Start {
        process,
        spec: build(config, &hostname(container))?,
        user: config.user.clone().filter(|user| !user.is_empty()).unwrap_or_else(|| "0".to_owned()),
        groups: config.groups.clone(),
        terminal: config.tty.then(|| size.map_or(TERMINAL, terminal_size)),
        stdin: config.open_stdin,
        init: config.init,
        seccomp: seccomp(config)?,
        network: Vec::new(),
    })
}

/// The filter of the container's system calls.
///
/// # Errors
/// The profile is malformed.
pub(crate) fn seccomp(config: &ContainerConfig) -> Result<Vec<Instruction>, EngineError> {
    let granted = capabilities::granted(&config.cap_add, &config.cap_drop)?;
    config.seccomp.compile(&granted).map_err(|e| EngineError::Invalid(e.to_string()))
}

/// A further process.
///
/// # Errors
/// None so far but of later options.
pub(crate) fn exec(
    container: &Container,
    exec: &ExecConfig,
    process: ProcessId,
    size: Option<Size>,
) -> Result<Exec, EngineError> {
    let config = &container.config;
    let cwd = exec.workdir.clone().or_else(|| config.workdir.clone()).filter(|dir| !dir.is_empty());
    let mut env = environment(config, &hostname(container), exec.tty);
    exec.env.iter().for_each(|entry| merge::set_variable(&mut env, entry));
    let user = exec.user.clone().or_else(|| config.user.clone()).filter(|user| !user.is_empty());
    Ok(Exec {
        process,
        spec: Process {
            terminal: exec.tty,
            args: exec.cmd.clone(),
            env,
            cwd: cwd.unwrap_or_else(|| "/".to_owned()).into(),
            ..Process::default()
        },
        user: user.unwrap_or_else(|| "0".to_owned()),
        groups: config.groups.clone(),
        terminal: exec.tty.then(|| size.map_or(TERMINAL, terminal_size)),
        stdin: exec.stdin,
    })
}

/// A terminal's size in the agent's words.
pub(crate) fn terminal_size(size: Size) -> TerminalSize {
    TerminalSize { rows: size.rows, columns: size.columns }
}

/// The command line: entrypoint, then command.
pub(crate) fn command_line(config: &ContainerConfig) -> Vec<String> {
    config.entrypoint.iter().chain(config.cmd.iter()).flatten().cloned().collect()
}

/// The host name: the container's own, else its short id.
pub(crate) fn hostname(container: &Container) -> String {
    if container.config.hostname.is_empty() {
        container.id.chars().take(SHORT_ID).collect()
    } else {
        container.config.hostname.clone()
    }
}

/// The files that Docker gives every container to name it.
pub(crate) fn files_of(container: &Container) -> Vec<HostFile> {
    let config = &container.config;
    let hostname = hostname(container);
    let full = match config.domainname.as_str() {
        "" => String::new(),
        domain => format!("{hostname}.{domain} "),
    };
    let mut hosts =
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
                     ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
            .to_owned();
    for entry in &config.extra_hosts {
        if let Some((name, address)) = entry.split_once(':') {
            // An IPv6 address may be written in brackets.
            let address = address.trim_start_matches('[').trim_end_matches(']');
            let gateway = places_of(container).first().map(|place| place.gateway.as_str());
            let address = if address == "host-gateway" { gateway.unwrap_or("127.0.0.1") } else { address };
            hosts.push_str(&format!("{address}\t{name}\n"));
        }
    }
    let places = places_of(container);
    if places.is_empty() {
        hosts.push_str(&format!("127.0.1.1\t{full}{hostname}\n"));
    }
    for address in places.iter().flat_map(|place| [&place.ipv4, &place.ipv6]).filter(|text| !text.is_empty())
    {
        hosts.push_str(&format!("{address}\t{full}{hostname}\n"));
    }
    let mut resolver = String::new();
    let search = if config.dns_search.is_empty() && !places.is_empty() {
        Resolver::of_host().search
    } else {
        config.dns_search.iter().filter(|domain| *domain != ".").cloned().collect()
    };
    if !search.is_empty() {
        resolver.push_str(&format!("search {}\n", search.join(" ")));
    }
    // The gateways ask the container's own servers, if it has any, and each knows the names of all its networks.
    let gateways = places.iter().map(|place| &place.gateway).take(MAX_NAMESERVERS);
    let servers: Vec<&String> =
        if places.is_empty() { config.dns.iter().collect() } else { gateways.collect() };
    servers.iter().for_each(|server| resolver.push_str(&format!("nameserver {server}\n")));
    let mut options = config.dns_options.clone();
    let named = places.iter().any(|place| place.network != crate::verbs::default_network().id);
    if named && !options.iter().any(|option| option.starts_with("ndots:")) {
        // As Docker: the names of a network have no dots, and are tried as they are first.
        options.push("ndots:0".to_owned());
    }
    if !options.is_empty() {
        resolver.push_str(&format!("options {}\n", options.join(" ")));
    }
    let file = |path: &str, content| HostFile { path: path.to_owned(), content };
    vec![
        file("/etc/hostname", format!("{hostname}\n")),
        file("/etc/hosts", hosts),
        file("/etc/resolv.conf", resolver),
    ]
}

/// A container's places in networks, in the order of its interfaces.
fn places_of(container: &Container) -> Vec<&Place> {
    let mut places: Vec<&Place> = container.state.places.values().collect();
    places.sort_by_key(|place| place.interface.clone());
    places
}

/// The specification of a container with this configuration and host name.
///
/// # Errors
/// A capability or limit that does not exist.
pub fn build(config: &ContainerConfig, hostname: &str) -> Result<Spec, EngineError> {
    let capabilities = capabilities::granted(&config.cap_add, &config.cap_drop)?;
    let paths = |own: &Option<Vec<String>>, default: &[&str]| {
        own.clone().unwrap_or_else(|| default.iter().map(|path| (*path).to_owned()).collect())
    };
    Ok(Spec {
        oci_version: OCI_VERSION.to_owned(),
        domainname: Some(config.domainname.clone()).filter(|name| !name.is_empty()),
        root: Root { readonly: config.read_only, ..Root::default() },
        process: Process {
            terminal: config.tty,
            args: command_line(config),
            env: environment(config, hostname, config.tty),
            cwd: config
                .workdir
                .clone()
                .filter(|dir| !dir.is_empty())
                .unwrap_or_else(|| "/".to_owned())
                .into(),
            capabilities: Some(Capabilities {
                bounding: capabilities.clone(),
                effective: capabilities.clone(),
                permitted: capabilities,
                ..Capabilities::default()
            }),
            rlimits: rlimits(&config.ulimits)?,
            no_new_privileges: config.no_new_privileges,
            oom_score_adj: Some(config.oom_score_adj).filter(|adjustment| *adjustment != 0),
            ..Process::default()
        },
        hostname: Some(hostname.to_owned()),
        mounts: mounts(config),
        linux: Linux {
            namespaces: NAMESPACES.map(|kind| Namespace { kind }).to_vec(),
            resources: resources(&config.limits),
            masked_paths: paths(&config.masked_paths, &MASKED_PATHS),
            readonly_paths: paths(&config.readonly_paths, &READONLY_PATHS),
            sysctl: sysctls(config),
        },
    })
}

/// Docker's own variables first, then the image's and the caller's.
fn environment(config: &ContainerConfig, hostname: &str, tty: bool) -> Vec<String> {
    let mut env = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
    env.push(format!("HOSTNAME={hostname}"));
    if tty {
        env.push("TERM=xterm".to_owned());
    }
    config.env.iter().for_each(|entry| merge::set_variable(&mut env, entry));
    env
}

fn sysctls(config: &ContainerConfig) -> BTreeMap<String, String> {
    let mut all = config.sysctls.clone();
    for (name, value) in SYSCTLS {
        all.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    all
}

fn mounts(config: &ContainerConfig) -> Vec<Mount> {
    let shm = format!("size={}", config.shm_size.unwrap_or(SHM_SIZE));
    let table: [(&str, &str, &[&str]); 7] = [
        ("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        ("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ("/sys/fs/cgroup", "cgroup2", &["nosuid", "noexec", "nodev", "ro"]),
        ("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &shm]),
    ];
    let words = |options: &[&str]| options.iter().map(|o| (*o).to_owned()).collect();
    let usual = table.iter().map(|(target, kind, options)| Mount {
        destination: target.into(),
        kind: (*kind).to_owned(),
        source: (*kind).to_owned(),
        options: words(options),
    });
    let tmpfs = config.tmpfs.iter().map(|(target, options)| {
        let mut all: Vec<String> = words(&["nosuid", "nodev", "noexec"]);
        all.extend(options.split(',').filter(|option| !option.is_empty()).map(str::to_owned));
        Mount { destination: target.into(), kind: "tmpfs".into(), source: "tmpfs".into(), options: all }
    });
    usual.chain(tmpfs).collect()
}

#[cfg(test)]
mod tests;
