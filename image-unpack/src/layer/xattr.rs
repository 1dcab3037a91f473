//! Extended attributes as EROFS stores them in an inode (`struct erofs_xattr_entry`: name length, name index, value
//! size, name without its prefix, value; each entry padded to 4 bytes).

/// Prefixes that EROFS has a number for.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Attributes that describe the machine an image was built on, or would steer the overlay mount above it.
const DROPPED: [&[u8]; 6] = [
    b"security.selinux",
    b"security.ima",
    b"security.evm",
    b"trusted.overlay.",
    b"user.overlay.",
    b"system.nfs4_acl",
];

/// Encodes `xattrs` to `out`, sorted by name, later ones of the same name winning. Names without a namespace that
/// Linux knows are dropped, as every unpacker on Linux has to.
pub(crate) fn encode(xattrs: &[(Vec<u8>, Vec<u8>)], out: &mut Vec<u8>) -> Result<(), String> {
    out.clear();
    let mut sorted: Vec<&(Vec<u8>, Vec<u8>)> = xattrs.iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    for (i, (name, value)) in sorted.iter().enumerate() {
        // The sort is stable: the last of equals is the one that was given last.
        if sorted.get(i + 1).is_some_and(|next| next.0 == *name) {
            continue;
        }
        if DROPPED.iter().any(|dropped| name.starts_with(dropped)) {
            continue;
        }
        let Some((suffix, index)) =
            PREFIXES.iter().find_map(|(prefix, index)| Some((name.strip_prefix(*prefix)?, *index)))
        else {
            continue;
        };
        if suffix.is_empty() != matches!(index, 2 | 3) {
            continue;
        }
        let length = u8::try_from(suffix.len()).map_err(|_| "an extended attribute's name is too long")?;
        let size = u16::try_from(value.len()).map_err(|_| "an extended attribute's value is too long")?;
        out.extend_from_slice(&[length, index]);
        out.extend_from_slice(&size.to_le_bytes());
        out.extend_from_slice(suffix);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_sorted_without_doubles() {
        let pair = |n: &str, v: &str| (n.as_bytes().to_vec(), v.as_bytes().to_vec());
        let mut out = Vec::new();
        let list = [
            pair("user.b", "1"),
            pair("user.a", "old"),
            pair("com.apple.x", "z"),
            pair("trusted.overlay.opaque", "y"),
            pair("user.a", "new"),
        ];
        encode(&list, &mut out).unwrap();
        assert_eq!(out, b"\x01\x01\x03\0anew\x01\x01\x01\0b1\0\0");
    }

    #[test]
    fn bounds_values() {
        let mut out = Vec::new();
        assert!(encode(&[(b"user.a".to_vec(), vec![0; 65536])], &mut out).is_err());
    }
}
