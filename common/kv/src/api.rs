//! The traits every engine implements: FoundationDB's transactions, object-safe.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::error::KvError;

/// A boxed future that may move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Longest key in bytes, as in FoundationDB.
pub const MAX_KEY_BYTES: usize = 10_000;
/// Longest value in bytes, as in FoundationDB.
pub const MAX_VALUE_BYTES: usize = 100_000;
/// Largest transaction in bytes: written keys and values plus all conflict ranges.
pub const MAX_TX_BYTES: usize = 10_000_000;
/// How far behind the newest version a read version may be: 5 s at FoundationDB's million versions a second.
pub const MAX_TX_AGE_VERSIONS: u64 = 5_000_000;
/// The first key that is not the user's: every key is less than this, a range may end at it.
pub const KEY_SPACE_END: &[u8] = &[0xff];

/// Position of a transaction in the order of commits: 8 bytes version, 2 bytes place within the batch,
/// both big-endian. Unique, and increasing in commit order.
pub type Versionstamp = [u8; 10];

/// An ordered, transactional key-value store. Cheap to share (`Arc<dyn Kv>`).
pub trait Kv: Send + Sync {
    /// Starts a transaction. Its read version is taken by its first read (or `get_read_version`).
    fn begin(&self) -> Box<dyn Tx>;

    /// `"mem"`, `"local"` or `"fdb"`.
    fn name(&self) -> &'static str;

    /// Makes every commit answered so far durable; resolves when it is.
    fn sync(&self) -> BoxFuture<'static, Result<(), KvError>>;
}

/// One transaction: reads a consistent snapshot plus its own writes, and commits atomically if none of
/// what it read (other than by `ReadMode::Snapshot`) was changed in between.
///
/// Dropping it without `commit` forgets it. Errors of writes (a key too long, say) come from `commit`.
pub trait Tx: Send {
    /// The value of `key`. Adds `key` to the read conflicts unless `mode` is `Snapshot`.
    fn get<'a>(
        &'a mut self,
        key: &'a [u8],
        mode: ReadMode,
    ) -> BoxFuture<'a, Result<Option<Vec<u8>>, KvError>>;

    /// Pairs of `range` in key order (or reverse), at most `opts.limit`. The read conflict is only what was
    /// read: up to the last key returned if the limit stopped it, else the whole range.
    fn get_range<'a>(
        &'a mut self,
        range: KeyRange,
        opts: RangeOptions,
    ) -> BoxFuture<'a, Result<Vec<KeyValue>, KvError>>;

    /// Sets `key` to `value`.
    fn set(&mut self, key: &[u8], value: &[u8]);

    /// Removes `key`; nothing happens if it is absent.
    fn clear(&mut self, key: &[u8]);

    /// Removes every key in `range`.
    fn clear_range(&mut self, range: KeyRange);

    /// Adds `delta` to the little-endian u64 at `key`, wrapping; absent counts as 0 and another length is
    /// cut or zero-extended to 8 bytes. Does not read: two of them never conflict.
    fn atomic_add(&mut self, key: &[u8], delta: i64);

    /// Sets the key whose 10 bytes at `offset` are replaced by this transaction's versionstamp.
    /// Reads of such a key in this transaction fail with `Unreadable`.
    fn set_versionstamped_key(&mut self, key: &[u8], offset: usize, value: &[u8]);

    /// Sets `key` to the value whose 10 bytes at `offset` are replaced by this transaction's versionstamp.
    /// Reads of `key` in this transaction fail with `Unreadable`.
    fn set_versionstamped_value(&mut self, key: &[u8], value: &[u8], offset: usize);

    /// As if `range` had been read.
    fn add_read_conflict(&mut self, range: KeyRange);

    /// As if `range` had been written.
    fn add_write_conflict(&mut self, range: KeyRange);

    /// Resolves some time after `key` has another value than this transaction leaves it with. It is armed by
    /// `commit` (also of a transaction that only reads) and fails with `Cancelled` if that never succeeds.
    /// Watching does not read: add a `get` if the commit must depend on it. A change that is
    /// undone at once may go unnoticed, and it may resolve without a change: read again.
    fn watch(&mut self, key: &[u8]) -> Watch;

    /// How safe the commit must be before it is answered. The default is `Durable`.
    fn set_durability(&mut self, durability: Durability);

    /// The version whose state this transaction reads.
    fn get_read_version(&mut self) -> BoxFuture<'_, Result<u64, KvError>>;

    /// Reads at `version`, which an earlier transaction reported. Must come before the first read. Reads
    /// fail with `FutureVersion` if it was not yet committed here and `TooOld` if it is no longer kept.
    fn set_read_version(&mut self, version: u64);

    /// Commits. The future may be moved and polled elsewhere; once it was polled the commit may happen
    /// even if the future is dropped.
    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<Committed, KvError>>;
}

/// A key and its value.
pub type KeyValue = (Vec<u8>, Vec<u8>);

/// Whether a read makes the commit depend on what it saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ReadMode {
    /// The commit fails with `Conflict` if what was read has changed.
    #[default]
    Serializable,
    /// The commit does not depend on it.
    Snapshot,
}

/// What a commit that was answered survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Durability {
    /// The process's death; a machine's crash may lose the last milliseconds of commits, newest first.
    Ordered,
    /// The machine's crash, together with every commit before it.
    #[default]
    Durable,
}

/// Options of a range read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeOptions {
    /// At most so many pairs; `usize::MAX` for all of them.
    pub limit: usize,
    /// From the end of the range backwards.
    pub reverse: bool,
    /// Whether the commit depends on it.
    pub mode: ReadMode,
}

impl Default for RangeOptions {
    fn default() -> Self {
        Self { limit: usize::MAX, reverse: false, mode: ReadMode::Serializable }
    }
}

impl RangeOptions {
    /// The first `limit` pairs, serializable.
    pub fn limit(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// The same, from the end backwards.
    pub fn reversed(self) -> Self {
        Self { reverse: true, ..self }
    }

    /// The same, without a read conflict.
    pub fn snapshot(self) -> Self {
        Self { mode: ReadMode::Snapshot, ..self }
    }
}

/// A half-open range of keys: `begin <= key < end`. Empty if `begin >= end`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyRange {
    /// The first key within.
    pub begin: Vec<u8>,
    /// The first key beyond.
    pub end: Vec<u8>,
}

impl KeyRange {
    /// `begin <= key < end`.
    pub fn new(begin: impl Into<Vec<u8>>, end: impl Into<Vec<u8>>) -> Self {
        Self { begin: begin.into(), end: end.into() }
    }

    /// Exactly `key`.
    pub fn key(key: &[u8]) -> Self {
        Self { begin: key.to_vec(), end: crate::key::successor(key) }
    }

    /// Every key that starts with `prefix`.
    pub fn prefix(prefix: &[u8]) -> Self {
        Self { begin: prefix.to_vec(), end: crate::key::prefix_end(prefix) }
    }

    /// Every key.
    pub fn all() -> Self {
        Self { begin: Vec::new(), end: KEY_SPACE_END.to_vec() }
    }

    /// Whether no key can be within.
    pub fn is_empty(&self) -> bool {
        self.begin >= self.end
    }

    /// Whether `key` is within.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.begin.as_slice() <= key && key < self.end.as_slice()
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}..{})", self.begin.escape_ascii(), self.end.escape_ascii())
    }
}

/// What a commit reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The version from which on reads see it; several commits of a batch may share it. A transaction that
    /// wrote nothing reports its read version (0 if it took none).
    pub version: u64,
    /// Unique per commit and increasing; all 0 for a transaction that wrote nothing.
    pub versionstamp: Versionstamp,
}

/// Resolves when a watched key has changed; see [`Tx::watch`].
#[must_use = "a watch does nothing unless it is awaited"]
pub struct Watch(BoxFuture<'static, Result<(), KvError>>);

impl Watch {
    /// Wraps an engine's future.
    pub fn new(future: impl Future<Output = Result<(), KvError>> + Send + 'static) -> Self {
        Self(Box::pin(future))
    }
}

impl Future for Watch {
    type Output = Result<(), KvError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}
