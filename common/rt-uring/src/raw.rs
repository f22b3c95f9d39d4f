//! The one place where buffers of the seam are lent to tokio-uring.
//!
//! Why `unsafe`: tokio-uring asks a buffer type to promise that its bytes stay where they are while the
//! kernel works on them. [`Buf`] and [`SharedBuf`] own heap memory that stays when the owner moves; the
//! wrappers here own them, so the bytes live until tokio-uring gives the wrapper back, also if the future is
//! dropped.

use ember_rt::{Buf, SharedBuf};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use tokio_uring::buf::{IoBuf, IoBufMut};

/// A range of a buffer, to be received into.
pub(crate) struct Window {
    buf: Buf,
    range: Range<usize>,
}

impl Window {
    /// # Panics
    /// If the range isn't within the buffer's capacity.
    pub(crate) fn new(buf: Buf, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= buf.capacity(), "{range:?} of {buf:?}");
        Self { buf, range }
    }
    pub(crate) fn into_buf(self) -> Buf {
        self.buf
    }
}

// SAFETY: the pointer is into heap memory owned by `buf`, which is not touched while `self` is lent; the
// range was checked against the capacity, and all bytes of a `Buf` are initialised.
unsafe impl IoBuf for Window {
    fn stable_ptr(&self) -> *const u8 {
        self.buf.whole()[self.range.clone()].as_ptr()
    }
    fn bytes_init(&self) -> usize {
        0
    }
    fn bytes_total(&self) -> usize {
        self.range.len()
    }
}

// SAFETY: as above; the memory is owned exclusively. `bytes_init` stays 0, so the whole range is offered.
unsafe impl IoBufMut for Window {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        let range = self.range.clone();
        self.buf.whole_mut()[range].as_mut_ptr()
    }
    unsafe fn set_init(&mut self, _: usize) {}
}

/// A run of bytes, to be sent.
pub(crate) struct Part(pub(crate) SharedBuf);

// SAFETY: the bytes are heap memory behind an `Arc` that `self` holds; nobody can change them while shared.
unsafe impl IoBuf for Part {
    fn stable_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.0.len()
    }
    fn bytes_total(&self) -> usize {
        self.0.len()
    }
}

/// The descriptor of a socket that `socket` keeps open for at least as long as the borrow.
pub(crate) fn fd_of(socket: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: called for tokio-uring's sockets only, which close their descriptor when they are dropped.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}
