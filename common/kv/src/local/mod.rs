//! The engine on one machine: fjall as the sorted durable store, our resolver and our group commit.
//!
//! One caller or the store's thread commits at a time: it takes all that wait, judges them in order, writes one
//! batch, makes it as durable as the strictest asks for, publishes the new state and answers. Reads run on the
//! caller's thread, from a snapshot of the published state. Versions are microseconds, as in FoundationDB. One
//! process opens a store at a time.
#![allow(clippy::disallowed_methods)] // The engine owns threads and reads the monotonic clock for versions.

mod commit;
pub mod decode;
mod dump;
mod files;
mod flush;
mod journal;
mod store;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use ember_types::ClusterId;
use fjall::Snapshot;

use crate::api::{BoxFuture, Committed, KeyRange, KeyValue, Kv, Tx};
use crate::error::KvError;
use crate::oneshot::lock;
use crate::tx::{CommitRequest, Engine, EngineTx, WatchRequest};
use crate::watch::WatchSet;

pub use dump::{ExportSummary, verify_export};

use commit::{Committer, Queue};
use flush::Flusher;
use store::{Opened, Store};

/// How many recent states can be read by version.
const MAX_KEPT_STATES: usize = 4096;

/// How a local store is opened.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// The cluster it belongs to; another one's is refused.
    pub cluster_id: ClusterId,
    /// Memory for cached blocks, in bytes.
    pub cache_bytes: u64,
    /// How long after an `Ordered` commit the flush to the disk starts.
    pub flush_after: Duration,
    /// How long a read version stays usable.
    pub tx_age: Duration,
}

impl LocalOptions {
    /// The defaults, for `cluster_id`.
    pub fn new(cluster_id: ClusterId) -> Self {
        Self {
            cluster_id,
            cache_bytes: 64 << 20,
            flush_after: Duration::from_millis(5),
            tx_age: Duration::from_secs(5),
        }
    }
}

/// What happened since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalStats {
    /// Batches written.
    pub groups: u64,
    /// Transactions committed with changes.
    pub commits: u64,
    /// Transactions refused as conflicting or too old.
    pub conflicts: u64,
    /// The most transactions in one batch.
    pub largest_group: u64,
}

/// A store in a directory. Clones are handles; the last one closes it.
#[derive(Clone)]
pub struct LocalKv(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// One state that can be read.
#[derive(Clone)]
struct State {
    version: u64,
    snapshot: Arc<Snapshot>,
}

struct Published {
    newest: State,
    /// Older states, oldest first.
    older: VecDeque<State>,
}

pub(crate) struct Shared {
    /// Gone after closing.
    store: Mutex<Option<Arc<Store>>>,
    published: Mutex<Option<Published>>,
    oldest: AtomicU64,
    queue: Queue,
    /// Held by whoever commits. Gone after closing.
    committer: Mutex<Option<Committer>>,
    flusher: Flusher,
    watches: WatchSet,
    stats: Mutex<LocalStats>,
    cluster_id: ClusterId,
}

/// A snapshot and the store that it needs.
pub(crate) struct View {
    state: State,
    store: Arc<Store>,
}

impl LocalKv {
    /// Opens the store in the directory `path`, or creates it if there is nothing.
    ///
    /// # Errors
    /// `Locked` if another process has it open, `WrongStore` if it is another cluster's or another format,
    /// `Corrupt` if anything in it is damaged, `Io`.
    pub fn open(path: &Path, options: LocalOptions) -> Result<Self, KvError> {
        let Opened { store, mark, version } = Store::open(path, &options)?;
        let store = Arc::new(store);
        let published = version.saturating_add(commit::RESTART_GAP_VERSIONS);
        let newest = State { version: published, snapshot: Arc::new(store.snapshot()) };
        let shared = Arc::new(Shared {
            published: Mutex::new(Some(Published { newest, older: VecDeque::new() })),
            oldest: AtomicU64::new(published),
            queue: Queue::default(),
            committer: Mutex::default(),
            flusher: Flusher::new(store.db_dir(), mark, options.flush_after),
            watches: WatchSet::default(),
            stats: Mutex::default(),
            cluster_id: options.cluster_id,
            store: Mutex::new(Some(store.clone())),
        });
        let handle = Handle { shared, threads: Mutex::default() };
        let shared = handle.shared.clone();
        let committer = Committer::new(shared, store, version, published, options.tx_age);
        *lock(&handle.shared.committer) = Some(committer);
        handle.start("kv-commit", path, {
            let shared = handle.shared.clone();
            move || commit::run(&shared, options.tx_age / 8)
        })?;
        handle.start("kv-flush", path, {
            let shared = handle.shared.clone();
            move || flush::run(&shared)
        })?;
        Ok(Self(Arc::new(handle)))
    }

    /// Finishes what waits, makes everything durable and closes the store. Transactions that are still open
    /// keep their snapshot, and the store's lock, until they are dropped; their commits fail with `Closed`.
    pub fn close(&self) -> Result<(), KvError> {
        self.0.close()
    }

    /// Moves what is only in the journal into tables, so that the next start has less to replay. Blocks.
    pub fn compact(&self) -> Result<(), KvError> {
        self.0.shared.store()?.compact()
    }

    /// Counters since it was opened.
    pub fn stats(&self) -> LocalStats {
        *lock(&self.0.shared.stats)
    }
}

impl Handle {
    fn start(&self, name: &str, path: &Path, body: impl FnOnce() + Send + 'static) -> Result<(), KvError> {
        let spawned = std::thread::Builder::new().name(name.into()).spawn(body);
        let thread = spawned.map_err(|e| files::io(path, "start of a thread", &e))?;
        lock(&self.threads).push(thread);
        Ok(())
    }

    fn close(&self) -> Result<(), KvError> {
        let shared = &self.shared;
        shared.queue.close();
        let threads = std::mem::take(&mut *lock(&self.threads));
        for (i, thread) in threads.into_iter().enumerate() {
            if i == 1 {
                // The flusher goes after the committer.
                shared.flusher.stop();
            }
            if thread.join().is_err() {
                tracing::error!("a thread of the key-value store panicked");
            }
        }
        shared.flusher.stop();
        drop(lock(&shared.committer).take());
        shared.watches.cancel(true);
        *lock(&shared.published) = None;
        let Some(store) = lock(&shared.store).take() else { return Ok(()) };
        store.persist()?;
        shared.flusher.finish(shared.queue.failure())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "closing the key-value store failed");
        }
    }
}

impl Shared {
    fn store(&self) -> Result<Arc<Store>, KvError> {
        lock(&self.store).clone().ok_or(KvError::Closed(None))
    }

    /// Makes `newest` what new transactions read, and `oldest` the oldest usable read version.
    fn publish(&self, newest: State, oldest: u64) {
        let dropped = {
            let mut published = lock(&self.published);
            let Some(published) = published.as_mut() else { return };
            let before = std::mem::replace(&mut published.newest, newest);
            published.older.push_back(before);
            let too_many = published.older.len().saturating_sub(MAX_KEPT_STATES);
            // A state is needed until the next one is too old as well.
            let next_too_old = |i: usize| published.older.get(i + 1).is_some_and(|s| s.version <= oldest);
            let count = (0..published.older.len()).take_while(|i| *i < too_many || next_too_old(*i)).count();
            published.older.drain(..count).collect::<Vec<_>>()
        };
        self.oldest.store(oldest, Ordering::Release);
        drop(dropped);
    }

    fn newest(&self) -> Result<State, KvError> {
        let published = lock(&self.published);
        published.as_ref().map(|p| p.newest.clone()).ok_or(KvError::Closed(None))
    }

    fn state_at(&self, version: u64) -> Result<State, KvError> {
        let published = lock(&self.published);
        let Some(published) = published.as_ref() else { return Err(KvError::Closed(None)) };
        if version > published.newest.version {
            return Err(KvError::FutureVersion);
        }
        self.check_age(version)?;
        // A state holds until the next one.
        let states = std::iter::once(&published.newest).chain(published.older.iter().rev());
        let state = states.into_iter().find(|s| s.version <= version).ok_or(KvError::TooOld)?;
        Ok(State { version, snapshot: state.snapshot.clone() })
    }
}

impl Engine for Shared {
    type View = View;

    fn view(&self, version: Option<u64>) -> Result<(u64, View), KvError> {
        let store = self.store()?;
        let state = match version {
            Some(version) => self.state_at(version)?,
            None => self.newest()?,
        };
        Ok((state.version, View { state, store }))
    }

    fn check_age(&self, version: u64) -> Result<(), KvError> {
        if version < self.oldest.load(Ordering::Acquire) { Err(KvError::TooOld) } else { Ok(()) }
    }

    fn get(&self, view: &View, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        view.store.get(&view.state.snapshot, key)
    }

    fn scan(
        &self,
        view: &View,
        range: &KeyRange,
        reverse: bool,
        max: usize,
    ) -> Result<Vec<KeyValue>, KvError> {
        view.store.scan(&view.state.snapshot, range, reverse, max)
    }

    fn commit(&self, request: CommitRequest) -> BoxFuture<'static, Result<Committed, KvError>> {
        self.commit_soon(request)
    }

    fn arm(&self, watches: Vec<WatchRequest>) -> Result<(), KvError> {
        for WatchRequest { watch, seen } in watches {
            let store = self.store()?;
            let key = watch.key.clone();
            let seen = match seen {
                Some(seen) => seen,
                None => store.get(&self.newest()?.snapshot, &key)?,
            };
            self.watches.arm(watch, seen);
            // A commit published before the watch was armed did not see it.
            let current = store.get(&self.newest()?.snapshot, &key)?;
            self.watches.changed(&key, current.as_deref());
        }
        Ok(())
    }
}

impl Kv for LocalKv {
    fn begin(&self) -> Box<dyn Tx> {
        Box::new(EngineTx::new(self.0.shared.clone()))
    }

    fn name(&self) -> &'static str {
        "local"
    }

    fn sync(&self) -> BoxFuture<'static, Result<(), KvError>> {
        self.0.shared.sync_soon()
    }
}
