//! `bulkhead-fs --socket FD --folder FD [--read-only]`: serves one folder to one machine until its socket closes.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use bulkhead_fs::{jail, serve};

const USAGE: &str = "usage: bulkhead-fs --socket FD --folder FD [--read-only]";

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bulkhead-fs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: impl Iterator<Item = String>) -> Result<ExitCode, String> {
    let (mut socket, mut folder, mut read_only) = (None, None, false);
    while let Some(word) = arguments.next() {
        match word.as_str() {
            "--socket" => socket = Some(descriptor(arguments.next())?),
            "--folder" => folder = Some(descriptor(arguments.next())?),
            "--read-only" => read_only = true,
            _ => return Err(USAGE.to_owned()),
        }
    }
    let (Some(socket), Some(folder)) = (socket, folder) else { return Err(USAGE.to_owned()) };
    if socket == folder {
        return Err(USAGE.to_owned());
    }
    let own = |fd: RawFd| {
        // SAFETY: only asked whether it is open.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(format!("descriptor {fd} is not open"));
        }
        // SAFETY: it is open, as was just seen, and was left to this process for this use.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    let (socket, folder) = (own(socket)?, own(folder)?);
    let result = jail::enter(folder, socket, read_only).map_err(|error| error.to_string())?;
    match result {
        // The folder's server has ended; so does what waited for it.
        jail::Side::Outside(code) => Ok(code),
        jail::Side::Inside(server, socket) => serve::serve(*server, socket)
            .map(|()| ExitCode::SUCCESS)
            .map_err(|error| format!("serving the folder: {error}")),
    }
}

fn descriptor(word: Option<String>) -> Result<RawFd, String> {
    word.and_then(|word| word.parse().ok()).filter(|fd| *fd > 2).ok_or_else(|| USAGE.to_owned())
}
