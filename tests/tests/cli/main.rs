//! `bulkhead`'s commands: what they print and how they end, without a daemon and against one.

mod containers;
mod files;
mod images;
mod objects;
mod shell;
mod together;

/// Whether a text is an id of 64 digits.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}
