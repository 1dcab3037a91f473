//! Volumes, networks, and the whole.

use bulkhead_tests::cli::Cli;

use crate::is_id;

#[test]
fn volumes_are_made_listed_and_removed() {
    for cli in Cli::both() {
        assert_eq!(cli.ok(&["volume", "create", "--label", "a=b", "data"]), "data");
        let anonymous = cli.ok(&["volume", "create"]);
        assert!(is_id(&anonymous), "{anonymous}");
        assert_eq!(cli.ok(&["volume", "ls", "-q", "--filter", "label=a=b"]), "data");
        let listed = cli.ok(&["volume", "ls"]);
        assert!(
            listed.starts_with("DRIVER   VOLUME NAME\n") && listed.contains("\nlocal    data"),
            "{listed}"
        );
        assert_eq!(
            cli.ok(&["volume", "inspect", "-f", "{{.Name}} {{.Driver}} {{json .Labels}}", "data"]),
            "data local {\"a\":\"b\"}"
        );
        cli.fails(1, "no such volume", &["volume", "rm", "none"]);
        assert_eq!(cli.ok(&["volume", "rm", &anonymous]), anonymous);
        let pruned = cli.ok(&["volume", "prune", "-a", "-f"]);
        assert_eq!(pruned, "Deleted Volumes:\ndata\n\nTotal reclaimed space: 0B", "{pruned}");
    }
}

#[test]
fn networks_are_made_listed_and_removed() {
    for cli in Cli::both() {
        let id = cli.ok(&[
            "network",
            "create",
            "--subnet",
            "10.77.0.0/16",
            "--gateway",
            "10.77.0.9",
            "--label",
            "a=b",
            "back",
        ]);
        assert!(is_id(&id), "{id}");
        assert_eq!(
            cli.ok(&["network", "ls", "--format", "{{.Name}} {{.Driver}}"]),
            "back bridge\nbridge bridge\nnone null"
        );
        assert_eq!(
            cli.ok(&[
                "network",
                "inspect",
                "-f",
                "{{range .IPAM.Config}}{{.Subnet}} {{.Gateway}}{{end}}",
                "back"
            ]),
            "10.77.0.0/16 10.77.0.9"
        );
        let _ = cli.ok(&["create", "--name", "box", "--network", "name=back,alias=db", "busybox"]);
        assert_eq!(
            cli.ok(&["inspect", "-f", "{{json .NetworkSettings.Networks.back.Aliases}}", "box"]),
            "[\"db\"]"
        );
        assert_eq!(cli.ok(&["network", "connect", "--alias", "x", "bridge", "box"]), "");
        assert_eq!(cli.ok(&["network", "disconnect", "back", "box"]), "");
        assert_eq!(
            cli.ok(&[
                "inspect",
                "-f",
                "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}",
                "box"
            ]),
            "bridge"
        );
        cli.fails(1, "network none-such not found", &["network", "rm", "none-such"]);
        cli.fails(1, "--subnet", &["network", "create", "--gateway", "10.0.0.1", "x"]);
        assert_eq!(cli.ok(&["network", "prune", "-f"]), "Deleted Networks:\nback");
        assert_eq!(cli.ok(&["rm", "box"]), "box");
        cli.assert_nothing_left();
    }
}

#[test]
fn the_whole_is_told_of() {
    for cli in Cli::both() {
        let address = cli.daemon().map_or("this process".to_owned(), |daemon| daemon.host());
        let version = cli.ok(&["version"]);
        assert!(
            version.starts_with("Client:\n Version: ") && version.contains(&format!("\nServer: {address}\n")),
            "{version}"
        );
        assert_eq!(cli.ok(&["version", "-f", "{{.Server.ApiVersion}}"]), "1.50");
        assert_eq!(cli.ok(&["info", "-f", "{{.Containers}} {{.Images}} {{.Driver}}"]), "0 1 erofs");
        assert!(cli.ok(&["info"]).contains("\nServer Version: "));
        let _ = cli.ok(&["create", "--name", "box", "busybox"]);
        let df = cli.ok(&["system", "df", "--format", "{{.Type}}|{{.TotalCount}}|{{.Active}}"]);
        assert_eq!(df, "Images|1|1\nContainers|1|0\nLocal Volumes|0|0");
        let events = cli.ok(&[
            "events",
            "--since",
            "1h",
            "--until",
            "0s",
            "--filter",
            "type=container",
            "--format",
            "{{.Action}} {{.Actor.Attributes.name}}",
        ]);
        assert_eq!(events, "create box");
        let plain = cli.ok(&["events", "--since", "1h", "--until", "0s", "--filter", "event=create"]);
        assert!(plain.contains(" container create ") && plain.contains("name=box"), "{plain}");
        // Whoever does not say yes keeps everything.
        let asked = cli.fed(&["system", "prune"], b"n\n");
        assert!(asked.code == 0 && asked.stderr.contains("[y/N]") && asked.stdout.is_empty(), "{asked:?}");
        let pruned = cli.fed(&["system", "prune"], b"y\n");
        assert!(pruned.stdout.starts_with("Deleted Containers:\n"), "{pruned:?}");
        cli.assert_nothing_left();
    }
}

#[test]
fn formats_are_tables_json_and_templates() {
    let Some(cli) = Cli::alone() else { return };
    let _ = cli.ok(&["create", "--name", "box", "-l", "tier=front", "busybox"]);
    assert_eq!(
        cli.ok(&["ps", "-a", "--format", "table {{.Names}}\\t{{.State}}"]),
        "NAMES   STATE\nbox     created"
    );
    assert_eq!(
        cli.ok(&["ps", "-a", "--format", "{{.Names}}: {{.Label \"tier\"}} {{upper .State}}"]),
        "box: front CREATED"
    );
    let json: serde_json::Value = serde_json::from_str(&cli.ok(&["ps", "-a", "--format", "json"])).unwrap();
    assert_eq!((&json["Names"], &json["State"]), (&"box".into(), &"created".into()));
    assert_eq!(cli.ok(&["ps", "-aq", "--filter", "status=running"]), "");
    let inspected: serde_json::Value = serde_json::from_str(&cli.ok(&["inspect", "box"])).unwrap();
    assert_eq!(inspected[0]["Name"], "/box");
    assert_eq!(
        cli.ok(&["inspect", "-f", "{{if .State.Health}}x{{else}}none{{end}} {{len .Name}}", "box"]),
        "none 4"
    );
    cli.fails(1, "--format", &["inspect", "-f", "{{.Nope}}", "box"]);
    cli.fails(1, "--format", &["ps", "-a", "--format", "{{if}}"]);
    cli.fails(1, "--filter status", &["ps", "--filter", "status"]);
    cli.fails(1, "inspect nothing", &["inspect", "nothing"]);
    assert_eq!(cli.ok(&["rm", "box"]), "box");
    cli.assert_nothing_left();
}
