//! Signals by name and number.

use nix::sys::signal::Signal;

use agent::protocol::MAX_SIGNAL;

use crate::EngineError;

/// SIGRTMIN as programs count it: the C library keeps two of the kernel's for itself.
const FIRST_REAL_TIME: u8 = 34;
/// What ends a container whose image does not say.
const SIGTERM: u8 = 15;

/// The signal that a StopSignal names (`SIGQUIT`, `QUIT` or `3`); SIGTERM if there is none.
///
/// # Errors
/// It names no signal.
pub(crate) fn stop_signal(name: Option<&str>) -> Result<u8, EngineError> {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(SIGTERM) };
    number(name).ok_or_else(|| EngineError::Option {
        option: format!("StopSignal {name:?}"),
        why: "there is no such signal".to_owned(),
        next: "correct the image's configuration, or give --stop-signal".to_owned(),
    })
}

/// The number of a signal, from its name with or without `SIG`, or from a number; `None` if there is none.
#[must_use]
pub fn number(name: &str) -> Option<u8> {
    let by_name = || {
        let upper = name.to_ascii_uppercase();
        let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
        // As bash and Docker write the signals beyond the named ones.
        if let Some(offset) = full.strip_prefix("SIGRTMIN+") {
            return offset.parse::<u8>().ok().and_then(|n| n.checked_add(FIRST_REAL_TIME));
        }
        full.parse::<Signal>().ok().and_then(|s| u8::try_from(s as i32).ok())
    };
    name.parse().ok().or_else(by_name).filter(|n| (1..=MAX_SIGNAL).contains(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for (name, signal) in [("SIGQUIT", 3), ("QUIT", 3), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37)] {
            assert_eq!(number(name), Some(signal), "{name}");
        }
        for name in ["", "0", "65", "-1", "SIGNONE", "SIGRTMIN+200", "SIGRTMIN+31"] {
            assert_eq!(number(name), None, "{name}");
        }
    }
}
