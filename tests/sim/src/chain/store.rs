//! A chunk store in memory with the durability of the real one: what is prepared, dropped or installed is
//! durable when it is answered; a commit is logged, and a power loss may take back the newest ones.

use ember_craq::{Change, ChunkState, Content, Pending, Summary, View};
use ember_types::checksum::crc32c;
use ember_types::layout::SplitMix64;
use ember_types::{ChainVersion, ChunkId, ChunkVersion, WriterRecord};
use std::collections::BTreeMap;

/// A chunk and its bytes.
#[derive(Clone, Default, Debug)]
struct Stored {
    state: ChunkState,
    committed: Vec<u8>,
    pending: Vec<u8>,
    /// Records of writers once the pending version is committed.
    pending_writers: Vec<WriterRecord>,
}

/// Everything that a target's disk holds.
#[derive(Clone, Default, Debug)]
pub(super) struct Store {
    chunks: BTreeMap<ChunkId, Stored>,
    /// Chunks before their commits that are logged but not flushed, oldest first.
    unflushed: Vec<(ChunkId, Stored)>,
    /// Highest chain version served under.
    pub(super) served: ChainVersion,
}

impl View for Store {
    fn chunk(&self, chunk: ChunkId) -> ChunkState {
        self.chunks.get(&chunk).map(|s| s.state.clone()).unwrap_or_default()
    }
}

/// Bytes of a chunk after a change.
fn changed(base: &[u8], change: Change, payload: &[u8]) -> Vec<u8> {
    let mut bytes = base.to_vec();
    match change {
        Change::Write { offset, .. } => {
            let end = offset as usize + payload.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[offset as usize..end].copy_from_slice(payload);
        }
        Change::Truncate { length } => bytes.resize(length as usize, 0),
        Change::Cut { length } => bytes.truncate(length as usize),
        Change::Remove => bytes.clear(),
        Change::Whole { .. } => bytes = payload.to_vec(),
    }
    bytes
}

impl Store {
    /// Chunks with a pending version.
    pub(super) fn pending(&self) -> Vec<ChunkId> {
        self.chunks.iter().filter(|(_, s)| s.state.pending.is_some()).map(|(&c, _)| c).collect()
    }
    /// Committed records of writers.
    pub(super) fn records(&self) -> Vec<(ChunkId, WriterRecord)> {
        self.chunks.iter().flat_map(|(&c, s)| s.state.writers.iter().map(move |r| (c, *r))).collect()
    }
    /// Bytes of one exact version.
    pub(super) fn bytes(&self, chunk: ChunkId, version: ChunkVersion) -> Option<Vec<u8>> {
        let stored = self.chunks.get(&chunk)?;
        match &stored.state.pending {
            Some(pending) if pending.content.version == version => Some(stored.pending.clone()),
            _ if stored.state.committed.version == version => Some(stored.committed.clone()),
            _ => None,
        }
    }
    /// Some chunks behind `after`, and whether there are more.
    pub(super) fn page(&self, after: Option<ChunkId>, limit: usize) -> (Vec<Summary>, bool) {
        let behind = |chunk: &ChunkId| after.is_none_or(|after| *chunk > after);
        let mut rows = self.chunks.iter().filter(|(chunk, _)| behind(chunk));
        let page: Vec<Summary> = rows
            .by_ref()
            .take(limit)
            .map(|(&chunk, s)| Summary {
                chunk,
                content: s.state.committed,
                pending: s.state.pending.is_some(),
                lost: false,
            })
            .collect();
        (page, rows.next().is_some())
    }
    /// Number of chunks.
    pub(super) fn len(&self) -> usize {
        self.chunks.len()
    }
    /// What replicas are compared by: content and bytes of every chunk, and what is pending.
    pub(super) fn contents(&self) -> BTreeMap<ChunkId, (Content, Vec<u8>, bool)> {
        let row = |(&chunk, s): (&ChunkId, &Stored)| {
            (chunk, (s.state.committed, s.committed.clone(), s.state.pending.is_some()))
        };
        self.chunks.iter().map(row).collect()
    }

    fn flush(&mut self) {
        self.unflushed.clear();
    }
    /// Makes an update durable as pending. The length and checksum of the chunk under it; `None` if its base
    /// is not the committed version.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn prepare(
        &mut self,
        chunk: ChunkId,
        base: ChunkVersion,
        version: ChunkVersion,
        change: Change,
        chunk_size: u32,
        mut record: WriterRecord,
        writers: Vec<WriterRecord>,
        payload: &[u8],
    ) -> Option<(u32, u32)> {
        let stored = self.chunks.entry(chunk).or_default();
        if stored.state.committed.version != base && !change.replaces_all() {
            return None;
        }
        let old = if stored.state.committed.is_absent() { &[][..] } else { &stored.committed };
        let bytes = changed(old, change, payload);
        let (length, checksum) = (bytes.len() as u32, crc32c(&bytes));
        let removed = change == Change::Remove;
        (record.version, record.length) = (version, length);
        let content = Content { version, removed, length, checksum };
        stored.state.pending = Some(Pending { content, record, chunk_size });
        stored.pending = bytes;
        stored.pending_writers = writers;
        for own in stored.pending_writers.iter_mut().filter(|own| own.tag == record.tag) {
            *own = record;
        }
        self.flush();
        Some((length, checksum))
    }
    /// Length and checksum of what a prepare will make.
    pub(super) fn builds(&self, chunk: ChunkId, change: Change, payload: &[u8]) -> (u32, u32) {
        let stored = self.chunks.get(&chunk).filter(|stored| !stored.state.committed.is_absent());
        let old = stored.map(|stored| &stored.committed[..]).unwrap_or_default();
        let bytes = changed(old, change, payload);
        (bytes.len() as u32, crc32c(&bytes))
    }
    /// Makes the pending version the committed one; `false` if it isn't there.
    pub(super) fn commit(&mut self, chunk: ChunkId, version: ChunkVersion) -> bool {
        let Some(stored) = self.chunks.get_mut(&chunk) else { return false };
        let Some(pending) = stored.state.pending.filter(|p| p.content.version == version) else {
            return stored.state.committed.version == version;
        };
        self.unflushed.push((chunk, stored.clone()));
        stored.state.committed = pending.content;
        stored.state.pending = None;
        stored.state.writers = std::mem::take(&mut stored.pending_writers);
        stored.committed = std::mem::take(&mut stored.pending);
        true
    }
    /// Drops the pending version durably.
    pub(super) fn drop_pending(&mut self, chunk: ChunkId, version: ChunkVersion) {
        if let Some(stored) = self.chunks.get_mut(&chunk)
            && stored.state.pending.as_ref().is_some_and(|p| p.content.version == version)
        {
            stored.state.pending = None;
            stored.pending.clear();
            if stored.state.committed.version.is_none() {
                self.chunks.remove(&chunk);
            }
        }
        self.flush();
    }
    /// Replaces everything of a chunk durably.
    pub(super) fn install(
        &mut self,
        chunk: ChunkId,
        content: Content,
        writers: Vec<WriterRecord>,
        payload: &[u8],
    ) {
        if content.version.is_none() {
            self.chunks.remove(&chunk);
        } else {
            let state = ChunkState { committed: content, pending: None, writers };
            let stored = Stored { state, committed: payload.to_vec(), ..Stored::default() };
            self.chunks.insert(chunk, stored);
        }
        self.flush();
    }
    /// Power fails: the newest commits that were not flushed are undone.
    pub(super) fn lose_power(&mut self, rng: &mut SplitMix64) {
        let kept = rng.below(self.unflushed.len() as u64 + 1) as usize;
        for (chunk, before) in self.unflushed.drain(..).skip(kept).rev() {
            self.chunks.insert(chunk, before);
        }
    }
}
