//! Which requests reach the file system, and how they are changed on their way.

/// Bytes of a request's header: length, operation, id, node, user, group, process, padding.
pub const HEADER: usize = 40;
/// Most bytes of a request: 128 KiB of data, which is what a guest may write at a time, and room for header and names.
pub const MAX_REQUEST: usize = (128 << 10) + 4096;

const MKNOD: u32 = 8;
const INIT: u32 = 26;
/// The guest lets go of the folder. The file system has no answer to it, but a guest waits for one.
pub const DESTROY: u32 = 38;

/// What a guest's kernel needs for plain files and directories. What is not here is answered with ENOSYS: extended attributes,
/// locks (the guest keeps its own), interrupts (which name a request by an id that is not the guest's here), ioctl, poll, and
/// mapping host memory.
const ALLOWED: [u32; 33] = [
    1, // LOOKUP
    2, // FORGET
    3, // GETATTR
    4, // SETATTR
    5, // READLINK
    6, // SYMLINK
    MKNOD, 9,  // MKDIR
    10, // UNLINK
    11, // RMDIR
    12, // RENAME
    13, // LINK
    14, // OPEN
    15, // READ
    16, // WRITE
    17, // STATFS
    18, // RELEASE
    20, // FSYNC
    25, // FLUSH
    INIT, 27, // OPENDIR
    28, // READDIR
    29, // RELEASEDIR
    30, // FSYNCDIR
    34, // ACCESS
    35, // CREATE
    DESTROY, 42, // BATCH_FORGET
    43, // FALLOCATE
    44, // READDIRPLUS
    45, // RENAME2
    46, // LSEEK
    47, // COPY_FILE_RANGE
];

/// Features of FUSE that a guest may turn on, as bits of INIT's flags: ASYNC_READ, ATOMIC_O_TRUNC, BIG_WRITES, AUTO_INVAL_DATA,
/// DO_READDIRPLUS, READDIRPLUS_AUTO, ASYNC_DIO, PARALLEL_DIROPS. Not MAX_PAGES, for larger requests; nor anything of the
/// second word, which INIT_EXT would announce.
const FEATURES: u32 = 1 | 1 << 3 | 1 << 5 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 15 | 1 << 18;

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The file system answers it.
    Pass,
    /// It is answered with this error.
    Refuse {
        /// The request's id.
        unique: u64,
        /// A positive error number.
        errno: i32,
    },
    /// It cannot even be answered.
    Drop,
}

/// Looks at a request, and changes what is to be changed. With `squash`, every user and group is taken for the jail's only one.
pub fn examine(request: &mut [u8], squash: bool) -> Verdict {
    let word = |at: usize| -> Option<u32> {
        let bytes = request.get(at..at + 4)?;
        Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    let (Some(length), Some(operation)) = (word(0), word(4)) else { return Verdict::Drop };
    let Some(unique) = request.get(8..16) else { return Verdict::Drop };
    let unique = u64::from_le_bytes(std::array::from_fn(|index| unique[index]));
    if request.len() < HEADER || usize::try_from(length) != Ok(request.len()) {
        return Verdict::Drop;
    }
    let refuse = |errno| Verdict::Refuse { unique, errno };
    if !ALLOWED.contains(&operation) {
        return refuse(libc::ENOSYS);
    }
    if operation == MKNOD {
        // Devices would be the host's.
        let Some(mode) = word(HEADER) else { return refuse(libc::EINVAL) };
        if ![0, libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK].contains(&(mode & libc::S_IFMT)) {
            return refuse(libc::EPERM);
        }
    }
    if operation == INIT {
        let at = HEADER + 12;
        let Some(flags) = word(at) else { return refuse(libc::EINVAL) };
        request[at..at + 4].copy_from_slice(&(flags & FEATURES).to_le_bytes());
    }
    if squash {
        request[24..32].fill(0);
    }
    Verdict::Pass
}

/// An answer that is nothing but an error.
#[must_use]
pub fn error(unique: u64, errno: i32) -> [u8; 16] {
    let mut answer = [0; 16];
    answer[..4].copy_from_slice(&16u32.to_le_bytes());
    answer[4..8].copy_from_slice(&(-errno).to_le_bytes());
    answer[8..].copy_from_slice(&unique.to_le_bytes());
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(operation: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).unwrap();
        let mut request = [length.to_le_bytes(), operation.to_le_bytes()].concat();
        request.extend(7u64.to_le_bytes());
        request.extend([0xee; 24]);
        request.extend(body);
        request
    }

    #[test]
    fn plain_requests_pass_as_they_are() {
        let mut lookup = request(1, b"name\0");
        let before = lookup.clone();
        assert_eq!(examine(&mut lookup, false), Verdict::Pass);
        assert_eq!(lookup, before);
        assert_eq!(examine(&mut lookup, true), Verdict::Pass);
        assert_eq!(lookup[24..32], [0; 8]);
        assert_eq!(lookup[..24], before[..24]);
    }

    #[test]
    fn what_is_not_for_plain_files_is_refused() {
        for operation in
            [0, 21, 22, 23, 24, 31, 32, 33, 36, 37, 39, 40, 41, 48, 49, 50, 51, 52, 4096, u32::MAX]
        {
            let verdict = examine(&mut request(operation, &[0; 64]), false);
            assert_eq!(verdict, Verdict::Refuse { unique: 7, errno: libc::ENOSYS }, "{operation}");
        }
        for kind in [libc::S_IFCHR, libc::S_IFBLK, libc::S_IFDIR, libc::S_IFLNK] {
            let verdict = examine(&mut request(MKNOD, &(kind | 0o600).to_le_bytes()), false);
            assert_eq!(verdict, Verdict::Refuse { unique: 7, errno: libc::EPERM });
        }
        assert_eq!(
            examine(&mut request(MKNOD, &(libc::S_IFIFO | 0o600).to_le_bytes()), false),
            Verdict::Pass
        );
    }

    #[test]
    fn only_known_features_are_turned_on() {
        let mut init = request(INIT, &[0xff; 64]);
        assert_eq!(examine(&mut init, false), Verdict::Pass);
        assert_eq!(init[HEADER + 12..HEADER + 16], FEATURES.to_le_bytes());
        assert_eq!(
            examine(&mut request(INIT, &[0; 8]), false),
            Verdict::Refuse { unique: 7, errno: libc::EINVAL }
        );
    }

    #[test]
    fn what_is_no_request_is_dropped() {
        let whole = request(1, b"name\0");
        for length in 0..whole.len() {
            assert_eq!(examine(&mut whole[..length].to_vec(), false), Verdict::Drop, "{length}");
        }
        let mut longer = whole;
        longer.push(0);
        assert_eq!(examine(&mut longer, false), Verdict::Drop);
    }

    #[test]
    fn an_error_lies_as_the_protocol_says() {
        assert_eq!(error(5, 2), [16, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 5, 0, 0, 0, 0, 0, 0, 0]);
    }
}
