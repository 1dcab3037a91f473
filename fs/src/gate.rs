//! Which requests reach the file system, and how they are changed on their way.

/// Bytes of a request's header: length, operation, id, node, user, group, process, padding.
pub const HEADER: usize = 40;
/// Most bytes of a request: 128 KiB of data, which is what a guest may write at a time, and room for header and names.
pub const MAX_REQUEST: usize = (128 << 10) + 4096;

const LOOKUP: u32 = 1;
const MKNOD: u32 = 8;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const SETXATTR: u32 = 21;
const GETXATTR: u32 = 22;
const LISTXATTR: u32 = 23;
const REMOVEXATTR: u32 = 24;
/// The guest says what it can, and is told what is done.
pub const INIT: u32 = 26;
const CREATE: u32 = 35;
/// The guest lets go of the folder. The file system has no answer to it, but a guest waits for one.
pub const DESTROY: u32 = 38;

/// What a guest's kernel needs for plain files and directories. What is not here is answered with ENOSYS: locks (the guest keeps its
/// own), interrupts (which name a request by an id that is not the guest's here), ioctl, poll, and mapping host memory.
const ALLOWED: [u32; 37] = [
    LOOKUP,
    2, // FORGET
    3, // GETATTR
    4, // SETATTR
    5, // READLINK
    6, // SYMLINK
    MKNOD,
    9,  // MKDIR
    10, // UNLINK
    11, // RMDIR
    12, // RENAME
    13, // LINK
    OPEN,
    READ,
    WRITE,
    17, // STATFS
    18, // RELEASE
    20, // FSYNC
    SETXATTR,
    GETXATTR,
    LISTXATTR,
    REMOVEXATTR,
    25, // FLUSH
    INIT,
    27, // OPENDIR
    28, // READDIR
    29, // RELEASEDIR
    30, // FSYNCDIR
    34, // ACCESS
    CREATE,
    DESTROY,
    42, // BATCH_FORGET
    43, // FALLOCATE
    44, // READDIRPLUS
    45, // RENAME2
    46, // LSEEK
    47, // COPY_FILE_RANGE
];

/// Features of FUSE that the file system knows and a guest may turn on, as bits of INIT's flags: DO_READDIRPLUS, READDIRPLUS_AUTO,
/// HANDLE_KILLPRIV_V2. Nothing of the second word, which INIT_EXT would announce.
const KNOWN: u32 = 1 << 13 | 1 << 14 | 1 << 28;
/// Features that the file system has without knowing, because the library's caller is to know: ASYNC_READ, BIG_WRITES and
/// PARALLEL_DIROPS. Without BIG_WRITES every page that is written would be a request. Not MAX_PAGES, for requests of more than 128 KiB.
const HAD: u32 = 1 | 1 << 5 | 1 << 18;
const BIG_WRITES: u32 = 1 << 5;
/// Most bytes that a guest writes at a time.
const MAX_WRITE: u32 = 128 << 10;
/// Bytes of an answer's header: length, error, id.
const ANSWER: usize = 16;

/// Extended attributes that a guest may set. Others mean something to the host.
const SETTABLE: &[u8] = b"user.";

/// Most bytes of an extended attribute, or of a list of their names (the kernel's XATTR_SIZE_MAX).
const MAX_XATTR: u32 = 64 << 10;

/// What holds for all requests of one guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    /// The jail has one user only: every user and group is taken for that.
    pub squash: bool,
    /// Extended attributes can be had.
    pub xattrs: bool,
}

/// O_DIRECT as a flag of FUSE.
const DIRECT: u32 = libc::O_DIRECT.cast_unsigned();

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

/// Looks at a request, and changes what is to be changed.
pub fn examine(request: &mut [u8], rules: Rules) -> Verdict {
    let (Some(length), Some(operation)) = (word(request, 0), word(request, 4)) else { return Verdict::Drop };
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
        let Some(mode) = word(request, HEADER) else { return refuse(libc::EINVAL) };
        if ![0, libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK].contains(&(mode & libc::S_IFMT)) {
            return refuse(libc::EPERM);
        }
    }
    // Names are whole components; up is never asked for by a guest that keeps its own tree.
    if operation == LOOKUP && [&b".\0"[..], b"..\0"].iter().any(|dots| request[HEADER..].starts_with(dots)) {
        return refuse(libc::EINVAL);
    }
    if [SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR].contains(&operation) {
        if !rules.xattrs {
            return refuse(libc::ENOSYS);
        }
        // The answer's place is made before anybody knows how long the answer is.
        if [GETXATTR, LISTXATTR].contains(&operation)
            && word(request, HEADER).is_none_or(|size| size > MAX_XATTR)
        {
            return refuse(libc::ERANGE);
        }
        // A size and flags come before the name.
        let name = HEADER + if operation == SETXATTR { 8 } else { 0 };
        let changes = [SETXATTR, REMOVEXATTR].contains(&operation);
        if changes && !request.get(name..).is_some_and(|name| name.starts_with(SETTABLE)) {
            return refuse(libc::EOPNOTSUPP);
        }
    }
    // The page cache of the host stands between anyway, and the server's buffers are not aligned.
    let flags = match operation {
        OPEN | CREATE => Some(HEADER),
        READ | WRITE => Some(HEADER + 32),
        _ => None,
    };
    if let Some(at) = flags
        && let Some(flags) = word(request, at)
    {
        request[at..at + 4].copy_from_slice(&(flags & !DIRECT).to_le_bytes());
    }
    if operation == INIT {
        let at = HEADER + 12;
        let Some(flags) = word(request, at) else { return refuse(libc::EINVAL) };
        request[at..at + 4].copy_from_slice(&(flags & (KNOWN | HAD)).to_le_bytes());
    }
    if rules.squash {
        request[24..32].fill(0);
    }
    Verdict::Pass
}

/// The features that an INIT asks for.
#[must_use]
pub fn asked(init: &[u8]) -> u32 {
    word(init, HEADER + 12).unwrap_or(0)
}

/// Completes the answer to an INIT that [`asked`] for this: what the file system has of it, and how much may be written at a time. An
/// error stays as it is.
pub fn complete_init(asked: u32, answer: &mut [u8]) {
    let (flags, max_write) = (ANSWER + 12, ANSWER + 20);
    let Some(told) = word(answer, flags) else { return };
    if let Some(place) = answer.get_mut(flags..flags + 4) {
        place.copy_from_slice(&(told | asked & HAD).to_le_bytes());
    }
    if asked & HAD & BIG_WRITES != 0
        && let Some(place) = answer.get_mut(max_write..max_write + 4)
    {
        place.copy_from_slice(&MAX_WRITE.to_le_bytes());
    }
}

fn word(request: &[u8], at: usize) -> Option<u32> {
    let bytes = request.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
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

    const PLAIN: Rules = Rules { squash: false, xattrs: true };

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
        assert_eq!(examine(&mut lookup, PLAIN), Verdict::Pass);
        assert_eq!(lookup, before);
        assert_eq!(examine(&mut lookup, Rules { squash: true, ..PLAIN }), Verdict::Pass);
        assert_eq!(lookup[24..32], [0; 8]);
        assert_eq!(lookup[..24], before[..24]);
    }

    #[test]
    fn what_is_not_for_plain_files_is_refused() {
        for operation in [0, 31, 32, 33, 36, 37, 39, 40, 41, 48, 49, 50, 51, 52, 4096, u32::MAX] {
            let verdict = examine(&mut request(operation, &[0; 64]), PLAIN);
            assert_eq!(verdict, Verdict::Refuse { unique: 7, errno: libc::ENOSYS }, "{operation}");
        }
        for kind in [libc::S_IFCHR, libc::S_IFBLK, libc::S_IFDIR, libc::S_IFLNK] {
            let verdict = examine(&mut request(MKNOD, &(kind | 0o600).to_le_bytes()), PLAIN);
            assert_eq!(verdict, Verdict::Refuse { unique: 7, errno: libc::EPERM });
        }
        assert_eq!(
            examine(&mut request(MKNOD, &(libc::S_IFIFO | 0o600).to_le_bytes()), PLAIN),
            Verdict::Pass
        );
    }

    #[test]
    fn only_known_features_are_turned_on() {
        let mut init = request(INIT, &[0xff; 64]);
        assert_eq!(examine(&mut init, PLAIN), Verdict::Pass);
        assert_eq!(init[HEADER + 12..HEADER + 16], (KNOWN | HAD).to_le_bytes());
        assert_eq!(
            examine(&mut request(INIT, &[0; 8]), PLAIN),
            Verdict::Refuse { unique: 7, errno: libc::EINVAL }
        );
    }

    #[test]
    fn what_the_file_system_has_is_told() {
        let answer = |asked: u32, told: u32, length: usize| {
            let init = request(INIT, &[0, 0, 0, asked].map(u32::to_le_bytes).concat());
            let mut answer = vec![0; length];
            if length > 32 {
                answer[28..32].copy_from_slice(&told.to_le_bytes());
            }
            complete_init(super::asked(&init), &mut answer);
            (word(&answer, 28), word(&answer, 36))
        };
        assert_eq!(answer(u32::MAX, 1 << 13, 80), (Some(1 << 13 | HAD), Some(128 << 10)));
        assert_eq!(answer(1, 0, 80), (Some(1), Some(0)));
        assert_eq!(answer(u32::MAX, 0, 16), (None, None), "an error stays one");
    }

    #[test]
    fn what_is_no_request_is_dropped() {
        let whole = request(1, b"name\0");
        for length in 0..whole.len() {
            assert_eq!(examine(&mut whole[..length].to_vec(), PLAIN), Verdict::Drop, "{length}");
        }
        let mut longer = whole;
        longer.push(0);
        assert_eq!(examine(&mut longer, PLAIN), Verdict::Drop);
    }

    #[test]
    fn an_error_lies_as_the_protocol_says() {
        assert_eq!(error(5, 2), [16, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 5, 0, 0, 0, 0, 0, 0, 0]);
    }
}
