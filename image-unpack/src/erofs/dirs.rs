//! Directory content: blocks of entries sorted by name, each block holding its entries, then their names.

use std::io;

use super::format::{BLOCK, BLOCK_SIZE, DIRENT};

/// One entry, borrowed.
#[derive(Clone, Copy)]
pub(crate) struct Dirent<'a> {
    pub name: &'a [u8],
    pub nid: u64,
    pub file_type: u8,
}

/// Bytes of the directory (`i_size`).
pub(crate) fn size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let (mut blocks, mut used) = (0, 0);
    for name in names {
        let more = DIRENT + name.len();
        if used + more > BLOCK_SIZE {
            blocks += 1;
            used = 0;
        }
        used += more;
    }
    blocks * BLOCK + used as u64
}

/// Hands the directory on block by block, all of them full but the last, of which it tells. `entries` must be sorted
/// and not empty.
pub(crate) fn encode<'a>(
    entries: impl Iterator<Item = Dirent<'a>>,
    mut each: impl FnMut(&[u8], bool) -> io::Result<()>,
) -> io::Result<()> {
    let mut block: Vec<Dirent<'_>> = Vec::new();
    let mut used = 0;
    let mut bytes = Vec::with_capacity(BLOCK_SIZE);
    for entry in entries {
        let more = DIRENT + entry.name.len();
        if used + more > BLOCK_SIZE {
            encode_block(&block, &mut bytes);
            bytes.resize(BLOCK_SIZE, 0);
            each(&bytes, false)?;
            block.clear();
            used = 0;
        }
        used += more;
        block.push(entry);
    }
    encode_block(&block, &mut bytes);
    each(&bytes, true)
}

fn encode_block(block: &[Dirent<'_>], out: &mut Vec<u8>) {
    out.clear();
    let mut name_at = block.len() * DIRENT;
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
                let each = |block: &[u8], _last| {
                    out.extend_from_slice(block);
                    Ok(())
                };
                encode(entries.iter().copied(), each).unwrap();
                assert_eq!(out.len() as u64, size(names.iter().map(Vec::as_slice)));
            }
        }
    }
}
