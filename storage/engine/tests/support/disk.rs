//! A disk in memory. Operations end in random order; at power loss any subset of what was not flushed
//! survives, in sectors of 512 bytes.

use ember_rt::disk::{Completion, Disk, FileId, Op, OpKind, OpenMode, Space};
use ember_rt::{LocalBoxFuture, SharedBuf};
use ember_types::layout::SplitMix64;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;

const SECTOR: usize = 512;

#[derive(Clone, Debug)]
enum Change {
    Write(u64, SharedBuf),
    Allocate(u64, u64),
    Punch(u64, u64),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => {
                let end = *offset as usize + data.len();
                if bytes.len() < end {
                    let missing = end - bytes.len();
                    bytes.extend_from_slice(&vec![0; missing]);
                }
                bytes[*offset as usize..end].copy_from_slice(data);
            }
            Self::Allocate(offset, len) => {
                let end = (offset + len) as usize;
                if bytes.len() < end {
                    let missing = end - bytes.len();
                    bytes.extend_from_slice(&vec![0; missing]);
                }
            }
            Self::Punch(offset, len) => {
                let end = ((offset + len) as usize).min(bytes.len());
                bytes[(*offset as usize).min(end)..end].fill(0);
            }
        }
    }
    /// What may be left of it.
    fn tear(&self, bytes: &mut Vec<u8>, random: &mut SplitMix64) {
        let Self::Write(offset, data) = self else { return self.apply(bytes) };
        for (i, sector) in data.chunks(SECTOR).enumerate() {
            if random.below(2) == 0 {
                let at = offset + (i * SECTOR) as u64;
                Self::Write(at, sector.into()).apply(bytes);
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Unflushed {
    id: u64,
    change: Change,
    done: bool,
}

#[derive(Clone, Default, Debug)]
struct Inode {
    durable: Rc<Vec<u8>>,
    view: Rc<Vec<u8>>,
    unflushed: Vec<Unflushed>,
}

#[derive(Clone, Debug)]
enum Naming {
    Link(String, usize),
    Unlink(String),
    Rename(String, String),
}

fn apply_naming(naming: &Naming, names: &mut BTreeMap<String, usize>) {
    match naming {
        Naming::Link(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        Naming::Unlink(name) => {
            names.remove(name);
        }
        Naming::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
    }
}

struct Flight {
    token: u64,
    inode: usize,
    /// The change's number, or the numbers that a flush makes durable.
    kind: FlightKind,
}

enum FlightKind {
    Change(u64),
    Sync(Vec<u64>),
    Read(u64, usize, ember_rt::Buf),
    Fail(io::ErrorKind, Option<ember_rt::Buf>),
}

/// Everything about the disk.
pub struct DiskState {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    namings: Vec<Naming>,
    dirs: BTreeSet<String>,
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
    /// Flushes of files whose name contains this do nothing: a planted bug.
    pub skip_syncs: Option<&'static str>,
    /// Offsets and lengths of writes: (name, offset, length).
    pub trace: Option<Vec<(String, u64, usize)>>,
}

impl DiskState {
    pub fn new(seed: u64) -> Self {
        Self {
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            namings: Vec::new(),
            dirs: BTreeSet::from([String::new()]),
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
            skip_syncs: None,
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
        let found = self.names.iter().find(|(_, i)| **i == inode);
        found.map(|(name, _)| name.clone()).unwrap_or_default()
    }

    /// Ends one operation, any of those in flight. `false` if there is nothing to do.
    pub fn step(&mut self) -> bool {
        if self.flights.is_empty() || !self.event() {
            return false;
        }
        let which = self.random.below(self.flights.len() as u64) as usize;
        let Flight { token, inode, kind } = self.flights.swap_remove(which);
        let skipped = self.skip_syncs.is_some_and(|name| self.name_of(inode).contains(name));
        let state = &mut self.inodes[inode];
        let (result, buf) = match kind {
            FlightKind::Change(id) => {
                let mut written = 0;
                if let Some(change) = state.unflushed.iter_mut().find(|u| u.id == id) {
                    change.done = true;
                    change.change.apply(Rc::make_mut(&mut state.view));
                    written = if let Change::Write(_, data) = &change.change { data.len() } else { 0 };
                }
                (Ok(written), None)
            }
            FlightKind::Sync(ids) => {
                if !skipped {
                    let Inode { durable, unflushed, .. } = state;
                    unflushed.retain(|u| {
                        let flushed = ids.contains(&u.id);
                        if flushed {
                            u.change.apply(Rc::make_mut(durable));
                        }
                        !flushed
                    });
                }
                (Ok(0), None)
            }
            FlightKind::Read(offset, len, mut buf) => {
                let from = (offset as usize).min(state.view.len());
                let to = (from + len).min(state.view.len());
                buf.whole_mut()[..to - from].copy_from_slice(&state.view[from..to]);
                (Ok(to - from), Some(buf))
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
                return;
            }
            OpKind::Sync => {
                let done = self.inodes[inode].unflushed.iter().filter(|u| u.done).map(|u| u.id).collect();
                self.flights.push(Flight { token: op.token, inode, kind: FlightKind::Sync(done) });
                return;
            }
            OpKind::Write { offset, data } => {
                assert!(aligned(offset, data.len()) && data.is_aligned(), "write of {name} at {offset}");
                self.check_overlap(inode, offset, data.len());
                if let Some(trace) = &mut self.trace {
                    trace.push((name, offset, data.len()));
                }
                Change::Write(offset, data)
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
        self.inodes[inode].unflushed.push(Unflushed { id, change, done: false });
        self.flights.push(Flight { token: op.token, inode, kind: FlightKind::Change(id) });
    }

    /// R17: bytes with an unfinished I/O are never written again.
    fn check_overlap(&self, inode: usize, offset: u64, len: usize) {
        for other in self.inodes[inode].unflushed.iter().filter(|u| !u.done) {
            if let Change::Write(at, data) = &other.change {
                let apart = offset + len as u64 <= *at || at + data.len() as u64 <= offset;
                assert!(apart, "two writes in flight to the same bytes");
            }
        }
    }

    fn available(&self) -> u64 {
        let used: usize = self.names.values().map(|&inode| self.inodes[inode].view.len()).sum();
        self.total.saturating_sub(used as u64)
    }

    fn restarted(&mut self, names: BTreeMap<String, usize>, inodes: Vec<Inode>) -> Self {
        let mut next = Self::new(self.random.next());
        let named: BTreeSet<usize> = names.values().chain(self.durable_names.values()).copied().collect();
        let mut inodes = inodes;
        for (i, inode) in inodes.iter_mut().enumerate() {
            if !named.contains(&i) {
                *inode = Inode::default();
            }
        }
        next.durable_names = names.clone();
        (next.names, next.inodes, next.dirs) = (names, inodes, self.dirs.clone());
        next.total = self.total;
        next
    }
    /// The disk after power loss: any part of what was not flushed.
    pub fn after_power_loss(&mut self) -> Self {
        let mut names = self.durable_names.clone();
        let survive = self.random.below(self.namings.len() as u64 + 1) as usize;
        self.namings[..survive].iter().for_each(|naming| apply_naming(naming, &mut names));
        let random = &mut self.random;
        let mut inodes = Vec::new();
        for inode in &self.inodes {
            let mut bytes = inode.durable.clone();
            for unflushed in &inode.unflushed {
                match random.below(4) {
                    0 => {}
                    1 => unflushed.change.tear(Rc::make_mut(&mut bytes), random),
                    _ => unflushed.change.apply(Rc::make_mut(&mut bytes)),
                }
            }
            inodes.push(Inode { view: bytes.clone(), durable: bytes, unflushed: Vec::new() });
        }
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
                    unflushed.change.apply(Rc::make_mut(&mut inode.view));
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
        });
        let inodes = inodes.collect();
        self.restarted(names, inodes)
    }
    pub fn files(&self) -> Vec<(String, usize)> {
        self.names.iter().map(|(name, &inode)| (name.clone(), self.inodes[inode].view.len())).collect()
    }
    pub fn bytes_mut(&mut self, name: &str) -> &mut Vec<u8> {
        let inode = self.names[name];
        Rc::make_mut(&mut self.inodes[inode].view)
    }
    pub fn unlink(&mut self, name: &str) {
        self.names.remove(name);
    }
    pub fn swap(&mut self, a: &str, b: &str) {
        let (x, y) = (self.names[a], self.names[b]);
        self.names.insert(a.to_owned(), y);
        self.names.insert(b.to_owned(), x);
    }
    fn naming(&mut self, naming: Naming) {
        apply_naming(&naming, &mut self.names);
        self.namings.push(naming);
    }
    fn sync_dir(&mut self) {
        for naming in std::mem::take(&mut self.namings) {
            apply_naming(&naming, &mut self.durable_names);
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
        let inode = match state.names.get(name).copied() {
            Some(_) if mode.exclusive => return Err(io::ErrorKind::AlreadyExists.into()),
            Some(inode) => inode,
            None if !mode.create => return Err(io::ErrorKind::NotFound.into()),
            None => {
                state.inodes.push(Inode::default());
                let inode = state.inodes.len() - 1;
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
        Ok(state.inodes[state.open[&file.0]].view.len() as u64)
    }
    fn set_file_len(&self, _: FileId, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let state = self.0.borrow();
        if !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let prefix = format!("{dir}/");
        Ok(state.names.keys().filter_map(|name| name.strip_prefix(&prefix)).map(str::to_owned).collect())
    }
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.0.borrow_mut().dirs.insert(dir.to_owned());
        Ok(())
    }
    fn remove_file(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.alive()?;
        if !state.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.naming(Naming::Unlink(name.to_owned()));
        Ok(())
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.alive()?;
        state.naming(Naming::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }
    fn sync_dir(&self, _: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.alive()?;
        state.sync_dir();
        Ok(())
    }
    fn read_small(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.0.borrow();
        let inode = state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(state.inodes[*inode].view.to_vec())
    }
    fn write_small(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.alive()?;
        let content = Rc::new(content.to_vec());
        state.inodes.push(Inode { durable: content.clone(), view: content, unflushed: Vec::new() });
        let inode = state.inodes.len() - 1;
        state.naming(Naming::Link(name.to_owned(), inode));
        state.sync_dir();
        Ok(())
    }
    fn lock(&self, _: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        if std::mem::replace(&mut state.locked, true) {
            return Err(io::Error::other("locked by process 1"));
        }
        Ok(())
    }
    fn space(&self) -> io::Result<Space> {
        let state = self.0.borrow();
        Ok(Space { total: state.total, available: state.available(), file_system: 0 })
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
