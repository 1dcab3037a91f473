//! Volumes, networks, events, and what the system tells about itself.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use bulkhead_tests::daemon::Daemon;

use crate::is_id;

#[test]
fn volumes_and_networks_are_objects() {
    let Some(daemon) = Daemon::with_docker() else { return };
    assert_eq!(daemon.ok(&["volume", "create", "--label", "tier=x", "data"]), "data");
    assert_eq!(daemon.ok(&["volume", "ls", "-q", "--filter", "label=tier=x"]), "data");
    assert_eq!(
        daemon.ok(&["volume", "inspect", "-f", "{{.Name}} {{.Driver}} {{.Scope}}", "data"]),
        "data local local"
    );
    daemon.fails(1, "--opt", &["volume", "create", "-o", "type=nfs", "bad"]);
    let _ = daemon.ok(&["create", "--name", "user", "-v", "data:/data", "busybox"]);
    daemon.fails(1, "volume is in use", &["volume", "rm", "data"]);
    assert_eq!(
        daemon.ok(&[
            "inspect",
            "-f",
            "{{range .Mounts}}{{.Type}} {{.Name}} {{.Destination}} {{.RW}}{{end}}",
            "user"
        ]),
        "volume data /data true"
    );
    let _ = daemon.ok(&["rm", "user"]);
    assert_eq!(daemon.ok(&["volume", "rm", "data"]), "data");
    daemon.fails(1, "no such volume", &["volume", "inspect", "data"]);
    assert!(daemon.ok(&["volume", "prune", "-f"]).contains("Total reclaimed space"));

    let id = daemon.ok(&["network", "create", "--subnet", "172.30.0.0/16", "front"]);
    assert!(is_id(&id), "{id}");
    let list = daemon.ok(&["network", "ls", "--format", "{{.Name}} {{.Driver}}"]);
    for line in ["bridge bridge", "front bridge", "none null"] {
        assert!(list.lines().any(|have| have == line), "{list}");
    }
    assert_eq!(
        daemon.ok(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", "front"]),
        "172.30.0.0/16"
    );
    daemon.fails(1, "front", &["network", "create", "front"]);
    daemon.fails(1, "--driver overlay cannot be done", &["network", "create", "-d", "overlay", "far"]);
    let _ = daemon.ok(&["create", "--name", "member", "busybox"]);
    let _ = daemon.ok(&["network", "connect", "--alias", "alias", "front", "member"]);
    let networks = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}";
    assert_eq!(daemon.ok(&["inspect", "-f", networks, "member"]), "bridge front");
    let _ = daemon.ok(&["network", "disconnect", "front", "member"]);
    assert_eq!(daemon.ok(&["network", "rm", "front"]), "front");
    daemon.fails(1, "pre-defined network", &["network", "rm", "bridge"]);
    assert_eq!(daemon.ok(&["network", "prune", "-f"]), "");
    let _ = daemon.ok(&["rm", "member"]);
}

#[test]
fn the_system_tells_about_itself() {
    let Some(daemon) = Daemon::with_docker() else { return };
    let version = daemon.ok(&[
        "version",
        "--format",
        "{{.Server.APIVersion}} {{.Server.MinAPIVersion}} {{.Server.Os}}",
    ]);
    assert_eq!(version, "1.50 1.24 linux");
    let text = daemon.ok(&["version"]);
    assert!(text.contains("Server: Bulkhead"), "{text}");
    assert_eq!(
        daemon.ok(&["info", "--format", "{{.Driver}} {{.OSType}} {{.DefaultRuntime}} {{.Images}}"]),
        "erofs linux bulkhead 1"
    );
    assert!(daemon.ok(&["info"]).contains("Boundary: "));
    let old = daemon.command(&["ps"]).env("DOCKER_API_VERSION", "1.24").output().unwrap();
    assert!(old.status.success(), "{old:?}");
    let too_old = daemon.command(&["ps"]).env("DOCKER_API_VERSION", "1.12").output().unwrap();
    assert!(
        String::from_utf8_lossy(&too_old.stderr).contains("client version 1.12 is too old"),
        "{too_old:?}"
    );
    assert_eq!(daemon.ok(&["plugin", "ls", "-q"]), "");
    daemon.fails(1, "not a swarm manager", &["service", "ls"]);
    let _ = daemon.ok(&["run", "--name", "once", "--label", "a=b", "busybox", "true"]);
    // Docker's command line knows whole seconds only.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let until = (now + 1).to_string();
    let past = [
        "events",
        "--since",
        "1",
        "--until",
        &until,
        "--filter",
        "container=once",
        "--format",
        "{{.Action}}",
    ];
    let events = daemon.ok(&past);
    let actions: Vec<&str> = events.lines().collect();
    assert!(
        actions.starts_with(&["create"]) && actions.contains(&"start") && actions.contains(&"die"),
        "{events}"
    );
    let exit_code = [
        "events",
        "--since",
        "1",
        "--until",
        &until,
        "--filter",
        "event=die",
        "--format",
        "{{.Actor.Attributes.exitCode}}",
    ];
    assert_eq!(daemon.ok(&exit_code), "0");
    let df = daemon.ok(&["system", "df", "--format", "{{.Type}} {{.TotalCount}}"]);
    assert_eq!(df, "Images 1\nContainers 1\nLocal Volumes 0\nBuild Cache 0");
    assert!(daemon.ok(&["system", "df", "-v"]).contains("once"));
    assert!(daemon.ok(&["container", "prune", "-f"]).contains("Total reclaimed space"));
    assert_eq!(daemon.ok(&["ps", "-aq"]), "");
    let _ = daemon.ok(&["system", "prune", "-f"]);
    let build = tempfile::tempdir().unwrap();
    fs::write(build.path().join("Dockerfile"), "FROM busybox\n").unwrap();
    let built = daemon
        .command(&["build", build.path().to_str().unwrap()])
        .env("DOCKER_BUILDKIT", "0")
        .output()
        .unwrap();
    assert!(!built.status.success());
    assert!(
        String::from_utf8_lossy(&built.stderr).contains("building images is not supported yet"),
        "{built:?}"
    );
}

#[test]
fn events_are_told_as_they_happen() {
    let Some(daemon) = Daemon::with_docker() else { return };
    let mut events = daemon
        .command(&[
            "events",
            "--filter",
            "type=container",
            "--format",
            "{{.Action}} {{.Actor.Attributes.name}}",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    // Only what happens once it listens is told.
    let listens = || daemon.ok(&["info", "--format", "{{.NEventsListener}}"]) == "1";
    assert!((0..1000).any(|_| listens()), "docker events does not listen");
    let _ = daemon.ok(&["run", "--rm", "--name", "probe", "busybox", "true"]);
    let told: Vec<String> =
        lines.by_ref().map(Result::unwrap).take_while(|line| line != "destroy probe").collect();
    let order = ["create probe", "attach probe", "start probe", "die probe"];
    let places: Vec<_> = order.iter().map(|action| told.iter().position(|line| line == action)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{told:?}");
    events.kill().unwrap();
    events.wait().unwrap();
}
