//! Bulkhead's end-to-end tests: real machines, real images, the binaries that people run.
//!
//! `make test` sets `BULKHEAD` (the command line's binary), `BULKHEAD_KERNEL_UML` and `BULKHEAD_KERNEL_KVM`. Without them, every test says
//! `skipped:` and why.

pub mod cli;
pub mod daemon;
pub mod guest;
pub mod image;
pub mod venv;

pub use bulkhead_fixtures::{authority, disk, http, layout, registry, samples, tarfile, tools, tree, world};

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

/// A state directory of its own, with everything that shows what was left behind.
pub struct Bulkhead {
    /// The command line's binary.
    pub program: PathBuf,
    /// `BULKHEAD_ROOT`.
    pub root: TempDir,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; panics if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or_else(|| panic!("ended by a signal: {output:?}")),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Bulkhead {
    /// A fresh installation, or `None` (said loudly) where `make test` has not prepared one.
    #[must_use]
    pub fn new() -> Option<Self> {
        let Some(program) = env::var_os("BULKHEAD").map(PathBuf::from) else {
            eprintln!("skipped: BULKHEAD is not set; run the tests with `make test`");
            return None;
        };
        let root = tempfile::Builder::new().prefix("bulkhead-test-").tempdir().unwrap();
        let bulkhead = Self { program, root };
        // The template of the writable disk and the verdict on KVM are the same for every test.
        let shared = shared_cache(&bulkhead);
        fs::create_dir_all(bulkhead.root.path().join("cache")).unwrap();
        for file in fs::read_dir(shared).unwrap() {
            let file = file.unwrap();
            copy_sparse(&file.path(), &bulkhead.root.path().join("cache").join(file.file_name()));
        }
        Some(bulkhead)
    }

    fn bare(program: &Path, root: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("BULKHEAD_ROOT", root)
            .env_remove("BULKHEAD_HOST")
            .env_remove("BULKHEAD_TIMINGS")
            .stdin(Stdio::null());
        command
    }

    /// A command with these arguments, standard input closed.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Self::bare(&self.program, self.root.path());
        command.args(args);
        command
    }

    /// Runs a command to its end.
    #[must_use]
    pub fn ran(&self, args: &[&str]) -> Ran {
        self.command(args).output().unwrap().into()
    }

    /// `bulkhead run --rm` on the accelerator uml.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Ran {
        self.ran(&[&["run", "--rm", "--accel", "uml"], args].concat())
    }

    /// Fails if a container, a process or a half-written file is left.
    pub fn assert_nothing_left(&self) {
        let entries = ["containers", "run"].map(|name| fs::read_dir(self.root.path().join(name)));
        let entries = entries.into_iter().flatten().flatten().map(|entry| entry.unwrap().path());
        let containers: Vec<_> = entries.filter(|path| !path.ends_with(".lock")).collect();
        assert!(containers.is_empty(), "containers left: {containers:?}");
        let needle = self.root.path().to_string_lossy().into_owned();
        // What is just ending gets a moment: a network's switch stays for a third of a second.
        for _ in 0..250 {
            if processes_with(&needle).is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let processes = processes_with(&needle);
        assert!(processes.is_empty(), "processes left: {processes:?}");
        let temporary: Vec<PathBuf> = files_below(self.root.path())
            .into_iter()
            .filter(|p| p.to_string_lossy().contains(".new") || p.to_string_lossy().contains(".tmp"))
            .collect();
        assert!(temporary.is_empty(), "temporary files left: {temporary:?}");
    }
}

impl Drop for Bulkhead {
    fn drop(&mut self) {
        // Supervisors outlive their command and their daemon by design; here nothing may outlive its test.
        end_all(self.root.path());
    }
}

/// Ends every process that has something to do with a test's directory.
fn end_all(root: &Path) {
    let root = root.to_string_lossy().into_owned();
    for _ in 0..4 {
        let processes = processes_with(&root);
        if processes.is_empty() {
            return;
        }
        for process in processes {
            let number = process.split(':').next().and_then(|number| number.parse::<i32>().ok());
            if let Some(number) = number.filter(|_| !process.contains("cargo")) {
                // SAFETY: kill takes two numbers; the process holds a file of this test's own directory open.
                unsafe { libc::kill(number, libc::SIGKILL) };
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Asserts that an error is three lines, with these words in the first and the second, and that nothing is left behind.
pub fn assert_error(bulkhead: &Bulkhead, ran: &Ran, code: i32, what: &str, why: &str) {
    assert_eq!(ran.code, code, "{ran:?}");
    let lines: Vec<&str> = ran.stderr.lines().filter(|l| !l.starts_with("bulkhead: accelerator")).collect();
    let at = lines.len().checked_sub(3).unwrap_or_else(|| panic!("fewer than three lines: {ran:?}"));
    let last = &lines[at..];
    assert!(last[0].starts_with("bulkhead: ") && last[0].contains(what), "first line: {ran:?}");
    assert!(last[1].starts_with("why: ") && last[1].contains(why), "second line: {ran:?}");
    assert!(last[2].starts_with("next: ") && last[2].len() > 8, "third line: {ran:?}");
    bulkhead.assert_nothing_left();
}

/// Processes that hold a file below a directory open, or name it on their command line; this one excepted.
#[must_use]
pub fn processes_with(needle: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.parse::<u32>().is_err() || name == std::process::id().to_string() {
            continue;
        }
        let open = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let holds =
            open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|l| l.to_string_lossy().contains(needle));
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if holds || command.contains(needle) {
            found.push(format!("{name}: {command}"));
        }
    }
    found
}

/// Every file below a directory.
#[must_use]
pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}

/// The small image of `make demo`.
#[must_use]
pub fn busybox() -> String {
    static IMAGE: OnceLock<String> = OnceLock::new();
    IMAGE.get_or_init(|| format!("oci:{}", script("busybox.sh").expect("busybox.sh"))).clone()
}

/// Runs a script of `tests/images`; `None` if it fails.
#[must_use]
pub fn script(name: &str) -> Option<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("images").join(name);
    let output = Command::new("bash").arg(path).stderr(Stdio::inherit()).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

fn shared_cache(bulkhead: &Bulkhead) -> &'static Path {
    static CACHE: OnceLock<TempDir> = OnceLock::new();
    let directory = CACHE.get_or_init(|| {
        let directory = tempfile::Builder::new().prefix("bulkhead-cache-").tempdir().unwrap();
        let ran: Ran = Bulkhead::bare(&bulkhead.program, directory.path())
            .args(["run", "--rm", "--accel", "uml", &busybox(), "true"])
            .output()
            .unwrap()
            .into();
        assert_eq!(ran.code, 0, "the first container failed: {ran:?}");
        directory
    });
    Box::leak(directory.path().join("cache").into_boxed_path())
}

/// Copies a file, holes as holes.
pub fn copy_sparse(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("--sparse=always").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}
