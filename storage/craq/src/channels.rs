//! Exactly once (R12): the last update of each channel of each client, over the whole chain.

use ember_types::{ChannelId, ChunkId, ChunkVersion, ClientId, Sequence, Status, WriterRecord, WriterTag};
use std::collections::{BTreeMap, BTreeSet};

/// Most channels that a replica keeps; a client's first update beyond it is refused as busy.
pub const CHANNELS_MAX: usize = 1 << 17;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Entry {
    /// Highest sequence taken by this replica as head since it started; volatile.
    seen: Sequence,
    /// Highest sequence that was committed, and the chunk that holds its record.
    last: Option<(Sequence, ChunkId)>,
    /// A sequence that ended without an update: refused for good, or nothing was to be done. A late copy of the
    /// request must not be done after all. Volatile: after a change of head it names an old chain version.
    ended: Option<(Sequence, Ended)>,
}

/// How a request ended that made no update.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Ended {
    pub(crate) status: Status,
    pub(crate) version: ChunkVersion,
    pub(crate) length: u32,
}

/// What is known of a tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Known {
    /// Never done.
    New,
    /// Done: the record is in the chunk's state.
    Done,
    /// It ended without an update.
    Ended(Ended),
    /// The channel has gone on.
    Stale,
    /// The sequence was used for another chunk.
    Reused,
    /// Too many channels.
    Full,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Channels {
    entries: BTreeMap<(ClientId, ChannelId), Entry>,
    ended: BTreeSet<ClientId>,
}

impl Channels {
    pub(crate) fn is_ended(&self, client: ClientId) -> bool {
        self.ended.contains(&client)
    }

    /// Replaces the list of ended sessions and forgets their channels.
    pub(crate) fn end(&mut self, clients: Vec<ClientId>) {
        self.ended = clients.into_iter().collect();
        let ended = &self.ended;
        self.entries.retain(|(client, _), _| !ended.contains(client));
    }

    pub(crate) fn look_up(&self, tag: WriterTag, chunk: ChunkId) -> Known {
        let Some(entry) = self.entries.get(&(tag.client, tag.channel)) else {
            return if self.entries.len() < CHANNELS_MAX { Known::New } else { Known::Full };
        };
        match entry.last {
            Some((last, at)) if last == tag.sequence => {
                return if at == chunk { Known::Done } else { Known::Reused };
            }
            Some((last, _)) if tag.sequence < last => return Known::Stale,
            _ => {}
        }
        match entry.ended {
            Some((sequence, ended)) if sequence == tag.sequence => Known::Ended(ended),
            _ if tag.sequence < entry.seen => Known::Stale,
            _ => Known::New,
        }
    }

    /// Notes that `tag` ended at the head without an update.
    pub(crate) fn end_without(&mut self, tag: WriterTag, ended: Ended) {
        if let Some(entry) = self.entries.get_mut(&(tag.client, tag.channel)) {
            entry.ended = Some((tag.sequence, ended));
        }
    }
    /// Notes that the head refused `tag` for good.
    pub(crate) fn refuse(&mut self, tag: WriterTag, status: Status) {
        self.end_without(tag, Ended { status, version: ChunkVersion::NONE, length: 0 });
    }

    /// Notes that the head took `tag`.
    pub(crate) fn take(&mut self, tag: WriterTag) {
        let entry = self.entries.entry((tag.client, tag.channel)).or_default();
        entry.seen = entry.seen.max(tag.sequence);
    }

    /// Notes that `record` of `chunk` is committed.
    pub(crate) fn commit(&mut self, record: &WriterRecord, chunk: ChunkId) {
        let tag = record.tag;
        if record.status != Status::Ok || self.ended.contains(&tag.client) {
            return;
        }
        let entry = self.entries.entry((tag.client, tag.channel)).or_default();
        entry.seen = entry.seen.max(tag.sequence);
        if entry.last.is_none_or(|(last, _)| last <= tag.sequence) {
            entry.last = Some((tag.sequence, chunk));
        }
    }

    /// Notes that `record` of `chunk` was overwritten: what it tells of was never done in this chain.
    pub(crate) fn forget(&mut self, record: &WriterRecord, chunk: ChunkId) {
        let channel = (record.tag.client, record.tag.channel);
        if self.entries.get(&channel).is_some_and(|e| e.last == Some((record.tag.sequence, chunk))) {
            self.entries.remove(&channel);
        }
    }

    /// Whether `record` of `chunk` is still needed: its channel hasn't gone on and its session lives.
    pub(crate) fn needs(&self, record: &WriterRecord, chunk: ChunkId) -> bool {
        let tag = record.tag;
        match self.entries.get(&(tag.client, tag.channel)).and_then(|entry| entry.last) {
            Some((last, at)) => last < tag.sequence || (last == tag.sequence && at == chunk),
            None => !self.ended.contains(&tag.client),
        }
    }

    /// The chunk's records once `record` is added.
    pub(crate) fn with(
        &self,
        records: &[WriterRecord],
        record: WriterRecord,
        chunk: ChunkId,
    ) -> Vec<WriterRecord> {
        let same =
            |r: &WriterRecord| r.tag.client == record.tag.client && r.tag.channel == record.tag.channel;
        let kept = |r: &&WriterRecord| r.status == Status::Ok && !same(r) && self.needs(r, chunk);
        let mut kept: Vec<_> = records.iter().filter(kept).copied().collect();
        kept.push(record);
        kept
    }
}
