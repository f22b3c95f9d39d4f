//! Commits: many transactions, one batch, one flush. Whoever comes while nobody commits does so himself, with all
//! that wait; a thread of the store does it for those who came meanwhile.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::store::Store;
use super::{Shared, State};
use crate::api::{BoxFuture, Committed, Durability, KeyRange};
use crate::error::KvError;
use crate::mem::add_stamped_keys;
use crate::mutation::{Base, Overlay, apply, versionstamp};
use crate::oneshot::{self, Sender, lock};
use crate::resolver::{Resolver, Verdict};
use crate::tx::{CommitRequest, Engine, WatchRequest};

/// At most so many transactions wait; more are refused as busy.
const MAX_WAITING: usize = 8192;
/// At most so many bytes of transactions wait.
const MAX_WAITING_BYTES: usize = 128 << 20;
/// At most so many transactions go into one batch.
const MAX_GROUP: usize = 1024;
/// No more transactions are added to a batch of this size.
const MAX_GROUP_BYTES: usize = 16 << 20;
/// Most keys that one `clear_range` may remove.
const MAX_CLEARED_KEYS: usize = 1_000_000;
/// Versions are microseconds.
const VERSIONS_PER_SECOND: u64 = 1_000_000;
/// A start skips so many versions, more than commits that a crash took can have used.
pub(super) const RESTART_GAP_VERSIONS: u64 = 100 * VERSIONS_PER_SECOND;

pub(super) enum Waiting {
    Commit(Box<CommitRequest>, Sender<Result<Committed, KvError>>),
    Sync(Sender<Result<(), KvError>>),
}

impl Waiting {
    fn bytes(&self) -> usize {
        match self {
            Self::Commit(request, _) => request.bytes,
            Self::Sync(_) => 0,
        }
    }

    fn fail(self, error: KvError) {
        match self {
            Self::Commit(_, done) => done.send(Err(error)),
            Self::Sync(done) => done.send(Err(error)),
        }
    }
}

#[derive(Default)]
struct QueueState {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    closing: bool,
    failure: Option<KvError>,
}

/// The transactions that wait to be committed.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

impl Queue {
    /// Takes a transaction in, or answers it at once. Whoever pushes sees to it that somebody commits.
    pub(super) fn push(&self, waiting: Waiting) {
        let refused = {
            let mut state = lock(&self.state);
            let full = state.waiting.len() >= MAX_WAITING || state.bytes >= MAX_WAITING_BYTES;
            if let Some(error) = &state.failure {
                Some((waiting, error.clone()))
            } else if state.closing {
                Some((waiting, KvError::Closed(None)))
            } else if full {
                Some((waiting, KvError::Busy("too many commits wait for the disk")))
            } else {
                state.bytes += waiting.bytes();
                state.waiting.push_back(waiting);
                None
            }
        };
        if let Some((waiting, error)) = refused {
            waiting.fail(error);
        }
    }

    /// Refuses new transactions; those that wait are still committed.
    pub(super) fn close(&self) {
        lock(&self.state).closing = true;
        self.changed.notify_all();
    }

    /// Refuses everything from now on, because the disk can't be trusted.
    pub(super) fn fail(&self, error: &KvError) {
        let waiting = {
            let mut state = lock(&self.state);
            let closed = KvError::Closed(Some(error.to_string()));
            state.failure.get_or_insert(closed);
            state.bytes = 0;
            std::mem::take(&mut state.waiting)
        };
        self.changed.notify_all();
        for waiting in waiting {
            waiting.fail(KvError::Closed(Some(error.to_string())));
        }
    }

    pub(super) fn failure(&self) -> Option<KvError> {
        lock(&self.state).failure.clone()
    }

    /// Waits for a transaction, or until `tick` has passed; `None` when there will be none any more.
    fn wait(&self, tick: Duration) -> Option<()> {
        let state = lock(&self.state);
        let idle = |s: &mut QueueState| s.waiting.is_empty() && !s.closing && s.failure.is_none();
        let waited = self.changed.wait_timeout_while(state, tick, idle);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        let over = state.failure.is_some() || state.closing && state.waiting.is_empty();
        (!over).then_some(())
    }

    /// The next group; empty if nobody waits.
    fn take_group(&self) -> Vec<Waiting> {
        let mut state = lock(&self.state);
        let mut group = Vec::new();
        let mut bytes = 0;
        while group.len() < MAX_GROUP && bytes < MAX_GROUP_BYTES {
            let Some(waiting) = state.waiting.pop_front() else { break };
            bytes += waiting.bytes();
            group.push(waiting);
        }
        state.bytes -= bytes;
        group
    }

    /// Wakes the store's thread if somebody waits.
    pub(super) fn hand_over(&self) {
        if !lock(&self.state).waiting.is_empty() {
            self.changed.notify_one();
        }
    }
}

impl Shared {
    /// Commits a transaction; blocks for as long as that takes, or leaves it to whoever commits now.
    pub(super) fn commit_soon(
        &self,
        request: CommitRequest,
    ) -> BoxFuture<'static, Result<Committed, KvError>> {
        let (sender, receiver) = oneshot::channel();
        self.queue.push(Waiting::Commit(Box::new(request), sender));
        self.lead();
        Box::pin(async move { receiver.await.unwrap_or(Err(KvError::CommitUnknown)) })
    }

    /// Makes everything committed so far durable; as [`Self::commit_soon`].
    pub(super) fn sync_soon(&self) -> BoxFuture<'static, Result<(), KvError>> {
        let (sender, receiver) = oneshot::channel();
        self.queue.push(Waiting::Sync(sender));
        self.lead();
        Box::pin(async move { receiver.await.unwrap_or(Err(KvError::Closed(None))) })
    }

    /// Commits one group unless somebody is committing: he looks again when he is done.
    fn lead(&self) {
        let free = match self.committer.try_lock() {
            Ok(committer) => committer,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        self.commit_group(free, false);
        self.queue.hand_over();
    }

    /// Commits the next group; without one, and if `tick`, lets time pass.
    fn commit_group(&self, mut committer: MutexGuard<'_, Option<Committer>>, tick: bool) {
        let Some(committer) = committer.as_mut() else { return };
        let group = self.queue.take_group();
        let panics = FailOnPanic(self);
        if !group.is_empty() {
            if let Err(error) = committer.commit(group) {
                self.stop(&error);
            }
        } else if tick {
            committer.let_time_pass();
        }
        drop(panics);
    }

    fn stop(&self, error: &KvError) {
        tracing::error!(%error, "the key-value store stops: a commit failed");
        self.queue.fail(error);
        self.watches.cancel(true);
    }
}

/// A commit that panicked half-way leaves the store in doubt.
struct FailOnPanic<'a>(&'a Shared);

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop(&KvError::Closed(Some("a commit panicked".into())));
        }
    }
}

/// Body of the store's own thread.
pub(super) fn run(shared: &Shared, tick: Duration) {
    while let Some(()) = shared.queue.wait(tick) {
        shared.commit_group(lock(&shared.committer), true);
    }
}

pub(super) struct Committer {
    shared: Arc<Shared>,
    store: Arc<Store>,
    resolver: Resolver,
    /// The last version in the store.
    stored: u64,
    /// The last version given out; ticks raise it without a batch.
    last: u64,
    base: u64,
    started: Instant,
    window: u64,
}

/// What a group came to, before it is written.
struct Group {
    overlay: Overlay,
    accepted: Vec<(Sender<Result<Committed, KvError>>, Committed)>,
    refused: Vec<(Sender<Result<Committed, KvError>>, KvError)>,
    syncs: Vec<Sender<Result<(), KvError>>>,
    watches: Vec<WatchRequest>,
    durability: Durability,
}

impl Committer {
    /// `stored` is the last version in the store, `published` the one that transactions read now.
    pub(super) fn new(
        shared: Arc<Shared>,
        store: Arc<Store>,
        stored: u64,
        published: u64,
        age: Duration,
    ) -> Self {
        let window = u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
        Self {
            shared,
            store,
            resolver: Resolver::new(published),
            stored,
            last: published,
            base: published,
            started: Instant::now(),
            window,
        }
    }

    fn next_version(&self) -> u64 {
        let elapsed = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.base.saturating_add(elapsed).max(self.last + 1)
    }

    /// Moves versions on while nobody commits, so that new transactions don't begin with an old one.
    fn let_time_pass(&mut self) {
        let Ok(State { snapshot, .. }) = self.shared.newest() else { return };
        self.last = self.next_version();
        self.publish(State { version: self.last, snapshot });
    }

    fn publish(&mut self, state: State) {
        let oldest = state.version.saturating_sub(self.window);
        self.resolver.forget_before(oldest);
        self.shared.publish(state, self.resolver.oldest());
    }

    fn commit(&mut self, waiting: Vec<Waiting>) -> Result<(), KvError> {
        let version = self.next_version();
        let group = self.judge(waiting, version)?;
        if group.accepted.is_empty() {
            if !group.syncs.is_empty() {
                let stored = self.stored;
                self.written(stored, group.durability, self.store.persist())?;
            }
        } else {
            let written = self.store.write(&group.overlay, version, self.stored, group.durability);
            if let Err(error) = self.written(version, group.durability, written) {
                for (done, _) in group.accepted {
                    done.send(Err(KvError::CommitUnknown));
                }
                return Err(error);
            }
            (self.stored, self.last) = (version, version);
            self.publish(State { version, snapshot: Arc::new(self.store.snapshot()) });
        }
        self.count(&group);
        self.answer(group);
        Ok(())
    }

    /// Notes how far the store is durable now.
    fn written(
        &self,
        version: u64,
        durability: Durability,
        result: Result<(), KvError>,
    ) -> Result<(), KvError> {
        result?;
        match durability {
            Durability::Durable => self.shared.flusher.durable(version),
            Durability::Ordered => {
                self.shared.flusher.request(version);
                Ok(())
            }
        }
    }

    /// Judges the transactions in order; each sees the writes of those before it.
    fn judge(&mut self, waiting: Vec<Waiting>, version: u64) -> Result<Group, KvError> {
        let snapshot = self.shared.newest()?;
        let mut group = Group {
            overlay: Overlay::new(),
            accepted: Vec::new(),
            refused: Vec::new(),
            syncs: Vec::new(),
            watches: Vec::new(),
            durability: Durability::Ordered,
        };
        for (place, waiting) in waiting.into_iter().enumerate() {
            match waiting {
                Waiting::Sync(done) => {
                    group.durability = Durability::Durable;
                    group.syncs.push(done);
                }
                Waiting::Commit(request, done) => {
                    let durability = request.durability;
                    match self.accept(*request, version, place as u16, &snapshot, &mut group) {
                        Ok(committed) => {
                            group.durability = group.durability.max(durability);
                            group.accepted.push((done, committed));
                        }
                        Err(error) => group.refused.push((done, error)),
                    }
                }
            }
        }
        Ok(group)
    }

    fn accept(
        &mut self,
        request: CommitRequest,
        version: u64,
        place: u16,
        newest: &State,
        group: &mut Group,
    ) -> Result<Committed, KvError> {
        match self.resolver.check(request.read_version, &request.reads) {
            Verdict::Commit => {}
            Verdict::Conflict => return Err(KvError::Conflict),
            Verdict::TooOld => return Err(KvError::TooOld),
        }
        let stamp = versionstamp(version, place);
        let mut writes = request.writes;
        add_stamped_keys(&request.log, &stamp, &mut writes);
        let mut base = Stored { store: &self.store, state: newest };
        apply(request.log, &stamp, &mut group.overlay, &mut base)?;
        self.resolver.record(version, &writes);
        for mut watch in request.watches {
            if watch.seen.is_none() {
                let key = &watch.watch.key;
                watch.seen = match group.overlay.get(key) {
                    Some(value) => Some(value.clone()),
                    None => base.value(key).ok(),
                };
            }
            group.watches.push(watch);
        }
        Ok(Committed { version, versionstamp: stamp })
    }

    fn count(&self, group: &Group) {
        let mut stats = lock(&self.shared.stats);
        stats.groups += u64::from(!group.accepted.is_empty());
        stats.commits += group.accepted.len() as u64;
        stats.conflicts += group.refused.len() as u64;
        stats.largest_group = stats.largest_group.max(group.accepted.len() as u64);
    }

    fn answer(&self, group: Group) {
        self.shared.watches.committed(&group.overlay);
        if let Err(error) = self.shared.arm(group.watches) {
            tracing::warn!(%error, "watches are cancelled");
        }
        for (done, committed) in group.accepted {
            done.send(Ok(committed));
        }
        for (done, error) in group.refused {
            done.send(Err(error));
        }
        for done in group.syncs {
            done.send(Ok(()));
        }
    }
}

/// The published state, as the base of the group's changes.
struct Stored<'a> {
    store: &'a Store,
    state: &'a State,
}

impl Base for Stored<'_> {
    fn value(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.store.get(&self.state.snapshot, key)
    }

    fn keys(&mut self, range: &KeyRange) -> Result<Vec<Vec<u8>>, KvError> {
        let found = self.store.keys(&self.state.snapshot, range, MAX_CLEARED_KEYS + 1)?;
        if found.len() > MAX_CLEARED_KEYS {
            return Err(KvError::TooLarge { bytes: found.iter().map(Vec::len).sum() });
        }
        Ok(found)
    }
}
