//! docker-py, Docker's SDK for Python, against `bulkhead serve`.

use bulkhead_tests::daemon::{Daemon, archive};
use bulkhead_tests::venv;

#[test]
fn docker_pys_main_calls_work() {
    let Some(python) = venv::python("docker-py", &[&["docker==7.1.0"]], "import docker") else { return };
    let Some(daemon) = Daemon::start() else { return };
    venv::suite(&python, "suite.py", &daemon, &[&archive().to_string_lossy()]);
}
