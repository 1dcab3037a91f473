//! The caller's standard streams, signals and terminal, for as long as a container has them.

use std::io::{self, Read};
use std::pin::{Pin, pin};
use std::thread;
use std::time::Duration;

use api::client::{Client, Hijacked, JsonLines, Method, Target};
use api::frames::{Channel, FrameReader};
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::failure::Failure;
use crate::report;
use crate::terminal::{self, RawMode};

/// Bytes copied at a time.
const BUFFER: usize = 64 * 1024;
/// So many interrupts or terminations end a container that does not react to them.
const IMPATIENCE: u32 = 3;
/// How long the news of an end may take after the end of the output.
const NEWS: Duration = Duration::from_millis(500);

/// Signals that go to the container, as with `docker run`.
const FORWARDED: [Signal; 7] =
    [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::WINCH];

/// Signals that came.
pub struct Signals(mpsc::UnboundedReceiver<Signal>);

impl Signals {
    /// Takes signals from now on, in place of what they do by default.
    ///
    /// # Errors
    /// The system refuses.
    pub fn listen() -> Result<Self, Failure> {
        let (sender, receiver) = mpsc::unbounded_channel();
        for number in FORWARDED {
            let kind = SignalKind::from_raw(number.as_raw());
            let mut stream = signal(kind).map_err(Failure::io("listening to signals"))?;
            let sender = sender.clone();
            tokio::spawn(
                async move { while stream.recv().await.is_some() && sender.send(number).is_ok() {} },
            );
        }
        Ok(Self(receiver))
    }

    /// The next one.
    async fn next(&mut self) -> Option<Signal> {
        self.0.recv().await
    }
}

/// A process whose streams are the caller's.
pub struct Foreground {
    client: Client,
    /// Where signals and sizes are sent.
    id: String,
    tty: bool,
    stdin: bool,
    streams: Option<Hijacked>,
    signals: Option<Signals>,
}

/// How a container ended.
#[derive(Debug)]
struct End {
    code: u8,
    hint: Option<[String; 3]>,
}

impl Foreground {
    /// Takes the streams of a container that is about to be started, or runs. `None` for streams: only its end is waited for.
    pub fn new(client: &Client, id: &str, tty: bool, stdin: bool, streams: Option<Hijacked>) -> Self {
        Self { client: client.clone(), id: id.to_owned(), tty, stdin, streams, signals: None }
    }

    /// Passes these signals on.
    pub fn with_signals(mut self, signals: Signals) -> Self {
        self.signals = Some(signals);
        self
    }

    /// Copies until the container has ended and everything that it wrote is out; returns its exit code. `start` is what makes
    /// it run, `wait` what tells of its end.
    ///
    /// # Errors
    /// It cannot be started, or nobody can tell how it ended.
    pub async fn run(
        mut self,
        start: impl Future<Output = Result<(), Failure>>,
        mut wait: JsonLines<Value>,
    ) -> Result<u8, Failure> {
        let raw = raw_mode(self.tty && self.stdin)?;
        let streams = self.streams.take();
        let attached = streams.is_some();
        let mut output: Pin<Box<dyn Future<Output = io::Result<()>>>> = match streams {
            Some(streams) => Box::pin(copy(streams, self.stdin)),
            None => Box::pin(async { Ok(()) }),
        };
        let mut start = pin!(start);
        let (mut started, mut drained, mut end) = (false, false, None::<End>);
        let (mut interrupts, mut fatal) = (0, None);
        let mut signals = self.signals.take();
        loop {
            tokio::select! {
                result = &mut start, if !started => {
                    started = true;
                    match (result, fatal) {
                        // It came too early for whatever was to be ended.
                        (Ok(()), Some(signal)) => self.send(signal),
                        (Ok(()), None) => self.resize(),
                        (Err(_), Some(signal)) => return Ok(killed_by(signal)),
                        (Err(error), None) => return Err(error),
                    }
                }
                result = &mut output, if !drained => {
                    drained = true;
                    if result.is_err() {
                        // The reader of our output is gone: what SIGPIPE would be to a process, this is to a container.
                        self.send(Signal::KILL);
                    } else if attached && started && self.tty && self.stdin && end.is_none() {
                        end = tokio::time::timeout(NEWS, ended(&mut wait)).await.ok().transpose()?;
                        if end.is_none() && self.runs().await {
                            // The keys that detach were typed.
                            return Ok(0);
                        }
                    }
                }
                result = ended(&mut wait), if end.is_none() => end = Some(result?),
                Some(signal) = next(&mut signals) => {
                    if signal == Signal::WINCH {
                        self.resize();
                        continue;
                    }
                    if matches!(signal, Signal::INT | Signal::TERM) {
                        interrupts += 1;
                    }
                    if !started {
                        fatal = Some(signal);
                        self.send(signal);
                    } else if interrupts >= IMPATIENCE {
                        fatal = Some(signal);
                        self.send(Signal::KILL);
                    } else {
                        self.send(signal);
                    }
                }
            }
            // The end of one that could not be started may be told before its start is answered, which tells more.
            if let (true, true, Some(end)) = (started, drained, &end) {
                drop(raw);
                if let Some([what, why, next]) = &end.hint {
                    report::three_lines(what, why, next);
                }
                return Ok(fatal.filter(|_| interrupts >= IMPATIENCE).map_or(end.code, killed_by));
            }
        }
    }

    /// Sends the container a signal. It may just have ended; then there is nobody to send it to.
    fn send(&self, signal: Signal) {
        let target = Target::new(["containers", &self.id, "kill"]).with("signal", signal.as_raw());
        self.post(target);
    }

    /// Gives the container's terminal the size of the caller's.
    pub fn resize(&self) {
        if let (true, Some(size)) = (self.tty, terminal::size()) {
            self.post(
                Target::new(["containers", &self.id, "resize"]).with("h", size.rows).with("w", size.columns),
            );
        }
    }

    /// Beside everything else: output must go on meanwhile.
    fn post(&self, target: Target) {
        let client = self.client.clone();
        tokio::spawn(async move { client.act(Method::POST, &target).await });
    }

    async fn runs(&self) -> bool {
        let target = Target::new(["containers", &self.id, "json"]);
        let shown: Result<Value, _> = self.client.get(&target).await;
        shown.is_ok_and(|shown| matches!(shown["State"]["Status"].as_str(), Some("running" | "paused")))
    }
}

/// The exit code of what a signal ended.
fn killed_by(signal: Signal) -> u8 {
    128u8.saturating_add(u8::try_from(signal.as_raw()).unwrap_or(0))
}

async fn next(signals: &mut Option<Signals>) -> Option<Signal> {
    match signals {
        Some(signals) => signals.next().await,
        None => std::future::pending().await,
    }
}

/// The answer to a wait.
async fn ended(wait: &mut JsonLines<Value>) -> Result<End, Failure> {
    let answer =
        wait.next().await?.ok_or_else(|| Failure::answer("the end of the container was not told"))?;
    let number = answer["StatusCode"].as_i64().unwrap_or(i64::from(engine::error::EXIT_ENGINE));
    let text = |name: &str| answer["Hint"][name].as_str().map(str::to_owned);
    let hint = || Some([text("What")?, text("Why")?, text("Next")?]);
    Ok(End { code: u8::try_from(number).unwrap_or(engine::error::EXIT_ENGINE), hint: hint() })
}

/// Raw mode, if it is wanted and standard input is a terminal.
///
/// # Errors
/// The terminal refuses.
pub fn raw_mode(wanted: bool) -> Result<Option<RawMode>, Failure> {
    if !wanted || !io::IsTerminal::is_terminal(&io::stdin()) {
        return Ok(None);
    }
    RawMode::enter().map(Some).map_err(Failure::io("switching the terminal to raw mode"))
}

/// Copies the caller's input to a process and its output to the caller, until the output's end.
///
/// # Errors
/// The caller's output cannot be written any more.
pub async fn copy(streams: Hijacked, stdin: bool) -> io::Result<()> {
    let (reader, writer) = tokio::io::split(streams.connection);
    if stdin {
        tokio::spawn(feed(writer));
        return receive(reader, streams.framed).await;
    }
    // The half is kept: who drops it says that it is over.
    let result = receive(reader, streams.framed).await;
    drop(writer);
    result
}

/// Copies output to the caller's streams until its end.
///
/// # Errors
/// The caller's output cannot be written any more.
pub async fn receive(reader: impl AsyncRead + Unpin, framed: bool) -> io::Result<()> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    if framed {
        let mut frames = FrameReader::new(BufReader::with_capacity(BUFFER, reader));
        // A server that goes away ends the output; the end of the container tells more.
        while let Ok(Some((channel, bytes))) = frames.next().await {
            if matches!(channel, Channel::Stderr | Channel::System) {
                stderr.write_all(&bytes).await?;
                stderr.flush().await?;
            } else {
                stdout.write_all(&bytes).await?;
                stdout.flush().await?;
            }
        }
        return Ok(());
    }
    let (mut reader, mut buffer) = (reader, vec![0; BUFFER]);
    while let Ok(n @ 1..) = reader.read(&mut buffer).await {
        stdout.write_all(buffer.get(..n).unwrap_or_default()).await?;
        stdout.flush().await?;
    }
    Ok(())
}

/// Copies standard input to its end, and says that it is over.
async fn feed(mut writer: impl AsyncWrite + Unpin) {
    let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(2);
    // A thread of its own: a read cannot be given up, and must not hold up the end of this process.
    let reading = thread::Builder::new().name("stdin".into()).spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; BUFFER];
        loop {
            match stdin.read(&mut buffer) {
                Ok(n @ 1..) => {
                    if sender.blocking_send(buffer.get(..n).unwrap_or_default().to_vec()).is_err() {
                        return;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    });
    if reading.is_err() {
        return;
    }
    while let Some(data) = receiver.recv().await {
        // A process that reads no more: nobody wants the rest.
        if writer.write_all(&data).await.and(writer.flush().await).is_err() {
            return;
        }
    }
    let _ = writer.shutdown().await;
}
