//! What a person at a terminal sees: keys, bars, help, completion. util-linux's `script` plays the terminal.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use bulkhead_tests::cli::Cli;
use bulkhead_tests::image::{ImageBuilder, add_file};
use serde_json::json;

/// Runs a command line in a terminal of 100 columns; types keys whenever the words before them have appeared. Returns the screen
/// and the exit code.
fn in_terminal(cli: &Cli, line: &str, keys: &[(&str, &str)]) -> (String, i32) {
    let like = cli.command(&[]);
    let program = like.get_program().to_string_lossy().into_owned();
    let line = format!("stty rows 40 cols 100; {}", line.replace("bulkhead ", &format!("{program} ")));
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("SHELL", "/bin/sh").env("TERM", "xterm");
    for (name, value) in like.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut screen = Vec::new();
    let mut buffer = [0; 4096];
    let mut keys = keys.iter().peekable();
    loop {
        while let Some((words, typed)) = keys.peek() {
            if !String::from_utf8_lossy(&screen).contains(words) {
                break;
            }
            // The terminal is switched to raw mode about now.
            std::thread::sleep(Duration::from_millis(300));
            stdin.write_all(typed.as_bytes()).unwrap();
            keys.next();
        }
        match stdout.read(&mut buffer).unwrap() {
            0 => break,
            n => screen.extend_from_slice(&buffer[..n]),
        }
    }
    drop(stdin);
    (String::from_utf8_lossy(&screen).into_owned(), child.wait().unwrap().code().unwrap())
}

#[test]
fn keys_detach_from_a_container_that_runs_on() {
    for cli in Cli::both() {
        let line = "bulkhead run -it --name term --accel uml busybox sh -c 'stty size; echo ready; cat'";
        let (screen, code) = in_terminal(&cli, line, &[("ready", "typed\n"), ("typed", "\x10\x11")]);
        assert_eq!(code, 0, "{screen}");
        // It has the terminal's size from its first moment on.
        assert!(screen.contains("40 100") && screen.contains("typed"), "{screen}");
        assert_eq!(cli.ok(&["ps", "--format", "{{.Names}}"]), "term");
        let line = "bulkhead attach --detach-keys ctrl-a,x term; echo left with $?";
        let (screen, _) = in_terminal(&cli, line, &[("", "again\n"), ("again\r\nagain", "\x01x")]);
        assert!(screen.contains("left with 0"), "{screen}");
        let line = "bulkhead exec -it term sh -c 'tty; echo here; read x; exit 6'";
        let (screen, code) = in_terminal(&cli, line, &[("here", "go\n")]);
        assert!(code == 6 && screen.contains("/dev/pts/"), "{screen}");
        assert_eq!(cli.ok(&["rm", "-f", "term"]), "term");
        cli.assert_nothing_left();
    }
}

#[test]
fn progress_is_bars_on_a_terminal_and_lines_elsewhere() {
    let Some(cli) = Cli::alone() else { return };
    let directory = tempfile::tempdir().unwrap();
    let layout = ImageBuilder::new(json!({}))
        .layer(|tar| add_file(tar, "large", &vec![7; 5 << 20], 0o644))
        .write(directory.path());
    let image = format!("oci:{}", layout.display());
    let (screen, code) = in_terminal(&cli, &format!("bulkhead pull {image}"), &[]);
    assert_eq!(code, 0, "{screen}");
    assert!(screen.contains("\x1b[1A\r\x1b[2K") && screen.contains("Pull complete"), "{screen:?}");
    // In another store, without colours.
    let Some(cli) = Cli::alone() else { return };
    let (screen, code) = in_terminal(&cli, &format!("NO_COLOR=1 bulkhead pull {image}"), &[]);
    assert!(code == 0 && screen.contains("\x1b[2K") && !screen.contains("\x1b[36m"), "{screen:?}");
    let Some(cli) = Cli::alone() else { return };
    let ran = cli.ran(&["pull", &image]);
    assert!(ran.stderr.contains(": Pull complete\n") && !ran.stderr.contains('\x1b'), "{ran:?}");
    assert_eq!(cli.ran(&["pull", "-q", &image]).stderr, "");
}

#[test]
fn help_has_groups_and_tells_of_mistakes() {
    let Some(cli) = Cli::alone() else { return };
    let help = cli.ok(&["--help"]);
    let groups: Vec<&str> = help.lines().filter(|l| l.ends_with(':') && !l.starts_with(' ')).collect();
    assert_eq!(
        groups,
        ["Common Commands:", "Management Commands:", "Commands:", "Bulkhead:", "Global Options:"]
    );
    assert!(help.contains("\n  run  ") && help.contains("\n  doctor "), "{help}");
    let run = cli.ok(&["run", "--help"]);
    assert!(
        run.contains("Usage: bulkhead run [OPTIONS] IMAGE [COMMAND]") && run.contains("\nNetwork:\n"),
        "{run}"
    );
    assert!(cli.ok(&["container", "--help"]).contains("prune"));
    for args in
        [vec!["nonsense"], vec!["ps", "--nonsense"], vec!["run"], vec!["run", "--cpus"], vec!["exec", "one"]]
    {
        cli.fails(125, "the command line is not understood", &args);
    }
}

#[test]
fn shells_complete_commands_and_names_that_exist() {
    for cli in Cli::both() {
        let _ = cli.ok(&["create", "--name", "harbour", "busybox"]);
        for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
            let script = cli.ok(&["completion", shell]);
            assert!(script.contains("bulkhead") && script.contains("COMPLETE"), "{shell}: {script}");
        }
        let complete = |words: &[&str]| {
            let output = cli
                .command(&[&["--"], words].concat())
                .env("COMPLETE", "bash")
                .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string())
                .env("_CLAP_IFS", "\n")
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(complete(&["bulkhead", "start", "har"]), ["harbour"]);
        assert_eq!(complete(&["bulkhead", "run", "busy"]), ["busybox:latest"]);
        assert_eq!(complete(&["bulkhead", "network", "inspect", "bri"]), ["bridge"]);
        assert_eq!(complete(&["bulkhead", "network", "rm", "bri"]), ["bridge"]);
        assert!(complete(&["bulkhead", "vers"]).contains(&"version".to_owned()));
        assert_eq!(cli.ok(&["rm", "harbour"]), "harbour");
        cli.assert_nothing_left();
    }
}
