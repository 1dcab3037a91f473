//! What is told while an image is fetched or sent: bars where standard error is a terminal, plain lines elsewhere.

use std::env;
use std::io::{self, Write};

use serde_json::Value;

use crate::output::plain;
use crate::table::shorten;
use crate::terminal;

/// Most characters of a bar.
const BAR: usize = 40;
/// Characters of a line beside its bar: the layer, the step, the sizes.
const BESIDE: usize = 50;

/// Progress on standard error.
pub struct Progress {
    quiet: bool,
    screen: Option<Screen>,
}

/// A terminal, with a line for each layer.
struct Screen {
    width: usize,
    height: usize,
    color: bool,
    /// Layers in the order in which they were first told of.
    layers: Vec<String>,
}

impl Progress {
    /// `quiet`: nothing is told.
    pub fn new(quiet: bool) -> Self {
        let screen =
            terminal::error_size().filter(|_| !quiet && env::var_os("TERM").is_none_or(|t| t != "dumb"));
        let color = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let screen = screen.map(|size| Screen {
            width: size.columns.into(),
            height: size.rows.into(),
            color,
            layers: Vec::new(),
        });
        Self { quiet, screen }
    }

    /// Shows one line of a server's answer.
    pub fn show(&mut self, line: &Value) {
        let Some(status) = line["status"].as_str().filter(|_| !self.quiet) else { return };
        let detail = &line["progressDetail"];
        let amount = detail["current"].as_u64().zip(detail["total"].as_u64().or(Some(0)));
        let text = match (line["id"].as_str(), &mut self.screen) {
            (Some(id), Some(screen)) if !status.starts_with("Pulling from") => {
                screen.layer(id, status, amount)
            }
            // Amounts change by the megabyte: where lines stay, only the steps are told.
            _ if amount.is_some() => String::new(),
            (Some(id), _) => format!("{}: {}\n", plain(id), plain(status)),
            (None, _) => format!("{}\n", plain(status)),
        };
        // Nobody is helped by an error about telling.
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }
}

impl Screen {
    /// What writes a layer's line anew, wherever it is above the cursor.
    fn layer(&mut self, id: &str, status: &str, amount: Option<(u64, u64)>) -> String {
        let mut text = String::new();
        let place = match self.layers.iter().position(|layer| layer == id) {
            Some(place) => place,
            None => {
                self.layers.push(id.to_owned());
                text.push('\n');
                self.layers.len() - 1
            }
        };
        let up = self.layers.len() - place;
        // What has left the screen cannot be written anew.
        if up >= self.height.max(2) {
            return text;
        }
        let line =
            shorten(&format!("{}: {}{}", plain(id), plain(status), self.bar(amount)), self.width.max(2) - 1);
        let line = if self.color { paint(&line) } else { line };
        text.push_str(&format!("\x1b[{up}A\r\x1b[2K{line}\x1b[{up}B\r"));
        text
    }

    /// A bar and sizes; nothing where there is nothing to measure.
    fn bar(&self, amount: Option<(u64, u64)>) -> String {
        let Some((current, total)) = amount else { return String::new() };
        if total == 0 {
            return format!(" {}", size(current));
        }
        let width = BAR.min(self.width.saturating_sub(BESIDE));
        let done = u64::try_from(width).unwrap_or(0).saturating_mul(current.min(total)) / total;
        let done = usize::try_from(done).unwrap_or(0);
        let bar = if width < 4 { String::new() } else { format!(" [{:-<width$}]", "=".repeat(done)) };
        format!("{bar} {}/{}", size(current), size(total))
    }
}

/// The done part of a bar in colour.
fn paint(line: &str) -> String {
    match line.split_once('[').and_then(|(before, rest)| Some((before, rest.split_once('-')?))) {
        Some((before, (done, rest))) => format!("{before}[\x1b[36m{done}\x1b[0m-{rest}"),
        None => line.to_owned(),
    }
}

/// A number of bytes as Docker writes it: powers of 1000, four digits.
pub fn size(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss)] // four digits are shown
    let mut number = bytes as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if number < 1000.0 {
            return format!("{}{unit}", four_digits(number));
        }
        number /= 1000.0;
    }
    format!("{}PB", four_digits(number))
}

fn four_digits(number: f64) -> String {
    let decimals = if number >= 100.0 {
        1
    } else if number >= 10.0 {
        2
    } else {
        3
    };
    let text = format!("{number:.decimals$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layers_line_is_written_in_its_place() {
        let mut screen = Screen { width: 100, height: 24, color: false, layers: Vec::new() };
        assert_eq!(screen.layer("a", "Waiting", None), "\n\x1b[1A\r\x1b[2Ka: Waiting\x1b[1B\r");
        screen.layer("b", "Waiting", None);
        let line = screen.layer("a", "Downloading", Some((500, 1000)));
        assert!(
            line.starts_with(
                "\x1b[2A\r\x1b[2Ka: Downloading [====================--------------------] 500B/1kB"
            ),
            "{line:?}"
        );
        screen.height = 2;
        assert_eq!(screen.layer("a", "Done", None), "");
        let narrow = Screen { width: 10, height: 24, color: true, layers: Vec::new() };
        assert_eq!(narrow.bar(Some((1, 2))), " 1B/2B");
        assert_eq!(paint("a [==--] x"), "a [\x1b[36m==\x1b[0m--] x");
    }

    #[test]
    fn sizes_have_four_digits() {
        for (bytes, text) in
            [(0, "0B"), (999, "999B"), (1000, "1kB"), (4_383_000, "4.383MB"), (123_456_789, "123.5MB")]
        {
            assert_eq!(size(bytes), text);
        }
    }
}
