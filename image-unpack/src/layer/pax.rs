//! PAX extended headers (POSIX.1-2001, "pax Extended Header") and what archivers add to them: `SCHILY.xattr.*`, and
//! GNU's three ways to write sparse files.

use crate::limits::Limits;

/// What an extended header overrides.
#[derive(Debug, Default)]
pub(crate) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    /// Seconds and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    /// Names and values, in order of appearance.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: Sparse,
}

/// GNU sparse keys.
#[derive(Debug, Default)]
pub(crate) struct Sparse {
    /// Format 1.0: the map precedes the data.
    pub map_in_data: bool,
    /// Format 0.0 or 0.1: the map is here.
    pub segments: Option<Vec<(u64, u64)>>,
    pub real_size: Option<u64>,
    pub name: Option<Vec<u8>>,
    major: Option<u64>,
    minor: Option<u64>,
    offset: Option<u64>,
}

impl Pax {
    /// Reads all records of a header's body.
    pub(crate) fn parse(mut body: &[u8], limits: &Limits) -> Result<Self, String> {
        let mut pax = Self::default();
        let mut xattr_bytes = 0;
        while !body.is_empty() {
            // Some writers fill the block's rest with NUL and count that in.
            if body.iter().all(|&b| b == 0) {
                break;
            }
            let space = body.iter().take(20).position(|&b| b == b' ').ok_or("a PAX record has no length")?;
            let length = decimal(&body[..space]).ok_or("a PAX record's length is not a number")?;
            let length = usize::try_from(length).map_err(|_| "a PAX record is too long")?;
            if length <= space + 1 || length > body.len() || body[length - 1] != b'\n' {
                return Err("a PAX record's length is wrong".into());
            }
            let record = &body[space + 1..length - 1];
            body = &body[length..];
            let equals = record.iter().position(|&b| b == b'=').ok_or("a PAX record has no `=`")?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                if name.is_empty() || name.len() > 255 || name.contains(&0) {
                    return Err("an extended attribute's name is empty or too long".into());
                }
                xattr_bytes += name.len() + value.len() + 8;
                if xattr_bytes > limits.xattrs {
                    return Err(format!("its extended attributes exceed {} bytes", limits.xattrs));
                }
                pax.xattrs.push((name.to_vec(), value.to_vec()));
                continue;
            }
            pax.set(key, value)?;
        }
        let sparse = &mut pax.sparse;
        match (sparse.major, sparse.minor) {
            (Some(1), Some(0)) => sparse.map_in_data = true,
            (None | Some(0), None | Some(0 | 1)) => {}
            _ => return Err("a GNU sparse format of an unknown version".into()),
        }
        Ok(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let number = || {
            decimal(value).ok_or_else(|| format!("PAX `{}` is not a number", String::from_utf8_lossy(key)))
        };
        let text = || (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            // An empty value takes the override back.
            b"size" => self.size = if value.is_empty() { None } else { Some(number()?) },
            b"uid" => self.uid = if value.is_empty() { None } else { Some(number()?) },
            b"gid" => self.gid = if value.is_empty() { None } else { Some(number()?) },
            b"mtime" => {
                self.mtime = if value.is_empty() {
                    None
                } else {
                    Some(time(value).ok_or("PAX `mtime` is not a time")?)
                }
            }
            b"GNU.sparse.major" => self.sparse.major = Some(number()?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(number()?),
            b"GNU.sparse.name" => self.sparse.name = text(),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = Some(number()?),
            b"GNU.sparse.offset" => self.sparse.offset = Some(number()?),
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take().ok_or("a GNU sparse length without its offset")?;
                let length = number()?;
                self.sparse.segments.get_or_insert_default().push((offset, length));
            }
            b"GNU.sparse.map" => {
                let segments = self.sparse.segments.get_or_insert_default();
                segments.clear();
                let mut numbers = value.split(|&b| b == b',').filter(|n| !n.is_empty()).map(decimal);
                while let Some(offset) = numbers.next() {
                    match (offset, numbers.next().flatten()) {
                        (Some(offset), Some(length)) => segments.push((offset, length)),
                        _ => return Err("its sparse map is not made of pairs of numbers".into()),
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Decimal digits only.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, &digit| {
        if !digit.is_ascii_digit() {
            return None;
        }
        value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    })
}

/// `[-]seconds[.fraction]`, digits beyond nanoseconds dropped.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |&b| b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    let mut nanoseconds = 0_u32;
    for i in 0..9 {
        let digit = match fraction.get(i) {
            Some(digit) if digit.is_ascii_digit() => u32::from(digit - b'0'),
            Some(_) => return None,
            None => 0,
        };
        nanoseconds = nanoseconds * 10 + digit;
    }
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        // Time is seconds rounded down plus nanoseconds up.
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &str) -> Vec<u8> {
        let payload = format!(" {key}={value}\n");
        let mut length = payload.len() + 1;
        while format!("{length}{payload}").len() != length {
            length += 1;
        }
        format!("{length}{payload}").into_bytes()
    }

    fn parse(records: &[(&str, &str)]) -> Result<Pax, String> {
        let body: Vec<u8> = records.iter().flat_map(|(k, v)| record(k, v)).collect();
        Pax::parse(&body, &Limits::default())
    }

    #[test]
    fn reads_times() {
        assert_eq!(time(b"1350244992.023960108"), Some((1_350_244_992, 23_960_108)));
        assert_eq!(time(b"-1.5"), Some((-2, 500_000_000)));
        assert_eq!(time(b"-1"), Some((-1, 0)));
        assert_eq!(time(b"7."), Some((7, 0)));
        for bad in [&b""[..], b"-", b"1.x", b"x", b"--1", b"99999999999999999999"] {
            assert_eq!(time(bad), None);
        }
    }

    #[test]
    fn reads_records() {
        let pax = parse(&[
            ("path", "a"),
            ("SCHILY.xattr.user.k", "v=w\n"),
            ("uid", "70000"),
            ("comment", "x"),
            ("path", "b"),
        ])
        .unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"b"[..]));
        assert_eq!(pax.uid, Some(70000));
        assert_eq!(pax.xattrs, [(b"user.k".to_vec(), b"v=w\n".to_vec())]);
    }

    #[test]
    fn refuses_malformed_records() {
        for body in [
            &b"x"[..],
            b"6 a=\n",
            b"99 a=b\n",
            b"7 a=b\nx",
            b"6 ab\n\n",
            b"0 a=b\n",
            b"99999999999999999999999 a=b\n",
            b"18446744073709551615 a=b\n",
        ] {
            assert!(Pax::parse(body, &Limits::default()).is_err(), "{:?}", String::from_utf8_lossy(body));
        }
        assert!(parse(&[("size", "-1")]).is_err());
        assert!(parse(&[("uid", "1e3")]).is_err());
        assert!(parse(&[("GNU.sparse.map", "1,2,3")]).is_err());
        assert!(parse(&[("GNU.sparse.major", "2")]).is_err());
        assert!(parse(&[("SCHILY.xattr.", "x")]).is_err());
        assert!(parse(&[("SCHILY.xattr.user.x", &"v".repeat(70_000))]).is_err());
    }
}
