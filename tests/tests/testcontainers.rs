//! Testcontainers for Python against `bulkhead serve`.

use bulkhead_tests::daemon::Daemon;
use bulkhead_tests::venv;

#[test]
fn testcontainers_work() {
    let packages: &[&[&str]] = &[&["testcontainers==4.9.0", "docker==7.1.0"]];
    let Some(python) = venv::python("testcontainers", packages, "import testcontainers.core.container")
    else {
        return;
    };
    let Some(daemon) = Daemon::with_docker() else { return };
    venv::suite(&python, "testcontainers_suite.py", &daemon, &[]);
    assert_eq!(daemon.ok(&["ps", "-aq"]), "");
}
