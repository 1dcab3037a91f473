//! Columns of text, as wide as their widest cell.

use crate::output::plain;

/// Spaces between columns.
const GAP: usize = 3;

/// Lays rows out; the first is the heading. Names and commands may be anybody's: control characters are left out.
pub fn lay_out(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}", width = width + GAP));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A text of at most `width` characters, with `…` for what was cut off.
pub fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// The first twelve digits of an id, which is all that people need; the name of its algorithm is left out.
pub fn short_id(id: &str) -> &str {
    let bare = id.strip_prefix("sha256:").unwrap_or(id);
    bare.get(..12).unwrap_or(bare)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let text = lay_out(&[row(["ID", "NAME", "X"]), row(["1234", "é", ""]), row(["1", "long name", "y"])]);
        assert_eq!(text, "ID     NAME        X\n1234   é\n1      long name   y\n");
        assert_eq!(lay_out(&[vec!["\u{1b}[2Jx\u{7}".to_owned()]]), "[2Jx\n");
        assert_eq!(lay_out(&[]), "");
    }

    #[test]
    fn long_texts_and_ids_are_cut() {
        assert_eq!(shorten("abcdef", 6), "abcdef");
        assert_eq!(shorten("äbcdefg", 6), "äbcde…");
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short_id("abc"), "abc");
    }
}
