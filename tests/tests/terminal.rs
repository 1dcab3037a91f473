//! `run -it`: a terminal that a shell can live in. util-linux's `script` plays the person's terminal.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use bulkhead_tests::{Bulkhead, busybox};

/// Types keys, with a pause after each, and returns everything that appeared on the screen.
fn type_keys(bulkhead: &Bulkhead, command: &str, keys: &[&str]) -> (String, i32) {
    let program = std::env::var("BULKHEAD").unwrap();
    let line = format!("stty rows 33 cols 111; {program} run --rm --accel uml -it {} {command}", busybox());
    let mut child = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("BULKHEAD_ROOT", bulkhead.root.path())
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for key in keys {
        std::thread::sleep(Duration::from_millis(700));
        stdin.write_all(key.as_bytes()).unwrap();
    }
    let mut screen = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut screen).unwrap();
    drop(stdin);
    (String::from_utf8_lossy(&screen).into_owned(), child.wait().unwrap().code().unwrap())
}

#[test]
fn a_shell_has_a_terminal_of_the_callers_size_and_ctrl_c_interrupts_its_command() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let keys = ["tty; stty size; echo $TERM\n", "sleep 1000\n", "\x03", "echo after=$?\n", "exit 5\n"];
    let (screen, code) = type_keys(&bulkhead, "sh", &keys);
    assert!(screen.contains("/dev/pts/0"), "{screen}");
    assert!(screen.contains("33 111"), "{screen}");
    assert!(screen.contains("xterm"), "{screen}");
    assert!(screen.contains("after=130"), "{screen}");
    assert_eq!(code, 5, "{screen}");
    bulkhead.assert_nothing_left();
}

#[test]
fn end_of_file_on_the_terminal_ends_the_shell() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let (screen, code) = type_keys(&bulkhead, "sh", &["\x04"]);
    assert_eq!(code, 0, "{screen}");
}

#[test]
fn a_terminal_without_input_still_makes_programs_believe_in_it() {
    let Some(bulkhead) = Bulkhead::new() else { return };
    let ran = bulkhead.run(&[
        "-t",
        &busybox(),
        "sh",
        "-c",
        "test -t 1 && echo terminal; ls -l /dev/console | cut -c1",
    ]);
    assert_eq!(ran.stdout, "terminal\r\nc\r\n", "{ran:?}");
}
