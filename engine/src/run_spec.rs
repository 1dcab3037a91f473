//! From an image's configuration and the caller's options to an OCI runtime specification, with Docker's defaults.

use agent::protocol::HostFile;
use agent::protocol::spec::{
    Capabilities, Cpu, Linux, Memory, Mount, Namespace, NamespaceKind, Process, Resources, Spec,
};
use oci_spec::image::ImageConfiguration;

use crate::options::{RunOptions, TerminalMode};

/// Version of the OCI runtime specification that the engine writes.
const OCI_VERSION: &str = "1.2.0";

/// Docker's fourteen.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

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

/// Period of the CPU quota in microseconds, the kernel's default.
const CPU_PERIOD: u64 = 100_000;

/// The command line that a container runs: entrypoint and command, each from the caller or else from the image.
#[must_use]
pub fn command_line(image: &ImageConfiguration, options: &RunOptions) -> Vec<String> {
    let config = image.config().as_ref();
    let image_entrypoint = || config.and_then(|c| c.entrypoint().clone()).unwrap_or_default();
    let image_command = || config.and_then(|c| c.cmd().clone()).unwrap_or_default();
    // As with Docker, an entrypoint from the caller makes the image's command void.
    let command = match (&options.command, &options.entrypoint) {
        (given, _) if !given.is_empty() => given.clone(),
        (_, Some(_)) => Vec::new(),
        (_, None) => image_command(),
    };
    let mut line = options.entrypoint.clone().unwrap_or_else(image_entrypoint);
    line.retain(|word| options.entrypoint.is_none() || !word.is_empty());
    line.extend(command);
    line
}

/// The user: the caller's, else the image's, else root.
#[must_use]
pub fn user(image: &ImageConfiguration, options: &RunOptions) -> String {
    let of_image = || image.config().as_ref().and_then(|c| c.user().clone()).filter(|u| !u.is_empty());
    options.user.clone().or_else(of_image).unwrap_or_else(|| "0".to_owned())
}

/// Builds the specification.
#[must_use]
pub fn build(image: &ImageConfiguration, options: &RunOptions, hostname: &str) -> Spec {
    let config = image.config().as_ref();
    let cwd = options
        .workdir
        .clone()
        .or_else(|| config.and_then(|c| c.working_dir().clone()))
        .filter(|dir| !dir.is_empty())
        .unwrap_or_else(|| "/".to_owned());
    let capabilities: Vec<String> = CAPABILITIES.map(str::to_owned).to_vec();
    Spec {
        oci_version: OCI_VERSION.to_owned(),
        hostname: Some(hostname.to_owned()),
        process: Process {
            terminal: options.terminal == TerminalMode::Allocate,
            args: command_line(image, options),
            env: environment(config.and_then(|c| c.env().as_deref()).unwrap_or_default(), options, hostname),
            cwd: cwd.into(),
            capabilities: Some(Capabilities {
                bounding: capabilities.clone(),
                effective: capabilities.clone(),
                permitted: capabilities,
                ..Capabilities::default()
            }),
            ..Process::default()
        },
        mounts: mounts(),
        linux: Linux {
            namespaces: NAMESPACES.map(|kind| Namespace { kind }).to_vec(),
            resources: resources(options),
            masked_paths: MASKED_PATHS.map(str::to_owned).to_vec(),
            readonly_paths: READONLY_PATHS.map(str::to_owned).to_vec(),
            ..Linux::default()
        },
        ..Spec::default()
    }
}

/// The files that Docker gives every container to name it.
#[must_use]
pub fn files(hostname: &str, domainname: &str) -> Vec<HostFile> {
    let full = if domainname.is_empty() { String::new() } else { format!("{hostname}.{domainname} ") };
    let hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n127.0.1.1\t{full}{hostname}\n"
    );
    let file = |path: &str, content| HostFile { path: path.to_owned(), content };
    vec![file("/etc/hostname", format!("{hostname}\n")), file("/etc/hosts", hosts)]
}

fn resources(options: &RunOptions) -> Resources {
    let microseconds = i64::try_from(CPU_PERIOD / 1000).unwrap_or(i64::MAX);
    Resources {
        memory: Memory {
            limit: options.memory.map_or(0, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
            ..Memory::default()
        },
        cpu: Cpu {
            quota: options.milli_cpus.map_or(0, |milli| i64::from(milli) * microseconds),
            period: CPU_PERIOD,
            ..Cpu::default()
        },
        ..Resources::default()
    }
}

/// Later values win; a name keeps its first place.
fn environment(image: &[String], options: &RunOptions, hostname: &str) -> Vec<String> {
    let mut env: Vec<String> = Vec::new();
    let mut set = |entry: String| {
        let name = entry.split('=').next().unwrap_or_default().to_owned();
        match env.iter_mut().find(|e| e.split('=').next() == Some(name.as_str())) {
            Some(place) => *place = entry,
            None => env.push(entry),
        }
    };
    image.iter().cloned().for_each(&mut set);
    set(format!("HOSTNAME={hostname}"));
    if options.terminal == TerminalMode::Allocate {
        set("TERM=xterm".to_owned());
    }
    options.env.iter().cloned().for_each(&mut set);
    env
}

fn mounts() -> Vec<Mount> {
    let table: [(&str, &str, &[&str]); 7] = [
        ("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        ("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ("/sys/fs/cgroup", "cgroup2", &["nosuid", "noexec", "nodev", "ro"]),
        ("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]),
    ];
    table
        .iter()
        .map(|(target, kind, options)| Mount {
            destination: target.into(),
            kind: (*kind).to_owned(),
            source: (*kind).to_owned(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::ConfigBuilder;

    fn image() -> ImageConfiguration {
        let config = ConfigBuilder::default()
            .entrypoint(vec!["/entry".to_owned()])
            .cmd(vec!["one".to_owned(), "two".to_owned()])
            .env(vec!["PATH=/bin".to_owned(), "A=image".to_owned()])
            .working_dir("/work".to_owned())
            .user("app".to_owned())
            .build()
            .unwrap();
        let mut image = ImageConfiguration::default();
        image.set_config(Some(config));
        image
    }

    #[test]
    fn entrypoint_and_command_combine_as_dockers_do() {
        let line = |entrypoint: Option<&[&str]>, command: &[&str]| {
            let strings = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
            let options = RunOptions {
                entrypoint: entrypoint.map(strings),
                command: strings(command),
                ..RunOptions::default()
            };
            command_line(&image(), &options).join(" ")
        };
        assert_eq!(line(None, &[]), "/entry one two");
        assert_eq!(line(None, &["x"]), "/entry x");
        assert_eq!(line(Some(&["/other"]), &[]), "/other");
        assert_eq!(line(Some(&["/other"]), &["x", "y"]), "/other x y");
        assert_eq!(line(Some(&[""]), &["x"]), "x");
    }

    #[test]
    fn the_callers_options_win_over_the_images() {
        let options = RunOptions {
            env: vec!["A=caller".into(), "HOSTNAME=mine".into()],
            memory: Some(64 << 20),
            milli_cpus: Some(500),
            ..RunOptions::default()
        };
        let spec = build(&image(), &options, "abc");
        assert_eq!(spec.process.env, ["PATH=/bin", "A=caller", "HOSTNAME=mine"]);
        assert_eq!(spec.process.cwd.to_str(), Some("/work"));
        assert_eq!(user(&image(), &options), "app");
        assert_eq!(spec.linux.resources.memory.limit, 64 << 20);
        assert_eq!(spec.linux.resources.cpu.quota, 50_000);
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&json).unwrap(), spec);
    }
}
