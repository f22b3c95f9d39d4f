//! Waiting until a descriptor that several threads read from has something to read.
//!
//! Each event wakes one of the threads that wait, not all of them: a descriptor that all reactors poll through
//! epoll (as tokio does) wakes every one of them, and all but one find nothing. io_uring's poll can wait
//! exclusively, epoll within epoll can't.
//!
//! Why `unsafe`: the kernel is given a descriptor by number, which must be open while the poll is armed. The
//! [`Readable`] owns it and the ring; the ring, which cancels its polls when it goes, is dropped first.

use io_uring::{IoUring, opcode, types};
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Only one poll is armed at a time.
const ENTRIES: u32 = 4;

struct RingFd(RawFd);

impl AsRawFd for RingFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// A descriptor, and one reactor's wait for it.
pub struct Readable<T: AsFd> {
    // Before the ring, whose descriptor it watches.
    watch: AsyncFd<RingFd>,
    // Before the descriptor that it polls.
    ring: RefCell<IoUring>,
    armed: Cell<bool>,
    source: T,
}

impl<T: AsFd> Readable<T> {
    /// Takes a descriptor to wait for on this reactor.
    pub fn new(source: T) -> io::Result<Self> {
        let ring = IoUring::builder().setup_coop_taskrun().setup_single_issuer().build(ENTRIES)?;
        let fd = RingFd(ring.as_raw_fd());
        // SAFETY: the watch is dropped before the ring, so the descriptor is open while it is watched.
        let watch = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        let watch = watch.map_err(|err| err.into_parts().1)?;
        Ok(Self { watch, ring: RefCell::new(ring), armed: Cell::new(false), source })
    }

    /// The descriptor.
    pub fn get(&self) -> &T {
        &self.source
    }

    /// Waits until there may be something to read, or the other side has closed. Another reader may have been
    /// faster: the read that follows must not block. Whoever waits must read afterwards, since the event that
    /// woke it wakes nobody else. Dropping the future loses nothing: the next call goes on.
    pub async fn ready(&self) -> io::Result<()> {
        loop {
            self.arm()?;
            if self.fired()? {
                return Ok(());
            }
            let mut guard = self.watch.readable().await?;
            // Cleared before the queue is looked at again: what comes in between is seen or wakes us.
            guard.clear_ready();
        }
    }

    fn arm(&self) -> io::Result<()> {
        if self.armed.get() {
            return Ok(());
        }
        let mut ring = self.ring.borrow_mut();
        let events = libc::EPOLLIN | libc::EPOLLEXCLUSIVE;
        let fd = types::Fd(self.source.as_fd().as_raw_fd());
        let entry = opcode::PollAdd::new(fd, events as u32).build();
        // SAFETY: the entry points to no memory; its descriptor is owned by `self` and outlives the ring.
        let pushed = unsafe { ring.submission().push(&entry) };
        pushed.map_err(|_| io::Error::other("the ring of one poll is full"))?;
        self.armed.set(true);
        loop {
            match ring.submit() {
                Ok(_) => return Ok(()),
                Err(err) if err.raw_os_error() == Some(libc::EINTR) => {}
                Err(err) => return Err(err),
            }
        }
    }

    fn fired(&self) -> io::Result<bool> {
        let Some(ended) = self.ring.borrow_mut().completion().next() else { return Ok(false) };
        self.armed.set(false);
        match ended.result() {
            error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
            _ => Ok(true),
        }
    }
}
