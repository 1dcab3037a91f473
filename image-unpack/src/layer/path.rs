//! Paths of tar entries, made canonical: relative to the image's root, without `.`, `..` or empty components. They
//! name places in the image only; nothing here touches a file system.

use crate::limits::{Limits, NAME_MAX};

const WHITEOUT: &[u8] = b".wh.";
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What an entry's path says about it (OCI image spec, layer.md, "Whiteouts").
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// An object at the path.
    Object,
    /// The path, without its `.wh.`, is removed from the layers below.
    Whiteout,
    /// The path is a directory whose content in the layers below is hidden.
    Opaque,
    /// Bookkeeping of AUFS, of no meaning elsewhere.
    Ignored,
}

/// Writes the canonical form of `raw` to `out`.
pub(crate) fn normalise(raw: &[u8], limits: &Limits, out: &mut Vec<u8>) -> Result<(), String> {
    out.clear();
    if raw.len() > limits.path_len {
        return Err(format!("its path is longer than {} bytes", limits.path_len));
    }
    if raw.contains(&0) {
        return Err("its path contains a NUL byte".into());
    }
    let mut depth = 0;
    for component in raw.split(|&b| b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                if depth == 0 {
                    return Err("its path leaves the image's root".into());
                }
                depth -= 1;
                let end = out.iter().rposition(|&b| b == b'/').unwrap_or(0);
                out.truncate(end);
            }
            name => {
                if name.len() > NAME_MAX {
                    return Err(format!("a name in its path is longer than {NAME_MAX} bytes"));
                }
                depth += 1;
                if depth > limits.depth {
                    return Err(format!("its path is deeper than {} directories", limits.depth));
                }
                if !out.is_empty() {
                    out.push(b'/');
                }
                out.extend_from_slice(name);
            }
        }
    }
    Ok(())
}

/// Judges a canonical path; that of a whiteout becomes the path it removes.
pub(crate) fn classify(path: &mut Vec<u8>) -> Result<Meaning, String> {
    let start = path.iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
    let mut parents = path[..start.saturating_sub(1)].split(|&b| b == b'/');
    if path[start..].starts_with(AUFS) || parents.clone().any(|name| name.starts_with(AUFS)) {
        if path[start..] == *OPAQUE && !parents.any(|name| name.starts_with(WHITEOUT)) {
            path.truncate(start.saturating_sub(1));
            return Ok(Meaning::Opaque);
        }
        return Ok(Meaning::Ignored);
    }
    if parents.any(|name| name.starts_with(WHITEOUT)) {
        return Err("a whiteout cannot be a directory".into());
    }
    if !path[start..].starts_with(WHITEOUT) {
        return Ok(Meaning::Object);
    }
    path.drain(start..start + WHITEOUT.len());
    match &path[start..] {
        b"" | b"." | b".." => Err("a whiteout of nothing".into()),
        _ => Ok(Meaning::Whiteout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn norm(raw: &str) -> Result<String, String> {
        let mut out = Vec::new();
        normalise(raw.as_bytes(), &Limits::default(), &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn normalises() {
        for (raw, want) in [
            ("a/b", "a/b"),
            ("./a/./b/", "a/b"),
            ("/etc/passwd", "etc/passwd"),
            ("//a//b//", "a/b"),
            ("a/../b", "b"),
            ("a/b/../../c", "c"),
            ("./", ""),
            ("/", ""),
            ("a/..", ""),
        ] {
            assert_eq!(norm(raw).as_deref(), Ok(want), "{raw}");
        }
    }

    #[test]
    fn refuses_escapes_and_excess() {
        for raw in ["..", "../etc/passwd", "a/../../b", "/..", "a\0b"] {
            assert!(norm(raw).is_err(), "{raw:?}");
        }
        assert!(norm(&"x".repeat(256)).is_err());
        assert!(norm(&"x".repeat(255)).is_ok());
        assert!(norm(&"x/".repeat(513)).is_err());
        assert!(norm(&"x".repeat(5000)).is_err());
    }

    #[test]
    fn classifies() {
        let judge = |path: &str| {
            let mut path = path.as_bytes().to_vec();
            let meaning = classify(&mut path);
            (meaning, String::from_utf8(path).unwrap())
        };
        assert_eq!(judge("a/b"), (Ok(Meaning::Object), "a/b".into()));
        assert_eq!(judge("a/.wh.b"), (Ok(Meaning::Whiteout), "a/b".into()));
        assert_eq!(judge(".wh.b"), (Ok(Meaning::Whiteout), "b".into()));
        assert_eq!(judge("a/b/.wh..wh..opq"), (Ok(Meaning::Opaque), "a/b".into()));
        assert_eq!(judge(".wh..wh..opq"), (Ok(Meaning::Opaque), String::new()));
        assert_eq!(judge(".wh..wh.plnk/1").0, Ok(Meaning::Ignored));
        assert!(judge("a/.wh.").0.is_err());
        assert!(judge("a/.wh...").0.is_err());
        assert!(judge(".wh.a/b").0.is_err());
    }
}
