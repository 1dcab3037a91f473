//! `bulkhead-vmm`: one machine's hardware. Its supervisor starts it with a control socket, and everything else comes
//! over that socket.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::panic::PanicHookInfo;
use std::process::ExitCode;
use std::sync::OnceLock;

use vmm::console::ConsoleRing;
use vmm::control::{ControlSocket, Event, ExitReason, ExitReport, Message};
use vmm::jail::sys;
use vmm::process;

/// Where the control socket is unless the command line says otherwise.
const CONTROL_FD: RawFd = 3;
const USAGE: &str = "usage: bulkhead-vmm [--control-fd N] [--request-id ID] | --version";
/// Longest request id in bytes.
const MAX_REQUEST_ID: usize = 64;

/// For the panic hook, which gets no context.
static CONTROL: OnceLock<(ControlSocket, ConsoleRing)> = OnceLock::new();

/// What every log line begins with: who says it, and the request that the machine was started for.
static SPEAKER: OnceLock<String> = OnceLock::new();

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(&error);
            ExitCode::FAILURE
        }
    }
}

fn log(line: &str) {
    eprintln!("{}: {line}", SPEAKER.get().map_or("bulkhead-vmm", String::as_str));
}

fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let mut fd = CONTROL_FD;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--version" => {
                println!("bulkhead-vmm {}", env!("CARGO_PKG_VERSION"));
                return Ok(());
            }
            "--control-fd" => {
                // Standard input may be the control socket; standard output and error may not.
                let number = arguments.next().and_then(|number| number.parse().ok());
                fd = number.filter(|fd| *fd == 0 || *fd > 2).ok_or(USAGE)?;
            }
            "--request-id" => {
                let id = arguments.next().filter(|id| is_request_id(id)).ok_or(USAGE)?;
                SPEAKER.get_or_init(|| format!("bulkhead-vmm[{id}]"));
            }
            _ => return Err(USAGE.to_owned()),
        }
    }
    let control = enclose(fd).map_err(|error| format!("descriptor {fd} is not a control socket: {error}"))?;
    let failed = |error: io::Error| format!("control socket: {error}");
    let console = ConsoleRing::default();
    let second = control.try_clone().map_err(failed)?;
    CONTROL.get_or_init(|| (second, console.clone()));
    std::panic::set_hook(Box::new(report_panic));
    process::serve(control, &console).map_err(failed)
}

fn is_request_id(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !text.is_empty() && text.len() <= MAX_REQUEST_ID && text.bytes().all(plain)
}

/// Shuts the process off from what it may have inherited, and takes the control socket.
fn enclose(fd: RawFd) -> io::Result<ControlSocket> {
    let os = io::Error::from_raw_os_error;
    if fd > 2 {
        sys::close_between(2, fd).map_err(os)?;
    }
    sys::close_from(fd.max(2).unsigned_abs() + 1, false).map_err(os)?;
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(os)?;
    let kind = nix::sys::socket::sockopt::SockType;
    // SAFETY: only looked at: a number that is no descriptor is an error.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    if nix::sys::socket::getsockopt(&borrowed, kind)? != nix::sys::socket::SockType::SeqPacket {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a SOCK_SEQPACKET socket"));
    }
    nix::fcntl::fcntl(borrowed, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    // SAFETY: it is a descriptor, as was just seen, and the supervisor left it to this process.
    Ok(ControlSocket::from_fd(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// A panic is a bug, perhaps provoked by the guest: it ends this machine, with a diagnosis.
fn report_panic(info: &PanicHookInfo<'_>) {
    let detail = format!("the VMM panicked: {info}").replace('\n', " ");
    log(&detail);
    if let Some((control, console)) = CONTROL.get() {
        let report = ExitReport { reason: ExitReason::Internal, detail, console: console.text() };
        let _ = control.send_now(&Message::Event(Event::Ended(report)));
    }
    std::process::exit(101);
}
