//! `bulkhead-net --listener FD`: the switch of one network, on a listening packet socket, until nobody has used it for a moment.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use bulkhead_net::host::HostAddresses;
use bulkhead_net::switch::Switch;
use bulkhead_net::{filter, jail};

const USAGE: &str = "usage: bulkhead-net --listener FD";

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bulkhead-net: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let (Some("--listener"), Some(listener), None) =
        (arguments.next().as_deref(), arguments.next(), arguments.next())
    else {
        return Err(USAGE.to_owned());
    };
    let listener = listener.parse().ok().filter(|fd: &RawFd| *fd > 2).ok_or_else(|| USAGE.to_owned())?;
    // SAFETY: only asked whether it is open.
    if unsafe { libc::fcntl(listener, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(format!("descriptor {listener} is not open"));
    }
    // SAFETY: it is open, as was just seen, and was left to this process for this use.
    let listener = unsafe { OwnedFd::from_raw_fd(listener) };
    jail::close_others(&[listener.as_raw_fd()]);
    // The jail has no such sockets.
    let host = HostAddresses::open().map_err(|error| format!("asking for the host's addresses: {error}"))?;
    match jail::enter().map_err(|error| error.to_string())? {
        jail::Side::Outside => Ok(()),
        jail::Side::Inside => {
            let switch = Switch::new(listener, host).map_err(|error| format!("starting: {error}"))?;
            filter::install().map_err(|error| format!("installing the filter: {error}"))?;
            switch.serve().map_err(|error| format!("serving: {error}"))
        }
    }
}
