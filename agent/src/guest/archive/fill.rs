//! A new volume gets what the image has in its place: an archive of that, made by one helper and unpacked by another, so that neither end's
//! links lead into the other's tree.

use std::fs::{self, File};
use std::io::BufWriter;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::put::Target;
use super::{BUFFER, enter, failed, finish, get, put, tar};
use crate::guest::Context;
use crate::guest::rootfs::ROOTFS;
use crate::guest::task;
use crate::protocol::{Answer, Failure, Fill};

/// Fills the volume whose share is mounted at `share`. One that holds something stays as it is, unless filling it is to be resumed.
///
/// # Errors
/// What is in the image cannot be read, or the volume has no room for it.
pub(crate) fn fill(request: &Fill, share: &Path) -> Result<(), Failure> {
    if !request.resume && fs::read_dir(share).map_err(failed)?.next().is_some() {
        return Ok(());
    }
    let (from, to) = pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
    let reading = task::fork(&[to.as_raw_fd()], {
        let to = File::from(to);
        move || {
            enter(Path::new(ROOTFS))?;
            let mut archive = tar::Writer::new(BufWriter::with_capacity(BUFFER, to));
            // What is no directory there is not what would be seen in the volume's place.
            if fs::metadata(&request.destination).is_ok_and(|metadata| metadata.is_dir()) {
                get::write(&format!("{}/.", request.destination), &mut archive)?;
            }
            finish(archive)
        }
    });
    let reading = reading.context("fork a helper")?;
    let writing = task::fork(&[from.as_raw_fd()], {
        let from = File::from(from);
        move || {
            enter(share)?;
            put::unpack(Target::Volume { owner: request.owner.as_deref() }, from).map(|()| Answer::Done)
        }
    });
    let written = writing.context("fork a helper")?.result();
    // Who cannot write says why; who reads only notices that nobody listens.
    written.and(reading.result()).map(drop)
}
