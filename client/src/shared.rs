//! What all reactors of one client process share: its identity, its request numbers, its open files.
//! Everything here is `Send + Sync`; locks are held for moments, never across an await.

use crate::open::{FileState, OpenFile};
use crate::seen::Seen;
use ember_types::file::Attributes;
use ember_types::{ChannelId, ClientId, InodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Locks a mutex; a panic of another holder leaves plain data that is still valid.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One client of the cluster: one id, one session, whatever the number of its reactors.
#[derive(Debug)]
pub struct Shared {
    id: ClientId,
    sequences: Mutex<Sequences>,
    next_channel: AtomicU32,
    next_open: AtomicU64,
    files: Mutex<BTreeMap<InodeId, Weak<FileState>>>,
    opens: Mutex<BTreeMap<u64, Arc<OpenFile>>>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Sequences {
    last: u64,
    outstanding: BTreeSet<u64>,
}

impl Shared {
    /// A client with this id, which no other run may have had.
    pub fn new(id: ClientId) -> Arc<Self> {
        Arc::new(Self {
            id,
            sequences: Mutex::default(),
            next_channel: AtomicU32::new(1),
            next_open: AtomicU64::new(1),
            files: Mutex::default(),
            opens: Mutex::default(),
            seen: Mutex::default(),
        })
    }
    /// The client's id.
    pub fn id(&self) -> ClientId {
        self.id
    }
    /// A channel that no reactor has had (R12).
    pub(crate) fn new_channel(&self) -> ChannelId {
        ChannelId(self.next_channel.fetch_add(1, Ordering::Relaxed))
    }
    /// A number for an open that no other open of this client has.
    pub(crate) fn new_open(&self) -> u64 {
        self.next_open.fetch_add(1, Ordering::Relaxed)
    }
    /// Numbers a changing metadata request. It counts as unanswered until the guard is dropped.
    pub(crate) fn begin_request(self: &Arc<Self>) -> RequestNumber {
        let mut sequences = lock(&self.sequences);
        sequences.last += 1;
        let number = sequences.last;
        sequences.outstanding.insert(number);
        RequestNumber { shared: self.clone(), number }
    }
    /// Every request up to this number has been answered.
    pub(crate) fn answered(&self) -> u64 {
        let sequences = lock(&self.sequences);
        sequences.outstanding.first().map_or(sequences.last, |first| first - 1)
    }
    /// The state of an inode that is open somewhere in this process, or a new one from `attributes`.
    pub(crate) fn file_state(&self, attributes: &Attributes) -> Arc<FileState> {
        let mut files = lock(&self.files);
        let known = files.get(&attributes.inode).and_then(Weak::upgrade);
        if let Some(state) = known {
            state.refresh(attributes);
            return state;
        }
        let state = Arc::new(FileState::new(attributes));
        files.retain(|_, state| state.strong_count() > 0);
        files.insert(attributes.inode, Arc::downgrade(&state));
        state
    }
    /// The state of an inode if it is open somewhere in this process.
    pub fn open_state(&self, inode: InodeId) -> Option<Arc<FileState>> {
        lock(&self.files).get(&inode).and_then(Weak::upgrade)
    }
    /// Meta has answered a change with these attributes.
    pub(crate) fn saw(&self, attributes: &Attributes) {
        lock(&self.seen).note(attributes);
    }
    /// Brings attributes that were overtaken on their way up to what is known.
    pub(crate) fn correct(&self, attributes: &mut Attributes) {
        lock(&self.seen).correct(attributes);
    }
    pub(crate) fn add_open(&self, open: Arc<OpenFile>) {
        lock(&self.opens).insert(open.handle(), open);
    }
    pub(crate) fn remove_open(&self, handle: u64) -> Option<Arc<OpenFile>> {
        lock(&self.opens).remove(&handle)
    }
    /// The open with this handle.
    pub fn open(&self, handle: u64) -> Option<Arc<OpenFile>> {
        lock(&self.opens).get(&handle).cloned()
    }
    /// Every open of this process.
    pub fn opens(&self) -> Vec<Arc<OpenFile>> {
        lock(&self.opens).values().cloned().collect()
    }
}

/// A numbered request that hasn't been answered yet.
#[derive(Debug)]
pub(crate) struct RequestNumber {
    shared: Arc<Shared>,
    pub(crate) number: u64,
}

impl Drop for RequestNumber {
    fn drop(&mut self) {
        lock(&self.shared.sequences).outstanding.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answered_stops_before_the_first_outstanding_request() {
        let shared = Shared::new(ClientId::from_u128(1));
        assert_eq!(shared.answered(), 0);
        let first = shared.begin_request();
        let second = shared.begin_request();
        assert_eq!((first.number, second.number, shared.answered()), (1, 2, 0));
        drop(second);
        assert_eq!(shared.answered(), 0);
        drop(first);
        assert_eq!(shared.answered(), 2);
    }
}
