//! Networks as people meet them: real containers, Docker's command line, and a host and an internet of each test's own.

mod attacks;
mod basics;
mod kernel_only;
mod names;
mod policy;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use bulkhead_tests::daemon::Daemon;
use bulkhead_tests::world::{FAR, World};

/// What carries the packets of a test's networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    /// A switch in user space.
    Switch,
    /// The kernel of a host of the test's own.
    Kernel,
}

/// Each of these is a test for either path.
macro_rules! cases {
    ($($module:ident::$case:ident),* $(,)?) => {
        mod switch {
            $(#[test] fn $case() { crate::on(crate::Path::Switch, crate::$module::$case); })*
        }
        mod kernel {
            $(#[test] fn $case() { crate::on(crate::Path::Kernel, crate::$module::$case); })*
        }
    };
}

cases![
    attacks::a_container_with_a_raw_socket_gets_nowhere,
    basics::a_container_reaches_the_world_and_is_reached,
    basics::much_data_passes_unharmed_both_ways,
    basics::udp_ports_are_passed_on,
    basics::none_is_none_and_options_are_honoured,
    names::containers_of_one_network_find_each_other_by_name,
    names::a_running_container_comes_and_goes,
    names::a_switch_that_is_killed_comes_back_with_its_ports,
    names::networks_with_ipv6_have_it_everywhere,
    policy::walls_stand_and_rules_hold,
    policy::bandwidth_is_limited,
];

fn on(path: Path, case: fn(Site)) {
    if let Some(site) = Site::new(path) {
        case(site);
    }
}

/// A daemon on a host of its own, with an internet around it, and the file that says whom the host asks for names.
struct Site {
    daemon: Daemon,
    world: World,
    path: Path,
}

impl Site {
    fn new(path: Path) -> Option<Self> {
        if path == Path::Kernel
            && let Err(why) = kernel_only::possible()
        {
            eprintln!("skipped: {why}");
            return None;
        }
        let world = World::enter()?;
        let file = resolv_conf();
        let word = if path == Path::Kernel { "kernel" } else { "switch" };
        let environment =
            [("BULKHEAD_RESOLV_CONF", file.as_os_str()), ("BULKHEAD_NETWORK_PATH", OsStr::new(word))];
        let daemon = Daemon::with_docker_and(&environment)?;
        Some(Self { daemon, world, path })
    }

    /// Runs a shell command in a new container and returns what it printed; it must succeed.
    fn run(&self, options: &[&str], script: &str) -> String {
        let ran = self.daemon.docker(&[&["run", "--rm"], options, &["busybox", "sh", "-c", script]].concat());
        assert_eq!(ran.code, 0, "{options:?} {script}: {ran:?}");
        ran.stdout.trim_end().to_owned()
    }

    /// Runs a shell command in a container that runs; its exit code and what it printed.
    fn exec(&self, container: &str, script: &str) -> (i32, String) {
        let ran = self.daemon.docker(&["exec", container, "sh", "-c", script]);
        (ran.code, format!("{}{}", ran.stdout, ran.stderr).trim_end().to_owned())
    }

    /// The number of the process that is a network's switch.
    fn switch(&self, network: &str) -> i32 {
        let id = self.daemon.ok(&["network", "inspect", "-f", "{{.Id}}", network]);
        let log = self.daemon.bulkhead.root.path().join("networks").join(id).join("switch.log");
        let needle = log.to_string_lossy().into_owned();
        let found: Vec<i32> = processes_of("bulkhead-net")
            .into_iter()
            .filter(|number| {
                std::fs::read_link(format!("/proc/{number}/fd/2"))
                    .is_ok_and(|path| path.to_string_lossy() == needle)
            })
            .collect();
        assert_eq!(found.len(), 1, "switches of {network}: {found:?}");
        found[0]
    }

    /// What the switches of a running container's networks counted.
    fn counts(&self, container: &str) -> serde_json::Value {
        let mut connection = std::os::unix::net::UnixStream::connect(self.daemon.socket()).unwrap();
        let request = format!(
            "GET /bulkhead/v1/containers/{container}/networks HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        );
        std::io::Write::write_all(&mut connection, request.as_bytes()).unwrap();
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut connection, &mut answer).unwrap();
        let body = &answer[answer.find("\r\n\r\n").unwrap()..];
        let (start, end) = (body.find('[').unwrap(), body.rfind(']').unwrap());
        serde_json::from_str(&body[start..=end]).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }

    /// What the switch of a network has logged.
    fn log(&self, network: &str) -> String {
        let id = self.daemon.ok(&["network", "inspect", "-f", "{{.Id}}", network]);
        let log = self.daemon.bulkhead.root.path().join("networks").join(id).join("switch.log");
        std::fs::read_to_string(log).unwrap_or_default()
    }
}

fn processes_of(name: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers
        .filter(|number| {
            std::fs::read_to_string(format!("/proc/{number}/comm")).is_ok_and(|comm| comm.trim() == name)
        })
        .collect()
}

/// The host of a test asks the internet's own server for names.
fn resolv_conf() -> PathBuf {
    let path = std::env::temp_dir().join("bulkhead-test-resolv.conf");
    let aside = path.with_extension(format!("{:?}", std::thread::current().id()).replace(['(', ')'], ""));
    std::fs::write(&aside, format!("nameserver {FAR}\nsearch far.example\n")).unwrap();
    std::fs::rename(aside, &path).unwrap();
    path
}

/// Runs a command on the host of this test.
fn on_host(program: &str, args: &[&str]) -> (i32, String) {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).trim_end().to_owned())
}
