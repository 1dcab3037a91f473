//! Standard output, for answers. A reader that goes away ends the command, quietly, as SIGPIPE would.

use std::io::{self, Write};
use std::process;

/// Exit code of a program that SIGPIPE killed.
const BROKEN_PIPE: i32 = 128 + 13;

/// A text that came from elsewhere, without what would move a terminal's cursor or do worse.
pub fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// Writes a line.
pub fn line(text: &str) {
    write(format!("{text}\n").as_bytes());
}

/// Writes bytes as they are.
pub fn write(bytes: &[u8]) {
    let mut stdout = io::stdout().lock();
    if let Err(error) = stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            process::exit(BROKEN_PIPE);
        }
        eprintln!("bulkhead: the output cannot be written: {error}");
        process::exit(1);
    }
}
