//! `bulkhead-fs --socket FD --folder FD [--file NAME] [--read-only]`: serves one folder, or one file of it, to one machine until its
//! socket closes.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use bulkhead_fs::{jail, serve};

const USAGE: &str = "usage: bulkhead-fs --socket FD --folder FD [--file NAME] [--read-only]";
/// The first descriptor that is not a standard stream.
const FIRST: RawFd = 3;

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
    let (mut socket, mut folder, mut file, mut read_only) = (None, None, None, false);
    while let Some(word) = arguments.next() {
        match word.as_str() {
            "--socket" => socket = Some(descriptor(arguments.next())?),
            "--folder" => folder = Some(descriptor(arguments.next())?),
            "--file" => file = Some(name(arguments.next())?),
            "--read-only" => read_only = true,
            _ => return Err(USAGE.to_owned()),
        }
    }
    let (Some(socket), Some(folder)) = (socket, folder) else { return Err(USAGE.to_owned()) };
    if socket == folder {
        return Err(USAGE.to_owned());
    }
    let (socket, folder) = (own(socket)?, own(folder)?);
    let share = jail::Share { folder, file, read_only };
    let result = jail::enter(share, socket).map_err(|error| error.to_string())?;
    match result {
        // The folder's server has ended; so does what waited for it.
        jail::Side::Outside(code) => Ok(code),
        jail::Side::Inside(server, socket) => serve::serve(*server, socket)
            .map(|()| ExitCode::SUCCESS)
            .map_err(|error| format!("serving the folder: {error}")),
    }
}

/// Takes a descriptor that was left to this process. Where it was a standard stream is /dev/null then: what is
/// written there by mistake must end up nowhere.
fn own(fd: RawFd) -> Result<OwnedFd, String> {
    // SAFETY: whether it is open is what this call finds out; the copy is nobody else's.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, FIRST) };
    if copy < 0 {
        return Err(format!("descriptor {fd} is not open"));
    }
    // SAFETY: the kernel has just made it for us.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    let failed = |error: io::Error| format!("descriptor {fd} cannot be taken: {error}");
    if fd < FIRST {
        let null = File::options().read(true).write(true).open("/dev/null").map_err(failed)?;
        // SAFETY: `null` is open, and the number was left to this process for this use, which has its copy.
        if unsafe { libc::dup2(null.as_raw_fd(), fd) } < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
    } else {
        // SAFETY: it is open, as was just seen, and was left to this process for this use, which has its copy.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    Ok(copy)
}

/// Any but standard error, where this process says what is wrong.
fn descriptor(word: Option<String>) -> Result<RawFd, String> {
    word.and_then(|word| word.parse().ok()).filter(|fd| *fd >= 0 && *fd != 2).ok_or_else(|| USAGE.to_owned())
}

/// The name of a file in the folder.
fn name(word: Option<String>) -> Result<CString, String> {
    let plain = word.filter(|name| !name.is_empty() && !name.contains('/') && name != "." && name != "..");
    plain.and_then(|name| CString::new(name).ok()).ok_or_else(|| USAGE.to_owned())
}
