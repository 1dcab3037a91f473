//! Builds the jail and starts the guest kernel in it. Called by the VMM's process outside of its own jail, whose child
//! the jail's first process is; the machine's process, which is made right after, has the other ends of its pipes.
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
use crate::jail::{At, GuestProcess, Step, StepError};
use crate::machine::Parts;

/// Room in the jail's file system and in the guest's RAM file beside the guest's memory and the initramfs, in bytes.
const SLACK: u64 = 64 << 20;
/// Most open descriptors of the guest kernel: some for each device, and one or two for each guest process.
const MAX_DESCRIPTORS: u64 = 32 << 10;

/// Least and most processes of a guest kernel: one for each address space of the guest. The guest itself cannot hold more
/// than one in each 64 KiB of its memory.
const MIN_PROCESSES: u64 = 256;
const MAX_PROCESSES: u64 = 32 << 10;
const PROCESSES_PER_MIB: u64 = 16;
/// Most private memory of each of them, in bytes; the guest's RAM is a file and does not count.
const PRIVATE_MEMORY: u64 = 64 << 20;

/// A started guest kernel, as the machine's process sees it.
pub struct Launched {
    /// The jail's first process; readable when it is gone.
    init: OwnedFd,
    /// A [`StepError`] if the jail could not be built; its end when the guest kernel has been started.
    pub started: PipeReader,
    /// The guest kernel's wait status, once.
    pub status: PipeReader,
    /// The guest kernel's standard error.
    pub console: PipeReader,
    /// While it is open, the jail lives. A byte has the jail's first process remove what only the start needs.
    lifeline: Option<PipeWriter>,
    /// For each device the socket that its driver connects to.
    pub listeners: Vec<UnixListener>,
    /// How guest kernel and devices are laid over the host's CPUs.
    pub placement: Option<Placement>,
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
    /// Pipe ends: see [`Launched`]. `go` lets the child begin once its user is mapped, and is at its end when the parent
    /// is gone; `input` is an empty one.
    go: RawFd,
    /// The parent's ends of `go` and `lifeline`, of which the child must keep no copy: it would never see their end.
    parents: [RawFd; 2],
    input: RawFd,
    console: RawFd,
    started: RawFd,
    status: RawFd,
    lifeline: RawFd,
}

/// Starts the machine's guest kernel, as far as this process can see without waiting; the rest arrives on the pipes. This
/// process must have one thread. It keeps the [`GuestProcess`], and gives the rest to the machine's process.
///
/// # Errors
/// The host refuses a resource or the namespaces.
pub fn launch(parts: &Parts) -> Result<(Launched, GuestProcess), UmlError> {
    let placement = limits::place(std::process::id());
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
    let processes = u64::from(parts.config.memory_mib).saturating_mul(PROCESSES_PER_MIB);
    let processes = processes.clamp(MIN_PROCESSES, MAX_PROCESSES);
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
        limits: Limits {
            file_size: size,
            descriptors: MAX_DESCRIPTORS,
            private_memory: PRIVATE_MEMORY,
            processes: limits::counts_processes_by_namespace().then_some(processes),
        },
        placement,
        go: go_reader.as_raw_fd(),
        parents: [go_writer.as_raw_fd(), lifeline.as_raw_fd()],
        input: input.as_raw_fd(),
        console: console_writer.as_raw_fd(),
        started: started_writer.as_raw_fd(),
        status: status_writer.as_raw_fd(),
        lifeline: lifeline_reader.as_raw_fd(),
    };
    // SAFETY: there is one thread; and the child calls nothing but the functions of `jail` that are made for it, then
    // exits or executes.
    let forked = unsafe { sys::clone_process(namespaces::ALL | libc::CLONE_PIDFD, parts.cgroup.directory()) };
    let (pid, init) = match forked.at(Step::Clone)? {
        Forked::Child => init_process(&plan),
        Forked::Parent { pid, pidfd: Some(pidfd) } => (pid, pidfd),
        Forked::Parent { pidfd: None, .. } => {
            return Err(StepError { step: Step::Clone, errno: libc::ENOSYS }.into());
        }
    };
    let seen = init.try_clone();
    let process = GuestProcess { init, lifeline: go_writer };
    let told = namespaces::map_ids(pid).map_err(|error| (Step::MapIds, error)).and_then(|()| {
        // One byte: go.
        sys::write(process.lifeline.as_raw_fd(), &[0])
            .map_err(|errno| (Step::Clone, io::Error::from_raw_os_error(errno)))?;
        seen.map_err(|error| (Step::Clone, error))
    });
    match told {
        Ok(init) => {
            let lifeline = Some(lifeline);
            Ok((Launched { init, started, status, console, lifeline, listeners, placement }, process))
        }
        Err((step, error)) => {
            process.kill();
            Err(StepError { step, errno: error.raw_os_error().unwrap_or(libc::EIO) }.into())
        }
    }
}

impl Launched {
    /// Ends everything in the jail, and waits until it is gone.
    pub fn end(&mut self) {
        drop(self.lifeline.take());
        while !sys::wait_readable([self.init.as_raw_fd()])[0] {}
    }

    /// The devices are connected: has the jail's first process remove what only the start needed.
    pub fn clean_up(&self) {
        if let Some(lifeline) = &self.lifeline {
            let _ = sys::write(lifeline.as_raw_fd(), &[0]);
        }
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
    // The parent's death is this process's, and so that of all that follows.
    let die_with_parent = || {
        let outcome = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong).at(Step::Clone);
        // It may have died before that call.
        if sys::is_hung_up(plan.go) { sys::exit(1) } else { outcome.map(drop) }
    };
    die_with_parent()?;
    sys::block_signals(true).at(Step::Clone)?;
    if sys::read(plan.go, &mut [0]).at(Step::Orphaned)? == 0 {
        return Err(StepError { step: Step::Orphaned, errno: libc::ESRCH });
    }
    sys::become_user(NOBODY, NOBODY).at(Step::SetIds)?;
    // A change of user forgets it.
    die_with_parent()?;
    namespaces::mount_empty_root(&plan.root_options, 0)?;
    sys::copy_to(plan.initramfs, &plan.initramfs_name).at(Step::CopyFile)?;
    for (socket, name) in &plan.sockets {
        sys::bind_and_listen(*socket, name).at(Step::Socket)?;
    }
    namespaces::enter_root()?;
    limits::drop_privileges(0)?;
    limits::apply(&plan.limits)?;
    sys::prctl(libc::PR_SET_DUMPABLE, 0).at(Step::Capabilities)?;
    sys::notice_children().at(Step::Fork)?;
    // SAFETY: as in `launch`; there are no other threads.
    let kernel = match unsafe { sys::clone_process(0, None) }.at(Step::Fork)? {
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
