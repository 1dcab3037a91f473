//! `bulkhead`'s commands, without a daemon and against one.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::daemon::{Daemon, archive};
use crate::{Bulkhead, Ran};

/// How long one command may take before it is taken for hung.
const HANG: Duration = Duration::from_secs(120);

/// A state directory with the image `busybox`, and commands on it. Whatever runs is ended when it is dropped.
pub struct Cli {
    place: Place,
}

enum Place {
    Alone(Bulkhead),
    Served(Daemon),
}

impl Cli {
    /// One without a daemon and one with; none (said loudly) where `make test` has not prepared them.
    #[must_use]
    pub fn both() -> Vec<Self> {
        let places = [Bulkhead::new().map(Place::Alone), Daemon::start().map(Place::Served)];
        places.into_iter().flatten().map(|place| Self { place }.with_image()).collect()
    }

    /// One without a daemon.
    #[must_use]
    pub fn alone() -> Option<Self> {
        Some(Self { place: Place::Alone(Bulkhead::new()?) }.with_image())
    }

    /// One with a daemon.
    #[must_use]
    pub fn served() -> Option<Self> {
        Some(Self { place: Place::Served(Daemon::start()?) }.with_image())
    }

    fn with_image(self) -> Self {
        let loaded = self.ran(&["load", "-q", "-i", &archive().display().to_string()]);
        assert_eq!(
            (loaded.code, loaded.stdout.as_str()),
            (0, "Loaded image: busybox:latest\n"),
            "{loaded:?}"
        );
        self
    }

    /// The installation.
    #[must_use]
    pub fn bulkhead(&self) -> &Bulkhead {
        match &self.place {
            Place::Alone(bulkhead) => bulkhead,
            Place::Served(daemon) => &daemon.bulkhead,
        }
    }

    /// The daemon, if there is one.
    #[must_use]
    pub fn daemon(&self) -> Option<&Daemon> {
        match &self.place {
            Place::Alone(_) => None,
            Place::Served(daemon) => Some(daemon),
        }
    }

    /// A command with these arguments, standard input closed.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.bulkhead().command(args);
        // Credentials of whoever runs the tests are nobody's business.
        command.env("DOCKER_CONFIG", self.bulkhead().root.path().join("docker-config"));
        if let Place::Served(daemon) = &self.place {
            command.env("BULKHEAD_HOST", daemon.host());
        }
        command
    }

    /// Runs a command to its end.
    #[must_use]
    pub fn ran(&self, args: &[&str]) -> Ran {
        self.fed(args, b"")
    }

    /// Runs a command to its end with this standard input.
    #[must_use]
    pub fn fed(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
        // A command that reads no input ends without it.
        let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let began = Instant::now();
        let number = i32::try_from(child.id()).unwrap();
        let waiting = std::thread::spawn(move || child.wait_with_output().unwrap());
        while !waiting.is_finished() {
            if began.elapsed() > HANG {
                // SAFETY: kill takes two numbers; the child has not been waited for, so that its number is its own.
                unsafe { libc::kill(number, libc::SIGKILL) };
                panic!("bulkhead {args:?} hangs: {:?}", waiting.join());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        feeding.join().unwrap();
        waiting.join().unwrap().into()
    }

    /// Runs a command that must succeed, and returns what it printed without the newline at the end.
    #[must_use]
    pub fn ok(&self, args: &[&str]) -> String {
        let ran = self.ran(args);
        assert_eq!(ran.code, 0, "bulkhead {args:?}: {ran:?}");
        ran.stdout.trim_end().to_owned()
    }

    /// Runs a command that must fail with this exit code and three lines, of which the first has these words.
    pub fn fails(&self, code: i32, words: &str, args: &[&str]) {
        let ran = self.ran(args);
        assert_eq!(ran.code, code, "bulkhead {args:?}: {ran:?}");
        let lines: Vec<&str> = ran.stderr.lines().collect();
        let at = lines
            .len()
            .checked_sub(3)
            .unwrap_or_else(|| panic!("bulkhead {args:?}: fewer than three lines: {ran:?}"));
        let last = &lines[at..];
        assert!(last[0].starts_with("bulkhead: ") && last[0].contains(words), "bulkhead {args:?}: {ran:?}");
        assert!(last[1].starts_with("why: ") && last[2].starts_with("next: "), "bulkhead {args:?}: {ran:?}");
    }

    /// Fails if a container is left; without a daemon also if a process is.
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.ok(&["ps", "-aq"]), "", "containers are left");
        if let Place::Alone(bulkhead) = &self.place {
            bulkhead.assert_nothing_left();
        }
    }
}
