//! The way requests come and answers go: the [`Channel`] seam and its form over `/dev/fuse`.

use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, read, writev};
use zerocopy::IntoBytes;

use crate::buffer::{RecvBuffer, Slot};
use crate::error::Error;
use crate::notify::Notification;
use crate::reply::Reply;
use crate::sys;

/// The device.
pub const DEVICE: &str = "/dev/fuse";

/// Most slices of one message, header included: the kernel's UIO_MAXIOV.
const SLICES_MAX: usize = 1024;

/// What a receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Received {
    /// The slot holds a request.
    Request,
    /// Nothing yet (only from [`Channel::try_recv`]).
    WouldBlock,
    /// The mount is gone: unmounted, or its connection was aborted. No request comes any more.
    Ended,
}

/// What became of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The kernel has it.
    Done,
    /// The kernel no longer waits for it: the request was interrupted before the server began it, or it was
    /// aborted. Nothing to do.
    Gone,
    /// The mount is gone.
    Ended,
}

/// What became of a notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notified {
    /// The kernel did it.
    Done,
    /// The kernel has no such inode or name in its cache, so there was nothing to do.
    NotCached,
    /// A DELETE was not done, as the directory is not empty for the kernel or something is mounted on it.
    InUse,
    /// This kernel does not know the notification.
    Unsupported,
    /// The mount is gone.
    Ended,
}

/// One queue of requests of one mount. A request must be answered through the channel that brought it, by any
/// thread, in any order; a mount may have several channels, whose requests are different ones.
///
/// The second implementation, over io_uring, will have ring entries as slots.
pub trait Channel: Send + Sync {
    /// Memory that holds one request until it is answered.
    type Slot: Slot;

    /// Waits for a request.
    fn recv(&self, slot: &mut Self::Slot) -> Result<Received, Error>;

    /// Takes a request if there is one. Needs a channel that was made non-blocking.
    fn try_recv(&self, slot: &mut Self::Slot) -> Result<Received, Error>;

    /// Answers the request `unique`; `payload` follows the reply's fixed part without being copied here.
    fn reply(&self, unique: u64, reply: &Reply, payload: &[IoSlice<'_>]) -> Result<Delivery, Error>;

    /// Tells the kernel something unasked. It may wait for locks that a request being served holds, so it
    /// must never be called by a thread that serves requests: see [`crate::NotifyQueue`].
    fn notify(&self, notification: &Notification<'_>) -> Result<Notified, Error>;
}

/// A channel over a descriptor of `/dev/fuse`.
#[derive(Debug)]
pub struct DevChannel {
    device: OwnedFd,
}

impl DevChannel {
    /// Wraps the descriptor that a mount was made with (or one handed over by the server before this one).
    pub fn from_fd(device: OwnedFd) -> Self {
        Self { device }
    }

    /// A further queue of the same mount, by a descriptor of its own (FUSE_DEV_IOC_CLONE). Give each thread
    /// one: they then don't share a lock in the kernel.
    pub fn try_clone(&self) -> Result<Self, Error> {
        let device = open_device()?;
        sys::clone_device(&device, &self.device).map_err(|e| Error::io("clone of /dev/fuse", e))?;
        Ok(Self { device: device.into() })
    }

    /// Makes receives return at once if there is no request. Per queue: clones are blocking at first.
    pub fn set_nonblocking(&self, nonblocking: bool) -> Result<(), Error> {
        let mut flags = fcntl_getfl(&self.device).map_err(|e| Error::io("fcntl of /dev/fuse", e))?;
        flags.set(OFlags::NONBLOCK, nonblocking);
        fcntl_setfl(&self.device, flags).map_err(|e| Error::io("fcntl of /dev/fuse", e))
    }

    /// Receives into memory of the caller's, which must have [`crate::message_size`] bytes; best a
    /// [`crate::message_window`]. The number is the length of the message. Never [`Received::WouldBlock`].
    pub fn recv_into(&self, memory: &mut [u8]) -> Result<(Received, usize), Error> {
        loop {
            match self.try_recv_into(memory)? {
                (Received::WouldBlock, _) => self.wait()?,
                received => return Ok(received),
            }
        }
    }

    /// Like [`DevChannel::recv_into`], but does not wait on a non-blocking channel.
    pub fn try_recv_into(&self, memory: &mut [u8]) -> Result<(Received, usize), Error> {
        loop {
            match read(&self.device, &mut *memory) {
                Ok(len) => return Ok((Received::Request, len)),
                // ENOENT: the request was interrupted before it was handed over; the next one, please.
                Err(Errno::NOENT | Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok((Received::WouldBlock, 0)),
                Err(Errno::NODEV | Errno::CONNABORTED) => return Ok((Received::Ended, 0)),
                Err(Errno::INVAL) => {
                    let what = format!("read of /dev/fuse: a buffer of {} bytes is too small", memory.len());
                    return Err(Error::io(what, Errno::INVAL));
                }
                Err(errno) => return Err(Error::io("read of /dev/fuse", errno)),
            }
        }
    }

    fn wait(&self) -> Result<(), Error> {
        match poll(&mut [PollFd::new(&self.device, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(Error::io("poll of /dev/fuse", errno)),
        }
    }

    /// Writes one message, whole or not at all.
    fn send(&self, parts: &[IoSlice<'_>]) -> Result<(), Errno> {
        loop {
            match writev(&self.device, parts) {
                Err(Errno::INTR) => {}
                result => return result.map(|_| ()),
            }
        }
    }
}

impl Channel for DevChannel {
    type Slot = RecvBuffer;

    fn recv(&self, slot: &mut RecvBuffer) -> Result<Received, Error> {
        let (received, len) = self.recv_into(slot.window())?;
        slot.set_filled(len);
        Ok(received)
    }

    fn try_recv(&self, slot: &mut RecvBuffer) -> Result<Received, Error> {
        let (received, len) = self.try_recv_into(slot.window())?;
        slot.set_filled(len);
        Ok(received)
    }

    fn reply(&self, unique: u64, reply: &Reply, payload: &[IoSlice<'_>]) -> Result<Delivery, Error> {
        let too_long = || Error::io(format!("answer to FUSE request {unique} is too long"), Errno::MSGSIZE);
        let len = payload.iter().map(|slice| slice.len()).sum();
        let header = reply.header(unique, len).ok_or_else(too_long)?;
        let sent = with_slices(header.as_bytes(), reply.fixed(), payload, |parts| self.send(parts));
        match sent.ok_or_else(too_long)? {
            Ok(()) => Ok(Delivery::Done),
            Err(Errno::NOENT) => Ok(Delivery::Gone),
            Err(Errno::NODEV | Errno::CONNABORTED | Errno::NOTCONN) => Ok(Delivery::Ended),
            Err(errno) => {
                Err(Error::io(format!("answer to FUSE request {unique} ({} bytes)", header.len), errno))
            }
        }
    }

    fn notify(&self, notification: &Notification<'_>) -> Result<Notified, Error> {
        let encoded = notification.encode()?;
        let parts = [encoded.header.as_bytes(), encoded.fixed(), encoded.tail, encoded.end];
        let parts = parts.map(IoSlice::new);
        debug_assert_eq!(encoded.header.len as usize, parts.iter().map(|p| p.len()).sum::<usize>());
        match self.send(&parts) {
            Ok(()) => Ok(Notified::Done),
            Err(Errno::NOENT) => Ok(Notified::NotCached),
            Err(Errno::NOTEMPTY | Errno::BUSY) => Ok(Notified::InUse),
            Err(Errno::NOSYS) => Ok(Notified::Unsupported),
            // A kernel that does not know the code says EINVAL.
            Err(Errno::INVAL) if notification.is_recent() => Ok(Notified::Unsupported),
            Err(Errno::NODEV | Errno::CONNABORTED | Errno::NOTCONN) => Ok(Notified::Ended),
            Err(errno) => Err(Error::io(format!("FUSE notification {}", encoded.header.error), errno)),
        }
    }
}

impl AsFd for DevChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl From<DevChannel> for OwnedFd {
    fn from(channel: DevChannel) -> Self {
        channel.device
    }
}

/// Puts header, fixed part and payload in one list of slices; `None` if they are more than the kernel takes.
fn with_slices<R>(
    header: &[u8],
    fixed: &[u8],
    payload: &[IoSlice<'_>],
    send: impl FnOnce(&[IoSlice<'_>]) -> R,
) -> Option<R> {
    const FEW: usize = 8;
    let count = 2 + payload.len();
    if count > SLICES_MAX {
        return None;
    }
    if count <= FEW {
        let mut few = [IoSlice::new(&[]); FEW];
        few[0] = IoSlice::new(header);
        few[1] = IoSlice::new(fixed);
        few[2..count].copy_from_slice(payload);
        return Some(send(&few[..count]));
    }
    let mut many = Vec::with_capacity(count);
    many.extend([IoSlice::new(header), IoSlice::new(fixed)]);
    many.extend_from_slice(payload);
    Some(send(&many))
}

/// Opens the device, with an error that says what to do.
pub(crate) fn open_device() -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(OFlags::CLOEXEC.bits() as i32);
    options.open(DEVICE).map_err(|source| {
        let unavailable = |what: &str, remedy| Error::Unavailable { what: what.to_owned(), remedy };
        match Errno::from_io_error(&source) {
            Some(Errno::NOENT) => unavailable(
                "/dev/fuse does not exist",
                "load the module with `modprobe fuse`; in a container, start it with `--device /dev/fuse`",
            ),
            Some(Errno::NODEV | Errno::NXIO) => {
                unavailable("the kernel has no FUSE", "load the module with `modprobe fuse`")
            }
            Some(Errno::ACCESS | Errno::PERM) => unavailable(
                "no permission to open /dev/fuse",
                "allow it to this user (mode 0666 is usual); in a container, start it with \
                 `--device /dev/fuse --cap-add SYS_ADMIN`",
            ),
            _ => Error::Io { what: format!("open of {DEVICE}"), source },
        }
    })
}
