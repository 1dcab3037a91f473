//! Programs and libraries from PyPI, each in a virtual environment of its own below the target directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The Python of an environment with these packages, given as pip's arguments for one call after another; it is made once.
/// `None`, said, where they cannot be had. `probe`: what must work in it.
#[must_use]
pub fn python(name: &str, installs: &[&[&str]], probe: &str) -> Option<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/venv").join(name);
    let directory = std::env::var_os("CARGO_TARGET_DIR")
        .map_or(directory, |target| PathBuf::from(target).join("venv").join(name));
    let python = directory.join("bin/python3");
    let works = || {
        let probed = Command::new(&python).args(["-c", probe]).stderr(Stdio::null()).status();
        probed.is_ok_and(|status| status.success())
    };
    if works() {
        return Some(python);
    }
    // One that was left half made.
    let _ = fs::remove_dir_all(&directory);
    let run = |program: &Path, args: &[&str]| -> Result<(), String> {
        let output = Command::new(program).args(args).output().map_err(|e| e.to_string())?;
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(()) } else { Err(words) }
    };
    let made = run(Path::new("python3"), &["-m", "venv", &directory.to_string_lossy()]).and_then(|()| {
        installs.iter().try_for_each(|packages| {
            run(&python, &[&["-m", "pip", "install", "--quiet"], *packages].concat())
        })
    });
    match made {
        Ok(()) if works() => Some(python),
        Ok(()) => {
            eprintln!("skipped: {name} was installed and does not work");
            None
        }
        Err(why) => {
            eprintln!("skipped: {name} cannot be installed: {}", why.lines().last().unwrap_or_default());
            None
        }
    }
}

/// Runs a Python script that speaks to a daemon (`DOCKER_HOST`); it must succeed and print `all done` at its end.
pub fn suite(python: &Path, script: &str, daemon: &crate::daemon::Daemon, args: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docker").join(script);
    let output = Command::new("timeout")
        .arg("300")
        .args([python, &script])
        .args(args)
        .env("DOCKER_HOST", daemon.host())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.trim_end().ends_with("all done"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
