//! Last words on the kernel's console, which the VMM keeps for diagnosis.

use std::fs::OpenOptions;
use std::io::Write;

/// Priority prefix of the kernel log: shown on the console even when the kernel is booted quietly.
const EMERGENCY: &str = "<0>";

/// Writes one line to the kernel log; failing to is no reason to fail.
pub(crate) fn emergency(text: &str) {
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // One call: each write is a line of its own.
        let _ = log.write_all(format!("{EMERGENCY}bulkhead-agent: {text}\n").as_bytes());
    }
}
