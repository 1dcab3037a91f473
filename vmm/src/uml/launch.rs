//! Builds the jail and starts the guest kernel in it.
//!
//! Everything between `clone` and `exec` runs on data that was prepared before: no allocation, no lock.

use std::ffi::{CString, c_char, c_int};
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use libc::{pid_t, sock_filter};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::UmlError;
use super::command::{self, ENVIRONMENT, INITRAMFS};
use super::filter;
use crate::jail::limits::{self, Limits, Placement};
use crate::jail::namespaces::{self, NOBODY};
use crate::jail::sys::{self, Forked};
use crate::jail::{At, Step, StepError};
use crate::machine::Parts;

/// Room in the jail's file system and in the guest's RAM file beside the guest's memory and the initramfs, in bytes.
const SLACK: u64 = 64 << 20;
/// Most open descriptors of the guest kernel: some for each device, and one or two for each guest process.
const MAX_DESCRIPTORS: u64 = 32 << 10;

/// A started guest kernel, seen from this process.
pub struct Launched {
    /// The jail's first process.
    pub init: OwnedFd,
    /// A [`StepError`] if the jail could not be built; its end when the guest kernel has been started.
    pub started: PipeReader,
    /// The guest kernel's wait status, once.
    pub status: PipeReader,
    /// The guest kernel's standard error.
    pub console: PipeReader,
    /// While it is open, the jail lives. A byte has the jail's first process remove what only the start needs.
    pub lifeline: PipeWriter,
    /// For each device the socket that its driver connects to.
    pub listeners: Vec<UnixListener>,
}

/// Everything that the child needs, in the form that system calls take.
struct Plan<'a> {
    /// The guest kernel's program and initramfs.
    kernel: RawFd,
    initramfs: RawFd,
    initramfs_name: CString,
    /// Mount options of the jail's root: as wished, and as any kernel takes them.
    root_options: [CString; 2],
    /// Sockets, not bound yet, and their names.
    sockets: Vec<(RawFd, CString)>,
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    kernel_filters: &'a [Vec<sock_filter>],
    init_filter: &'a [sock_filter],
    limits: Limits,
    placement: Option<Placement>,
    /// Pipe ends: see [`Launched`]. `go` lets the child begin once its user is mapped; `input` is an empty one.
    go: RawFd,
    /// The parent's ends of `go` and `lifeline`, of which the child must keep no copy: it would never see their end.
    parents: [RawFd; 2],
    input: RawFd,
    console: RawFd,
    started: RawFd,
    status: RawFd,
    lifeline: RawFd,
}

/// Starts the machine's guest kernel, as far as this process can see without waiting; the rest arrives on the pipes.
///
/// # Errors
/// The host refuses a resource or the namespaces.
pub fn launch(parts: &Parts, placement: Option<Placement>) -> Result<Launched, UmlError> {
    let pipe = || io::pipe().map_err(UmlError::host("cannot make a pipe"));
    let (go_reader, go_writer) = pipe()?;
    let (started, started_writer) = pipe()?;
    let (status, status_writer) = pipe()?;
    let (console, console_writer) = pipe()?;
    nix::fcntl::fcntl(&console, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
        .map_err(io::Error::from)
        .map_err(UmlError::host("cannot make a pipe"))?;
    let (lifeline_reader, lifeline) = pipe()?;
    let (input, input_writer) = pipe()?;
    drop(input_writer);

    let initramfs_size =
        parts.initramfs.metadata().map_err(UmlError::host("cannot read the initramfs"))?.len();
    let memory = u64::from(parts.config.memory_mib) << 20;
    let size = memory.saturating_add(initramfs_size).saturating_add(SLACK);
    let kinds: Vec<u32> = parts.devices.iter().map(|device| device.device_type()).collect();
    let arguments = command::arguments(parts.config.memory_mib, &kinds, &parts.config.cmdline)?;
    let kernel_filters = filter::kernel()?;
    let init_filter = filter::init()?;
    let mut listeners = Vec::new();
    let mut sockets = Vec::new();
    for index in 0..kinds.len() {
        // The child gives them their names, inside the jail; what is behind them is the same for both.
        let made = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
        let listener = UnixListener::from(
            made.map_err(io::Error::from).map_err(UmlError::host("cannot make a socket"))?,
        );
        listener.set_nonblocking(true).map_err(UmlError::host("cannot make a socket"))?;
        sockets.push((listener.as_raw_fd(), CString::new(command::socket_name(index))?));
        listeners.push(listener);
    }

    // The guest's RAM lies there. In huge pages it costs a few MiB more when idle, and saves most of the faults that the
    // kernel's start (a fifth of its time) and every first touch of memory cost.
    let root_options = format!("mode=700,nr_inodes=64,size={size}");
    let plan = Plan {
        kernel: parts.kernel.as_raw_fd(),
        initramfs: parts.initramfs.as_raw_fd(),
        initramfs_name: CString::new(INITRAMFS)?,
        root_options: [
            CString::new(format!("{root_options},huge=within_size"))?,
            CString::new(root_options)?,
        ],
        sockets,
        arguments: terminated(arguments.iter().map(|word| word.as_ptr())),
        environment: terminated(ENVIRONMENT.iter().map(|word| word.as_ptr())),
        kernel_filters: &kernel_filters,
        init_filter: &init_filter,
        limits: Limits { file_size: size, descriptors: MAX_DESCRIPTORS },
        placement,
        go: go_reader.as_raw_fd(),
        parents: [go_writer.as_raw_fd(), lifeline.as_raw_fd()],
        input: input.as_raw_fd(),
        console: console_writer.as_raw_fd(),
        started: started_writer.as_raw_fd(),
        status: status_writer.as_raw_fd(),
        lifeline: lifeline_reader.as_raw_fd(),
    };
    // The child's copy of a process that may not be looked into belongs to root in /proc, and could not be given its user.
    let _ = sys::prctl(libc::PR_SET_DUMPABLE, 1);
    // SAFETY: the child calls nothing but the functions of `jail` that are made for it, then exits or executes.
    let forked = unsafe { sys::clone_process(namespaces::ALL | libc::CLONE_PIDFD) }.at(Step::Clone)?;
    let (pid, init) = match forked {
        Forked::Child => init_process(&plan),
        Forked::Parent { pid, pidfd: Some(pidfd) } => (pid, pidfd),
        Forked::Parent { pidfd: None, .. } => {
            return Err(StepError { step: Step::Clone, errno: libc::ENOSYS }.into());
        }
    };
    let launched = Launched { init, started, status, console, lifeline, listeners };
    let mapped = namespaces::map_ids(pid);
    let _ = sys::prctl(libc::PR_SET_DUMPABLE, 0);
    if let Err(error) = mapped {
        launched.kill();
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        return Err(StepError { step: Step::MapIds, errno }.into());
    }
    // One byte: go.
    if let Err(errno) = sys::write(go_writer.as_raw_fd(), &[0]) {
        launched.kill();
        return Err(StepError { step: Step::Clone, errno }.into());
    }
    Ok(launched)
}

impl Launched {
    /// Ends everything in the jail, and waits until it is gone.
    pub fn kill(&self) {
        // Fails only if it is gone already.
        let _ = sys::signal(self.init.as_raw_fd(), libc::SIGKILL);
        let _ = sys::wait_for(self.init.as_raw_fd());
    }

    /// The devices are connected: has the jail's first process remove what only the start needed.
    pub fn clean_up(&self) {
        let _ = sys::write(self.lifeline.as_raw_fd(), &[0]);
    }
}

fn terminated(words: impl Iterator<Item = *const c_char>) -> Vec<*const c_char> {
    words.chain(std::iter::once(std::ptr::null())).collect()
}

/// The jail's first process. It must not be the guest kernel itself: as process 1 of its namespace, that could not end
/// itself by a signal after a panic, and would spin.
fn init_process(plan: &Plan<'_>) -> ! {
    if let Err(error) = init(plan) {
        let _ = sys::write(plan.started, &error.encode());
    }
    sys::exit(1)
}

fn init(plan: &Plan<'_>) -> Result<(), StepError> {
    plan.parents.iter().for_each(|end| sys::close(*end));
    // The parent's death is this process's, and so that of all that follows. If it died before this is said, `go` is at
    // its end, and `lifeline` after that.
    let die_with_parent =
        || sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong).at(Step::Clone).map(drop);
    die_with_parent()?;
    sys::block_signals(true).at(Step::Clone)?;
    if sys::read(plan.go, &mut [0]).at(Step::Orphaned)? == 0 {
        return Err(StepError { step: Step::Orphaned, errno: libc::ESRCH });
    }
    sys::become_user(NOBODY, NOBODY).at(Step::SetIds)?;
    // A change of user forgets it.
    die_with_parent()?;
    namespaces::mount_empty_root(&plan.root_options)?;
    sys::copy_to(plan.initramfs, &plan.initramfs_name).at(Step::CopyFile)?;
    for (socket, name) in &plan.sockets {
        sys::bind_and_listen(*socket, name).at(Step::Socket)?;
    }
    namespaces::enter_root()?;
    limits::drop_privileges()?;
    limits::apply(&plan.limits)?;
    sys::notice_children().at(Step::Fork)?;
    // SAFETY: as in `launch`; there are no other threads.
    let kernel = match unsafe { sys::clone_process(0) }.at(Step::Fork)? {
        Forked::Child => kernel_process(plan),
        Forked::Parent { pid, .. } => pid,
    };
    sys::close(plan.started);
    watch_over(plan, kernel)
}

fn kernel_process(plan: &Plan<'_>) -> ! {
    let error = start_kernel(plan);
    let _ = sys::write(plan.started, &error.encode());
    sys::exit(1)
}

fn start_kernel(plan: &Plan<'_>) -> StepError {
    let prepare = || -> Result<(), StepError> {
        // Numbers below 3 may be taken by what is copied: but everything that is needed later is above.
        sys::duplicate(plan.input, 0).at(Step::Stdio)?;
        sys::duplicate(plan.console, 1).at(Step::Stdio)?;
        sys::duplicate(plan.console, 2).at(Step::Stdio)?;
        sys::close_from(3, true).at(Step::Stdio)?;
        if let Some(placement) = &plan.placement {
            // On one CPU, a switch between the kernel and a guest process needs no other CPU to wake up: twice as fast.
            let _ = sys::set_affinity(&placement.vcpu);
        }
        // The kernel wants it so, and would otherwise execute itself again, by a path that it does not have here.
        let persona = libc::ADDR_NO_RANDOMIZE.unsigned_abs();
        sys::set_personality(libc::c_ulong::from(persona)).at(Step::Exec)?;
        sys::block_signals(false).at(Step::Exec)?;
        // The first must still allow to install the next; so the strictest comes last.
        for program in plan.kernel_filters.iter().rev() {
            sys::install_filter(program).at(Step::Filter)?;
        }
        Ok(())
    };
    match prepare() {
        Ok(()) => {
            let errno = sys::execute(plan.kernel, &plan.arguments, &plan.environment);
            StepError { step: Step::Exec, errno }
        }
        Err(error) => error,
    }
}

/// Reaps until the guest kernel has ended, passes on its status, and ends, which ends all that is left in the jail.
fn watch_over(plan: &Plan<'_>, kernel: pid_t) -> Result<(), StepError> {
    let (low, high) = (plan.status.min(plan.lifeline), plan.status.max(plan.lifeline));
    sys::close_between(-1, low).at(Step::Stdio)?;
    sys::close_between(low, high).at(Step::Stdio)?;
    sys::close_from(high.unsigned_abs() + 1, false).at(Step::Stdio)?;
    sys::install_filter(plan.init_filter).at(Step::Filter)?;
    let mut status: Option<c_int> = None;
    while status.is_none() {
        while let Some((pid, how)) = sys::reap() {
            if pid == kernel {
                status = Some(how);
            }
        }
        if status.is_none() && sys::wait_readable_or_child(plan.lifeline) {
            match sys::read(plan.lifeline, &mut [0]) {
                Ok(1) => {
                    // Neither is needed any more; a failure costs some memory.
                    let _ = sys::unlink(&plan.initramfs_name);
                    for (_, name) in &plan.sockets {
                        let _ = sys::unlink(name);
                    }
                }
                _ => sys::exit(0),
            }
        }
    }
    if let Some(status) = status {
        let _ = sys::write(plan.status, &status.to_ne_bytes());
    }
    sys::exit(0)
}
