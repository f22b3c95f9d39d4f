//! The io_uring of one disk and the table of operations in flight.
//!
//! Why `unsafe`: the kernel works on memory by address. The table owns each operation's buffer and file from
//! the push of its entry to its completion; nothing else can reach them in between, and the ring isn't
//! dropped before the table is empty (or else the table is leaked, [`Ring::drain`]). Registered buffers are slabs,
//! which are mapped for good.

use super::sched::Weight;
use ember_rt::disk::{Completion, Op, OpKind};
use ember_rt::{SLABS_MAX, slabs};
use io_uring::squeue::Flags;
use io_uring::{IoUring, opcode, types};
use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Times that an operation is started again after EINTR or EAGAIN.
const RETRIES_MAX: u32 = 64;
/// Bytes that one entry moves at most.
const ENTRY_BYTES_MAX: usize = 1 << 30;
/// Open files that are registered with a ring at most; others go by their descriptor.
const FILES_MAX: u32 = 1024;
/// How long a closing disk waits for operations that the device doesn't end.
const DRAIN: Duration = Duration::from_secs(30);

/// An open file; its descriptor closes when the last operation on it has ended.
pub(super) struct OpenFile {
    pub(super) fd: OwnedFd,
    pub(super) name: String,
    pub(super) direct: bool,
    /// Its place among the ring's registered files, until it is closed.
    pub(super) place: Cell<Option<u32>>,
    /// Cleared when the file system refuses to reserve space.
    pub(super) reserves: Rc<Cell<bool>>,
}

impl OpenFile {
    /// Makes the file as long as a reservation would, where the file system knows none.
    fn extend(&self, len: u64) -> io::Result<()> {
        self.reserves.set(false);
        if u64::try_from(rustix::fs::fstat(&self.fd)?.st_size).unwrap_or(0) < len {
            rustix::fs::ftruncate(&self.fd, len)?;
        }
        Ok(())
    }
}

/// An operation with the file it is for.
pub(super) struct Flight {
    pub(super) op: Op,
    pub(super) file: Rc<OpenFile>,
    done: usize,
    retries: u32,
}

impl Flight {
    pub(super) fn new(op: Op, file: Rc<OpenFile>) -> Self {
        Self { op, file, done: 0, retries: 0 }
    }

    pub(super) fn weight(&self) -> Weight {
        let written = if let OpKind::Write { data, .. } = &self.op.kind { data.len() } else { 0 };
        Weight::new(self.op.priority, written)
    }

    pub(super) fn end(self, result: io::Result<usize>) -> (Weight, Completion) {
        let weight = self.weight();
        let buf = match self.op.kind {
            OpKind::Read { buf, .. } => Some(buf),
            _ => None,
        };
        (weight, Completion { token: self.op.token, result, buf })
    }

    /// Takes a result of the kernel in: `Ok(None)` means that the rest has to be started.
    fn advance(&mut self, result: i32) -> io::Result<Option<usize>> {
        if result < 0 {
            if matches!(-result, libc::EINTR | libc::EAGAIN) && self.retries < RETRIES_MAX {
                self.retries += 1;
                return Ok(None);
            }
            return match &self.op.kind {
                OpKind::Allocate { offset, len } if -result == libc::EOPNOTSUPP => {
                    self.file.extend(offset + len).map(|()| Some(0))
                }
                // The space stays taken.
                OpKind::Punch { .. } if -result == libc::EOPNOTSUPP => Ok(Some(0)),
                _ => Err(io::Error::from_raw_os_error(-result)),
            };
        }
        let moved = result as usize;
        match &self.op.kind {
            OpKind::Read { len, .. } => {
                self.done += moved;
                // A direct read that stops within a sector has met the end of the file.
                let at_end = moved == 0 || (self.file.direct && !self.done.is_multiple_of(512));
                Ok((at_end || self.done >= *len).then_some(self.done))
            }
            OpKind::Write { data, .. } => {
                let before = self.done;
                self.done += moved;
                if self.done >= data.len() {
                    return Ok(Some(data.len()));
                }
                if self.file.direct {
                    // The rest must start at a sector again.
                    self.done -= self.done % 512;
                }
                if self.done == before {
                    return Err(io::Error::new(io::ErrorKind::WriteZero, "the device takes no more bytes"));
                }
                Ok(None)
            }
            OpKind::Sync | OpKind::Allocate { .. } | OpKind::Punch { .. } => Ok(Some(0)),
        }
    }

    /// The slab that the operation's memory is part of.
    fn slab(&self) -> Option<u16> {
        match &self.op.kind {
            OpKind::Read { buf, .. } => buf.slab(),
            OpKind::Write { data, .. } => data.slab(),
            _ => None,
        }
    }

    /// `slabs`: so many are registered as buffers.
    fn entry(&mut self, slabs: usize) -> io_uring::squeue::Entry {
        let (fd, flags) = match self.file.place.get() {
            Some(place) => (types::Fd(place as RawFd), Flags::FIXED_FILE),
            None => (types::Fd(self.file.fd.as_raw_fd()), Flags::empty()),
        };
        let slab = self.slab().filter(|slab| usize::from(*slab) < slabs);
        let done = self.done;
        let entry = match &mut self.op.kind {
            OpKind::Read { offset, len, buf } => {
                let rest = &mut buf.whole_mut()[done..*len];
                let (at, bytes) = (rest.as_mut_ptr(), rest.len().min(ENTRY_BYTES_MAX) as u32);
                let offset = *offset + done as u64;
                match slab {
                    Some(slab) => opcode::ReadFixed::new(fd, at, bytes, slab).offset(offset).build(),
                    None => opcode::Read::new(fd, at, bytes).offset(offset).build(),
                }
            }
            OpKind::Write { offset, data } => {
                let rest = &data[done..];
                let (at, bytes) = (rest.as_ptr(), rest.len().min(ENTRY_BYTES_MAX) as u32);
                let offset = *offset + done as u64;
                match slab {
                    Some(slab) => opcode::WriteFixed::new(fd, at, bytes, slab).offset(offset).build(),
                    None => opcode::Write::new(fd, at, bytes).offset(offset).build(),
                }
            }
            OpKind::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            OpKind::Allocate { offset, len } => opcode::Fallocate::new(fd, *len).offset(*offset).build(),
            OpKind::Punch { offset, len } => opcode::Fallocate::new(fd, *len)
                .offset(*offset)
                .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
        };
        entry.flags(flags)
    }
}

/// The ring's descriptor; the ring owns it.
pub(super) struct RingFd(RawFd);

impl AsRawFd for RingFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// The ring and what is in flight on it.
pub(super) struct Ring {
    uring: IoUring,
    /// By the number that the kernel gives back.
    table: Vec<Option<Flight>>,
    free: Vec<usize>,
    unsubmitted: usize,
    /// Slabs that are registered as buffers, and how many may be.
    slabs: usize,
    slabs_max: usize,
    /// Free places of registered files.
    places: Vec<u32>,
}

impl Ring {
    pub(super) fn new(depth: u32) -> io::Result<Self> {
        let uring = IoUring::builder().setup_coop_taskrun().setup_single_issuer().build(depth)?;
        let depth = depth as usize;
        let submitter = uring.submitter();
        let files = submitter.register_files_sparse(FILES_MAX);
        let buffers = submitter.register_buffers_sparse(SLABS_MAX as u32);
        for (what, taken) in [("files", &files), ("buffers", &buffers)] {
            if let Err(err) = taken {
                tracing::info!(
                    "io_uring registers no {what}: {err}; Linux 5.19 makes reads and writes cheaper"
                );
            }
        }
        let (places, slabs_max) = (files.map_or(0, |()| FILES_MAX), buffers.map_or(0, |()| SLABS_MAX));
        Ok(Self {
            uring,
            table: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            unsubmitted: 0,
            slabs: 0,
            slabs_max,
            places: (0..places).rev().collect(),
        })
    }

    /// Registers an open file, so that the kernel need not look it up for each operation.
    pub(super) fn register(&mut self, file: &OpenFile) {
        let Some(place) = self.places.pop() else { return };
        match self.uring.submitter().register_files_update(place, &[file.fd.as_raw_fd()]) {
            Ok(_) => file.place.set(Some(place)),
            Err(err) => tracing::debug!(file = file.name, "not registered with io_uring: {err}"),
        }
    }

    /// Forgets a file that is being closed. Operations that wait go by its descriptor.
    pub(super) fn forget(&mut self, file: &OpenFile) {
        let Some(place) = file.place.take() else { return };
        // The kernel looks a place up when it takes an operation.
        let taken = matches!(self.submit(), Ok(true));
        // A place that can't be emptied keeps its file open; neither it nor one that is awaited is used again.
        if self.uring.submitter().register_files_update(place, &[-1]).is_ok() && taken {
            self.places.push(place);
        }
    }

    /// Registers slabs up to this one, so that the kernel need not pin their pages for each operation.
    fn register_slab(&mut self, slab: u16) {
        if usize::from(slab) < self.slabs || usize::from(slab) >= self.slabs_max {
            return;
        }
        for slab in slabs(self.slabs) {
            let memory = libc::iovec { iov_base: slab.start as *mut _, iov_len: slab.len() };
            // SAFETY: a slab is mapped for as long as the process lives.
            let taken =
                unsafe { self.uring.submitter().register_buffers_update(self.slabs as u32, &[memory], None) };
            if let Err(err) = taken {
                tracing::info!(
                    "io_uring registers no more buffers: {err}; a higher RLIMIT_MEMLOCK (`ulimit -l`) makes reads and \
                     writes cheaper"
                );
                self.slabs_max = self.slabs;
                return;
            }
            self.slabs += 1;
        }
    }

    /// Watches for completions. To be dropped before the ring.
    pub(super) fn watch(&self) -> io::Result<AsyncFd<RingFd>> {
        let fd = RingFd(self.uring.as_raw_fd());
        // SAFETY: the ring's owner drops the watch first, so the descriptor is open while it is watched.
        let watch = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        watch.map_err(|err| err.into_parts().1)
    }

    pub(super) fn has_unsubmitted(&self) -> bool {
        self.unsubmitted > 0
    }

    pub(super) fn in_flight(&self) -> usize {
        self.table.len() - self.free.len()
    }

    /// Puts an operation into the submission queue.
    ///
    /// # Panics
    /// If more operations are in flight than the ring was made for.
    pub(super) fn push(&mut self, flight: Flight) {
        let slot = self.free.pop().expect("the scheduler bounds operations in flight by the ring's depth");
        self.table[slot] = Some(flight);
        self.start(slot);
    }

    fn start(&mut self, slot: usize) {
        if let Some(slab) = self.table[slot].as_ref().and_then(Flight::slab) {
            self.register_slab(slab);
        }
        let flight = self.table[slot].as_mut().expect("an occupied slot");
        let entry = flight.entry(self.slabs).user_data(slot as u64);
        // SAFETY: the addresses in the entry are of memory owned by the flight, which stays in the table
        // until the completion with this slot's number has come.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        pushed.expect("the submission queue is as long as the table");
        self.unsubmitted += 1;
    }

    /// Hands everything pushed to the kernel. Entries that it doesn't take now stay queued: `false`.
    pub(super) fn submit(&mut self) -> io::Result<bool> {
        while self.unsubmitted > 0 {
            match self.uring.submit() {
                Ok(taken) => self.unsubmitted -= taken.min(self.unsubmitted),
                Err(err) => match err.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EBUSY | libc::EAGAIN) => return Ok(false),
                    _ => return Err(err),
                },
            }
        }
        Ok(true)
    }

    /// Collects what has ended; what ended short is started again.
    pub(super) fn reap(&mut self, mut ended: impl FnMut(Weight, Completion)) {
        loop {
            let Some(done) = self.uring.completion().next() else {
                return;
            };
            let slot = done.user_data() as usize;
            let flight = self.table[slot].as_mut().expect("a completion of an operation in flight");
            let result = match flight.advance(done.result()) {
                Ok(None) => {
                    self.start(slot);
                    continue;
                }
                Ok(Some(bytes)) => Ok(bytes),
                Err(err) => Err(err),
            };
            if let Some(flight) = self.table[slot].take() {
                self.free.push(slot);
                let (weight, completion) = flight.end(result);
                ended(weight, completion);
            }
        }
    }

    /// Waits for everything in flight. If the device doesn't end it, its memory is leaked, not freed.
    pub(super) fn drain(&mut self, disk: &str) {
        let timeout = types::Timespec::from(DRAIN);
        while self.in_flight() > 0 {
            let args = types::SubmitArgs::new().timespec(&timeout);
            match self.uring.submitter().submit_with_args(1, &args) {
                Ok(taken) => self.unsubmitted -= taken.min(self.unsubmitted),
                Err(err) if err.raw_os_error() == Some(libc::EINTR) => {}
                Err(err) => {
                    tracing::error!(disk, left = self.in_flight(), "operations do not end: {err}");
                    std::mem::forget(std::mem::take(&mut self.table));
                    self.free.clear();
                    return;
                }
            }
            self.reap(|_, _| {});
        }
    }
}
