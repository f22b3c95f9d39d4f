//! Disks in memory: what is written is lost by a power loss unless it was synced.
//!
//! Content: of each page of 4 KiB written since the last completed `Sync`, a power loss leaves the old content,
//! the new one, or a mixture by sectors of 512 bytes; operations in flight may be done in part. Names: changes
//! are durable in order, as a journal keeps them, and surely after `sync_dir` of a directory that they touch.
//! Beyond that a disk is slow, full, hangs, or fails, flips bits, can't read a range until it is written again, and
//! lets a write land elsewhere in its file.

mod faults;
mod file;
mod names;

use crate::process::{Crash, ProcessId};
use crate::trace::{Entry, digest, name_digest};
use crate::world::{World, between};
use ember_rt::LocalBoxFuture;
use ember_rt::disk::{Completion, Disk, FileId, Op, OpKind, OpenMode, Space};
use file::{FileData, SECTOR, Snapshot};
use names::{Names, Node};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};

pub use faults::PowerCut;

/// How a disk behaves.
#[derive(Clone, Copy, Debug)]
pub struct DiskConfig {
    /// Shortest time of an operation, in nanoseconds.
    pub latency_min_ns: u64,
    /// Longest time of an ordinary operation, in nanoseconds.
    pub latency_max_ns: u64,
    /// Longest time of a flush, in nanoseconds.
    pub sync_max_ns: u64,
    /// Operations in a million that are slow.
    pub slow_ppm: u64,
    /// Longest time of a slow operation, in nanoseconds.
    pub slow_max_ns: u64,
    /// Operations in a million that fail with EIO.
    pub error_ppm: u64,
    /// Size of the file system, in bytes.
    pub capacity: u64,
    /// Whether nothing more fits.
    pub full: bool,
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self {
            latency_min_ns: 20_000,
            latency_max_ns: 150_000,
            sync_max_ns: 1_500_000,
            slow_ppm: 1_000,
            slow_max_ns: 60_000_000,
            error_ppm: 0,
            capacity: 64 << 30,
            full: false,
        }
    }
}

/// The handle's mailbox of ended operations.
#[derive(Default)]
struct Ended {
    completions: Vec<Completion>,
    waker: Option<Waker>,
}

struct InFlight {
    inode: u64,
    op: Op,
    snapshot: Option<Snapshot>,
    to: Weak<RefCell<Ended>>,
}

struct OpenFile {
    inode: u64,
    direct: bool,
    session: u64,
}

#[derive(Default)]
struct State {
    names: Names,
    files: BTreeMap<u64, FileData>,
    open: BTreeMap<FileId, OpenFile>,
    locks: BTreeMap<String, u64>,
    in_flight: BTreeMap<u64, InFlight>,
    config: DiskConfig,
    aims: faults::Aims,
    next: u64,
}

impl State {
    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
    fn file_of(&mut self, name: &str) -> io::Result<u64> {
        match self.names.get(name) {
            Some(Node::File(inode)) => Ok(inode),
            Some(Node::Dir) => Err(error(io::ErrorKind::IsADirectory, name)),
            None => Err(error(io::ErrorKind::NotFound, name)),
        }
    }
    fn drop_unnamed(&mut self) {
        let open: Vec<u64> = self.open.values().map(|o| o.inode).collect();
        let named = self.names.inodes();
        self.files.retain(|inode, _| named.contains(inode) || open.contains(inode));
    }
}

fn error(kind: io::ErrorKind, name: &str) -> io::Error {
    io::Error::new(kind, format!("{name}: {kind}"))
}

/// A file system of one process: it outlives the process' crashes.
pub struct SimFs {
    owner: ProcessId,
    state: RefCell<State>,
}

impl SimFs {
    pub(crate) fn new(owner: ProcessId) -> Self {
        Self { owner, state: RefCell::default() }
    }
    /// How it behaves.
    pub fn config(&self) -> DiskConfig {
        self.state.borrow().config
    }
    /// Changes how it behaves from now on.
    pub fn set_config(&self, config: DiskConfig) {
        self.state.borrow_mut().config = config;
    }
    /// Names of all files, with their lengths in bytes.
    pub fn files(&self) -> Vec<(String, u64)> {
        let state = self.state.borrow();
        let file = |(name, inode): (String, u64)| (name, state.files.get(&inode).map_or(0, FileData::len));
        state.names.files().into_iter().map(file).collect()
    }
    /// Content of a file, as a reader would find it now.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let mut state = self.state.borrow_mut();
        let inode = state.file_of(name).ok()?;
        let file = state.files.get(&inode)?;
        let mut content = vec![0; file.len() as usize];
        file.read(0, &mut content);
        Some(content)
    }
    /// Flips a bit of a file whose name contains `part`, chosen at random; which file and where.
    pub fn flip_bit(&self, world: &World, part: &str) -> Option<(String, u64)> {
        let mut state = self.state.borrow_mut();
        let files: Vec<_> = state.names.files().into_iter().filter(|(name, _)| name.contains(part)).collect();
        let mut rng = world.0.disk_rng.borrow_mut();
        let (name, inode) = files.get(rng.below(files.len() as u64) as usize)?.clone();
        let offset = state.files.get_mut(&inode)?.flip_bit(&mut rng)?;
        world.record(Entry::Fault, &[4, self.owner.number(), inode, offset]);
        Some((name, offset))
    }

    pub(crate) fn open(self: &Rc<Self>, world: &World) -> Box<dyn Disk> {
        let session = self.state.borrow_mut().next();
        Box::new(SimDisk { fs: self.clone(), world: world.clone(), session, ended: Rc::default() })
    }

    /// The process has ended: operations in flight may or may not happen; a power loss forgets more.
    pub(crate) fn close_all(&self, world: &World, crash: Crash) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let mut rng = world.0.disk_rng.borrow_mut();
        let cut = if crash == Crash::PowerLoss { state.aims.cut } else { PowerCut::Any };
        for (_, flight) in std::mem::take(&mut state.in_flight) {
            if cut == PowerCut::Lost {
                break;
            }
            let Some(file) = state.files.get_mut(&flight.inode) else { continue };
            match flight.op.kind {
                OpKind::Write { offset, data } => {
                    for (number, piece) in data.chunks(SECTOR).enumerate() {
                        if rng.below(2) == 0 {
                            file.write(offset + (number * SECTOR) as u64, piece);
                        }
                    }
                }
                OpKind::Punch { offset, len } if rng.below(2) == 0 => file.zero(offset, len),
                OpKind::Allocate { offset, len } if rng.below(2) == 0 => {
                    file.set_len(file.len().max(offset + len));
                }
                _ => {}
            }
        }
        state.forget_hung();
        state.open.clear();
        state.locks.clear();
        if crash == Crash::PowerLoss {
            let lost = state.files.values().filter(|f| f.is_dirty()).count() as u64;
            world.trace().count("files with unsynced writes at a power loss", lost);
            state.names.lose_power(&mut rng);
            for file in state.files.values_mut() {
                file.lose_power(cut, &mut rng);
            }
        }
        state.drop_unnamed();
    }

    fn complete(&self, world: &World, key: u64) {
        let mut state = self.state.borrow_mut();
        let Some(flight) = state.in_flight.remove(&key) else { return };
        let config = state.config;
        let InFlight { inode, op, snapshot, to } = flight;
        let failed =
            config.error_ppm > 0 && world.0.disk_rng.borrow_mut().below(1_000_000) < config.error_ppm;
        let failed = failed || state.fails(inode, &op.kind, &mut world.0.disk_rng.borrow_mut());
        let astray = state.astray(inode, &op.kind, &mut world.0.disk_rng.borrow_mut());
        if failed {
            world.trace().count("disk errors", 1);
        }
        let mut completion = Completion { token: op.token, result: Ok(0), buf: None };
        let readable = |file: &&mut FileData| match op.kind {
            OpKind::Read { offset, len, .. } => file.is_readable(offset, len),
            _ => true,
        };
        let Some(file) = state.files.get_mut(&inode).filter(|_| !failed).filter(readable) else {
            completion.result = Err(io::Error::from_raw_os_error(5));
            if let OpKind::Read { buf, .. } = op.kind {
                completion.buf = Some(buf);
            }
            world.record(Entry::DiskEnd, &[self.owner.number(), op.token, u64::MAX]);
            drop(state);
            return deliver(&to, completion);
        };
        let mut outcome = 0;
        match op.kind {
            OpKind::Read { offset, len, mut buf } => {
                let into = &mut buf.whole_mut()[..len];
                let count = file.read(offset, into);
                outcome = digest(&into[..count]);
                completion.result = Ok(count);
                completion.buf = Some(buf);
            }
            OpKind::Write { offset, data } => {
                file.write(astray.unwrap_or(offset), &data);
                completion.result = Ok(data.len());
            }
            OpKind::Sync => {
                if let Some(snapshot) = snapshot {
                    file.flushed(snapshot);
                }
            }
            OpKind::Allocate { offset, len } => file.set_len(file.len().max(offset + len)),
            OpKind::Punch { offset, len } => file.zero(offset, len),
        }
        world.record(Entry::DiskEnd, &[self.owner.number(), op.token, outcome]);
        drop(state);
        deliver(&to, completion);
    }
}

fn deliver(to: &Weak<RefCell<Ended>>, completion: Completion) {
    if let Some(ended) = to.upgrade() {
        let waker = {
            let mut ended = ended.borrow_mut();
            ended.completions.push(completion);
            ended.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// An open file system.
struct SimDisk {
    fs: Rc<SimFs>,
    world: World,
    session: u64,
    ended: Rc<RefCell<Ended>>,
}

impl SimDisk {
    fn note(&self, kind: u64, name: &str) {
        self.world.record(Entry::DiskName, &[self.fs.owner.number(), kind, name_digest(name)]);
    }
    fn latency(&self, config: &DiskConfig, is_sync: bool) -> u64 {
        let mut rng = self.world.0.disk_rng.borrow_mut();
        if config.slow_ppm > 0 && rng.below(1_000_000) < config.slow_ppm {
            self.world.trace().count("slow disk operations", 1);
            return between(&mut rng, config.latency_max_ns, config.slow_max_ns);
        }
        let longest = if is_sync { config.sync_max_ns } else { config.latency_max_ns };
        between(&mut rng, config.latency_min_ns, longest)
    }
}

/// Why an operation can't be done, found before it starts.
fn refusal(state: &State, op: &Op) -> Option<io::Error> {
    let Some(open) = state.open.get(&op.file) else { return Some(io::Error::from_raw_os_error(9)) };
    let (offset, len) = match &op.kind {
        OpKind::Read { offset, len, buf } if *len <= buf.capacity() => (*offset, *len),
        OpKind::Read { .. } => return Some(io::ErrorKind::InvalidInput.into()),
        OpKind::Write { offset, data } => (*offset, data.len()),
        _ => (0, 0),
    };
    if open.direct && (!offset.is_multiple_of(4096) || !len.is_multiple_of(4096)) {
        return Some(io::Error::from_raw_os_error(22));
    }
    let grows = match &op.kind {
        OpKind::Write { offset, data } => {
            let end = offset + data.len() as u64;
            state.files.get(&open.inode).is_some_and(|f| end > f.len())
        }
        OpKind::Allocate { .. } => true,
        _ => false,
    };
    let used = || state.files.values().map(FileData::stored_bytes).sum::<u64>();
    (grows && (state.config.full || used() + len as u64 > state.config.capacity))
        .then(|| io::Error::from_raw_os_error(28))
}

fn op_words(op: &Op) -> [u64; 3] {
    match &op.kind {
        OpKind::Read { offset, len, .. } => [1, *offset, *len as u64],
        OpKind::Write { offset, data } => [2, *offset, digest(data)],
        OpKind::Sync => [3, 0, 0],
        OpKind::Allocate { offset, len } => [4, *offset, *len],
        OpKind::Punch { offset, len } => [5, *offset, *len],
    }
}

impl Disk for SimDisk {
    fn submit(&self, op: Op) {
        let [kind, offset, content] = op_words(&op);
        self.world.record(
            Entry::DiskOp,
            &[self.fs.owner.number(), op.token, u64::from(op.file.0), kind, offset, content],
        );
        self.world.trace().count("disk operations", 1);
        let to = Rc::downgrade(&self.ended);
        let mut state = self.fs.state.borrow_mut();
        let delay = self.latency(&state.config, matches!(op.kind, OpKind::Sync));
        if let Some(error) = refusal(&state, &op) {
            let buf = match op.kind {
                OpKind::Read { buf, .. } => Some(buf),
                _ => None,
            };
            let completion = Completion { token: op.token, result: Err(error), buf };
            drop(state);
            return self.world.after(delay, move |_| deliver(&to, completion));
        }
        let key = state.next();
        let inode = state.open.get(&op.file).map_or(0, |o| o.inode);
        let snapshot = match op.kind {
            OpKind::Sync => state.files.get(&inode).map(FileData::snapshot),
            _ => None,
        };
        state.in_flight.insert(key, InFlight { inode, op, snapshot, to });
        if state.hangs(inode, key) {
            return self.world.trace().count("disk operations that hung", 1);
        }
        drop(state);
        let fs = self.fs.clone();
        self.world.after(delay, move |world| fs.complete(world, key));
    }

    fn poll(&self, out: &mut Vec<Completion>) {
        out.append(&mut self.ended.borrow_mut().completions);
    }

    fn ready(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(poll_fn(|cx| {
            let mut ended = self.ended.borrow_mut();
            if !ended.completions.is_empty() {
                return Poll::Ready(());
            }
            ended.waker = Some(cx.waker().clone());
            Poll::Pending
        }))
    }

    fn open_file(&self, name: &str, mode: OpenMode) -> io::Result<FileId> {
        self.note(1, name);
        let mut state = self.fs.state.borrow_mut();
        let inode = match state.file_of(name) {
            Ok(_) if mode.exclusive => return Err(error(io::ErrorKind::AlreadyExists, name)),
            Ok(inode) => inode,
            Err(e) if e.kind() == io::ErrorKind::NotFound && mode.create => {
                let inode = state.next();
                state.names.create(name, Node::File(inode))?;
                state.files.insert(inode, FileData::default());
                inode
            }
            Err(e) => return Err(e),
        };
        let id = FileId(state.next() as u32);
        state.open.insert(id, OpenFile { inode, direct: mode.direct, session: self.session });
        Ok(id)
    }
    fn close_file(&self, file: FileId) {
        let mut state = self.fs.state.borrow_mut();
        if state.open.remove(&file).is_some() {
            state.drop_unnamed();
        }
    }
    fn file_len(&self, file: FileId) -> io::Result<u64> {
        let state = self.fs.state.borrow();
        let open = state.open.get(&file).ok_or_else(|| io::Error::from_raw_os_error(9))?;
        Ok(state.files.get(&open.inode).map_or(0, FileData::len))
    }
    fn set_file_len(&self, file: FileId, len: u64) -> io::Result<()> {
        self.world.record(Entry::DiskName, &[self.fs.owner.number(), 2, u64::from(file.0), len]);
        let mut state = self.fs.state.borrow_mut();
        let open = state.open.get(&file).ok_or_else(|| io::Error::from_raw_os_error(9))?;
        let inode = open.inode;
        if let Some(file) = state.files.get_mut(&inode) {
            file.set_len(len);
        }
        Ok(())
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.fs.state.borrow().names.list(dir)
    }
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.note(3, dir);
        self.fs.state.borrow_mut().names.create_dirs(dir)
    }
    fn remove_file(&self, name: &str) -> io::Result<()> {
        self.note(4, name);
        let mut state = self.fs.state.borrow_mut();
        state.file_of(name)?;
        state.names.remove(name);
        // The data stay until the removal is durable: a power loss may bring the name back.
        Ok(())
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.note(5, from);
        self.note(6, to);
        self.fs.state.borrow_mut().names.rename(from, to)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.note(7, dir);
        let mut state = self.fs.state.borrow_mut();
        state.names.sync(dir);
        state.drop_unnamed();
        Ok(())
    }
    fn read_small(&self, name: &str) -> io::Result<Vec<u8>> {
        let inode = self.fs.state.borrow_mut().file_of(name)?;
        let state = self.fs.state.borrow();
        if state.files.get(&inode).is_some_and(|file| !file.is_readable(0, file.len() as usize)) {
            return Err(io::Error::from_raw_os_error(5));
        }
        drop(state);
        self.fs.content(name).ok_or_else(|| error(io::ErrorKind::NotFound, name))
    }
    fn write_small(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.world.record(Entry::DiskName, &[self.fs.owner.number(), 8, name_digest(name), digest(content)]);
        let mut state = self.fs.state.borrow_mut();
        let inode = state.next();
        state.names.create(name, Node::File(inode))?;
        state.names.sync_all();
        state.files.insert(inode, FileData::durable(content));
        state.drop_unnamed();
        Ok(())
    }
    fn lock(&self, dir: &str) -> io::Result<()> {
        let mut state = self.fs.state.borrow_mut();
        match state.locks.get(dir) {
            Some(&holder) if holder != self.session => Err(error(io::ErrorKind::ResourceBusy, dir)),
            _ => {
                state.locks.insert(dir.to_owned(), self.session);
                Ok(())
            }
        }
    }
    fn space(&self) -> io::Result<Space> {
        let state = self.fs.state.borrow();
        let used: u64 = state.files.values().map(FileData::stored_bytes).sum();
        let available = if state.config.full { 0 } else { state.config.capacity.saturating_sub(used) };
        Ok(Space { total: state.config.capacity, available, file_system: 0 })
    }
    fn warnings(&self) -> Vec<&'static str> {
        Vec::new()
    }
}

impl Drop for SimDisk {
    fn drop(&mut self) {
        let mut state = self.fs.state.borrow_mut();
        state.open.retain(|_, open| open.session != self.session);
        state.locks.retain(|_, &mut holder| holder != self.session);
    }
}
