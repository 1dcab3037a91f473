//! Images: their names, where they come from and where they go.

use std::fs;

use bulkhead_tests::cli::Cli;
use bulkhead_tests::registry::Registry;

#[test]
fn images_are_listed_named_saved_and_removed() {
    for cli in Cli::both() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let table = cli.ok(&["images"]);
        let mut lines = table.lines();
        assert_eq!(
            lines.next().unwrap().split_whitespace().collect::<Vec<_>>(),
            ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
        );
        assert!(lines.next().unwrap().starts_with("busybox      latest   "), "{table}");
        let id = cli.ok(&["images", "-q", "--no-trunc"]);
        assert!(id.starts_with("sha256:") && id.len() == 71, "{id}");
        assert_eq!(cli.ok(&["tag", "busybox", "localhost:5000/other/name:v1"]), "");
        assert_eq!(
            cli.ok(&["image", "ls", "--format", "{{.Repository}} {{.Tag}}", "localhost:5000/other/*"]),
            "localhost:5000/other/name v1"
        );
        assert_eq!(cli.ok(&["images", "-q"]).lines().count(), 1, "one image of two names");
        assert_eq!(
            cli.ok(&["image", "inspect", "-f", "{{index .RepoTags 0}} {{.Os}}", "busybox"]),
            "busybox:latest linux"
        );
        assert!(cli.ok(&["history", "busybox"]).starts_with("IMAGE "));

        assert_eq!(
            cli.ok(&["save", "-o", &path("saved.tar"), "busybox", "localhost:5000/other/name:v1"]),
            ""
        );
        cli.fails(1, "must be forced", &["rmi", &id[7..19]]);
        let removed = cli.ok(&["rmi", "localhost:5000/other/name:v1", "busybox"]);
        assert_eq!(
            removed,
            format!("Untagged: localhost:5000/other/name:v1\nUntagged: busybox:latest\nDeleted: {id}")
        );
        cli.fails(1, "No such image: busybox", &["rmi", "busybox"]);
        let saved = fs::read(path("saved.tar")).unwrap();
        let loaded = cli.fed(&["load", "-q"], &saved);
        let mut names: Vec<&str> = loaded.stdout.lines().collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["Loaded image: busybox:latest", "Loaded image: localhost:5000/other/name:v1"],
            "{loaded:?}"
        );

        // A root file system becomes an image.
        let rootfs = cli
            .command(&["run", "--rm", "--accel", "uml", "busybox", "tar", "c", "/bin/busybox"])
            .output()
            .unwrap();
        fs::write(path("rootfs.tar"), &rootfs.stdout).unwrap();
        let made = cli.ok(&[
            "import",
            "-c",
            "CMD [\"/bin/busybox\", \"echo\", \"imported\"]",
            &path("rootfs.tar"),
            "bare:1",
        ]);
        assert!(made.starts_with("sha256:"), "{made}");
        assert_eq!(cli.ok(&["run", "--rm", "--accel", "uml", "bare:1"]), "imported");
        cli.fails(1, "opening /no/such/file", &["load", "-i", "/no/such/file"].map(|a| a));
        let pruned = cli.ok(&["image", "prune", "-a", "-f"]);
        assert!(pruned.starts_with("Deleted Images:\n") && pruned.contains("Untagged: bare:1"), "{pruned}");
        assert_eq!(cli.ok(&["images", "-q"]), "");
        cli.assert_nothing_left();
    }
}

#[test]
fn images_are_pushed_and_pulled_with_credentials() {
    let registry = tempfile::tempdir().unwrap();
    // The user `me` with the password `secret`, as bcrypt (htpasswd -nbB).
    let users = registry.path().join("users");
    let made = std::process::Command::new("htpasswd").args(["-nbB", "me", "secret"]).output();
    let Ok(made) = made else {
        eprintln!("skipped: no htpasswd (apache2-utils)");
        return;
    };
    fs::write(&users, made.stdout).unwrap();
    let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", users.display());
    let Some(registry) = Registry::start(registry.path(), "", &auth) else { return };
    for cli in Cli::both() {
        let name = format!("{}/some/busybox:v1", registry.address);
        let _ = cli.ok(&["tag", "busybox", &name]);
        let refused = cli.ran(&["push", &name]);
        assert_eq!(refused.code, 1, "{refused:?}");
        cli.fails(1, "--password-stdin", &["login", "--password-stdin", &registry.address]);
        let wrong = cli.fed(&["login", "-u", "me", "--password-stdin", &registry.address], b"wrong\n");
        assert!(wrong.code == 1 && wrong.stderr.contains("unauthorized"), "{wrong:?}");
        let login = cli.fed(&["login", "-u", "me", "--password-stdin", &registry.address], b"secret\n");
        assert_eq!((login.code, login.stdout.as_str()), (0, "Login Succeeded\n"), "{login:?}");
        let pushed = cli.ran(&["push", &name]);
        assert_eq!(pushed.code, 0, "{pushed:?}");
        assert!(pushed.stdout.starts_with("v1: digest: sha256:"), "{pushed:?}");
        assert!(pushed.stderr.contains("The push refers to repository"), "{pushed:?}");
        let _ = cli.ok(&["rmi", &name, "busybox"]);
        let pulled = cli.ran(&["pull", &name]);
        assert_eq!((pulled.code, pulled.stdout.trim_end()), (0, name.as_str()), "{pulled:?}");
        assert!(pulled.stderr.contains("Pull complete\n") && !pulled.stderr.contains('\x1b'), "{pulled:?}");
        // `run` pulls what is missing, and says nothing of it with -q.
        let _ = cli.ok(&["rmi", &name]);
        let ran = cli.ran(&["run", "--rm", "-q", "--accel", "uml", &name, "echo", "pulled"]);
        assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, "pulled\n", ""), "{ran:?}");
        assert_eq!(
            cli.ok(&["logout", &registry.address]),
            format!("Removing login credentials for {}", registry.address)
        );
        let _ = cli.ok(&["rmi", &name]);
        assert_eq!(cli.ran(&["pull", &name]).code, 1, "without credentials");
        cli.assert_nothing_left();
    }
}
