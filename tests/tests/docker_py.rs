//! docker-py, Docker's SDK for Python, against `bulkhead serve`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bulkhead_tests::daemon::{Daemon, archive};

/// The version that the suite was written against.
const DOCKER_PY: &str = "docker==7.1.0";

/// A Python with docker-py in it, made once below the target directory; `None`, said, where it cannot be had.
fn python() -> Option<PathBuf> {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let directory = target.join(DOCKER_PY.replace("==", "-"));
    let python = directory.join("bin/python3");
    let works = |python: &Path| {
        let import = Command::new(python).args(["-c", "import docker"]).stderr(Stdio::null()).status();
        import.is_ok_and(|status| status.success())
    };
    if works(&python) {
        return Some(python);
    }
    let run = |program: &Path, args: &[&str]| -> Result<(), String> {
        let output = Command::new(program).args(args).output().map_err(|e| e.to_string())?;
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(()) } else { Err(words) }
    };
    let made = run(Path::new("python3"), &["-m", "venv", &directory.to_string_lossy()])
        .and_then(|()| run(&python, &["-m", "pip", "install", "--quiet", DOCKER_PY]));
    match made {
        Ok(()) if works(&python) => Some(python),
        Ok(()) => {
            eprintln!("skipped: docker-py was installed and cannot be imported");
            None
        }
        Err(why) => {
            eprintln!("skipped: docker-py cannot be installed: {}", why.lines().last().unwrap_or_default());
            None
        }
    }
}

#[test]
fn docker_pys_main_calls_work() {
    let Some(python) = python() else { return };
    let Some(daemon) = Daemon::start() else { return };
    let suite = Path::new(env!("CARGO_MANIFEST_DIR")).join("docker/suite.py");
    let output = Command::new("timeout")
        .arg("300")
        .arg(python)
        .arg(suite)
        .arg(archive())
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
