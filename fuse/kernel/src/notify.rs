//! What the server tells the kernel unasked.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use zerocopy::{Immutable, IntoBytes};

use crate::abi::*;
use crate::channel::{Channel, Notified};
use crate::dirbuf::check_name;
use crate::error::Error;

/// One notification. All are about the kernel's caches, except [`Notification::Resend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notification<'a> {
    /// Drop the attributes of a node, and its pages from `offset` on for `len` bytes (0: to the end). A
    /// negative `offset` leaves the pages.
    InvalInode {
        /// The node.
        ino: u64,
        /// First byte.
        offset: i64,
        /// Bytes.
        len: i64,
    },
    /// Forget what a name in a directory stands for.
    InvalEntry {
        /// The directory.
        parent: u64,
        /// The name.
        name: &'a [u8],
        /// Only let it expire, so that it is asked for again, instead of unhashing it (Linux 6.2).
        expire_only: bool,
    },
    /// The name was removed and it was `child`; a process in it sees so (inotify, getcwd).
    Delete {
        /// The directory.
        parent: u64,
        /// The removed node.
        child: u64,
        /// The name.
        name: &'a [u8],
    },
    /// Put `data` into the page cache of a node.
    Store {
        /// The node.
        ino: u64,
        /// First byte.
        offset: u64,
        /// The bytes.
        data: &'a [u8],
    },
    /// Something that was polled may be ready.
    PollWakeup {
        /// The kernel's handle, from the POLL request.
        kh: u64,
    },
    /// Send all requests again that the server read and did not answer: after a takeover (Linux 6.9).
    Resend,
    /// Look every cached name up again at its next use (Linux 6.16).
    IncEpoch,
}

/// A notification as bytes: header, fixed part, `tail`, `end`.
pub(crate) struct Encoded<'a> {
    pub(crate) header: OutHeader,
    fixed: [u8; 24],
    fixed_len: usize,
    pub(crate) tail: &'a [u8],
    pub(crate) end: &'static [u8],
}

impl Encoded<'_> {
    pub(crate) fn fixed(&self) -> &[u8] {
        &self.fixed[..self.fixed_len]
    }
}

impl<'a> Notification<'a> {
    /// Whether supported kernels exist that do not know it.
    pub(crate) fn is_recent(&self) -> bool {
        matches!(self, Self::Resend | Self::IncEpoch | Self::InvalEntry { expire_only: true, .. })
    }

    pub(crate) fn encode(&self) -> Result<Encoded<'a>, Error> {
        const NUL: &[u8] = &[0];
        Ok(match *self {
            Self::InvalInode { ino, offset, len } => {
                encoded(notify::INVAL_INODE, &NotifyInvalInodeOut { ino, off: offset, len }, &[], &[])
            }
            Self::InvalEntry { parent, name, expire_only } => {
                check_name(name)?;
                let flags = if expire_only { flag::EXPIRE_ONLY } else { 0 };
                let fixed = NotifyInvalEntryOut { parent, namelen: name.len() as u32, flags };
                encoded(notify::INVAL_ENTRY, &fixed, name, NUL)
            }
            Self::Delete { parent, child, name } => {
                check_name(name)?;
                let fixed = NotifyDeleteOut { parent, child, namelen: name.len() as u32, padding: 0 };
                encoded(notify::DELETE, &fixed, name, NUL)
            }
            Self::Store { ino, offset, data } => {
                let size = u32::try_from(data.len()).ok().filter(|&size| size < 1 << 31);
                let what = "FUSE notification STORE of 2 GiB or more";
                let size = size.ok_or_else(|| Error::io(what, rustix::io::Errno::MSGSIZE))?;
                encoded(notify::STORE, &NotifyStoreOut { nodeid: ino, offset, size, padding: 0 }, data, &[])
            }
            Self::PollWakeup { kh } => encoded(notify::POLL, &NotifyPollWakeupOut { kh }, &[], &[]),
            Self::Resend => encoded(notify::RESEND, &[0u8; 0], &[], &[]),
            Self::IncEpoch => encoded(notify::INC_EPOCH, &[0u8; 0], &[], &[]),
        })
    }
}

fn encoded<'a, T: IntoBytes + Immutable>(
    code: i32,
    fixed: &T,
    tail: &'a [u8],
    end: &'static [u8],
) -> Encoded<'a> {
    let fixed_len = size_of::<T>();
    let len = size_of::<OutHeader>() + fixed_len + tail.len() + end.len();
    let header = OutHeader { len: len as u32, error: code, unique: 0 };
    let mut bytes = [0; 24];
    bytes[..fixed_len].copy_from_slice(fixed.as_bytes());
    Encoded { header, fixed: bytes, fixed_len, tail, end }
}

/// A [`Notification`] that owns its bytes, for the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnedNotification {
    /// See [`Notification::InvalInode`].
    InvalInode {
        /// The node.
        ino: u64,
        /// First byte.
        offset: i64,
        /// Bytes.
        len: i64,
    },
    /// See [`Notification::InvalEntry`].
    InvalEntry {
        /// The directory.
        parent: u64,
        /// The name.
        name: Vec<u8>,
        /// Only let it expire.
        expire_only: bool,
    },
    /// See [`Notification::Delete`].
    Delete {
        /// The directory.
        parent: u64,
        /// The removed node.
        child: u64,
        /// The name.
        name: Vec<u8>,
    },
    /// See [`Notification::Store`].
    Store {
        /// The node.
        ino: u64,
        /// First byte.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// See [`Notification::IncEpoch`].
    IncEpoch,
}

impl OwnedNotification {
    /// The same, borrowed.
    pub fn borrow(&self) -> Notification<'_> {
        match self {
            &Self::InvalInode { ino, offset, len } => Notification::InvalInode { ino, offset, len },
            Self::InvalEntry { parent, name, expire_only } => {
                Notification::InvalEntry { parent: *parent, name, expire_only: *expire_only }
            }
            Self::Delete { parent, child, name } => {
                Notification::Delete { parent: *parent, child: *child, name }
            }
            Self::Store { ino, offset, data } => Notification::Store { ino: *ino, offset: *offset, data },
            Self::IncEpoch => Notification::IncEpoch,
        }
    }
}

/// The queue was full or closed; the notification comes back.
#[derive(Debug)]
pub struct NotQueued(pub OwnedNotification);

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<OwnedNotification>,
    closed: bool,
}

/// A bounded queue of notifications between the threads that serve requests and the one thread that sends
/// them, which may wait in the kernel for locks that a request being served holds.
#[derive(Debug)]
pub struct NotifyQueue {
    state: Mutex<State>,
    changed: Condvar,
    capacity: usize,
}

impl NotifyQueue {
    /// A queue of at most `capacity` notifications.
    pub fn new(capacity: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), capacity }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock, so a poisoned state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a notification without waiting. One that is already last in the queue is not queued twice.
    pub fn push(&self, notification: OwnedNotification) -> Result<(), NotQueued> {
        let mut state = self.lock();
        if !state.closed && state.waiting.back() == Some(&notification) {
            return Ok(());
        }
        if state.closed || state.waiting.len() >= self.capacity {
            return Err(NotQueued(notification));
        }
        state.waiting.push_back(notification);
        self.changed.notify_one();
        Ok(())
    }

    /// Ends [`NotifyQueue::run`] once the queue is empty; later pushes fail.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Sends what is queued until the queue is closed or the mount is gone. Belongs on a thread of its own.
    /// A notification that fails is logged and passed over.
    pub fn run(&self, channel: &impl Channel) {
        while let Some(notification) = self.next() {
            match channel.notify(&notification.borrow()) {
                Ok(Notified::Ended) => return self.close(),
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, ?notification, "a FUSE notification failed"),
            }
        }
    }

    fn next(&self) -> Option<OwnedNotification> {
        let mut state = self.lock();
        loop {
            if let Some(notification) = state.waiting.pop_front() {
                return Some(notification);
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_travel_with_their_nul_and_lengths_add_up() {
        let delete = Notification::Delete { parent: 1, child: 2, name: b"gone" };
        let bytes = delete.encode().unwrap();
        assert_eq!((bytes.header.len, bytes.header.error, bytes.header.unique), (16 + 24 + 5, 6, 0));
        assert_eq!((bytes.tail, bytes.end), (&b"gone"[..], &[0u8][..]));
        assert_eq!(Notification::Resend.encode().unwrap().header.len, 16);
        let bad = Notification::InvalEntry { parent: 1, name: b"a/b", expire_only: false };
        assert!(matches!(bad.encode(), Err(Error::BadName(3))));
    }

    #[test]
    fn the_queue_is_bounded_and_closes() {
        let queue = NotifyQueue::new(2);
        let inode = |ino| OwnedNotification::InvalInode { ino, offset: 0, len: 0 };
        queue.push(inode(1)).unwrap();
        queue.push(inode(2)).unwrap();
        queue.push(inode(2)).unwrap();
        assert_eq!(queue.push(inode(3)).unwrap_err().0, inode(3));
        assert_eq!(queue.next(), Some(inode(1)));
        queue.push(inode(3)).unwrap();
        queue.close();
        assert!(queue.push(inode(4)).is_err());
        assert_eq!((queue.next(), queue.next(), queue.next()), (Some(inode(2)), Some(inode(3)), None));
    }
}
