//! Disks: a directory of files, driven by submit and poll.
//!
//! [`Disk`] is what drivers implement. [`DiskQueue`] is how the engine uses it: futures over submit and poll,
//! with a bounded number of operations in flight. Dropping such a future forgets the token; the buffer stays
//! the driver's until the operation has ended (R17).

use crate::buf::{Buf, SharedBuf};
use crate::handle::{LocalBoxFuture, Rt};
use crate::select::{Either, select, yield_now};
use crate::sync::{Notify, Semaphore, oneshot};
use ember_types::Instant;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::rc::{Rc, Weak};
use std::time::Duration;
use usage::{Latencies, User};

/// Answers that are handed out before others get a turn.
const TOLD_AT_ONCE: usize = 4;

mod usage;

pub use usage::Latency;

/// An open file of one [`Disk`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileId(pub u32);

/// Which work goes first when the device is busy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Priority {
    /// A client waits.
    Foreground,
    /// Bringing a replica up to date.
    Resync,
    /// Checking stored bytes.
    Scrub,
}

/// What to do with a file. Offsets and lengths are in bytes; for files opened direct they are multiples of
/// 4096, and `data` is aligned.
#[derive(Debug)]
pub enum OpKind {
    /// Fill `buf.whole_mut()[..len]` from `offset`. The result is the number of bytes read: short at the end
    /// of the file.
    Read {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: usize,
        /// Where to.
        buf: Buf,
    },
    /// Write all of `data` at `offset`. A short write is an error.
    Write {
        /// First byte.
        offset: u64,
        /// What.
        data: SharedBuf,
    },
    /// Make everything written to the file so far durable (fdatasync).
    Sync,
    /// Reserve space and extend the file (fallocate).
    Allocate {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Give space back; the bytes read as zeros (fallocate PUNCH_HOLE, KEEP_SIZE).
    Punch {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
}

/// An operation for a disk.
#[derive(Debug)]
pub struct Op {
    /// Comes back with the completion. Unique among those in flight.
    pub token: u64,
    /// Which file.
    pub file: FileId,
    /// How urgent.
    pub priority: Priority,
    /// What.
    pub kind: OpKind,
}

/// The end of an operation.
#[derive(Debug)]
pub struct Completion {
    /// The operation's token.
    pub token: u64,
    /// Bytes read or written, 0 for others; or the error.
    pub result: io::Result<usize>,
    /// The buffer of a read.
    pub buf: Option<Buf>,
}

/// How to open a file.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct OpenMode {
    /// Make it if it isn't there.
    pub create: bool,
    /// Refuse it if it is there.
    pub exclusive: bool,
    /// Go past the page cache (O_DIRECT). Where the file system can't, the file is opened buffered and
    /// [`Disk::warnings`] says so.
    pub direct: bool,
}

/// Space of the file system that holds a disk; numbers are bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Space {
    /// All.
    pub total: u64,
    /// Free for us.
    pub available: u64,
    /// Identifies the file system on this machine, so that two disks on one are counted once.
    pub file_system: u64,
}

/// Opens disks.
pub trait Disks {
    /// Opens the directory `root` as a disk; it must exist.
    fn open(&self, root: &Path) -> io::Result<Box<dyn Disk>>;
}

/// One disk. Names are paths relative to its root, without `..`. The methods that return `io::Result` at once
/// may block and are for start, rotation and shutdown.
pub trait Disk {
    /// Starts an operation. More than the device takes wait within the driver, by priority.
    fn submit(&self, op: Op);
    /// Collects the operations that have ended.
    fn poll(&self, out: &mut Vec<Completion>);
    /// Waits until [`Disk::poll`] has something to collect. One waiter at a time.
    fn ready(&self) -> LocalBoxFuture<'_, ()>;

    /// Opens a file for reading and writing.
    fn open_file(&self, name: &str, mode: OpenMode) -> io::Result<FileId>;
    /// Closes a file after its operations have ended.
    fn close_file(&self, file: FileId);
    /// Length of a file, in bytes.
    fn file_len(&self, file: FileId) -> io::Result<u64>;
    /// Cuts or extends a file; durable after the next `Sync`.
    fn set_file_len(&self, file: FileId, len: u64) -> io::Result<()>;
    /// Names of the entries of a directory (`""` is the root), sorted.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Makes a directory and its parents; fine if it is there.
    fn create_dir(&self, dir: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, name: &str) -> io::Result<()>;
    /// Renames a file or directory, replacing a file of that name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes creations, renames and removals in a directory durable (fsync of the directory).
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Reads a small file whole.
    fn read_small(&self, name: &str) -> io::Result<Vec<u8>>;
    /// Replaces a small file by a durable rename: after a crash it has the old or the new content.
    fn write_small(&self, name: &str, content: &[u8]) -> io::Result<()>;
    /// Takes the exclusive lock of a directory for as long as this disk is open, if it doesn't have it already;
    /// an error of the kind `ResourceBusy` names the holder's pid if it is known.
    fn lock(&self, dir: &str) -> io::Result<()>;
    /// Space of the file system; one that doesn't know its own (ramfs) counts as 1 TiB that is free.
    fn space(&self) -> io::Result<Space>;
    /// Whether, in files that were opened direct, an overwrite of bytes that were written before, with a flush of
    /// the file since, changes nothing that the file system would have to make durable, and reaches the device
    /// before it ends: then a flush of any file makes it durable, and a device that loses nothing needs none.
    fn overwrites_in_place(&self) -> bool {
        false
    }
    /// Some of the ranges of a file, at or behind `from`, that were written before, in order; none if there are no
    /// more, or where it isn't known. May block.
    fn written(&self, _file: FileId, _from: u64) -> io::Result<Vec<Range<u64>>> {
        Ok(Vec::new())
    }
    /// What this file system can't do, for people; empty if there is nothing to say.
    fn warnings(&self) -> Vec<&'static str>;
}

impl OpKind {
    /// What it is, for people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Sync => "flush",
            Self::Allocate { .. } => "allocation",
            Self::Punch { .. } => "hole punch",
        }
    }
}

/// An operation that the driver has.
struct Waiting {
    /// Gone if the user was stopped: nobody waits any more.
    answer: Option<oneshot::Sender<Completion>>,
    user: Rc<User>,
    since: Instant,
    what: &'static str,
}

struct QueueState {
    rt: Rt,
    disk: Box<dyn Disk>,
    /// By token: the oldest comes first.
    waiting: RefCell<BTreeMap<u64, Waiting>>,
    next_token: Cell<u64>,
    slots: Semaphore,
    closing: Notify,
    users: RefCell<Vec<Weak<User>>>,
    latencies: RefCell<Latencies>,
}

impl QueueState {
    fn ended(&self, completion: Completion) {
        let Some(waiting) = self.waiting.borrow_mut().remove(&completion.token) else { return };
        self.slots.add_permits(1);
        waiting.user.ended();
        let now = self.rt.now();
        self.latencies.borrow_mut().add(now, now.since(waiting.since));
        if let Some(answer) = waiting.answer {
            // An asker that went away has forgotten its token: nothing to tell.
            let _ = answer.send(completion);
        }
    }
}

/// Ends the queue's task, and with it the disk, when the last user is gone.
struct Owner(Rc<QueueState>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.closing.notify_one();
    }
}

/// An operation that the driver has.
struct Started {
    ended: oneshot::Receiver<Completion>,
    user: Rc<User>,
}

impl Started {
    async fn end(self) -> io::Result<Completion> {
        self.ended.await.map_err(|_| self.user.error())
    }
}

/// A write that the driver has. Dropped, it goes on.
pub struct Writing {
    started: Started,
    len: usize,
}

impl Writing {
    /// Waits until it has ended.
    pub async fn end(self) -> io::Result<()> {
        match self.started.end().await?.result? {
            written if written == self.len => Ok(()),
            written => Err(io::Error::other(format!("wrote {written} of {} bytes", self.len))),
        }
    }
}

/// A disk as futures, for one user of it. Cheap to clone. One task per queue collects the completions; the disk
/// closes when the last clone is dropped.
#[derive(Clone)]
pub struct DiskQueue {
    owner: Rc<Owner>,
    user: Rc<User>,
}

impl DiskQueue {
    /// Starts the queue's task; at most `depth` operations are in flight, the rest wait in order of arrival.
    pub fn start(rt: &Rt, disk: Box<dyn Disk>, depth: usize) -> Self {
        let state = Rc::new(QueueState {
            rt: rt.clone(),
            disk,
            waiting: RefCell::default(),
            next_token: Cell::new(1),
            slots: Semaphore::new(depth),
            closing: Notify::new(),
            users: RefCell::default(),
            latencies: RefCell::default(),
        });
        let owner = Rc::new(Owner(state.clone()));
        rt.spawn("disk queue", async move {
            let mut ended = Vec::new();
            while let Either::Right(()) = select(state.closing.notified(), state.disk.ready()).await {
                state.disk.poll(&mut ended);
                for (number, completion) in ended.drain(..).enumerate() {
                    // Those who wait for the first ones give the device new work before the others are told.
                    if number > 0 && number % TOLD_AT_ONCE == 0 {
                        yield_now().await;
                    }
                    state.ended(completion);
                }
            }
        });
        Self { owner, user: Rc::default() }
    }

    /// The same disk for another user, a target say: what that one has in flight is counted apart, and it can be
    /// stopped alone. Clones are the same user.
    pub fn for_user(&self) -> Self {
        let user: Rc<User> = Rc::default();
        let mut users = self.state().users.borrow_mut();
        users.retain(|user| user.strong_count() > 0);
        users.push(Rc::downgrade(&user));
        Self { owner: self.owner.clone(), user }
    }
    /// Stops this user for good: whoever waits for an operation is answered with an error that says `why`, and so is
    /// every later one. What the driver has in flight stays the driver's until it has ended (R17).
    pub fn stop(&self, why: &str) {
        if self.user.stop(why) {
            let mut waiting = self.state().waiting.borrow_mut();
            let own = waiting.values_mut().filter(|waiting| Rc::ptr_eq(&waiting.user, &self.user));
            own.for_each(|waiting| drop(waiting.answer.take()));
        }
    }
    /// Stops every user that [`DiskQueue::for_user`] made.
    pub fn stop_users(&self, why: &str) {
        let users: Vec<Rc<User>> = self.state().users.borrow().iter().filter_map(Weak::upgrade).collect();
        for user in users {
            Self { owner: self.owner.clone(), user }.stop(why);
        }
    }
    /// Fails if this user was stopped.
    pub fn check(&self) -> io::Result<()> {
        self.user.check()
    }
    /// Operations of this user that the driver has, whether anybody waits for them or not.
    pub fn in_flight(&self) -> usize {
        self.user.in_flight()
    }
    /// The operation of any user that is in flight for longest: what it is, and since when.
    pub fn oldest(&self) -> Option<(&'static str, Instant)> {
        let waiting = self.state().waiting.borrow();
        waiting.first_key_value().map(|(_, oldest)| (oldest.what, oldest.since))
    }
    /// How long the operations of all users took that ended within `window` before now.
    pub fn latency(&self, window: Duration) -> Latency {
        self.state().latencies.borrow().within(self.state().rt.now(), window)
    }

    fn state(&self) -> &QueueState {
        &self.owner.0
    }
    /// The disk, for its immediate operations.
    pub fn disk(&self) -> &dyn Disk {
        &*self.state().disk
    }

    async fn run(&self, file: FileId, priority: Priority, kind: OpKind) -> io::Result<Completion> {
        self.start_op(file, priority, kind).await?.end().await
    }

    async fn start_op(&self, file: FileId, priority: Priority, kind: OpKind) -> io::Result<Started> {
        let state = self.state();
        self.user.check()?;
        let slot = match select(state.slots.acquire(), self.user.stopped()).await {
            Either::Left(slot) => slot.map_err(|_| io::Error::other("disk queue closed"))?,
            Either::Right(()) => return Err(self.user.error()),
        };
        self.user.check()?;
        slot.forget();
        let token = state.next_token.get();
        state.next_token.set(token + 1);
        let (answer, ended) = oneshot::channel();
        self.user.started();
        let waiting = Waiting {
            answer: Some(answer),
            user: self.user.clone(),
            since: state.rt.now(),
            what: kind.name(),
        };
        state.waiting.borrow_mut().insert(token, waiting);
        state.disk.submit(Op { token, file, priority, kind });
        Ok(Started { ended, user: self.user.clone() })
    }

    /// Reads up to `len` bytes at `offset`; shorter at the end of the file.
    pub async fn read(&self, file: FileId, priority: Priority, offset: u64, len: usize) -> io::Result<Buf> {
        let buf = Buf::scratch(len);
        let ended = self.run(file, priority, OpKind::Read { offset, len, buf }).await?;
        let read = ended.result?;
        let mut buf = ended.buf.ok_or_else(|| io::Error::other("driver kept the buffer of a read"))?;
        buf.set_len(read);
        Ok(buf)
    }
    /// Writes all of `data` at `offset`.
    pub async fn write(
        &self,
        file: FileId,
        priority: Priority,
        offset: u64,
        data: SharedBuf,
    ) -> io::Result<()> {
        self.start_write(file, priority, offset, data).await?.end().await
    }
    /// Starts to write all of `data` at `offset`: returns when the driver has it.
    pub async fn start_write(
        &self,
        file: FileId,
        priority: Priority,
        offset: u64,
        data: SharedBuf,
    ) -> io::Result<Writing> {
        let len = data.len();
        let started = self.start_op(file, priority, OpKind::Write { offset, data }).await?;
        Ok(Writing { started, len })
    }
    /// Makes everything written to the file so far durable.
    pub async fn sync(&self, file: FileId) -> io::Result<()> {
        self.run(file, Priority::Foreground, OpKind::Sync).await?.result.map(|_| ())
    }
    /// Reserves space.
    pub async fn allocate(&self, file: FileId, offset: u64, len: u64) -> io::Result<()> {
        self.run(file, Priority::Foreground, OpKind::Allocate { offset, len }).await?.result.map(|_| ())
    }
    /// Gives space back.
    pub async fn punch(&self, file: FileId, offset: u64, len: u64) -> io::Result<()> {
        self.run(file, Priority::Scrub, OpKind::Punch { offset, len }).await?.result.map(|_| ())
    }
}
