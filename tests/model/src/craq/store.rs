//! A target's disk. A chunk's bytes are the set of writes that it contains, one bit each, and that set is its
//! checksum too, so that a [`ChunkState`] says everything.

use super::CHUNKS;
use ember_craq::{Change, ChunkState, Content, Failure, Input, Output, Pending, Summary, View};
use ember_types::{ChainVersion, ChunkId, ChunkVersion, DataId, WriterRecord};

/// The chunk of that index.
pub(super) const fn chunk_id(index: usize) -> ChunkId {
    ChunkId::new(DataId(1), index as u32)
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Stored {
    state: ChunkState,
    /// Records of writers once the pending version is committed.
    pending_writers: Vec<WriterRecord>,
}

/// What a target holds: now, and after a power loss, which takes back commits that are only logged.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Store {
    now: [Stored; CHUNKS],
    durable: [Stored; CHUNKS],
    /// Highest chain version served under.
    pub(super) served: ChainVersion,
}

impl View for Store {
    fn chunk(&self, chunk: ChunkId) -> ChunkState {
        self.now[chunk.index as usize].state.clone()
    }
}

impl Store {
    /// State of a chunk.
    pub(super) fn state(&self, chunk: usize) -> &ChunkState {
        &self.now[chunk].state
    }
    /// The bytes of an exact version.
    pub(super) fn bytes(&self, chunk: ChunkId, version: ChunkVersion) -> Option<u32> {
        let state = &self.now[chunk.index as usize].state;
        if state.committed.version == version {
            return Some(state.committed.checksum);
        }
        state.pending.filter(|p| p.content.version == version).map(|p| p.content.checksum)
    }
    /// Chunks with a pending version.
    pub(super) fn pending(&self) -> Vec<ChunkId> {
        (0..CHUNKS).filter(|&c| self.now[c].state.pending.is_some()).map(chunk_id).collect()
    }
    /// Committed records of writers.
    pub(super) fn records(&self) -> Vec<(ChunkId, WriterRecord)> {
        let of = |c: usize| self.now[c].state.writers.iter().map(move |r| (chunk_id(c), *r));
        (0..CHUNKS).flat_map(of).collect()
    }
    /// Everything that is here, for a comparison.
    pub(super) fn page(&self) -> Vec<Summary> {
        let row = |c: usize| {
            let state = &self.now[c].state;
            let pending = state.pending.is_some();
            Summary { chunk: chunk_id(c), content: state.committed, pending, lost: false }
        };
        (0..CHUNKS).map(row).filter(|s| s.pending || !s.content.version.is_none()).collect()
    }
    /// Whether a power loss would take something back.
    pub(super) fn has_unflushed(&self) -> bool {
        self.now != self.durable
    }
    /// Power fails, before or after the log is flushed.
    pub(super) fn crash(&mut self, flushed: bool) {
        if flushed {
            self.flush();
        } else {
            self.now = self.durable.clone();
        }
    }
    fn flush(&mut self) {
        self.durable = self.now.clone();
    }
    /// Stores the chain version that is served under.
    pub(super) fn serve(&mut self, version: ChainVersion) {
        self.served = self.served.max(version);
        self.flush();
    }

    /// What a prepare will make.
    pub(super) fn builds(&self, operation: &Output, bytes: u32) -> Option<Input> {
        let Output::Prepare { chunk, version, change, .. } = operation else { return None };
        let (length, checksum) = made(self.now[chunk.index as usize].state.committed, *change, bytes)?;
        Some(Input::Built { chunk: *chunk, version: *version, length, checksum })
    }

    /// Does what a replica wants done on its store; `bytes` are those that came with the request. The error says
    /// what the replica should not have asked for.
    pub(super) fn run(&mut self, operation: &Output, bytes: u32) -> Result<Input, String> {
        match operation {
            Output::Prepare { chunk, base, version, change, chunk_size, record, writers, .. } => {
                let stored = &mut self.now[chunk.index as usize];
                let own = stored.state.committed;
                if own.version != *base || stored.state.pending.is_some() {
                    return Err(format!("{operation:?} on {:?}", stored.state));
                }
                let Some((length, checksum)) = made(own, *change, bytes) else {
                    return Err(format!("{operation:?}: no client asks for it"));
                };
                let record = WriterRecord { version: *version, length, ..*record };
                let content = Content { version: *version, removed: false, length, checksum };
                stored.state.pending = Some(Pending { content, record, chunk_size: *chunk_size });
                let own = |r: &WriterRecord| if r.tag == record.tag { record } else { *r };
                stored.pending_writers = writers.iter().map(own).collect();
                self.flush();
                Ok(Input::Prepared { chunk: *chunk, version: *version, length, checksum })
            }
            Output::Commit { chunk, version } => {
                let stored = &mut self.now[chunk.index as usize];
                stored.state.committed = take_pending(&mut stored.state, *version)?.content;
                stored.state.writers = std::mem::take(&mut stored.pending_writers);
                Ok(Input::Committed { chunk: *chunk, version: *version })
            }
            Output::Drop { chunk, version } => {
                let stored = &mut self.now[chunk.index as usize];
                take_pending(&mut stored.state, *version)?;
                stored.pending_writers.clear();
                self.flush();
                Ok(Input::Dropped { chunk: *chunk, version: *version })
            }
            Output::Install { chunk, content, writers, .. } => {
                if !content.is_absent() && content.checksum != bytes {
                    return Ok(Input::Failed { chunk: *chunk, failure: Failure::Corrupt });
                }
                let state = ChunkState { committed: *content, pending: None, writers: writers.clone() };
                self.now[chunk.index as usize] = Stored { state, pending_writers: Vec::new() };
                self.flush();
                Ok(Input::Installed { chunk: *chunk })
            }
            other => Err(format!("{other:?} is not the store's")),
        }
    }
}

/// Length and checksum of what a change makes.
fn made(own: Content, change: Change, bytes: u32) -> Option<(u32, u32)> {
    match change {
        Change::Write { offset, .. } => Some((own.length.max(offset + 1), own.checksum | 1 << offset)),
        Change::Whole { length } => Some((length, bytes)),
        _ => None,
    }
}

fn take_pending(state: &mut ChunkState, version: ChunkVersion) -> Result<Pending, String> {
    let pending = state.pending.take().filter(|p| p.content.version == version);
    pending.ok_or_else(|| format!("{version:?} is to be committed or dropped, and not pending"))
}
