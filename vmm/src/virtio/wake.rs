//! How a device gets itself called again by the event loop: at once, after a while, or when one of its descriptors is ready.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

/// Most descriptors of a device's own.
const MAX_SOURCES: usize = 4;
/// Tokens of the two sources that every device has; a device's own come after.
const AGAIN: u64 = 0;
const TIMER: u64 = 1;
const OWN: u64 = 2;

/// What made the event loop call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Woken {
    /// Bit `i` is set when the device's descriptor `i` had an event.
    pub sources: u32,
}

impl Woken {
    /// Whether the device's descriptor `source` had an event.
    #[must_use]
    pub fn by(self, source: u32) -> bool {
        self.sources & 1 << source != 0
    }
}

/// An epoll descriptor over an eventfd, a timer and the device's own descriptors.
///
/// Everything is watched edge-triggered, and neither eventfd nor timer is ever read: so nothing here can block, and a
/// descriptor that stays readable while the device has no use for its data costs no wake-ups.
#[derive(Debug)]
pub struct Wake {
    epoll: Epoll,
    again: EventFd,
    timer: TimerFd,
    /// When the timer fires, if it is set.
    due: Option<Instant>,
}

impl Wake {
    /// Makes one that watches nothing but itself.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let again = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let timer = TimerFd::new().map_err(io::Error::from)?;
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll.add(borrow(&again), EpollEvent::new(edge, AGAIN))?;
        epoll.add(borrow(&timer), EpollEvent::new(edge, TIMER))?;
        Ok(Self { epoll, again, timer, due: None })
    }

    /// Watches a descriptor of the device's for reading. `source` is below 32; the descriptor stays watched until it is closed
    /// or [`Self::unwatch`]ed.
    ///
    /// # Errors
    /// The descriptor cannot be watched.
    pub fn watch(&self, descriptor: BorrowedFd<'_>, source: u32) -> io::Result<()> {
        Ok(self.epoll.add(descriptor, EpollEvent::new(interest(false), OWN + u64::from(source)))?)
    }

    /// Watches a descriptor for room to write as well, or no longer. Only while it is full: a socket tells of room whenever the
    /// other end has read something.
    ///
    /// # Errors
    /// The descriptor is not watched, or the host is out of memory.
    pub fn watch_room(&self, descriptor: BorrowedFd<'_>, source: u32, room: bool) -> io::Result<()> {
        Ok(self.epoll.modify(descriptor, &mut EpollEvent::new(interest(room), OWN + u64::from(source)))?)
    }

    /// No longer watches a descriptor.
    pub fn unwatch(&self, descriptor: BorrowedFd<'_>) {
        // Fails only if it was not watched.
        let _ = self.epoll.delete(descriptor);
    }

    /// The descriptor for the event loop.
    #[must_use]
    pub fn as_raw_fd(&self) -> RawFd {
        self.epoll.0.as_raw_fd()
    }

    /// Has the event loop call as soon as others have had their turn.
    pub fn again(&self) {
        // Fails only when the counter is full, after 2^64 calls.
        let _ = self.again.write(1);
    }

    /// A descriptor that another thread may write to, to have the event loop call.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn handle(&self) -> io::Result<EventFd> {
        self.again.try_clone()
    }

    /// Has the event loop call after a while. Of several wishes the earliest counts: whoever is called too early asks again.
    pub fn after(&mut self, time: Duration) {
        let time = time.max(Duration::from_micros(1));
        let Some(due) = Instant::now().checked_add(time) else { return };
        if self.due.is_some_and(|earlier| earlier <= due) {
            return;
        }
        if self.timer.reset(time, None).is_ok() {
            self.due = Some(due);
        } else {
            // A time that the kernel does not take: then rather too early.
            self.again();
        }
    }

    /// Takes what made the event loop call.
    ///
    /// # Errors
    /// The epoll descriptor failed.
    pub fn take(&mut self) -> io::Result<Woken> {
        let mut events = [EpollEvent::empty(); MAX_SOURCES + 2];
        let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let mut woken = Woken::default();
        for event in &events[..count] {
            match event.data() {
                AGAIN => {}
                TIMER => self.due = None,
                own => woken.sources |= 1 << ((own - OWN) & 31),
            }
        }
        Ok(woken)
    }
}

fn interest(room: bool) -> EpollFlags {
    let reading = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
    if room { reading | EpollFlags::EPOLLOUT } else { reading }
}

fn borrow<T: AsRawFd>(owner: &T) -> BorrowedFd<'_> {
    // SAFETY: the owner keeps the descriptor open for as long as it is borrowed here.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn rings(wake: &Wake, patience: u16) -> bool {
        let mut polled = [PollFd::new(wake.epoll.0.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::from(patience)).unwrap() == 1
    }

    #[test]
    fn rings_once_for_each_wish() {
        let mut wake = Wake::new().unwrap();
        assert!(!rings(&wake, 0));
        wake.again();
        wake.again();
        assert!(rings(&wake, 0));
        assert_eq!(wake.take().unwrap(), Woken::default());
        assert!(!rings(&wake, 0));
        wake.again();
        assert!(rings(&wake, 0));
    }

    #[test]
    fn of_several_times_the_earliest_counts() {
        let mut wake = Wake::new().unwrap();
        wake.after(Duration::from_secs(3600));
        wake.after(Duration::from_millis(1));
        wake.after(Duration::from_secs(3600));
        assert!(rings(&wake, 20_000));
        wake.take().unwrap();
        assert!(!rings(&wake, 0));
        // After it fired, a new wish sets it again.
        wake.after(Duration::ZERO);
        assert!(rings(&wake, 20_000));
    }

    #[test]
    fn a_descriptor_that_stays_readable_rings_once() {
        let mut wake = Wake::new().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        wake.watch(reader.as_fd(), 1).unwrap();
        io::Write::write_all(&mut &writer, b"x").unwrap();
        assert!(rings(&wake, 0));
        let woken = wake.take().unwrap();
        assert!(woken.by(1) && !woken.by(0));
        assert!(!rings(&wake, 0));
        wake.unwatch(reader.as_fd());
        io::Write::write_all(&mut &writer, b"x").unwrap();
        assert!(!rings(&wake, 0));
    }
}
