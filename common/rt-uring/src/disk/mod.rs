//! Disks: a directory each, driven by a ring of its own.
//!
//! [`submit`](Disk::submit) queues. The ring is fed when the task that waits in [`ready`](Disk::ready) runs
//! next, which is after every task that could run has run, or when [`SUBMIT_AT`] operations wait, or one for an idle
//! device: so a system call may start several, and the device doesn't wait until all tasks of a turn have run. A
//! completion wakes that task through the ring's descriptor.

mod files;
mod map;
mod ring;
mod sched;

use files::Root;
use ring::{Flight, OpenFile, Ring, RingFd};
use rustix::fs::OFlags;
use sched::Queues;

use ember_rt::LocalBoxFuture;
use ember_rt::disk::{Completion, Disk, Disks, FileId, Op, OpKind, OpenMode, Space};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::task::{Poll, Waker};
use tokio::io::unix::AsyncFd;

/// Operations that may wait for the device; above it they end with an error.
const WAITING_MAX: usize = 65_536;

/// As many operations go to the kernel at once rather than at the end of the reactor's turn. A device behind a
/// hypervisor ends what it has in one go: it is idle then until the first of the next comes.
const SUBMIT_AT: usize = 2;

/// Opens disks on this machine.
pub(crate) struct UringDisks {
    /// Operations in flight per disk.
    pub(crate) depth: u32,
}

impl Disks for UringDisks {
    fn open(&self, root: &Path) -> io::Result<Box<dyn Disk>> {
        Ok(Box::new(UringDisk::open(root, self.depth)?))
    }
}

struct Device {
    ring: Ring,
    queues: Queues<Flight>,
    files: BTreeMap<FileId, Rc<OpenFile>>,
    next_file: u32,
    /// Operations that came since the ring was fed.
    unfed: usize,
    finished: Vec<Completion>,
}

impl Device {
    /// Starts what may start; what has ended is left to the next [`Device::turn`].
    fn feed(&mut self) {
        self.unfed = 0;
        while let Some(flight) = self.queues.next() {
            self.ring.push(flight);
        }
        if let Err(err) = self.ring.submit() {
            tracing::error!("io_uring takes no operations: {err}");
        }
    }

    /// Collects what has ended and starts what may start, until the kernel has everything. `false` if it
    /// takes no more at the moment.
    fn turn(&mut self) -> bool {
        self.unfed = 0;
        loop {
            let (queues, finished) = (&mut self.queues, &mut self.finished);
            self.ring.reap(|weight, completion| {
                queues.ended(weight);
                finished.push(completion);
            });
            while let Some(flight) = self.queues.next() {
                self.ring.push(flight);
            }
            if !self.ring.has_unsubmitted() {
                return true;
            }
            // What the page cache answers ends within the submission: hence the loop.
            match self.ring.submit() {
                Ok(true) => {}
                Ok(false) => return false,
                Err(err) => {
                    tracing::error!("io_uring takes no operations: {err}");
                    return false;
                }
            }
        }
    }
}

/// A directory of this machine as a disk.
pub(crate) struct UringDisk {
    // Before the ring, whose descriptor it watches.
    completions: AsyncFd<RingFd>,
    device: RefCell<Device>,
    waiter: RefCell<Option<Waker>>,
    root: Root,
    direct: Cell<bool>,
    in_place: Cell<bool>,
    reserves: Rc<Cell<bool>>,
    locks: RefCell<BTreeMap<String, OwnedFd>>,
}

impl UringDisk {
    fn open(path: &Path, depth: u32) -> io::Result<Self> {
        let root = Root::open(path)?;
        let depth = depth.clamp(4, 4096);
        let ring = Ring::new(depth).map_err(|err| {
            let text = crate::probe().err().unwrap_or_else(|| format!("cannot make an io_uring: {err}"));
            io::Error::new(err.kind(), format!("{}: {text}", path.display()))
        })?;
        let completions = ring.watch()?;
        let direct = Cell::new(root.probe_direct());
        let in_place = Cell::new(direct.get() && root.overwrites_in_place());
        let device = Device {
            ring,
            queues: Queues::new(depth as usize),
            files: BTreeMap::new(),
            next_file: 1,
            unfed: 0,
            finished: Vec::new(),
        };
        Ok(Self {
            completions,
            device: RefCell::new(device),
            waiter: RefCell::new(None),
            root,
            direct,
            in_place,
            reserves: Rc::new(Cell::new(true)),
            locks: RefCell::default(),
        })
    }

    fn file(&self, file: FileId) -> io::Result<Rc<OpenFile>> {
        self.device.borrow().files.get(&file).cloned().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{file:?} of {} is not open", self.root.path().display()),
            )
        })
    }

    fn refuse(&self, op: Op, err: io::Error) {
        let buf = match op.kind {
            OpKind::Read { buf, .. } => Some(buf),
            _ => None,
        };
        self.device.borrow_mut().finished.push(Completion { token: op.token, result: Err(err), buf });
    }

    /// What the kernel would refuse in a less helpful way, or not at all.
    fn check(&self, op: &Op, file: &OpenFile) -> io::Result<()> {
        let invalid =
            |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{}: {text}", file.name)));
        let (offset, len) = match &op.kind {
            OpKind::Read { len, buf, .. } if *len > buf.capacity() => {
                return invalid(format!("read of {len} bytes into a buffer of {}", buf.capacity()));
            }
            OpKind::Write { data, .. } if file.direct && !data.is_aligned() => {
                return invalid("direct write from memory that is not page-aligned".to_owned());
            }
            OpKind::Read { offset, len, .. } => (*offset, *len),
            OpKind::Write { offset, data } => (*offset, data.len()),
            OpKind::Sync | OpKind::Allocate { .. } | OpKind::Punch { .. } => return Ok(()),
        };
        if file.direct && (!offset.is_multiple_of(4096) || !len.is_multiple_of(4096)) {
            return invalid(format!("direct access to {len} bytes at {offset}: not whole blocks of 4096"));
        }
        Ok(())
    }

    fn accept(&self, op: Op) {
        let checked = self.file(op.file).and_then(|file| self.check(&op, &file).map(|()| file));
        let file = match checked {
            Ok(file) => file,
            Err(err) => return self.refuse(op, err),
        };
        if self.device.borrow().queues.len() >= WAITING_MAX {
            return self.refuse(op, io::Error::new(io::ErrorKind::ResourceBusy, "too many operations wait"));
        }
        let mut device = self.device.borrow_mut();
        let flight = Flight::new(op, file);
        device.queues.push(flight.weight(), flight);
        device.unfed += 1;
        if device.unfed >= device.ring.in_flight().clamp(1, SUBMIT_AT) {
            device.feed();
        }
    }
}

impl Disk for UringDisk {
    fn submit(&self, op: Op) {
        self.accept(op);
        let waiter = self.waiter.borrow_mut().take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    fn poll(&self, out: &mut Vec<Completion>) {
        let mut device = self.device.borrow_mut();
        device.turn();
        out.append(&mut device.finished);
    }

    fn ready(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(poll_fn(move |cx| {
            loop {
                let mut device = self.device.borrow_mut();
                let taken = device.turn();
                if !device.finished.is_empty() {
                    return Poll::Ready(());
                }
                drop(device);
                self.waiter.replace(Some(cx.waker().clone()));
                if !taken {
                    cx.waker().wake_by_ref();
                }
                match self.completions.poll_read_ready(cx) {
                    // Cleared before the queue is looked at again: what comes in between is seen or wakes us.
                    Poll::Ready(Ok(mut guard)) => guard.clear_ready(),
                    // The runtime ends; nobody waits any more.
                    Poll::Ready(Err(_)) | Poll::Pending => return Poll::Pending,
                }
            }
        }))
    }

    fn open_file(&self, name: &str, mode: OpenMode) -> io::Result<FileId> {
        let mut flags = OFlags::empty();
        flags.set(OFlags::CREATE, mode.create);
        flags.set(OFlags::EXCL, mode.create && mode.exclusive);
        let (fd, direct) = self.root.open_file(name, flags, mode.direct)?;
        if mode.direct && !direct {
            self.direct.set(false);
        }
        if mode.direct && self.in_place.get() && !(direct && self.root.is_really_direct(&fd)) {
            self.in_place.set(false);
        }
        let mut device = self.device.borrow_mut();
        let id = FileId(device.next_file);
        device.next_file += 1;
        let (name, reserves, place) = (name.to_owned(), self.reserves.clone(), Cell::default());
        let file = OpenFile { fd, name, direct, place, reserves };
        device.ring.register(&file);
        device.files.insert(id, Rc::new(file));
        Ok(id)
    }
    fn close_file(&self, file: FileId) {
        let mut device = self.device.borrow_mut();
        if let Some(file) = device.files.remove(&file) {
            device.ring.forget(&file);
        }
    }
    fn file_len(&self, file: FileId) -> io::Result<u64> {
        let file = self.file(file)?;
        let stat = rustix::fs::fstat(&file.fd)?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }
    fn set_file_len(&self, file: FileId, len: u64) -> io::Result<()> {
        let file = self.file(file)?;
        rustix::fs::ftruncate(&file.fd, len).map_err(|err| {
            let err = io::Error::from(err);
            io::Error::new(err.kind(), format!("cannot set the length of {} to {len}: {err}", file.name))
        })
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.root.list(dir)
    }
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.root.create_dir(dir)
    }
    fn remove_file(&self, name: &str) -> io::Result<()> {
        self.root.remove_file(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.root.rename(from, to)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.root.sync_dir(dir)
    }
    fn read_small(&self, name: &str) -> io::Result<Vec<u8>> {
        self.root.read_small(name)
    }
    fn write_small(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.root.write_small(name, content)
    }
    fn lock(&self, dir: &str) -> io::Result<()> {
        let mut locks = self.locks.borrow_mut();
        if !locks.contains_key(dir) {
            locks.insert(dir.to_owned(), self.root.lock(dir)?);
        }
        Ok(())
    }
    fn space(&self) -> io::Result<Space> {
        self.root.space()
    }
    fn overwrites_in_place(&self) -> bool {
        self.in_place.get()
    }
    fn written(&self, file: FileId, from: u64) -> io::Result<Vec<Range<u64>>> {
        let file = self.file(file)?;
        if self.in_place.get() { map::written(&file.fd, from) } else { Ok(Vec::new()) }
    }
    fn warnings(&self) -> Vec<&'static str> {
        let direct = "doesn't support O_DIRECT: reads and writes go through the page cache";
        let reserves = "can't reserve or give back space (fallocate): a write may find it full after it began, and \
                        removed data keep their space";
        let found = [(self.direct.get(), direct), (self.reserves.get(), reserves)];
        found.into_iter().filter(|(fine, _)| !fine).map(|(_, text)| text).collect()
    }
}

impl Drop for UringDisk {
    fn drop(&mut self) {
        let disk = self.root.path().display().to_string();
        self.device.get_mut().ring.drain(&disk);
    }
}
