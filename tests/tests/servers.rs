//! Real servers in containers: Debian's nginx, Redis and PostgreSQL, reached through published ports by their own clients, and by
//! another container by name.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bulkhead_tests::{Bulkhead, Ran, processes_with, script};

/// How long a server may take to answer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long one command may take.
const HANG: &str = "120";

/// A network with servers, all from one image.
struct Servers {
    bulkhead: Bulkhead,
    image: String,
}

impl Servers {
    fn new() -> Option<Self> {
        // SAFETY: geteuid only tells who we are.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("skipped: only root can make an image with debootstrap");
            return None;
        }
        let bulkhead = Bulkhead::new()?;
        let image = format!("oci:{}", script("debian-servers.sh").expect("debian-servers.sh"));
        let servers = Self { bulkhead, image };
        let _ = servers.ok(&["network", "create", "back"]);
        Some(servers)
    }

    fn ran(&self, args: &[&str]) -> Ran {
        let mut command = Command::new("timeout");
        command.arg(HANG).arg(&self.bulkhead.program).args(args).stdin(Stdio::null());
        command.env("BULKHEAD_ROOT", self.bulkhead.root.path()).output().unwrap().into()
    }

    fn ok(&self, args: &[&str]) -> String {
        let ran = self.ran(args);
        assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
        ran.stdout.trim_end().to_owned()
    }

    /// Starts a server that others call by this name.
    fn serve(&self, name: &str, options: &[&str], command: &[&str]) {
        let always = ["run", "-d", "--accel", "uml", "--network", "back", "--name", name];
        let _ = self.ok(&[&always[..], options, &[&self.image], command].concat());
    }

    /// Runs a client in a container of its own.
    fn client(&self, command: &[&str]) -> String {
        let always = ["run", "--rm", "--accel", "uml", "--network", "back", &self.image];
        self.ok(&[&always[..], command].concat())
    }

    /// The port of this host that a container's is published at.
    fn port(&self, name: &str, inside: &str) -> String {
        let shown = self.ok(&["port", name, inside]);
        let port = shown.lines().next().and_then(|line| line.rsplit(':').next());
        port.unwrap_or_else(|| panic!("{name} {inside}: {shown:?}")).to_owned()
    }

    /// Repeats a command of this host until it succeeds.
    fn patiently(&self, name: &str, command: &[&str]) -> String {
        let began = Instant::now();
        loop {
            let output = Command::new("timeout").arg("20").args(command).output().unwrap();
            if output.status.success() {
                return String::from_utf8(output.stdout).unwrap().trim_end().to_owned();
            }
            assert!(began.elapsed() < PATIENCE, "{command:?}: {output:?} {:?}", self.ran(&["logs", name]));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let root = self.bulkhead.root.path().to_string_lossy().into_owned();
        for process in processes_with(&root) {
            if let Some(number) = process.split(':').next().and_then(|number| number.parse().ok()) {
                // SAFETY: kill takes two numbers; the process has to do with this test's own directory.
                unsafe { libc::kill(number, libc::SIGKILL) };
            }
        }
    }
}

#[test]
fn nginx() {
    let Some(servers) = Servers::new() else { return };
    servers.serve("web", &["-p", "127.0.0.1::80"], &["nginx", "-g", "daemon off;"]);
    let page = format!("http://127.0.0.1:{}/", servers.port("web", "80/tcp"));
    let shown = servers.patiently("web", &["curl", "-sf", &page]);
    assert!(shown.contains("Welcome to nginx"), "{shown}");
    let shown = servers.client(&["curl", "-sf", "http://web/"]);
    assert!(shown.contains("Welcome to nginx"), "{shown}");
    for report in [
        servers.patiently("web", &["wrk", "-t1", "-c8", "-d1", &page]),
        servers.client(&["wrk", "-t1", "-c8", "-d1", "http://web/"]),
    ] {
        println!("{report}");
        assert!(report.contains("requests in") && !report.contains("Non-2xx"), "{report}");
        assert!(!report.contains("Socket errors"), "{report}");
    }
    let _ = servers.ok(&["rm", "-f", "web"]);
}

#[test]
fn redis() {
    let Some(servers) = Servers::new() else { return };
    let command = ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""];
    servers.serve("store", &["-p", "127.0.0.1::6379"], &command);
    let port = servers.port("store", "6379/tcp");
    assert_eq!(servers.patiently("store", &["redis-cli", "-p", &port, "set", "ship", "afloat"]), "OK");
    assert_eq!(servers.client(&["redis-cli", "-h", "store", "get", "ship"]), "afloat");
    let report = servers.patiently(
        "store",
        &["redis-benchmark", "-p", &port, "-q", "-n", "2000", "-c", "10", "-t", "set,get"],
    );
    println!("{}", report.replace('\r', "\n"));
    assert!(report.contains("SET:") && report.contains("GET:"), "{report}");
    let report =
        servers.client(&["redis-benchmark", "-h", "store", "-q", "-n", "2000", "-c", "10", "-t", "set,get"]);
    assert!(report.contains("SET:") && report.contains("GET:"), "{report}");
    let _ = servers.ok(&["rm", "-f", "store"]);
}

#[test]
fn postgresql_and_its_data() {
    let Some(servers) = Servers::new() else { return };
    // The volume gets the folder's owner from the image.
    let start = || {
        let script = "cd /var/lib/postgresql && mkdir -p -m 700 data && cd data && \
            if [ ! -s PG_VERSION ]; then initdb --no-sync -A trust -D . && echo 'host all all all trust' >> pg_hba.conf; fi && \
            exec postgres -D . -c listen_addresses='*' -c unix_socket_directories=/tmp";
        let options = ["-u", "postgres", "-v", "pgdata:/var/lib/postgresql", "-p", "127.0.0.1::5432"];
        servers.serve("db", &options, &["sh", "-c", script]);
        servers.port("db", "5432/tcp")
    };
    let ask = |port: &str, question: &str| {
        let psql = ["psql", "-h", "127.0.0.1", "-p", port, "-U", "postgres", "-Atqc", question];
        servers.patiently("db", &psql)
    };
    let port = start();
    assert_eq!(
        ask(&port, "create table if not exists cargo (crates int); insert into cargo values (42)"),
        ""
    );
    let bench = |args: &[&str]| {
        servers.client(&[&["pgbench", "-h", "db", "-U", "postgres"], args, &["postgres"]].concat())
    };
    let _ = bench(&["-i", "-s", "1", "--quiet"]);
    let report = bench(&["-c", "2", "-T", "2"]);
    println!("{report}");
    assert!(report.contains("number of failed transactions: 0"), "{report}");

    // It survives a stop and a new container ...
    let _ = servers.ok(&["stop", "-t", "60", "db"]);
    let _ = servers.ok(&["rm", "db"]);
    let port = start();
    assert_eq!(ask(&port, "select crates from cargo"), "42");
    // ... and the death of its machine, with what was committed.
    assert_eq!(ask(&port, "insert into cargo values (43)"), "");
    let vmm: i32 = servers.ok(&["inspect", "-f", "{{.State.Pid}}", "db"]).parse().unwrap();
    // SAFETY: kill takes two numbers; the process is the container's VMM.
    assert_eq!(unsafe { libc::kill(vmm, libc::SIGKILL) }, 0);
    let _ = servers.ok(&["wait", "db"]);
    let _ = servers.ok(&["rm", "db"]);
    let port = start();
    assert_eq!(ask(&port, "select sum(crates) from cargo"), "85");
    let _ = servers.ok(&["rm", "-f", "db"]);
    let _ = servers.ok(&["volume", "rm", "pgdata"]);
}
