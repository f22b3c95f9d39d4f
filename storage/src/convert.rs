//! Between the wire, the replica protocol and the engine.

use ember_craq as craq;
use ember_engine as engine;
use ember_rt::SharedBuf;
use ember_types::layout::CHUNK_SIZE_MAX;
use ember_types::{ChunkId, ChunkVersion, Status, WriterRecord, WriterTag};
use ember_wire::storage::{Address, ChunkSummary, ForwardRequest, UpdateKind};

pub(crate) fn to_craq(address: &Address) -> craq::Address {
    craq::Address {
        chain: address.chain,
        chain_version: address.chain_version,
        target: address.target,
        generation: address.generation,
    }
}

pub(crate) fn to_wire(address: &craq::Address) -> Address {
    Address {
        chain: address.chain,
        chain_version: address.chain_version,
        target: address.target,
        generation: address.generation,
    }
}

/// `bytes` is the length of the payload; `None` if it doesn't fit a chunk.
pub(crate) fn change_of(kind: UpdateKind, bytes: usize) -> Option<craq::Change> {
    let length = u32::try_from(bytes).ok()?;
    Some(match kind {
        UpdateKind::Write { offset } => craq::Change::Write { offset, length },
        UpdateKind::Truncate { length } => craq::Change::Truncate { length },
        UpdateKind::Cut { length } => craq::Change::Cut { length },
        UpdateKind::Remove => craq::Change::Remove,
        UpdateKind::Whole => craq::Change::Whole { length },
    })
}

pub(crate) fn kind_of(change: craq::Change) -> UpdateKind {
    match change {
        craq::Change::Write { offset, .. } => UpdateKind::Write { offset },
        craq::Change::Truncate { length } => UpdateKind::Truncate { length },
        craq::Change::Cut { length } => UpdateKind::Cut { length },
        craq::Change::Remove => UpdateKind::Remove,
        craq::Change::Whole { .. } => UpdateKind::Whole,
    }
}

/// The update for the engine.
pub(crate) fn update_of(
    change: craq::Change,
    data: SharedBuf,
    checksums: Vec<u32>,
    writers: Vec<WriterRecord>,
) -> engine::Update {
    match change {
        craq::Change::Write { offset, .. } => engine::Update::Write { offset, data, checksums },
        craq::Change::Truncate { length } => engine::Update::Truncate { length },
        craq::Change::Cut { length } => engine::Update::Cut { length },
        craq::Change::Remove => engine::Update::Remove,
        craq::Change::Whole { .. } => engine::Update::Whole { data, checksums, writers },
    }
}

pub(crate) fn content_of(state: &engine::ContentState) -> craq::Content {
    craq::Content {
        version: state.version,
        removed: state.removed,
        length: state.length,
        checksum: state.checksum,
    }
}

/// What the engine knows of a chunk, as the replica protocol wants it. The writer's record of the pending
/// version stands apart from those of the committed one.
pub(crate) fn chunk_state(state: Option<engine::ChunkState>) -> craq::ChunkState {
    let Some(state) = state else { return craq::ChunkState::default() };
    let committed = state.committed.as_ref().map(content_of).unwrap_or_default();
    let pending = state.pending.as_ref().map(|pending| {
        let own = state.writers.iter().find(|record| record.version == pending.version);
        let record = own.copied().unwrap_or(WriterRecord {
            tag: WriterTag::default(),
            version: pending.version,
            length: pending.length,
            status: Status::Ok,
        });
        craq::Pending { content: content_of(pending), record, chunk_size: CHUNK_SIZE_MAX }
    });
    let ahead = state.pending.map_or(ChunkVersion::NONE, |pending| pending.version);
    let writers = state.writers.into_iter().filter(|record| record.version != ahead || ahead.is_none());
    craq::ChunkState { committed, pending, writers: writers.collect() }
}

pub(crate) fn summary_of(chunk: ChunkId, state: &engine::ChunkState) -> ChunkSummary {
    let committed = state.committed.unwrap_or_default();
    ChunkSummary {
        chunk,
        committed: committed.version,
        removed: committed.removed,
        length: committed.length,
        checksum: committed.checksum,
        pending: state.pending.map_or(ChunkVersion::NONE, |pending| pending.version),
        lost: committed.lost,
    }
}

pub(crate) fn craq_summary(summary: &ChunkSummary) -> craq::Summary {
    craq::Summary {
        chunk: summary.chunk,
        content: craq::Content {
            version: summary.committed,
            removed: summary.removed,
            length: summary.length,
            checksum: summary.checksum,
        },
        pending: !summary.pending.is_none(),
        lost: summary.lost,
    }
}

/// A forward as it came; `None` if its payload doesn't fit a chunk.
pub(crate) fn forward_of(request: &ForwardRequest, bytes: usize) -> Option<craq::Forward> {
    Some(craq::Forward {
        chunk: request.chunk,
        change: change_of(request.kind, bytes)?,
        chunk_size: request.chunk_size,
        base: request.base,
        result: craq::Content {
            version: request.version,
            removed: request.kind == UpdateKind::Remove,
            length: request.length,
            checksum: request.checksum,
        },
        tag: request.tag,
        writers: request.writers.clone(),
        early: request.early,
    })
}

/// What an engine's failure means to the replica protocol.
pub(crate) fn failure_of(error: &engine::EngineError) -> craq::Failure {
    match error {
        engine::EngineError::NoSpace { .. } => craq::Failure::NoSpace,
        engine::EngineError::Io { .. } | engine::EngineError::Failed { .. } => craq::Failure::Device,
        _ => craq::Failure::Corrupt,
    }
}
