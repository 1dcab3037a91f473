//! One 512-byte tar header: ustar, pax, GNU and V7 dialects (POSIX.1-2001 pax; GNU tar manual, "Basic Tar Format").

/// Bytes of a tar block.
pub(crate) const BLOCK: usize = 512;

/// A tar header block with a good checksum.
pub(crate) struct Header<'a> {
    block: &'a [u8; BLOCK],
}

/// The fields of a header that entries are made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields {
    pub kind: u8,
    pub mode: u32,
    pub uid: i64,
    pub gid: i64,
    pub size: i64,
    pub mtime: i64,
}

impl<'a> Header<'a> {
    /// Checks the block's checksum: the sum of its bytes, signed or unsigned, its own field taken as spaces.
    pub(crate) fn new(block: &'a [u8; BLOCK]) -> Result<Self, String> {
        let stored = number(&block[148..156]).ok_or("its checksum is not a number")?;
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (i, &byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&i) { b' ' } else { byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if stored != unsigned && stored != signed {
            return Err("its header has a wrong checksum: this is not a tar file, or it is damaged".into());
        }
        Ok(Self { block })
    }

    pub(crate) fn fields(&self) -> Result<Fields, String> {
        let field = |name: &str, range: std::ops::Range<usize>| {
            number(&self.block[range]).ok_or_else(|| format!("its {name} is not a number"))
        };
        Ok(Fields {
            kind: self.block[156],
            mode: u32::try_from(field("mode", 100..108)?).map_err(|_| "its mode is out of range")?,
            uid: field("owner", 108..116)?,
            gid: field("group", 116..124)?,
            size: field("size", 124..136)?,
            mtime: field("time", 136..148)?,
        })
    }

    /// Appends the name, with ustar's prefix.
    pub(crate) fn name(&self, out: &mut Vec<u8>) {
        if &self.block[257..263] == b"ustar\0" {
            let prefix = text(&self.block[345..500]);
            if !prefix.is_empty() {
                out.extend_from_slice(prefix);
                out.push(b'/');
            }
        }
        out.extend_from_slice(text(&self.block[..100]));
    }

    pub(crate) fn link(&self) -> &'a [u8] {
        text(&self.block[157..257])
    }

    /// Device major and minor.
    pub(crate) fn device(&self) -> Result<(i64, i64), String> {
        let field = |range: std::ops::Range<usize>| {
            number(&self.block[range]).ok_or_else(|| "its device number is not a number".to_owned())
        };
        Ok((field(329..337)?, field(337..345)?))
    }

    /// Old GNU sparse: four segments, whether more blocks follow, and the real size.
    pub(crate) fn sparse(&self, segments: &mut Vec<(u64, u64)>) -> Result<(bool, u64), String> {
        old_sparse(&self.block[386..482], segments)?;
        let real = number(&self.block[483..495])
            .and_then(|n| u64::try_from(n).ok())
            .ok_or("its real size is not a number")?;
        Ok((self.block[482] != 0, real))
    }
}

/// Reads old GNU sparse segments (24 bytes each) up to the first empty one.
pub(crate) fn old_sparse(fields: &[u8], segments: &mut Vec<(u64, u64)>) -> Result<(), String> {
    for segment in fields.chunks_exact(24) {
        if segment[0] == 0 {
            break;
        }
        let value = |bytes| {
            number(bytes).and_then(|n| u64::try_from(n).ok()).ok_or("its sparse map is not made of numbers")
        };
        segments.push((value(&segment[..12])?, value(&segment[12..])?));
    }
    Ok(())
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    &field[..end]
}

/// Octal text, or GNU's base-256 (two's complement) where the first bit is set. An empty field is 0.
fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // The top bit marks the encoding; the next is the sign.
        let mut value =
            if first & 0x40 != 0 { i128::from(first.cast_signed()) } else { i128::from(first & 0x7f) };
        for &byte in rest {
            value = value.checked_mul(256)?.checked_add(i128::from(byte))?;
        }
        return i64::try_from(value).ok();
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|&b| b == 0 || b == b' ').unwrap_or(digits.len());
    if digits[end..].iter().any(|&b| b != 0 && b != b' ') {
        return None;
    }
    let mut value = 0_i64;
    for &digit in &digits[..end] {
        if !(b'0'..=b'7').contains(&digit) {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_numbers() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"777777777777"), Some(0o777_777_777_777));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
        assert_eq!(number(b"\x80\0\0\x80\0\0\0\0\0\0\0\0"), None);
        assert_eq!(number(b"8"), None);
        assert_eq!(number(b"-1"), None);
        assert_eq!(number(b"12\x001"), None);
    }
}
