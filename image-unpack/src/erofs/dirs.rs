//! Directory content: blocks of entries sorted by name, each block holding its entries, then their names.

use super::format::{BLOCK, BLOCK_SIZE, DIRENT};

/// One entry, borrowed.
#[derive(Clone, Copy)]
pub(crate) struct Dirent<'a> {
    pub name: &'a [u8],
    pub nid: u64,
    pub file_type: u8,
}

/// Cuts sorted names into blocks: entries per block, and the size of the whole.
fn cut<'a>(names: impl Iterator<Item = &'a [u8]>, mut block_full: impl FnMut(usize)) -> u64 {
    let (mut blocks, mut used, mut count) = (0, 0, 0);
    for name in names {
        let more = DIRENT + name.len();
        if used + more > BLOCK_SIZE {
            block_full(count);
            blocks += 1;
            (used, count) = (0, 0);
        }
        used += more;
        count += 1;
    }
    block_full(count);
    blocks * BLOCK + used as u64
}

/// Bytes of the directory (`i_size`).
pub(crate) fn size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    cut(names, |_| {})
}

/// Writes the directory: all blocks full but the last. `entries` must be sorted and not empty.
pub(crate) fn encode(entries: &[Dirent<'_>], out: &mut Vec<u8>) {
    let mut counts = Vec::new();
    cut(entries.iter().map(|e| e.name), |count| counts.push(count));
    let mut rest = entries;
    for (i, &count) in counts.iter().enumerate() {
        let (block, after) = rest.split_at(count);
        rest = after;
        let start = out.len();
        let mut name_at = count * DIRENT;
        for entry in block {
            out.extend_from_slice(&entry.nid.to_le_bytes());
            // Within one block of 4096 bytes.
            out.extend_from_slice(&u16::try_from(name_at).unwrap_or(u16::MAX).to_le_bytes());
            out.extend_from_slice(&[entry.file_type, 0]);
            name_at += entry.name.len();
        }
        for entry in block {
            out.extend_from_slice(entry.name);
        }
        if i + 1 < counts.len() {
            out.resize(start + BLOCK_SIZE, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_agrees_with_content() {
        for count in [1, 2, 100, 340, 341, 342, 1000, 5000] {
            for length in [1, 4, 17, 255] {
                let names: Vec<Vec<u8>> = (0..count)
                    .map(|i| {
                        let mut name = format!("{i:06}").into_bytes();
                        name.resize(length.max(6), b'x');
                        name
                    })
                    .collect();
                let entries: Vec<Dirent<'_>> =
                    names.iter().map(|name| Dirent { name, nid: 7, file_type: 1 }).collect();
                let mut out = Vec::new();
                encode(&entries, &mut out);
                assert_eq!(out.len() as u64, size(names.iter().map(Vec::as_slice)));
            }
        }
    }
}
