//! A machine that goes on from a snapshot: what it must not share with its twins is replaced.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use super::rootfs::set_clock;
use super::{AgentError, Context, sys};
use crate::protocol::{Bytes, GENERATION_BYTES, Restored};

/// The file that tells the generation, and its directory.
pub(crate) const GENERATION: &str = "/run/bulkhead/generation";
const DIRECTORY: &str = "/run/bulkhead";

/// Makes the file of the generation, for a machine that was booted.
pub(crate) fn create_generation() -> Result<(), AgentError> {
    fs::create_dir_all(DIRECTORY).context(format!("create {DIRECTORY}"))?;
    create(Path::new(GENERATION)).context(format!("create {GENERATION}"))
}

/// Makes the machine one that no other is.
///
/// # Errors
/// The guest kernel refuses a step; then those after it were not done, and the generation is the old one.
pub(crate) fn settle(news: &Restored) -> Result<(), AgentError> {
    let generator = File::open("/dev/random").context("open the random number generator")?;
    sys::add_entropy(&generator, &news.entropy.0).context("add randomness")?;
    sys::reseed(&generator).context("reseed the random number generator")?;
    set_clock(news.wall_clock)?;
    // Last: who sees it may rely on the rest.
    write(Path::new(GENERATION), &news.generation).context(format!("write {GENERATION}"))
}

fn create(path: &Path) -> io::Result<()> {
    fs::write(path, text(&Bytes([0; GENERATION_BYTES])))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o444))
}

/// In place, in one write: whoever has the file open or mapped sees the change.
fn write(path: &Path, generation: &Bytes<GENERATION_BYTES>) -> io::Result<()> {
    File::options().write(true).open(path)?.write_all_at(text(generation).as_bytes(), 0)
}

fn text(generation: &Bytes<GENERATION_BYTES>) -> String {
    format!("{generation}\n")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_generation_changes_under_those_who_have_the_file_open() {
        let path = std::env::temp_dir().join(format!("bulkhead-generation-{}", std::process::id()));
        create(&path).unwrap();
        let mut open = File::open(&path).unwrap();
        let mut read = String::new();
        open.read_to_string(&mut read).unwrap();
        assert_eq!(read, format!("{}\n", "0".repeat(32)));
        write(&path, &Bytes(*b"0123456789abcdef")).unwrap();
        let mut bytes = [0; 64];
        let length = open.read_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes[..length], b"30313233343536373839616263646566\n");
        assert_eq!(open.metadata().unwrap().permissions().mode() & 0o777, 0o444);
        fs::remove_file(&path).unwrap();
    }
}
