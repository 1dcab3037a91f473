//! What POSIX and Linux promise of files, through a shared folder. `docs/volumes.md` has the table.

use std::fs;
use std::path::Path;

use bulkhead_tests::{Bulkhead, script};

const CASES: &str = include_str!("posix.py");

/// What is not so, and why: each is in the table, too.
const DIFFERENT: [(&str, &str); 5] = [
    ("access_control_lists", "not supported"),
    ("attributes_of_the_system", "not supported"),
    ("device_nodes", "not permitted"),
    ("dots_in_a_directory", "neither . nor .."),
    ("nameless_files", "not supported"),
];

#[test]
fn posix_holds_in_a_shared_folder_but_for_what_is_told() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let Some(image) = script("debian-python.sh") else {
        return eprintln!("skipped: no image with Python (debootstrap needs root and a mirror)");
    };
    // SAFETY: it asks for a number.
    if unsafe { libc::geteuid() } != 0 {
        return eprintln!("skipped: only root's containers have files of several users");
    }
    let folder = tempfile::Builder::new().prefix("bulkhead-folder-").tempdir_in("/var/tmp").unwrap();
    fs::create_dir(folder.path().join("v")).unwrap();
    fs::write(folder.path().join("posix.py"), CASES).unwrap();
    let bind = |name: &str| format!("{}:/{name}", folder.path().join(name).display());
    let image = format!("oci:{image}");
    let ran =
        bulkhead.run(&["-v", &bind("v"), "-v", &bind("posix.py"), &image, "python3", "/posix.py", "/v"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let table = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/volumes.md")).unwrap();
    let mut count = 0;
    for line in ran.stdout.lines() {
        count += 1;
        let (name, outcome) = line.split_once(' ').unwrap();
        match DIFFERENT.iter().find(|(different, _)| *different == name) {
            None => assert_eq!(outcome, "pass", "{name}"),
            Some((_, why)) => assert!(outcome.starts_with("fail") && outcome.contains(why), "{line}"),
        }
        let row = format!("| {} | {} |", name.replace('_', " "), outcome.split(':').next().unwrap());
        assert!(table.contains(&row), "docs/volumes.md lacks {row:?}");
    }
    assert_eq!(count, CASES.matches("\n@case\n").count());
}
