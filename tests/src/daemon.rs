//! `bulkhead serve` on a socket of its own, and Docker's command line that speaks to it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{Bulkhead, Ran, busybox};

/// How long a daemon may take to listen, or to end, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one command may take before it is taken for hung.
const HANG: Duration = Duration::from_secs(120);

/// A daemon with a state directory of its own. Everything that it runs is ended when it is dropped.
pub struct Daemon {
    /// The installation that it serves.
    pub bulkhead: Bulkhead,
    docker: Option<PathBuf>,
    config: TempDir,
    child: Child,
    socket: PathBuf,
    environment: Vec<(String, OsString)>,
}

impl Daemon {
    /// Starts a daemon; `None` (said loudly) where `make test` has not prepared one.
    #[must_use]
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    fn start_with(environment: &[(&str, &OsStr)]) -> Option<Self> {
        let environment: Vec<(String, OsString)> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let bulkhead = Bulkhead::new()?;
        // What it measures it tells once, as a warning of whatever is created first.
        let _ = bulkhead.ran(&["accelerator"]);
        let config = tempfile::Builder::new().prefix("bulkhead-docker-").tempdir().unwrap();
        let socket = config.path().join("docker.sock");
        let child = spawn(&bulkhead, &socket, &environment);
        let daemon = Self { bulkhead, docker: None, config, child, socket, environment };
        daemon.listens();
        Some(daemon)
    }

    /// As [`Daemon::start`], where there is a docker command line, with the image `busybox` loaded.
    #[must_use]
    pub fn with_docker() -> Option<Self> {
        Self::with_docker_and(&[])
    }

    /// The same with these variables in the daemon's environment.
    #[must_use]
    pub fn with_docker_and(environment: &[(&str, &OsStr)]) -> Option<Self> {
        let docker = docker_cli()?;
        let mut daemon = Self::start_with(environment)?;
        daemon.docker = Some(docker.to_owned());
        let loaded = daemon.fed(&["load"], &fs::read(archive()).unwrap());
        assert_eq!(
            (loaded.code, loaded.stdout.as_str()),
            (0, "Loaded image: busybox:latest\n"),
            "{loaded:?}"
        );
        Some(daemon)
    }

    fn listens(&self) {
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(&self.socket).is_err() {
            assert!(began.elapsed() < PATIENCE, "the daemon does not listen on {}", self.socket.display());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What clients take for `DOCKER_HOST`.
    #[must_use]
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// A docker command with these arguments, standard input closed.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.docker.as_ref().expect("a daemon with docker"));
        command
            .env("DOCKER_HOST", self.host())
            .env("DOCKER_CONFIG", self.config.path())
            .env("HOME", self.config.path())
            .env_remove("DOCKER_API_VERSION")
            .env_remove("DOCKER_CONTEXT")
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// Runs a docker command to its end.
    #[must_use]
    pub fn docker(&self, args: &[&str]) -> Ran {
        self.fed(args, b"")
    }

    /// Runs a docker command to its end with this standard input.
    #[must_use]
    pub fn fed(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut command = self.command(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
        // A command that reads no input ends without it.
        let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let out = read(child.stdout.take().unwrap());
        let err = read(child.stderr.take().unwrap());
        let began = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if began.elapsed() > HANG {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("docker {args:?} hangs: {:?} {:?}", out.join(), err.join());
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        feeding.join().unwrap();
        let code = status.code().unwrap_or_else(|| panic!("docker {args:?} ended by a signal"));
        Ran { code, stdout: out.join().unwrap(), stderr: err.join().unwrap() }
    }

    /// Runs a docker command that must succeed, and returns what it printed without the newline at the end.
    #[must_use]
    pub fn ok(&self, args: &[&str]) -> String {
        let ran = self.docker(args);
        assert_eq!(ran.code, 0, "docker {args:?}: {ran:?}");
        ran.stdout.trim_end().to_owned()
    }

    /// Runs a docker command that must fail with this exit code and these words on standard error.
    pub fn fails(&self, code: i32, words: &str, args: &[&str]) {
        let ran = self.docker(args);
        assert_eq!(ran.code, code, "docker {args:?}: {ran:?}");
        assert!(ran.stderr.contains(words), "docker {args:?}: {words:?} is not in {ran:?}");
    }

    /// Kills the daemon (it gets no chance to do anything) and starts another one on the same state.
    pub fn crash(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(&self.bulkhead, &self.socket, &self.environment);
        self.listens();
    }

    /// Asks the daemon to end, and fails if it does not.
    pub fn end(&mut self) {
        // SAFETY: kill takes two numbers; the child has not been waited for, so that its number is its own.
        unsafe { libc::kill(i32::try_from(self.child.id()).unwrap(), libc::SIGTERM) };
        let began = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < PATIENCE, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Reads a pipe to its end, beside whoever waits for its process.
fn read(mut pipe: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        pipe.read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    })
}

fn spawn(bulkhead: &Bulkhead, socket: &Path, environment: &[(String, OsString)]) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(socket.with_extension("log")).unwrap();
    bulkhead
        .command(&["serve", "-H", &format!("unix://{}", socket.display())])
        .stdout(Stdio::null())
        .stderr(log)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .spawn()
        .unwrap()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.socket.with_extension("log")).unwrap_or_default();
            eprintln!("the daemon's log:\n{log}");
        }
    }
}

/// Docker's command line; `None`, said once, where there is none.
#[must_use]
pub fn docker_cli() -> Option<&'static Path> {
    static CLI: OnceLock<Option<PathBuf>> = OnceLock::new();
    CLI.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docker/cli.sh");
        let output = Command::new("bash").arg(script).output().unwrap();
        if !output.status.success() {
            eprintln!("skipped: no docker command line: {}", String::from_utf8_lossy(&output.stderr).trim());
            return None;
        }
        Some(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()))
    })
    .as_deref()
}

/// The small image as `docker save` would write it, with the name `busybox:latest`.
#[must_use]
pub fn archive() -> PathBuf {
    static ARCHIVE: OnceLock<PathBuf> = OnceLock::new();
    ARCHIVE
        .get_or_init(|| {
            let layout = busybox();
            let layout = Path::new(layout.strip_prefix("oci:").unwrap()).to_owned();
            let read = |path: PathBuf| fs::read(path).unwrap();
            let blob = |digest: &str| layout.join("blobs").join(digest.replace(':', "/"));
            let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
            let index = json(&read(layout.join("index.json")));
            let manifest = json(&read(blob(index["manifests"][0]["digest"].as_str().unwrap())));
            let config = read(blob(manifest["config"]["digest"].as_str().unwrap()));
            let layer = read(blob(manifest["layers"][0]["digest"].as_str().unwrap()));
            let list = serde_json::json!([
                { "Config": "config.json", "RepoTags": ["busybox:latest"], "Layers": ["layer.tar.gz"] }
            ]);
            let mut tar = tar::Builder::new(Vec::new());
            crate::image::add_file(&mut tar, "config.json", &config, 0o644);
            crate::image::add_file(&mut tar, "layer.tar.gz", &layer, 0o644);
            crate::image::add_file(&mut tar, "manifest.json", list.to_string().as_bytes(), 0o644);
            // Beside the layout, which is in the cache: it is the same for every run.
            let path = layout.with_extension("docker.tar");
            let aside = layout.with_extension(format!("{}.tmp", std::process::id()));
            fs::write(&aside, tar.into_inner().unwrap()).unwrap();
            fs::rename(&aside, &path).unwrap();
            path
        })
        .clone()
}
