//! The threat model names tests: each must exist.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

/// The names of all tests below a directory.
fn tests(directory: &Path, found: &mut BTreeSet<String>) {
    // Not every room has both.
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            tests(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            for part in text.split("#[test]").skip(1) {
                let name = part.split("fn ").nth(1).and_then(|rest| rest.split('(').next());
                found.extend(name.map(str::to_owned));
            }
            // A list of cases, each of which is several tests by a macro.
            let cases =
                text.split("\ncases![").nth(1).and_then(|rest| rest.split(']').next()).unwrap_or_default();
            let names = cases.split(',').filter_map(|case| case.trim().rsplit("::").next());
            found.extend(names.map(str::to_owned));
        }
    }
}

#[test]
fn every_test_that_is_named_exists() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeSet::new();
    for room in [".", "../agent", "../cli", "../engine", "../fs", "../net", "../tests"] {
        tests(&here.join(room).join("src"), &mut found);
        tests(&here.join(room).join("tests"), &mut found);
    }
    let text = std::fs::read_to_string(here.join("../docs/threat-model.md")).unwrap();
    // Names of tests are the quoted words with at least two underscores.
    let named: BTreeSet<&str> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.matches('_').count() > 1 && !word.contains(' '))
        .collect();
    let missing: Vec<_> = named.iter().filter(|name| !found.contains(**name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(named.len() >= 30, "{}", named.len());
    // Each promise has a test that attacks it.
    for row in text.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        if cells.len() == 2 && !row.contains("attacked by") && !row.contains("---") {
            assert!(cells[1].contains('`'), "no test: {row}");
        }
    }
}
