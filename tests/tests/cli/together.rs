//! One state directory: what a daemon runs is there for commands without it, and the other way round.

use bulkhead_tests::cli::Cli;
use bulkhead_tests::daemon::docker_cli;
use bulkhead_tests::{Ran, busybox};

#[test]
fn containers_are_everybodys() {
    let Some(cli) = Cli::served() else { return };
    let without = |args: &[&str]| -> String {
        let ran = cli.bulkhead().ran(args);
        assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
        ran.stdout.trim_end().to_owned()
    };
    let _ = cli.ok(&["run", "-d", "--name", "theirs", "--accel", "uml", "busybox", "sleep", "1000"]);
    let _ = without(&["run", "-d", "--name", "ours", "--accel", "uml", "busybox", "sleep", "1000"]);
    let names = |text: String| {
        let mut names: Vec<String> = text.lines().map(str::to_owned).collect();
        names.sort_unstable();
        names
    };
    let format = ["ps", "--format", "{{.Names}}"];
    assert_eq!(names(cli.ok(&format)), ["ours", "theirs"]);
    assert_eq!(names(without(&format)), ["ours", "theirs"]);
    assert_eq!(without(&["exec", "theirs", "echo", "hello"]), "hello");
    assert_eq!(cli.ok(&["exec", "ours", "echo", "hello"]), "hello");
    assert_eq!(without(&["stop", "-t", "0", "theirs"]), "theirs");
    assert_eq!(cli.ok(&["stop", "-t", "0", "ours"]), "ours");
    assert_eq!(cli.ok(&["ps", "-q"]), "");
    assert_eq!(without(&["rm", "ours", "theirs"]), "ours\ntheirs");
    cli.assert_nothing_left();
}

#[test]
fn the_two_commands_of_the_readme_print_the_same() {
    let Some(cli) = Cli::served() else { return };
    let daemon = cli.daemon().unwrap();
    let script = ["-h", "box", "busybox", "uname", "-a"];
    let without: Ran = cli.bulkhead().ran(&["run", "--rm", "-h", "box", &busybox(), "uname", "-a"]);
    assert_eq!(without.code, 0, "{without:?}");
    assert!(without.stdout.starts_with("Linux box "), "{without:?}");
    let with = cli.ran(&[&["run", "--rm"], script.as_slice()].concat());
    assert_eq!((with.code, &with.stdout), (0, &without.stdout), "{with:?}");
    let Some(docker) = docker_cli() else { return };
    let docker = std::process::Command::new(docker)
        .env("DOCKER_HOST", daemon.host())
        .args([&["run", "--rm"], script.as_slice()].concat())
        .output()
        .unwrap();
    let docker = Ran::from(docker);
    assert_eq!((docker.code, &docker.stdout), (0, &without.stdout), "{docker:?}");
    cli.assert_nothing_left();
}

#[test]
fn a_daemon_that_is_not_there_is_told() {
    let Some(cli) = Cli::alone() else { return };
    cli.fails(
        1,
        "cannot connect to the server at unix:///no/such.sock",
        &["-H", "unix:///no/such.sock", "ps"],
    );
    cli.fails(125, "cannot connect", &["-H", "unix:///no/such.sock", "run", "busybox", "true"]);
    cli.fails(1, "--host nonsense", &["-H", "nonsense", "ps"]);
}
