//! The transaction that all embedded engines share: it reads through its own writes and collects conflicts.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::api::{
    BoxFuture, Committed, Durability, KEY_SPACE_END, KeyRange, KeyValue, MAX_KEY_BYTES, RangeOptions,
    ReadMode, Tx, Watch,
};
use crate::buffer::{Own, WriteBuffer};
use crate::error::KvError;
use crate::key::successor;
use crate::mutation::{Mutation, add};
use crate::watch::{self, PendingWatch};

/// Pairs fetched from an engine at once.
const SCAN_CHUNK_MIN: usize = 16;
const SCAN_CHUNK_MAX: usize = 1024;

/// A watch and what the transaction leaves at its key.
pub(crate) struct WatchRequest {
    pub(crate) watch: PendingWatch,
    /// The value at the transaction's read version; `None` if it took no read version or wrote the key, so
    /// that the value at arming time counts.
    pub(crate) seen: Option<Option<Vec<u8>>>,
}

/// Everything a commit needs.
pub(crate) struct CommitRequest {
    /// 0 if nothing was read.
    pub(crate) read_version: u64,
    pub(crate) reads: Vec<KeyRange>,
    pub(crate) writes: Vec<KeyRange>,
    pub(crate) log: Vec<Mutation>,
    pub(crate) durability: Durability,
    pub(crate) watches: Vec<WatchRequest>,
    /// About how many bytes it occupies while it waits.
    pub(crate) bytes: usize,
}

/// What an engine provides below [`EngineTx`].
pub(crate) trait Engine: Send + Sync + 'static {
    /// The store as of one version.
    type View: Send + Sync;

    /// The newest state, or that of `version`.
    fn view(&self, version: Option<u64>) -> Result<(u64, Self::View), KvError>;
    /// Fails with `TooOld` once `version` has left the window.
    fn check_age(&self, version: u64) -> Result<(), KvError>;
    fn get(&self, view: &Self::View, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;
    /// The first (or last) `max` pairs of `range`.
    fn scan(
        &self,
        view: &Self::View,
        range: &KeyRange,
        reverse: bool,
        max: usize,
    ) -> Result<Vec<KeyValue>, KvError>;
    fn commit(&self, request: CommitRequest) -> BoxFuture<'static, Result<Committed, KvError>>;
    /// Arms the watches of a transaction that wrote nothing.
    fn arm(&self, watches: Vec<WatchRequest>) -> Result<(), KvError>;
}

pub(crate) struct EngineTx<E: Engine> {
    engine: Arc<E>,
    at: Option<u64>,
    view: Option<(u64, E::View)>,
    buffer: WriteBuffer,
    reads: Vec<KeyRange>,
    watches: Vec<PendingWatch>,
    durability: Durability,
}

impl<E: Engine> EngineTx<E> {
    pub(crate) fn new(engine: Arc<E>) -> Self {
        Self {
            engine,
            at: None,
            view: None,
            buffer: WriteBuffer::default(),
            reads: Vec::new(),
            watches: Vec::new(),
            durability: Durability::default(),
        }
    }

    fn view(&mut self) -> Result<u64, KvError> {
        if let Some((version, _)) = &self.view {
            self.engine.check_age(*version)?;
            return Ok(*version);
        }
        let (version, view) = self.engine.view(self.at)?;
        self.view = Some((version, view));
        Ok(version)
    }

    fn stored(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.view()?;
        match &self.view {
            Some((_, view)) => self.engine.get(view, key),
            None => Err(KvError::FutureVersion),
        }
    }

    fn scan(&mut self, range: &KeyRange, reverse: bool, max: usize) -> Result<Vec<KeyValue>, KvError> {
        self.view()?;
        match &self.view {
            Some((_, view)) => self.engine.scan(view, range, reverse, max),
            None => Err(KvError::FutureVersion),
        }
    }

    fn read_one(&mut self, key: &[u8], mode: ReadMode) -> Result<Option<Vec<u8>>, KvError> {
        if key >= KEY_SPACE_END {
            return Err(KvError::Misuse("a key lies beyond the key space (0xff)"));
        }
        if key.len() > MAX_KEY_BYTES {
            return Ok(None);
        }
        let own = self.buffer.own(key);
        match own {
            Some(Own::Value(value)) => return Ok(value),
            Some(Own::Unreadable) => return self.buffer.check_readable(&KeyRange::key(key)).map(|()| None),
            Some(Own::Add(_)) | None => {}
        }
        let stored = self.stored(key)?;
        if mode == ReadMode::Serializable {
            self.reads.push(KeyRange::key(key));
        }
        Ok(match own {
            Some(Own::Add(delta)) => Some(add(stored.as_deref(), delta)),
            _ => stored,
        })
    }

    fn read_range(&mut self, range: KeyRange, opts: RangeOptions) -> Result<Vec<KeyValue>, KvError> {
        if range.end.as_slice() > KEY_SPACE_END {
            return Err(KvError::Misuse("a range ends beyond the key space (0xff)"));
        }
        if range.is_empty() || opts.limit == 0 {
            return Ok(Vec::new());
        }
        let found = self.merge(range.clone(), opts.reverse, opts.limit)?;
        let read = match found.last() {
            Some((last, _)) if found.len() >= opts.limit && opts.reverse => {
                KeyRange::new(last.clone(), range.end)
            }
            Some((last, _)) if found.len() >= opts.limit => KeyRange::new(range.begin, successor(last)),
            _ => range,
        };
        self.buffer.check_readable(&read)?;
        if opts.mode == ReadMode::Serializable {
            self.buffer.dependent_parts(&read, &mut self.reads);
        }
        Ok(found)
    }

    /// The first `limit` pairs of the store with the own writes on top.
    fn merge(&mut self, mut range: KeyRange, reverse: bool, limit: usize) -> Result<Vec<KeyValue>, KvError> {
        let mut found = Vec::new();
        while !range.is_empty() && found.len() < limit {
            let max = (limit - found.len()).clamp(SCAN_CHUNK_MIN, SCAN_CHUNK_MAX);
            let chunk = self.scan(&range, reverse, max)?;
            // The part of the range that this chunk covers completely.
            let part = match chunk.last() {
                Some((last, _)) if chunk.len() >= max && reverse => {
                    let part = KeyRange::new(last.clone(), range.end.clone());
                    range.end.clone_from(last);
                    part
                }
                Some((last, _)) if chunk.len() >= max => {
                    let next = successor(last);
                    let part = KeyRange::new(std::mem::take(&mut range.begin), next.clone());
                    range.begin = next;
                    part
                }
                _ => std::mem::replace(&mut range, KeyRange::new("", "")),
            };
            let room = limit - found.len();
            if self.buffer.is_empty() {
                found.extend(chunk.into_iter().take(room));
                continue;
            }
            let merged = self.overlay(chunk, &part);
            if reverse {
                found.extend(merged.into_iter().rev().take(room));
            } else {
                found.extend(merged.into_iter().take(room));
            }
        }
        Ok(found)
    }

    fn overlay(&self, chunk: Vec<KeyValue>, part: &KeyRange) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut pairs: BTreeMap<Vec<u8>, Vec<u8>> =
            chunk.into_iter().filter(|(key, _)| !self.buffer.is_cleared(key)).collect();
        for (key, own) in self.buffer.own_in(part) {
            match own {
                Own::Value(Some(value)) => {
                    pairs.insert(key.clone(), value.clone());
                }
                Own::Value(None) => {
                    pairs.remove(key);
                }
                Own::Add(delta) => {
                    let sum = add(pairs.get(key).map(Vec::as_slice), *delta);
                    pairs.insert(key.clone(), sum);
                }
                // Kept as a placeholder, so that the check for unreadable keys sees it if it was reached.
                Own::Unreadable => {
                    pairs.insert(key.clone(), Vec::new());
                }
            }
        }
        pairs
    }

    fn watch_requests(&mut self) -> Result<Vec<WatchRequest>, KvError> {
        let mut requests = Vec::with_capacity(self.watches.len());
        for watch in std::mem::take(&mut self.watches) {
            let wrote = self.buffer.own(&watch.key).is_some();
            let seen = match &self.view {
                Some((_, view)) if !wrote => Some(self.engine.get(view, &watch.key)?),
                _ => None,
            };
            requests.push(WatchRequest { watch, seen });
        }
        Ok(requests)
    }

    fn prepare(mut self) -> Result<BoxFuture<'static, Result<Committed, KvError>>, KvError> {
        self.buffer.check(&self.reads)?;
        let watches = self.watch_requests()?;
        let read_version = self.view.as_ref().map_or(0, |(version, _)| *version);
        if self.buffer.is_read_only() {
            self.engine.arm(watches)?;
            let committed = Committed { version: read_version, versionstamp: [0; 10] };
            return Ok(Box::pin(std::future::ready(Ok(committed))));
        }
        let bytes = self.buffer.bytes();
        let (log, writes) = self.buffer.finish();
        let request = CommitRequest {
            read_version,
            reads: self.reads,
            writes,
            log,
            durability: self.durability,
            watches,
            bytes,
        };
        Ok(self.engine.commit(request))
    }
}

impl<E: Engine> Tx for EngineTx<E> {
    fn get<'a>(
        &'a mut self,
        key: &'a [u8],
        mode: ReadMode,
    ) -> BoxFuture<'a, Result<Option<Vec<u8>>, KvError>> {
        Box::pin(async move { self.read_one(key, mode) })
    }

    fn get_range<'a>(
        &'a mut self,
        range: KeyRange,
        opts: RangeOptions,
    ) -> BoxFuture<'a, Result<Vec<KeyValue>, KvError>> {
        Box::pin(async move { self.read_range(range, opts) })
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.buffer.set(key, value);
    }

    fn clear(&mut self, key: &[u8]) {
        self.buffer.clear(key);
    }

    fn clear_range(&mut self, range: KeyRange) {
        self.buffer.clear_range(range);
    }

    fn atomic_add(&mut self, key: &[u8], delta: i64) {
        self.buffer.add(key, delta);
    }

    fn set_versionstamped_key(&mut self, key: &[u8], offset: usize, value: &[u8]) {
        self.buffer.stamped_key(key, offset, value);
    }

    fn set_versionstamped_value(&mut self, key: &[u8], value: &[u8], offset: usize) {
        self.buffer.stamped_value(key, value, offset);
    }

    fn add_read_conflict(&mut self, range: KeyRange) {
        if !self.buffer.check_range(&range) || range.is_empty() {
            return;
        }
        // The conflict is against what changed since the read version, so there must be one.
        match self.view() {
            Ok(_) => self.reads.push(range),
            Err(error) => self.buffer.fail(error),
        }
    }

    fn add_write_conflict(&mut self, range: KeyRange) {
        self.buffer.add_write_conflict(range);
    }

    fn watch(&mut self, key: &[u8]) -> Watch {
        let (watch, pending) = watch::pending(key);
        self.watches.push(pending);
        watch
    }

    fn set_durability(&mut self, durability: Durability) {
        self.durability = durability;
    }

    fn get_read_version(&mut self) -> BoxFuture<'_, Result<u64, KvError>> {
        Box::pin(async move { self.view() })
    }

    fn set_read_version(&mut self, version: u64) {
        if self.view.is_some() {
            self.buffer.fail(KvError::Misuse("the read version was set after the first read"));
        }
        self.at = Some(version);
    }

    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<Committed, KvError>> {
        Box::pin(async move { self.prepare()?.await })
    }
}
