//! Docker's own command line against `bulkhead serve`, without it knowing: every command's output and exit code, compared with what
//! Docker prints.

mod containers;
mod images;
mod objects;
mod run;
mod sockets;
mod streams;

/// Whether a text is an id of 64 digits.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}
