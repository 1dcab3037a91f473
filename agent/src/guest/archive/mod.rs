//! Archives and paths of the container: read, written and compared by forked children ([`task`](super::task)) that have made the container's files
//! their root, so that no path and no link leads to the guest's own.

mod changes;
mod fill;
mod get;
mod path;
mod put;
mod tar;
mod tree;

pub(crate) use fill::fill;

use std::fs::File;
use std::io::{self, BufWriter, Read};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, chroot};

use super::boot::RUN;
use super::rootfs::{Prepared, ROOTFS};
use super::{AgentError, Context};
use crate::protocol::{Answer, ArchivePut, Failure, FailureKind};

/// Bytes gathered before they are sent.
const BUFFER: usize = 64 * 1024;

/// Describes a path.
pub(crate) fn stat(prepared: &Prepared, path: &str) -> Result<Answer, Failure> {
    enter_view(prepared)?;
    path::stat(path).map(Answer::PathStat)
}

/// Sends an archive of a path.
pub(crate) fn get(prepared: &Prepared, path: &str, to: File) -> Result<Answer, Failure> {
    enter_view(prepared)?;
    let mut archive = tar::Writer::new(BufWriter::with_capacity(BUFFER, to));
    get::write(path, &mut archive)?;
    finish(archive)
}

/// Unpacks an archive, whose first bytes were read already.
pub(crate) fn put(
    prepared: &Prepared,
    request: &ArchivePut,
    pending: &[u8],
    from: File,
) -> Result<Answer, Failure> {
    enter_view(prepared)?;
    put::unpack(put::Target::Container(request), pending.chain(from)).map(|()| Answer::Done)
}

/// Sends an archive of the whole root file system.
pub(crate) fn export(to: File) -> Result<Answer, Failure> {
    enter(Path::new(ROOTFS))?;
    let mut archive = tar::Writer::new(BufWriter::with_capacity(BUFFER, to));
    get::write_root(&mut archive)?;
    finish(archive)
}

/// Sends what the container changed as a layer.
pub(crate) fn diff(to: File) -> Result<Answer, Failure> {
    enter(Path::new(RUN))?;
    let mut archive = tar::Writer::new(BufWriter::with_capacity(BUFFER, to));
    changes::layer(&mut archive)?;
    finish(archive)
}

/// Sends the list of what the container changed.
pub(crate) fn changes(to: File) -> Result<Answer, Failure> {
    enter(Path::new(RUN))?;
    changes::list(BufWriter::with_capacity(BUFFER, to))?;
    Ok(Answer::Done)
}

fn finish<W: io::Write>(archive: tar::Writer<W>) -> Result<Answer, Failure> {
    archive.finish().map_err(failed)?;
    Ok(Answer::Done)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: io::Error) -> Failure {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => FailureKind::NoSuchPath,
        io::ErrorKind::NotADirectory => FailureKind::NotADirectory,
        io::ErrorKind::ReadOnlyFilesystem => FailureKind::ReadOnly,
        _ => FailureKind::Other,
    };
    Failure::new(kind, error.to_string())
}

/// Names the path that an operation failed on.
fn at(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

/// Makes the container's root file system, with its volumes and the host's files, this process's root: what Docker shows to `cp`, whether the
/// container runs or not.
fn enter_view(prepared: &Prepared) -> Result<(), AgentError> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).context("enter a mount namespace")?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make the mounts private")?;
    let opened = prepared.open_mounts(&[])?;
    enter(Path::new(ROOTFS))?;
    for volume in &opened {
        if let Some(tree) = &volume.tree {
            tree.attach(volume.target)?;
        }
    }
    Ok(())
}

fn enter(root: &Path) -> Result<(), AgentError> {
    chdir(root).and_then(|()| chroot(".")).and_then(|()| chdir("/")).context("enter the container's files")
}
