//! nft(8), which has the kernel take a set of rules as a whole or not at all.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where programs of administrators are. A relative path, or one of the caller's environment, is never asked.
const PLACES: [&str; 4] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft", "/usr/local/sbin/nft"];
/// Most bytes that it is listened to.
const MAX: u64 = 8 << 20;
/// Most characters of its complaints that are passed on.
const COMPLAINT: usize = 400;

/// The program.
pub(super) fn program() -> Option<PathBuf> {
    PLACES.iter().map(PathBuf::from).find(|path| path.is_file())
}

/// Has the kernel take these commands, in the calling thread's network namespace.
pub(super) fn apply(script: &str) -> io::Result<()> {
    run(&["-f", "-"], script).map(drop)
}

/// A table, as JSON (libnftables-json(5)).
pub(super) fn list(family: &str, table: &str) -> io::Result<serde_json::Value> {
    Ok(serde_json::from_slice(&run(&["-j", "list", "table", family, table], "")?)?)
}

fn run(arguments: &[&str], input: &str) -> io::Result<Vec<u8>> {
    let program =
        program().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no program nft"))?;
    let mut child = Command::new(&program)
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // It reads all before it says anything.
    let fed = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX).read_to_end(&mut said)?;
    }
    if let Some(stderr) = child.stderr.take() {
        stderr.take(MAX).read_to_end(&mut complained)?;
    }
    let status = child.wait()?;
    if status.success() {
        fed?;
        return Ok(said);
    }
    let text: String = String::from_utf8_lossy(&complained).chars().take(COMPLAINT).collect();
    Err(io::Error::other(format!("{} ({status}): {}", Path::display(&program), text.trim())))
}
