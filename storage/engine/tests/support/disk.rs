//! A disk in memory. Operations end in random order; at power loss any subset of what was not flushed
//! survives, in sectors of 512 bytes.

use super::loss::{Change, Inode, Moment, Names, Naming, Unflushed, WAYS, parent, pick};
use super::model::Model;
use super::pages::{PAGE, Pages, pages_of};
use ember_rt::LocalBoxFuture;
use ember_rt::disk::{Completion, Disk, FileId, Op, OpKind, OpenMode, Space};
use ember_types::layout::SplitMix64;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::task::Poll;

macro_rules! flush_classes {
    ($($name:ident = $text:literal,)*) => {
        /// What a flush is for.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum FlushClass { $($name,)* }
        impl FlushClass {
            pub const ALL: &[Self] = &[$(Self::$name,)*];
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

flush_classes! {
    Data = "data file of a batch",
    LogBatch = "log frame of a batch",
    LogStart = "first frame of a segment",
    Sums = "checksum pages of a checkpoint",
    Checkpoint = "checkpoint",
    RecoveryData = "recovery: data files",
    RecoveryLog = "recovery: log",
    DirSegment = "directory: new segment",
    DirData = "directory: new data file",
    DirCheckpoint = "directory: new checkpoint",
    DirRecovery = "recovery: directory",
    Superblock = "superblock",
    DirSuperblock = "directory: superblock",
    DirMarker = "directory: marker of a creation",
    DirCreated = "directory: end of a creation",
    DirTarget = "directory: target",
    Other = "directory: anything else",
}

struct Flight {
    token: u64,
    inode: usize,
    /// The change's number, or the numbers that a flush makes durable.
    kind: FlightKind,
}

enum FlightKind {
    Change(u64),
    Sync(Vec<u64>, FlushClass),
    Read(u64, usize, ember_rt::Buf),
    Fail(io::ErrorKind, Option<ember_rt::Buf>),
}

/// A moment at which the power may fail, and what must be true afterwards.
pub struct Boundary {
    pub moment: Moment,
    pub model: Model,
}

/// What a device and its file system promise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// A flush of a file makes durable what was written to it.
    Plain,
    /// And what was written over in place in any file.
    InPlace,
    /// What was written over in place is durable when the write has ended.
    Protected,
}

/// Everything about the disk.
pub struct DiskState {
    inodes: Vec<Inode>,
    names: Names,
    durable_names: Names,
    namings: Vec<Naming>,
    /// Files whose first flush is to come.
    fresh: BTreeSet<usize>,
    /// An engine is being opened.
    pub opening: bool,
    /// It hasn't flushed the names that it found yet.
    pub finding: bool,
    /// With a model, every boundary is kept.
    pub watch: Option<Rc<RefCell<Model>>>,
    pub boundaries: Vec<Boundary>,
    open: BTreeMap<u32, usize>,
    next_file: u32,
    flights: Vec<Flight>,
    completions: Vec<Completion>,
    next_change: u64,
    random: SplitMix64,
    pub events: u64,
    /// The power fails at this event.
    pub crash_at: Option<u64>,
    dead: bool,
    locked: bool,
    /// Bytes of the file system.
    pub total: u64,
    /// Writes to files whose name contains this fail.
    pub fail_writes: Option<&'static str>,
    /// Reads of files whose name contains this fail.
    pub fail_reads: Option<&'static str>,
    /// Flushes of this class do nothing: a planted bug.
    pub skip: Option<FlushClass>,
    /// Most reads that were in flight at once.
    pub reads_at_once: usize,
    /// What a flush and a finished write promise.
    pub device: Device,
    /// Offsets and lengths of writes: (name, offset, length).
    pub trace: Option<Vec<(String, u64, usize)>>,
}

impl DiskState {
    pub fn new(seed: u64) -> Self {
        Self {
            inodes: Vec::new(),
            names: Names::root(),
            durable_names: Names::root(),
            namings: Vec::new(),
            fresh: BTreeSet::new(),
            opening: false,
            finding: false,
            watch: None,
            boundaries: Vec::new(),
            open: BTreeMap::new(),
            next_file: 1,
            flights: Vec::new(),
            completions: Vec::new(),
            next_change: 1,
            random: SplitMix64(seed),
            events: 0,
            crash_at: None,
            dead: false,
            locked: false,
            total: 4 << 30,
            fail_writes: None,
            fail_reads: None,
            skip: None,
            reads_at_once: 0,
            device: Device::Plain,
            trace: None,
        }
    }
    pub fn is_dead(&self) -> bool {
        self.dead
    }
    pub fn is_idle(&self) -> bool {
        self.flights.is_empty() && self.completions.is_empty()
    }

    /// Counts an event; `false` if the power is off.
    fn event(&mut self) -> bool {
        self.events += 1;
        self.dead |= self.crash_at.is_some_and(|at| self.events >= at);
        !self.dead
    }
    fn alive(&mut self) -> io::Result<()> {
        if self.event() { Ok(()) } else { Err(io::Error::other("the power is off")) }
    }
    fn name_of(&self, inode: usize) -> String {
        let found = self.names.files.iter().find(|(_, i)| **i == inode);
        found.map(|(name, _)| name.clone()).unwrap_or_default()
    }

    /// Ends one operation, any of those in flight. `false` if there is nothing to do.
    pub fn step(&mut self) -> bool {
        if self.flights.is_empty() || !self.event() {
            return false;
        }
        let which = self.random.below(self.flights.len() as u64) as usize;
        if let FlightKind::Sync(..) = self.flights[which].kind {
            self.boundary();
        }
        let Flight { token, inode, kind } = self.flights.swap_remove(which);
        let state = &mut self.inodes[inode];
        let (result, buf) = match kind {
            FlightKind::Change(id) => {
                let mut written = 0;
                if let Some(change) = state.unflushed.iter_mut().find(|u| u.id == id) {
                    change.done = true;
                    change.change.apply(&mut state.view);
                    written =
                        if let Change::Write(_, pages) = &change.change { pages.len() * PAGE } else { 0 };
                }
                if self.device == Device::Protected {
                    state.overwrite(|other| other == id);
                }
                (Ok(written), None)
            }
            FlightKind::Sync(ids, class) => {
                if self.skip != Some(class) {
                    state.flush(|id| ids.contains(&id));
                    if self.device != Device::Plain {
                        self.inodes.iter_mut().for_each(|inode| inode.overwrite(|id| ids.contains(&id)));
                    }
                }
                (Ok(0), None)
            }
            FlightKind::Read(offset, len, mut buf) => {
                let read = state.view.read(offset, &mut buf.whole_mut()[..len]);
                (Ok(read), Some(buf))
            }
            FlightKind::Fail(kind, buf) => (Err(io::Error::from(kind)), buf),
        };
        self.completions.push(Completion { token, result, buf });
        true
    }

    fn submit(&mut self, op: Op) {
        let inode = self.open[&op.file.0];
        let name = self.name_of(inode);
        let fails = |part: Option<&str>| part.is_some_and(|part| name.contains(part));
        let (fail_writes, fail_reads) = (fails(self.fail_writes), fails(self.fail_reads));
        let id = self.next_change;
        self.next_change += 1;
        let aligned = |offset: u64, len: usize| offset.is_multiple_of(4096) && len.is_multiple_of(4096);
        let change = match op.kind {
            OpKind::Read { offset, len, buf } => {
                assert!(aligned(offset, len), "read of {name} at {offset}, {len} bytes");
                let kind = match fail_reads {
                    true => FlightKind::Fail(io::ErrorKind::Other, Some(buf)),
                    false => FlightKind::Read(offset, len, buf),
                };
                self.flights.push(Flight { token: op.token, inode, kind });
                let reads = |f: &&Flight| matches!(f.kind, FlightKind::Read(..));
                self.reads_at_once = self.reads_at_once.max(self.flights.iter().filter(reads).count());
                return;
            }
            OpKind::Sync => {
                // Of other files too: what was done before is what a flush of the device is for.
                let done = self.inodes.iter().flat_map(|inode| &inode.unflushed).filter(|u| u.done);
                let done = done.map(|u| u.id).collect();
                let class = self.class_of_sync(inode, &name);
                self.flights.push(Flight { token: op.token, inode, kind: FlightKind::Sync(done, class) });
                return;
            }
            OpKind::Write { offset, data } => {
                assert!(aligned(offset, data.len()) && data.is_aligned(), "write of {name} at {offset}");
                self.check_overlap(inode, offset, data.len());
                let (first, pages) = (offset as usize / PAGE, pages_of(&data));
                if let Some(trace) = &mut self.trace {
                    trace.push((name, offset, data.len()));
                }
                Change::Write(first, Rc::new(pages))
            }
            OpKind::Allocate { offset, len } => Change::Allocate(offset, len),
            OpKind::Punch { offset, len } => Change::Punch(offset, len),
        };
        let full = matches!(change, Change::Allocate(_, len) if len > self.available());
        if full || fail_writes {
            let kind = if full { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
            let kind = FlightKind::Fail(kind, None);
            self.flights.push(Flight { token: op.token, inode, kind });
            return;
        }
        self.boundary();
        self.inodes[inode].unflushed.push(Unflushed { id, change, done: false });
        self.flights.push(Flight { token: op.token, inode, kind: FlightKind::Change(id) });
    }

    /// R17: bytes with an unfinished I/O are never written again.
    fn check_overlap(&self, inode: usize, offset: u64, len: usize) {
        for other in self.inodes[inode].unflushed.iter().filter(|u| !u.done) {
            if let Change::Write(first, pages) = &other.change {
                let (at, end) = ((first * PAGE) as u64, ((first + pages.len()) * PAGE) as u64);
                let apart = offset + len as u64 <= at || end <= offset;
                assert!(apart, "two writes in flight to the same bytes");
            }
        }
    }

    fn available(&self) -> u64 {
        let used: u64 = self.names.files.values().map(|&inode| self.inodes[inode].view.len()).sum();
        self.total.saturating_sub(used)
    }

    /// Notes that the power may fail now, before the next change.
    pub fn boundary(&mut self) {
        let Some(model) = &self.watch else { return };
        let last =
            self.names.files.keys().rfind(|name| name.contains("/checkpoint-") && !name.ends_with("p"));
        model.borrow_mut().note_checkpoint(last);
        let model = model.borrow().clone();
        self.boundaries.push(Boundary { moment: self.moment(), model });
    }
    pub fn moment(&self) -> Moment {
        let (inodes, namings) = (self.inodes.clone(), self.namings.clone());
        Moment { inodes, namings, durable: self.durable_names.clone(), view: self.names.clone() }
    }
    /// A machine that was started with these files.
    pub fn started(seed: u64, names: Names, inodes: Vec<Inode>) -> Self {
        let (durable_names, total) = (names.clone(), 4 << 30);
        Self { names, durable_names, inodes, total, ..Self::new(seed) }
    }
    fn restarted(&mut self, names: Names, inodes: Vec<Inode>) -> Self {
        let (total, skip, device) = (self.total, self.skip, self.device);
        Self { total, skip, device, ..Self::started(self.random.next(), names, inodes) }
    }
    /// The disk after power loss: any part of what was not flushed.
    pub fn after_power_loss(&mut self) -> Self {
        let moment = self.moment();
        let units = moment.units();
        let survives = pick(&units, WAYS, &mut self.random);
        let (names, inodes) = moment.after(&units, &survives);
        self.restarted(names, inodes)
    }
    /// The disk after the process died: what was written is there, though not flushed; what was in flight may
    /// be.
    pub fn after_kill(&mut self) -> Self {
        let mut inodes = self.inodes.clone();
        for inode in &mut inodes {
            inode.unflushed.retain_mut(|unflushed| {
                if !unflushed.done && self.random.below(2) == 0 {
                    unflushed.done = true;
                    unflushed.change.apply(&mut inode.view);
                }
                unflushed.done
            });
        }
        let mut next = self.restarted(self.names.clone(), inodes);
        next.durable_names = self.durable_names.clone();
        next.namings = self.namings.clone();
        next.next_change = self.next_change;
        next
    }

    /// A copy of the files as they are.
    pub fn snapshot(&mut self) -> Self {
        let names = self.names.clone();
        let inodes = self.inodes.iter().map(|i| Inode {
            durable: i.view.clone(),
            view: i.view.clone(),
            unflushed: Vec::new(),
            settled: i.settled.clone(),
        });
        let inodes = inodes.collect();
        self.restarted(names, inodes)
    }
    pub fn files(&self) -> Vec<(String, usize)> {
        let files = self.names.files.iter();
        files.map(|(name, &inode)| (name.clone(), self.inodes[inode].view.len() as usize)).collect()
    }
    pub fn byte(&self, name: &str, at: usize) -> u8 {
        let mut byte = [0];
        self.inodes[self.names.files[name]].view.read(at as u64, &mut byte);
        byte[0]
    }
    /// Damages a file.
    pub fn edit(&mut self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let view = &mut self.inodes[self.names.files[name]].view;
        let mut bytes = view.to_vec();
        edit(&mut bytes);
        *view = Pages::new(&bytes);
    }
    pub fn unlink(&mut self, name: &str) {
        self.names.files.remove(name);
    }
    pub fn swap(&mut self, a: &str, b: &str) {
        let files = &mut self.names.files;
        let (x, y) = (files[a], files[b]);
        files.insert(a.to_owned(), y);
        files.insert(b.to_owned(), x);
    }

    fn naming(&mut self, naming: Naming) {
        self.boundary();
        self.names.apply(&naming);
        self.namings.push(naming);
    }
    fn sync_dir(&mut self, dir: &str, class: FlushClass) {
        self.boundary();
        if self.skip == Some(class) {
            return;
        }
        let durable = &mut self.durable_names;
        self.namings.retain(|naming| {
            let flushed = parent(naming.name()) == dir;
            if flushed {
                durable.apply(naming);
            }
            !flushed
        });
    }
    fn class_of_sync(&mut self, inode: usize, name: &str) -> FlushClass {
        let first = self.fresh.remove(&inode);
        match name.rsplit('/').next().unwrap_or_default() {
            name if name.starts_with("checkpoint-") => FlushClass::Checkpoint,
            name if name.starts_with("sums-") => FlushClass::Sums,
            name if name.starts_with("log-") && first => FlushClass::LogStart,
            name if name.starts_with("log-") && self.opening => FlushClass::RecoveryLog,
            name if name.starts_with("log-") => FlushClass::LogBatch,
            _ if self.opening => FlushClass::RecoveryData,
            _ => FlushClass::Data,
        }
    }
    /// Directories are flushed right after the change that it is for.
    fn class_of_dir(&mut self, dir: &str) -> FlushClass {
        if std::mem::take(&mut self.finding) {
            return FlushClass::DirRecovery;
        }
        let last = self.namings.iter().rfind(|naming| parent(naming.name()) == dir);
        let is = |naming: &Naming, part: &str| naming.name().contains(part);
        match last {
            Some(Naming::Dir(_)) => FlushClass::DirTarget,
            Some(naming @ Naming::Link(..)) if is(naming, "/log-") => FlushClass::DirSegment,
            Some(naming @ Naming::Link(..)) if is(naming, "/data-") => FlushClass::DirData,
            Some(naming @ Naming::Link(..)) if is(naming, "/sums-") => FlushClass::DirData,
            Some(naming @ Naming::Link(..)) if is(naming, "/creating") => FlushClass::DirMarker,
            Some(Naming::Rename(..)) => FlushClass::DirCheckpoint,
            Some(naming @ Naming::Unlink(_)) if is(naming, "/creating") => FlushClass::DirCreated,
            _ => FlushClass::Other,
        }
    }
}

/// The disk as the engine sees it.
pub struct FaultDisk(pub Rc<RefCell<DiskState>>);

impl Disk for FaultDisk {
    fn submit(&self, op: Op) {
        self.0.borrow_mut().submit(op);
    }
    fn poll(&self, out: &mut Vec<Completion>) {
        out.append(&mut self.0.borrow_mut().completions);
    }
    fn ready(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(poll_fn(|_| {
            if self.0.borrow().completions.is_empty() { Poll::Pending } else { Poll::Ready(()) }
        }))
    }
    fn open_file(&self, name: &str, mode: OpenMode) -> io::Result<FileId> {
        let mut state = self.0.borrow_mut();
        state.alive()?;
        let inode = match state.names.files.get(name).copied() {
            Some(_) if mode.exclusive => return Err(io::ErrorKind::AlreadyExists.into()),
            Some(inode) => inode,
            None if !mode.create => return Err(io::ErrorKind::NotFound.into()),
            None => {
                state.inodes.push(Inode::default());
                let inode = state.inodes.len() - 1;
                state.fresh.insert(inode);
                state.naming(Naming::Link(name.to_owned(), inode));
                inode
            }
        };
        let id = state.next_file;
        state.next_file += 1;
        state.open.insert(id, inode);
        Ok(FileId(id))
    }
    fn close_file(&self, file: FileId) {
        assert!(self.0.borrow_mut().open.remove(&file.0).is_some(), "closed twice");
    }
    fn file_len(&self, file: FileId) -> io::Result<u64> {
        let state = self.0.borrow();
        Ok(state.inodes[state.open[&file.0]].view.len())
    }
    fn set_file_len(&self, _: FileId, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let state = self.0.borrow();
        if !state.names.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let prefix = format!("{dir}/");
        let names = state.names.files.keys().filter_map(|name| name.strip_prefix(&prefix));
        Ok(names.map(str::to_owned).collect())
    }
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.alive()?;
        if state.names.dirs.contains(dir) {
            return Ok(());
        }
        if !state.names.dirs.contains(parent(dir)) {
            state.naming(Naming::Dir(parent(dir).to_owned()));
        }
        state.naming(Naming::Dir(dir.to_owned()));
        Ok(())
    }
    fn remove_file(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.alive()?;
        if !state.names.files.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.naming(Naming::Unlink(name.to_owned()));
        Ok(())
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.alive()?;
        let inode = *state.names.files.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.naming(Naming::Rename(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.alive()?;
        let class = state.class_of_dir(dir);
        state.sync_dir(dir, class);
        Ok(())
    }
    fn read_small(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.0.borrow();
        let inode = state.names.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(state.inodes[*inode].view.to_vec())
    }
    fn write_small(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.alive()?;
        let content = Pages::new(content);
        let mut inode = Inode { view: content.clone(), ..Inode::default() };
        if state.skip == Some(FlushClass::Superblock) {
            inode.unflushed.push(Unflushed { id: 0, change: Change::Content(content), done: true });
        } else {
            inode.durable = content;
        }
        state.inodes.push(inode);
        let inode = state.inodes.len() - 1;
        state.naming(Naming::Link(name.to_owned(), inode));
        state.sync_dir(parent(name), FlushClass::DirSuperblock);
        Ok(())
    }
    fn lock(&self, _: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        if std::mem::replace(&mut state.locked, true) {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "locked by process 1"));
        }
        Ok(())
    }
    fn space(&self) -> io::Result<Space> {
        let state = self.0.borrow();
        Ok(Space { total: state.total, available: state.available(), file_system: 0 })
    }
    fn overwrites_in_place(&self) -> bool {
        self.0.borrow().device != Device::Plain
    }
    fn written(&self, file: FileId, from: u64) -> io::Result<Vec<Range<u64>>> {
        let state = self.0.borrow();
        let pages = state.inodes[state.open[&file.0]].written();
        let pages = pages.into_iter().map(|page| (page * PAGE) as u64).filter(|start| *start >= from);
        Ok(pages.take(3).map(|start| start..start + PAGE as u64).collect())
    }
    fn warnings(&self) -> Vec<&'static str> {
        Vec::new()
    }
}

impl Drop for FaultDisk {
    fn drop(&mut self) {
        self.0.borrow_mut().locked = false;
    }
}
