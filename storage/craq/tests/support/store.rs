//! A model of a chunk store: prepares, drops and installs are durable when they end; commits are only logged.

use ember_craq::{Change, ChunkState, Content, Failure, Input, Output, Pending, View};
use ember_types::checksum::crc32c;
use ember_types::{ChainVersion, ChunkId, ChunkVersion};
use std::collections::BTreeMap;

#[derive(Clone, Default, PartialEq, Debug)]
pub struct Stored {
    pub state: ChunkState,
    pub bytes: Vec<u8>,
    pub pending: Vec<u8>,
}

#[derive(Clone, Default)]
pub struct Store {
    pub now: BTreeMap<ChunkId, Stored>,
    durable: BTreeMap<ChunkId, Stored>,
    pub version: ChainVersion,
    pub full: bool,
}

/// What the store says of an operation.
pub enum Done {
    Prepared(u32, u32),
    Committed,
    Dropped,
    Installed,
    Failed(Failure),
}

impl View for Store {
    fn chunk(&self, chunk: ChunkId) -> ChunkState {
        self.now.get(&chunk).map(|s| s.state.clone()).unwrap_or_default()
    }
}

impl Store {
    /// Bytes of an exact version.
    pub fn read(&self, chunk: ChunkId, version: ChunkVersion) -> Option<Vec<u8>> {
        let stored = self.now.get(&chunk)?;
        if stored.state.committed.version == version {
            return Some(stored.bytes.clone());
        }
        stored.state.pending.filter(|p| p.content.version == version).map(|_| stored.pending.clone())
    }

    /// Power fails: what was only logged is gone.
    pub fn crash(&mut self, keeps_log: bool) {
        if keeps_log {
            self.durable = self.now.clone();
        } else {
            self.now = self.durable.clone();
        }
    }

    pub fn flush(&mut self) {
        self.durable = self.now.clone();
    }

    /// What a prepare will make, if it will be done.
    pub fn builds(&self, operation: &Output, payload: &[u8]) -> Option<Input> {
        let Output::Prepare { chunk, version, change, .. } = operation else { return None };
        let old = self.now.get(chunk).filter(|s| !s.state.committed.removed);
        let bytes = change_bytes(*change, old.map(|s| s.bytes.clone()).unwrap_or_default(), payload);
        let (length, checksum) = (bytes.len() as u32, crc32c(&bytes));
        Some(Input::Built { chunk: *chunk, version: *version, length, checksum })
    }

    pub fn run(&mut self, operation: &Output, payload: &[u8]) -> Done {
        match operation {
            Output::Prepare { chunk, base, version, change, chunk_size, record, .. } => {
                if self.full && !matches!(change, Change::Remove) {
                    return Done::Failed(Failure::NoSpace);
                }
                let stored = self.now.entry(*chunk).or_default();
                assert_eq!(stored.state.committed.version, *base, "base of chunk {chunk}");
                assert!(stored.state.pending.is_none(), "chunk {chunk} has a pending version already");
                let old = if stored.state.committed.removed { Vec::new() } else { stored.bytes.clone() };
                let bytes = change_bytes(*change, old, payload);
                let content = Content {
                    version: *version,
                    removed: *change == Change::Remove,
                    length: bytes.len() as u32,
                    checksum: crc32c(&bytes),
                };
                let mut record = *record;
                record.length = content.length;
                stored.state.pending = Some(Pending { content, record, chunk_size: *chunk_size });
                stored.pending = bytes;
                self.flush();
                Done::Prepared(content.length, content.checksum)
            }
            Output::Commit { chunk, version } => {
                let stored = self.now.get_mut(chunk).expect("commit of a chunk that is there");
                let pending = stored.state.pending.take().expect("commit of a pending version");
                assert_eq!(pending.content.version, *version);
                stored.state.committed = pending.content;
                let tag = pending.record.tag;
                let same = |r: &ember_types::WriterRecord| {
                    (r.tag.client, r.tag.channel) == (tag.client, tag.channel)
                };
                stored.state.writers.retain(|r| !same(r));
                stored.state.writers.push(pending.record);
                stored.bytes = std::mem::take(&mut stored.pending);
                Done::Committed
            }
            Output::Drop { chunk, version } => {
                let stored = self.now.get_mut(chunk).expect("drop of a chunk that is there");
                let pending = stored.state.pending.take().expect("drop of a pending version");
                assert_eq!(pending.content.version, *version);
                stored.pending.clear();
                self.flush();
                Done::Dropped
            }
            Output::Install { chunk, content, writers, .. } => {
                if self.full && !content.is_absent() {
                    return Done::Failed(Failure::NoSpace);
                }
                if !content.is_absent() && crc32c(payload) != content.checksum {
                    return Done::Failed(Failure::Corrupt);
                }
                let state = ChunkState { committed: *content, pending: None, writers: writers.clone() };
                let bytes = if content.is_absent() { Vec::new() } else { payload.to_vec() };
                self.now.insert(*chunk, Stored { state, bytes, pending: Vec::new() });
                if content.version.is_none() {
                    self.now.remove(chunk);
                }
                self.flush();
                Done::Installed
            }
            other => panic!("not the store's: {other:?}"),
        }
    }
}

fn change_bytes(change: Change, mut old: Vec<u8>, payload: &[u8]) -> Vec<u8> {
    match change {
        Change::Write { offset, length } => {
            let end = (offset + length) as usize;
            assert_eq!(payload.len(), length as usize);
            old.resize(old.len().max(end), 0);
            old[offset as usize..end].copy_from_slice(payload);
        }
        Change::Truncate { length } => old.resize(length as usize, 0),
        Change::Cut { length } => old.truncate(length as usize),
        Change::Remove => old.clear(),
        Change::Whole { length } => {
            assert_eq!(payload.len(), length as usize);
            old = payload.to_vec();
        }
    }
    old
}
