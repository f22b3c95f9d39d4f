//! What a run did: one hash over everything observable, and counters for the table at the end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// Kinds of trace entries. Numbers only need to differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Entry {
    /// A message left a process.
    Send = 1,
    /// A message arrived.
    Arrive = 2,
    /// A connection was opened, refused or broken.
    Connection = 3,
    /// A disk operation was asked for.
    DiskOp = 4,
    /// A disk operation ended.
    DiskEnd = 5,
    /// A change of a name space.
    DiskName = 6,
    /// A process was started, killed, paused or resumed.
    Process = 7,
    /// A random number was drawn by a process.
    Random = 8,
    /// A client's operation ended with an answer.
    Answer = 9,
    /// A fault of another kind.
    Fault = 10,
}

/// The hash of a run so far, and its counters.
#[derive(Default)]
pub struct Trace {
    hash: Cell<u64>,
    entries: Cell<u64>,
    log: Cell<bool>,
    counters: RefCell<BTreeMap<&'static str, u64>>,
}

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

impl Trace {
    /// Prints every entry to standard error from now on.
    pub fn set_log(&self, on: bool) {
        self.log.set(on);
    }
    /// Whether entries are printed.
    pub fn is_logged(&self) -> bool {
        self.log.get()
    }
    /// Adds an entry.
    pub fn add(&self, now: u64, entry: Entry, words: &[u64]) {
        let mut hash = mix(mix(self.hash.get(), now), entry as u64);
        for &word in words {
            hash = mix(hash, word);
        }
        self.hash.set(hash);
        self.entries.set(self.entries.get() + 1);
        if self.log.get() {
            eprintln!("{:>14} {entry:?} {words:x?} -> {hash:016x}", now);
        }
    }
    /// The hash over all entries.
    pub fn hash(&self) -> u64 {
        self.hash.get()
    }
    /// Number of entries.
    pub fn entries(&self) -> u64 {
        self.entries.get()
    }
    /// Adds to a counter.
    pub fn count(&self, name: &'static str, by: u64) {
        *self.counters.borrow_mut().entry(name).or_default() += by;
    }
    /// All counters.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.counters.borrow().clone()
    }
}

fn mix(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(MULTIPLIER);
    mixed ^ (mixed >> 29)
}

/// A number that stands for some bytes in a trace entry.
pub fn digest(bytes: &[u8]) -> u64 {
    u64::from(ember_types::checksum::crc32c(bytes)) | ((bytes.len() as u64) << 32)
}

/// A number that stands for a name in a trace entry.
pub fn name_digest(name: &str) -> u64 {
    digest(name.as_bytes())
}
