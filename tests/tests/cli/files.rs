//! Files that go into containers and come out of them.

use std::fs;

use bulkhead_tests::cli::Cli;

#[test]
fn files_are_copied_both_ways() {
    for cli in Cli::both() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        fs::create_dir_all(path("tree/deep")).unwrap();
        fs::write(path("tree/deep/file"), "content").unwrap();
        fs::write(path("plain"), "plain").unwrap();
        std::os::unix::fs::symlink("deep/file", path("tree/link")).unwrap();
        let _ = cli.ok(&["run", "-d", "--name", "box", "--accel", "uml", "busybox", "sleep", "1000"]);
        let shell = |script: &str| cli.ok(&["exec", "box", "sh", "-c", script]);

        let told = cli.ran(&["cp", &path("plain"), "box:/tmp/new"]);
        assert_eq!(
            (told.code, told.stderr.as_str()),
            (0, "Successfully copied 5B to box:/tmp/new\n"),
            "{told:?}"
        );
        assert_eq!(shell("cat /tmp/new; stat -c %u:%g /tmp/new"), "plain0:0");
        // Into a directory that is there, as one that is not, and what is in it.
        assert_eq!(cli.ok(&["cp", "-q", &path("tree"), "box:/tmp"]), "");
        assert_eq!(cli.ok(&["cp", "-q", &path("tree"), "box:/tmp/renamed"]), "");
        assert_eq!(cli.ok(&["cp", "-q", &format!("{}/.", path("tree")), "box:/root"]), "");
        assert_eq!(
            shell("cat /tmp/tree/link /tmp/renamed/deep/file /root/deep/file"),
            "contentcontentcontent"
        );
        for (code, words, source, target) in [
            (1, "cp", path("nothing"), "box:/tmp".to_owned()),
            (1, "cp box:/tmp/new", path("tree"), "box:/tmp/new".to_owned()),
            (1, "cp box:/no/place/", path("plain"), "box:/no/place/".to_owned()),
            (1, "Could not find the file /nothing", "box:/nothing".to_owned(), path("x")),
            (1, "No such container: none", "none:/etc".to_owned(), path("x")),
            (1, "cp", "box:/etc".to_owned(), path("plain")),
            (1, "cp", "box:/etc".to_owned(), "box:/tmp".to_owned()),
            (1, "cp", path("plain"), path("x")),
        ] {
            cli.fails(code, words, &["cp", &source, &target]);
        }

        assert_eq!(cli.ok(&["cp", "-q", "box:/tmp/tree", &path("out")]), "");
        assert_eq!(fs::read_to_string(path("out/link")).unwrap(), "content");
        fs::create_dir(path("there")).unwrap();
        assert_eq!(cli.ok(&["cp", "-q", "box:/tmp/tree/.", &path("there")]), "");
        assert_eq!(fs::read_to_string(path("there/deep/file")).unwrap(), "content");
        assert_eq!(cli.ok(&["cp", "-q", "-L", "box:/tmp/tree/link", &path("followed")]), "");
        assert!(!fs::symlink_metadata(path("followed")).unwrap().is_symlink());

        // Archives as they are.
        let ran = cli.command(&["cp", "box:/tmp/tree", "-"]).output().unwrap();
        assert!(ran.status.success());
        let names: Vec<String> = tar::Archive::new(ran.stdout.as_slice())
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert!(names.iter().any(|name| name == "tree/deep/file"), "{names:?}");
        let _ = cli.ok(&["exec", "box", "mkdir", "/in"]);
        let fed = cli.fed(&["cp", "-", "box:/in"], &ran.stdout);
        assert_eq!(fed.code, 0, "{fed:?}");
        assert_eq!(shell("cat /in/tree/deep/file"), "content");

        let diff = cli.ok(&["diff", "box"]);
        assert!(
            diff.lines().any(|line| line == "A /in") && diff.lines().any(|line| line == "C /tmp"),
            "{diff}"
        );

        // A stopped container's files are there, too.
        let _ = cli.ok(&["stop", "-t", "0", "box"]);
        assert_eq!(cli.ok(&["export", "-o", &path("all.tar"), "box"]), "");
        let all = fs::File::open(path("all.tar")).unwrap();
        let names = tar::Archive::new(all)
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().display().to_string())
            .collect::<Vec<_>>();
        assert!(names.iter().any(|name| name == "in/tree/deep/file"), "{names:?}");
        let made = cli.ok(&[
            "commit",
            "-m",
            "a comment",
            "-c",
            "CMD [\"cat\", \"/in/tree/deep/file\"]",
            "box",
            "made:1",
        ]);
        assert!(made.starts_with("sha256:"), "{made}");
        let ran = cli.ran(&["run", "--rm", "--accel", "uml", "made:1"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (0, "content"), "{ran:?}");
        assert_eq!(cli.ok(&["rm", "box"]), "box");
        cli.assert_nothing_left();
    }
}
