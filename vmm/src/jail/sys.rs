//! System calls as functions that neither allocate nor lock, for use between `clone` and `exec`. The error is the
//! error number. The `unsafe` of the jail and the launcher is here.

use std::ffi::{CStr, c_char, c_int, c_ulong, c_void};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use libc::{pid_t, sock_filter};

type Outcome<T> = Result<T, i32>;

/// CLONE_INTO_CGROUP (clone(2)).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn errno() -> i32 {
    // SAFETY: the location of this thread's errno is always valid.
    unsafe { *libc::__errno_location() }
}

fn check(result: c_int) -> Outcome<c_int> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

fn check_long(result: libc::c_long) -> Outcome<libc::c_long> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

/// The two sides of a process copy.
pub enum Forked {
    /// In the copy.
    Child,
    /// In the original.
    Parent {
        /// The copy's process id.
        pid: pid_t,
        /// The copy's pidfd, if asked for with CLONE_PIDFD.
        pidfd: Option<OwnedFd>,
    },
}

/// PR_GET_TID_ADDRESS (prctl(2)).
const GET_TID_ADDRESS: c_int = 40;
/// Where the C library keeps the calling thread's id; null where the host's kernel does not tell.
fn thread_id_address() -> *mut c_int {
    let mut address: *mut c_int = std::ptr::null_mut();
    // SAFETY: the kernel writes one pointer to `address`, which is ours; a kernel without this call writes nothing.
    unsafe { libc::prctl(GET_TID_ADDRESS, &raw mut address, 0, 0, 0) };
    address
}

/// Copies the process, as `fork` does, with these CLONE_ flags and without CLONE_VM, into the control group of a
/// directory (cgroup version 2) if one is given. The C library's idea of its thread id is right in the copy.
///
/// # Errors
/// The error number.
///
/// # Safety
/// If other threads exist, the child must do nothing but what is async-signal-safe until it executes a program or exits.
pub unsafe fn clone_process(flags: c_int, cgroup: Option<RawFd>) -> Outcome<Forked> {
    let mut pidfd: c_int = -1;
    let thread_id = thread_id_address();
    let mut flags = u64::from(flags.unsigned_abs());
    if !thread_id.is_null() {
        flags |= u64::from((libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID).unsigned_abs());
    }
    let pid = if let Some(cgroup) = cgroup {
        // SAFETY: all zeroes is a valid value of this plain structure.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.flags = flags | CLONE_INTO_CGROUP;
        arguments.pidfd = &raw mut pidfd as u64;
        arguments.child_tid = thread_id as u64;
        arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
        arguments.cgroup = u64::try_from(cgroup).map_err(|_| libc::EBADF)?;
        // SAFETY: as below.
        unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) }
    } else {
        // SAFETY: without CLONE_VM and with a null stack the child runs on a copy of this stack, as after fork; the
        // kernel writes the pidfd to a valid place, and in the child its id to where it keeps it at every fork. The
        // rest is the caller's promise.
        unsafe {
            libc::syscall(
                libc::SYS_clone,
                flags | u64::from(libc::SIGCHLD.unsigned_abs()),
                std::ptr::null_mut::<c_void>(),
                &raw mut pidfd,
                thread_id,
                0,
            )
        }
    };
    match check_long(pid)? {
        0 => Ok(Forked::Child),
        pid => {
            let pidfd = (pidfd >= 0 && flags & u64::from(libc::CLONE_PIDFD.unsigned_abs()) != 0).then(|| {
                // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
                unsafe { OwnedFd::from_raw_fd(pidfd) }
            });
            Ok(Forked::Parent { pid: pid_t::try_from(pid).map_err(|_| libc::EOVERFLOW)?, pidfd })
        }
    }
}

/// Ends the process at once.
pub fn exit(code: c_int) -> ! {
    // SAFETY: has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Reads; 0 at the end.
///
/// # Errors
/// The error number; interruptions are retried.
pub fn read(fd: RawFd, buffer: &mut [u8]) -> Outcome<usize> {
    loop {
        // SAFETY: the pointer and length describe `buffer`.
        let length = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
        match usize::try_from(length) {
            Ok(length) => return Ok(length),
            Err(_) if errno() == libc::EINTR => {}
            Err(_) => return Err(errno()),
        }
    }
}

/// Writes, perhaps less than all.
///
/// # Errors
/// The error number; interruptions are retried.
pub fn write(fd: RawFd, buffer: &[u8]) -> Outcome<usize> {
    loop {
        // SAFETY: the pointer and length describe `buffer`.
        let length = unsafe { libc::write(fd, buffer.as_ptr().cast(), buffer.len()) };
        match usize::try_from(length) {
            Ok(length) => return Ok(length),
            Err(_) if errno() == libc::EINTR => {}
            Err(_) => return Err(errno()),
        }
    }
}

fn pointer(string: Option<&CStr>) -> *const c_char {
    string.map_or(std::ptr::null(), CStr::as_ptr)
}

/// `mount(2)`.
///
/// # Errors
/// The error number.
pub fn mount(
    source: &CStr,
    target: &CStr,
    kind: Option<&CStr>,
    flags: c_ulong,
    data: Option<&CStr>,
) -> Outcome<()> {
    // SAFETY: all strings are terminated and outlive the call; null is allowed where there is none.
    check(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), pointer(kind), flags, pointer(data).cast())
    })
    .map(drop)
}

/// Makes the working directory the root, and lets go of the old one.
///
/// # Errors
/// The error number.
pub fn pivot_to_working_directory() -> Outcome<()> {
    let here = c".".as_ptr();
    // SAFETY: the strings are static. With both the same, the old root ends up mounted over the new one (pivot_root(2)).
    check_long(unsafe { libc::syscall(libc::SYS_pivot_root, here, here) })?;
    // SAFETY: as above.
    check(unsafe { libc::umount2(here, libc::MNT_DETACH) })?;
    chdir(c"/")
}

/// `chdir(2)`.
///
/// # Errors
/// The error number.
pub fn chdir(path: &CStr) -> Outcome<()> {
    // SAFETY: the string is terminated and outlives the call.
    check(unsafe { libc::chdir(path.as_ptr()) }).map(drop)
}

/// Removes a name.
///
/// # Errors
/// The error number.
pub fn unlink(path: &CStr) -> Outcome<()> {
    // SAFETY: the string is terminated and outlives the call.
    check(unsafe { libc::unlink(path.as_ptr()) }).map(drop)
}

/// Makes a file with the content of another, whose position does not change.
///
/// # Errors
/// The error number.
pub fn copy_to(source: RawFd, path: &CStr) -> Outcome<()> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
    // SAFETY: the string is terminated and outlives the call.
    let target = check(unsafe { libc::open(path.as_ptr(), flags, 0o400) })?;
    let mut offset: libc::off_t = 0;
    loop {
        // SAFETY: the kernel reads and writes `offset`, which is ours.
        let copied = unsafe { libc::sendfile(target, source, &raw mut offset, 1 << 30) };
        if copied <= 0 {
            let outcome = if copied == 0 { Ok(()) } else { Err(errno()) };
            close(target);
            return outcome;
        }
    }
}

/// `close(2)`; errors do not matter for what is closed here.
pub fn close(fd: RawFd) {
    // SAFETY: the caller's child owns its copy of every descriptor.
    unsafe { libc::close(fd) };
}

/// Binds a unix socket to a path, and listens for one connection.
///
/// # Errors
/// The error number; ENAMETOOLONG if the path does not fit.
pub fn bind_and_listen(socket: RawFd, path: &CStr) -> Outcome<()> {
    // SAFETY: all zeroes is a valid value of this plain structure.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).map_err(|_| libc::EINVAL)?;
    let bytes = path.to_bytes_with_nul();
    if bytes.len() > address.sun_path.len() {
        return Err(libc::ENAMETOOLONG);
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    let size = libc::socklen_t::try_from(size_of_val(&address)).map_err(|_| libc::EINVAL)?;
    // SAFETY: the address is a whole sockaddr_un, and `size` its size.
    check(unsafe { libc::bind(socket, (&raw const address).cast(), size) })?;
    // SAFETY: has no preconditions.
    check(unsafe { libc::listen(socket, 1) }).map(drop)
}

/// Makes `to` a copy of `from` that survives `exec`.
///
/// # Errors
/// The error number.
pub fn duplicate(from: RawFd, to: RawFd) -> Outcome<()> {
    // SAFETY: has no preconditions: descriptors that are not open are errors.
    check(unsafe { libc::dup2(from, to) }).map(drop)
}

/// Marks every descriptor from `first` on as to be closed by `exec`, or closes them all now.
///
/// # Errors
/// The error number.
pub fn close_from(first: u32, at_exec: bool) -> Outcome<()> {
    let flags = if at_exec { libc::CLOSE_RANGE_CLOEXEC } else { 0 };
    // SAFETY: the caller's process gives up its descriptors knowingly.
    check_long(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) }).map(drop)
}

/// Closes every descriptor between two, neither included.
///
/// # Errors
/// The error number.
pub fn close_between(below: RawFd, above: RawFd) -> Outcome<()> {
    if above - below <= 1 {
        return Ok(());
    }
    // SAFETY: the caller's process gives up its descriptors knowingly.
    check_long(unsafe { libc::syscall(libc::SYS_close_range, below + 1, above - 1, 0) }).map(drop)
}

/// Becomes this user and group for good, with no other groups where the namespace allows to say so.
///
/// # Errors
/// The error number.
pub fn become_user(uid: u32, gid: u32) -> Outcome<()> {
    // The raw calls: glibc's would tell other threads, which the child does not have.
    // SAFETY: setgroups of none reads no memory. It fails in a namespace whose user had no right to it; then there is
    // nothing that could be dropped.
    unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) };
    // SAFETY: has no preconditions.
    check_long(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: has no preconditions.
    check_long(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// `prctl(2)` with one argument.
///
/// # Errors
/// The error number.
pub fn prctl(option: c_int, argument: c_ulong) -> Outcome<c_int> {
    // SAFETY: used with options whose argument is a number.
    check(unsafe { libc::prctl(option, argument, 0, 0, 0) })
}

/// Gives up all capabilities of the thread but those of a bit mask (of the first 32), which it must have
/// (`capset(2)`).
///
/// # Errors
/// The error number.
pub fn keep_capabilities(kept: u32) -> Outcome<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    /// _LINUX_CAPABILITY_VERSION_3: two sets of three words: effective, permitted, inheritable.
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let sets = [kept, kept, 0, 0, 0, 0];
    // SAFETY: both are laid out as the version says and outlive the call.
    check_long(unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) }).map(drop)
}

/// Lowers a resource limit, soft and hard, to a value; one that is lower already stays.
///
/// # Errors
/// The error number.
pub fn lower_limit(resource: libc::__rlimit_resource_t, value: u64) -> Outcome<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is ours.
    check(unsafe { libc::getrlimit(resource, &raw mut limit) })?;
    let value = value.min(limit.rlim_max);
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: the structure outlives the call.
    check(unsafe { libc::setrlimit(resource, &raw const limit) }).map(drop)
}

/// Runs this thread and what it starts only on these CPUs.
///
/// # Errors
/// The error number.
pub fn set_affinity(cpus: &libc::cpu_set_t) -> Outcome<()> {
    // SAFETY: the set outlives the call, and the size is its own.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), cpus) }).map(drop)
}

/// `personality(2)`.
///
/// # Errors
/// The error number.
pub fn set_personality(persona: c_ulong) -> Outcome<()> {
    // SAFETY: has no preconditions.
    check(unsafe { libc::personality(persona) }).map(drop)
}

/// Installs a filter for the system calls of this thread and what it starts; needs no_new_privs.
///
/// # Errors
/// The error number.
pub fn install_filter(program: &[sock_filter]) -> Outcome<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| libc::E2BIG)?,
        filter: program.as_ptr().cast_mut(),
    };
    // Without SPEC_ALLOW, kernels before 5.16 slow the process down by half.
    let flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // SAFETY: the kernel copies the program, which outlives the call.
    check_long(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    })
    .map(drop)
}

/// Executes the program behind a descriptor. Returns only on failure.
#[must_use]
pub fn execute(program: RawFd, arguments: &[*const c_char], environment: &[*const c_char]) -> i32 {
    // SAFETY: both lists end with null, and their strings are terminated; whoever made them keeps them.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program,
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    errno()
}

/// Blocks or unblocks all signals but for what cannot be blocked.
///
/// # Errors
/// The error number.
pub fn block_signals(block: bool) -> Outcome<()> {
    // SAFETY: an all-zero set is valid, and is filled before use.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours.
    unsafe { libc::sigfillset(&raw mut all) };
    let how = if block { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK };
    // SAFETY: the set outlives the call.
    check(unsafe { libc::sigprocmask(how, &raw const all, std::ptr::null_mut()) }).map(drop)
}

extern "C" fn ignore(_: c_int) {}

/// Has SIGCHLD interrupt what waits, instead of being discarded.
///
/// # Errors
/// The error number.
pub fn notice_children() -> Outcome<()> {
    // SAFETY: all zeroes is a valid value of this plain structure.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = ignore as extern "C" fn(c_int) as usize;
    // SAFETY: the handler does nothing, and the structure outlives the call.
    check(unsafe { libc::sigaction(libc::SIGCHLD, &raw const action, std::ptr::null_mut()) }).map(drop)
}

/// Waits until a descriptor is readable or at its end (true), or a child has changed (false). Signals are blocked by
/// the caller, and let through only here.
pub fn wait_readable_or_child(fd: RawFd) -> bool {
    let mut polled = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: an all-zero set is an empty one.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: one entry, and a set that outlives the call; a null time-out means none.
    unsafe { libc::ppoll(&raw mut polled, 1, std::ptr::null(), &raw const none) > 0 }
}

/// Waits until one of these descriptors is readable or at its end; true for each that is. A signal may end it with none.
pub fn wait_readable<const N: usize>(fds: [RawFd; N]) -> [bool; N] {
    let mut polled = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    // SAFETY: as many entries as told; a null time-out means none, a null set leaves the signals alone.
    let count =
        unsafe { libc::ppoll(polled.as_mut_ptr(), N as libc::nfds_t, std::ptr::null(), std::ptr::null()) };
    polled.map(|entry| count > 0 && entry.revents != 0)
}

/// Whether a pipe's other end has been closed by all who had it. Does not wait.
pub fn is_hung_up(fd: RawFd) -> bool {
    let mut polled = libc::pollfd { fd, events: 0, revents: 0 };
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: one entry and a time that outlives the call.
    let count = unsafe { libc::ppoll(&raw mut polled, 1, &raw const now, std::ptr::null()) };
    count > 0 && polled.revents & (libc::POLLHUP | libc::POLLERR) != 0
}

/// A child that ended, and its wait status; `None` when none has.
pub fn reap() -> Option<(pid_t, c_int)> {
    let mut status = 0;
    // SAFETY: the kernel writes to `status`, which is ours.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// Sends a signal to the process of a pidfd.
///
/// # Errors
/// The error number: ESRCH if it is gone.
pub fn signal(pidfd: RawFd, signal: c_int) -> Outcome<()> {
    let no_info = std::ptr::null::<c_void>();
    // SAFETY: without siginfo nothing is read.
    check_long(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, no_info, 0) }).map(drop)
}

/// Waits for the end of the child of a pidfd, and forgets it. Tells how it ended: its exit code, or the negative of the
/// signal that killed it.
///
/// # Errors
/// The error number.
pub fn wait_for(pidfd: RawFd) -> Outcome<c_int> {
    let id = libc::id_t::try_from(pidfd).map_err(|_| libc::EBADF)?;
    loop {
        // SAFETY: all zeroes is a valid value of this plain structure.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes to `info`, which is ours.
        match check(unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED) }) {
            Err(libc::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) => {
                // SAFETY: waitid succeeded, so that these fields are the ones in use.
                let status = unsafe { info.si_status() };
                return Ok(if info.si_code == libc::CLD_EXITED { status } else { -status });
            }
        }
    }
}

/// Maps the pages of a part of guest memory, as reading them would (MADV_POPULATE_READ, Linux 5.14).
///
/// # Errors
/// The error number.
pub fn populate(slice: &crate::memory::VolatileSlice<'_>) -> Outcome<()> {
    let guard = slice.ptr_guard();
    // SAFETY: the range is mapped guest memory, which the guard keeps; its content does not change.
    check(unsafe { libc::madvise(guard.as_ptr().cast_mut().cast(), guard.len(), libc::MADV_POPULATE_READ) })
        .map(drop)
}
