//! One machine's conversation, from the agent's first word to the exit status of the container's process.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent::protocol::spec::Spec;
use agent::protocol::{
    self, Call, ExitStatus, FrameError, Message, Prepare, ProcessId, STREAM_PORT, Start, Stream,
};
use image_unpack::Image;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use vmm::config::Accelerator;

use crate::client::{Client, open_streams};
use crate::error::{Advice, Hint};
use crate::machine::Machine;
use crate::machine::{boot_timeout, silent};
use crate::options::{RunOptions, TerminalMode};
use crate::seccomp::Seccomp;
use crate::signals::Signals;
use crate::stdio::{InputPump, start_output};
use crate::timings::Timings;
use crate::{EngineError, doctor, run_spec as spec, terminal};

/// Exit code of a process that SIGSEGV killed.
const SEGFAULT: u8 = 128 + 11;
/// Name of the container's first process.
const INIT: &str = "init";
/// So many interrupts or terminations end a container that does not react to them.
const IMPATIENCE: u32 = 3;
/// How long a guest may take to answer a start: its disks are mounted and its program is read.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// How a container's first process ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: u8,
    /// Absent if a signal ended the machine before the process was started.
    pub(crate) status: Option<ExitStatus>,
    pub(crate) oom_killed: bool,
    pub(crate) accelerator: Accelerator,
}

impl Ended {
    /// What the caller should know beside the exit code.
    pub(crate) fn hint(&self) -> Option<Hint> {
        if self.oom_killed {
            return Some(Hint {
                what: "the container ran out of memory".to_owned(),
                advice: Advice {
                    why: "its processes touched more than its limit, and the guest's kernel killed one"
                        .to_owned(),
                    next: "give it more with --memory".to_owned(),
                },
            });
        }
        // A shell's exit code tells of a child that a signal killed.
        let segfault = self.status.is_some_and(|status| status.code() == SEGFAULT);
        let mappings =
            doctor::low_map_count().filter(|_| segfault && self.accelerator == Accelerator::Uml)?;
        Some(Hint {
            what: "the container's process ended in a segmentation fault".to_owned(),
            advice: Advice { why: doctor::why_low(mappings), next: doctor::RAISE_MAP_COUNT.to_owned() },
        })
    }
}

/// One machine and its agent.
pub(crate) struct Session<'a> {
    pub(crate) client: Client,
    pub(crate) machine: Machine,
    pub(crate) signals: &'a Signals,
    /// What the image wants to be sent in place of SIGTERM.
    pub(crate) stop_signal: u8,
    pub(crate) accelerator: Accelerator,
    /// Interrupts and terminations that the container has been sent.
    pub(crate) interrupts: u32,
}

/// What woke the session.
enum Wake {
    Messages(Vec<Message>),
    Signal(Signal),
    Timeout,
}

impl Session<'_> {
    /// Starts the container's process on the caller's standard streams and waits for its end.
    pub(crate) fn run(
        &mut self,
        options: &RunOptions,
        image: &Image,
        spec: Spec,
        timings: &Timings,
    ) -> Result<Ended, EngineError> {
        if let Some(ended) = self.wait_for_hello()? {
            return Ok(ended);
        }
        timings.mark("hello");
        let process = ProcessId::try_from(INIT.to_owned()).map_err(broken)?;
        let with_terminal = options.terminal == TerminalMode::Allocate;
        // Everything is sent before the first answer is awaited: the guest mounts while the streams are opened.
        let prepare = Prepare {
            image: "vda".into(),
            writable: "vdb".into(),
            wall_clock: wall_clock(),
            files: spec::files(spec.hostname.as_deref().unwrap_or_default(), ""),
            ..Prepare::default()
        };
        let prepared = self.client.send(Call::Prepare(Box::new(prepare)))?;
        let pending = wanted_streams(with_terminal, options.interactive)
            .iter()
            .map(|stream| self.machine.connect(STREAM_PORT).map(|connection| (connection, *stream)))
            .collect::<io::Result<Vec<_>>>()
            .map_err(FrameError::from)?;
        let capabilities = spec.process.capabilities.as_ref().map(|c| c.bounding.clone()).unwrap_or_default();
        let seccomp =
            Seccomp::Default.compile(&capabilities).map_err(|e| EngineError::Invalid(e.to_string()))?;
        let started = self.client.send(Call::Start(Box::new(Start {
            process: process.clone(),
            spec,
            user: spec::user(&image.config, options),
            terminal: with_terminal.then(terminal::size),
            stdin: options.interactive,
            groups: Vec::new(),
            init: false,
            seccomp,
            network: Vec::new(),
        })))?;
        let streams = open_streams(&process, pending)?;
        timings.mark("streams");

        let raw_mode = if with_terminal && options.interactive {
            Some(terminal::RawMode::enter().map_err(EngineError::io("switching the terminal to raw mode"))?)
        } else {
            None
        };
        let result = self.attend(&process, prepared, started, streams, with_terminal, timings);
        drop(raw_mode);
        result
    }

    /// Waits for the agent's first word. A signal before it ends the machine, and is the outcome.
    fn wait_for_hello(&mut self) -> Result<Option<Ended>, EngineError> {
        let timeout = boot_timeout(self.accelerator);
        let deadline = Instant::now() + timeout;
        loop {
            match self.wait(Some(deadline))? {
                Wake::Timeout => return Err(silent(timeout, None)),
                Wake::Messages(messages) => match messages.first() {
                    Some(Message::Hello { version: protocol::VERSION }) => return Ok(None),
                    Some(_) => return Err(broken("its first word was no hello of this protocol's version")),
                    None => {}
                },
                Wake::Signal(Signal::SIGWINCH) => {}
                Wake::Signal(signal) => return Ok(Some(self.ended_by(signal))),
            }
        }
    }

    /// Copies the streams and forwards signals until the process has ended and everything that it wrote is out.
    fn attend(
        &mut self,
        process: &ProcessId,
        prepared: u64,
        started: u64,
        streams: Vec<(Stream, UnixStream)>,
        with_terminal: bool,
        timings: &Timings,
    ) -> Result<Ended, EngineError> {
        let action = "starting a thread for the standard streams";
        let mut outputs = Vec::new();
        let mut input = None;
        for (stream, connection) in streams {
            match stream {
                Stream::Stdout => outputs.push(start_output(connection, io::stdout())),
                Stream::Stderr => outputs.push(start_output(connection, io::stderr())),
                Stream::Stdin => input = Some(InputPump::start(connection)),
            }
        }
        let outputs = outputs.into_iter().collect::<io::Result<Vec<_>>>().map_err(EngineError::io(action))?;
        let _input = input.transpose().map_err(EngineError::io(action))?;

        let mut start_deadline = Some(Instant::now() + START_TIMEOUT);
        let (status, oom_killed) = 'ended: loop {
            match self.wait(start_deadline)? {
                Wake::Timeout => return Err(silent(START_TIMEOUT, None)),
                Wake::Signal(signal) => {
                    if let Some(ended) = self.forward(process, signal, with_terminal)? {
                        return Ok(ended);
                    }
                }
                Wake::Messages(messages) => {
                    for message in messages {
                        match message {
                            Message::Reply { id, result } if id == prepared => {
                                result.map_err(EngineError::Start)?;
                            }
                            Message::Reply { id, result } if id == started => {
                                result.map_err(EngineError::Start)?;
                                start_deadline = None;
                                timings.mark("started");
                            }
                            // A signal to a process that is just ending has nobody to reach.
                            Message::Reply { .. } => {}
                            Message::Exited { process: ended, status, oom_killed } if ended == *process => {
                                break 'ended (status, oom_killed);
                            }
                            Message::Exited { .. } => {
                                return Err(broken("it spoke of a process that was never started"));
                            }
                            Message::Oom { .. } => {}
                            Message::Hello { .. } => return Err(broken("it said hello twice")),
                        }
                    }
                }
            }
        };
        timings.mark("exited");
        for output in outputs {
            // A reader of ours that went away is no failure of the container.
            let _ = output.join();
        }
        timings.mark("drained");
        Ok(Ended { code: status.code(), status: Some(status), oom_killed, accelerator: self.accelerator })
    }

    /// Passes a signal on. The third interrupt or termination ends a container that reacts to none.
    fn forward(
        &mut self,
        process: &ProcessId,
        signal: Signal,
        with_terminal: bool,
    ) -> Result<Option<Ended>, EngineError> {
        if signal == Signal::SIGWINCH {
            if with_terminal {
                self.client.send(Call::Resize { process: process.clone(), size: terminal::size() })?;
            }
            return Ok(None);
        }
        if matches!(signal, Signal::SIGINT | Signal::SIGTERM) {
            self.interrupts += 1;
            if self.interrupts >= IMPATIENCE {
                return Ok(Some(self.ended_by(signal)));
            }
        }
        let number = match signal {
            Signal::SIGTERM => self.stop_signal,
            other => u8::try_from(other as i32).unwrap_or(0),
        };
        self.client.send(Call::Signal { process: process.clone(), signal: number })?;
        Ok(None)
    }

    fn ended_by(&self, signal: Signal) -> Ended {
        let status = ExitStatus::Signal(u8::try_from(signal as i32).unwrap_or(0));
        Ended { code: status.code(), status: None, oom_killed: false, accelerator: self.accelerator }
    }

    /// Waits for the agent, the VMM, a signal or the deadline.
    fn wait(&mut self, deadline: Option<Instant>) -> Result<Wake, EngineError> {
        loop {
            let timeout = match deadline {
                None => PollTimeout::NONE,
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(Wake::Timeout);
                    }
                    PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
                }
            };
            let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| !r.is_empty());
            let (agent, vmm, signal) = {
                let mut fds = [
                    PollFd::new(self.machine.agent().as_fd(), PollFlags::POLLIN),
                    PollFd::new(self.machine.events(), PollFlags::POLLIN),
                    PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                ];
                match poll(&mut fds, timeout) {
                    Ok(_) => (ready(&fds[0]), ready(&fds[1]), ready(&fds[2])),
                    Err(nix::errno::Errno::EINTR) => continue,
                    Err(e) => return Err(EngineError::io("waiting for the container")(e.into())),
                }
            };
            // What the agent said before the machine ended counts first.
            if agent {
                return Ok(Wake::Messages(self.client.read()?));
            }
            if signal && let Some(signal) = self.signals.read() {
                return Ok(Wake::Signal(signal));
            }
            if vmm {
                self.machine.read_event()?;
            }
        }
    }
}

fn wanted_streams(with_terminal: bool, interactive: bool) -> &'static [Stream] {
    match (with_terminal, interactive) {
        (true, true) => &[Stream::Stdout, Stream::Stdin],
        (true, false) => &[Stream::Stdout],
        (false, true) => &[Stream::Stdout, Stream::Stderr, Stream::Stdin],
        (false, false) => &[Stream::Stdout, Stream::Stderr],
    }
}

fn wall_clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn broken(why: &str) -> EngineError {
    EngineError::Agent(FrameError::Io(io::Error::new(io::ErrorKind::InvalidData, why)))
}
