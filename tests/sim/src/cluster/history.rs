//! What clients asked and were told, kept outside the processes so that it survives their deaths.

use crate::check::chunk::{self, ChunkOp, Stamp};
use crate::check::names::{Ask, NameModel, NameOp, Told, Tree};
use crate::check::wgl::{self, Event, Verdict};
use crate::report::{OPERATIONS, UNKNOWN};
use crate::trace::Entry;
use crate::world::World;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// Steps of the search for one object, beyond which it counts as undecided.
const STEPS_MAX: u64 = 3_000_000;

/// A chunk under test: file and index.
pub type Place = (u32, u32);

/// Histories of all objects of a run.
pub struct History {
    world: World,
    chunks: RefCell<BTreeMap<Place, Vec<Event<ChunkOp>>>>,
    names: RefCell<BTreeMap<u32, Vec<Event<NameOp>>>>,
    initial: RefCell<BTreeMap<u32, Tree>>,
    next_stamp: Cell<Stamp>,
    next_name: Cell<u32>,
}

/// An operation on a chunk that hasn't been answered.
#[derive(Clone, Copy, Debug)]
pub struct OpenChunkOp(Place, usize);
/// An operation on a name space that hasn't been answered.
#[derive(Clone, Copy, Debug)]
pub struct OpenNameOp(u32, usize);

impl History {
    /// Empty histories.
    pub fn new(world: &World) -> Self {
        Self {
            world: world.clone(),
            chunks: RefCell::default(),
            names: RefCell::default(),
            initial: RefCell::default(),
            next_stamp: Cell::new(1),
            next_name: Cell::new(1),
        }
    }
    /// A stamp that no write has had.
    pub fn stamp(&self) -> Stamp {
        self.next_stamp.set(self.next_stamp.get() + 1);
        self.next_stamp.get()
    }
    /// Counts an operation of a client.
    pub fn asked(&self) {
        self.world.trace().count(OPERATIONS, 1);
    }
    /// Puts an answer into the trace.
    pub fn answered(&self, words: &[u64]) {
        self.world.record(Entry::Answer, words);
    }

    /// A change of a chunk is asked for; until it is answered its outcome is unknown.
    pub fn begin_chunk(&self, place: Place, op: ChunkOp) -> OpenChunkOp {
        let mut chunks = self.chunks.borrow_mut();
        let history = chunks.entry(place).or_default();
        history.push(Event { begin: self.world.now_ns(), end: None, op });
        OpenChunkOp(place, history.len() - 1)
    }
    /// A change of a chunk was done.
    pub fn end_chunk(&self, open: OpenChunkOp) {
        if let Some(event) = self.chunks.borrow_mut().get_mut(&open.0).and_then(|h| h.get_mut(open.1)) {
            event.end = Some(self.world.now_ns());
        }
    }
    /// A change of a chunk was refused for good: it never happens.
    pub fn refused_chunk(&self, open: OpenChunkOp) {
        if let Some(event) = self.chunks.borrow_mut().get_mut(&open.0).and_then(|h| h.get_mut(open.1)) {
            event.end = Some(self.world.now_ns());
            event.op = ChunkOp::Nothing;
        }
    }
    /// A chunk was read, between `begin` and now.
    pub fn read_chunk(&self, place: Place, begin: u64, first: u32, bytes: &[u8]) {
        match chunk::stamps(bytes, first) {
            Ok(found) => {
                let event =
                    Event { begin, end: Some(self.world.now_ns()), op: ChunkOp::Read { first, found } };
                self.chunks.borrow_mut().entry(place).or_default().push(event);
            }
            Err(at) => self.world.fail(
                "reads return what was written",
                &format!("chunk {place:?}: byte {at} behind cell {first} was written by nobody"),
            ),
        }
    }

    /// The name space of a group starts with these empty directories.
    pub fn start_names(&self, group: u32, dirs: &[u64]) {
        self.initial.borrow_mut().insert(group, Tree::of_directories(dirs));
    }
    /// An operation on the name space of a group is asked for.
    pub fn begin_name(&self, group: u32, ask: Ask) -> OpenNameOp {
        let id = self.next_name.get();
        self.next_name.set(id + 1);
        let mut names = self.names.borrow_mut();
        let history = names.entry(group).or_default();
        let op = NameOp { id, ask, told: Told::Unknown };
        history.push(Event { begin: self.world.now_ns(), end: None, op });
        OpenNameOp(group, history.len() - 1)
    }
    /// An operation on the name space was answered.
    pub fn end_name(&self, open: OpenNameOp, told: Told) {
        if let Some(event) = self.names.borrow_mut().get_mut(&open.0).and_then(|h| h.get_mut(open.1)) {
            event.end = Some(self.world.now_ns());
            event.op.told = told;
        }
    }

    /// Checks every history; what doesn't hold becomes the world's failure.
    pub fn check(&self) {
        for (place, history) in &*self.chunks.borrow() {
            self.count_unknown(history);
            match chunk::check(history, STEPS_MAX) {
                Verdict::Linearizable => self.world.trace().count("chunk histories linearizable", 1),
                Verdict::Undecided => self.world.trace().count("chunk histories undecided", 1),
                Verdict::Violation(at) => {
                    let text = excerpt(history, at);
                    self.world.fail("per-chunk linearizability", &format!("chunk {place:?}: {text}"));
                }
            }
        }
        for (group, history) in &*self.names.borrow() {
            self.count_unknown(history);
            let initial = self.initial.borrow().get(group).cloned().unwrap_or_default();
            match wgl::check(&NameModel, initial, history, STEPS_MAX / 4) {
                Verdict::Linearizable => self.world.trace().count("directory histories linearizable", 1),
                Verdict::Undecided => self.world.trace().count("directory histories undecided", 1),
                Verdict::Violation(at) => {
                    let text = excerpt(history, at);
                    self.world.fail("directory history", &format!("group {group}: {text}"));
                }
            }
        }
    }
    fn count_unknown<Op>(&self, history: &[Event<Op>]) {
        let unknown = history.iter().filter(|e| e.end.is_none()).count() as u64;
        self.world.trace().count(UNKNOWN, unknown);
    }
}

/// The operation that nothing explains, and what overlapped it or came shortly before.
fn excerpt<Op: std::fmt::Debug>(history: &[Event<Op>], at: usize) -> String {
    let show = |e: &Event<Op>| {
        let end = e.end.map_or_else(|| "?".to_owned(), |end| format!("{:.3}", end as f64 / 1e6));
        format!("\n  {:.3}..{end} ms {:?}", e.begin as f64 / 1e6, e.op)
    };
    let Some(bad) = history.get(at) else { return "no order explains it".to_owned() };
    let mut order: Vec<&Event<Op>> =
        history.iter().filter(|e| e.begin <= bad.end.unwrap_or(u64::MAX)).collect();
    order.sort_by_key(|e| e.begin);
    let recent: String = order.iter().rev().take(24).rev().map(|e| show(e)).collect();
    format!("no order explains{}\nafter:{recent}", show(bad))
}
