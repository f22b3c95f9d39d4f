//! What a target holds, in memory: the chunks in order, the checksums of the blocks of every used slot, the
//! records of the writers. It changes only by applying records, at run time as in recovery.

use crate::class::{SlotId, blocks_of};
use crate::crc;
use crate::record::{Content, Entry, Record, Run};
use ember_types::collections::FixedHashMap;
use ember_types::{ChainVersion, ChannelId, ChunkId, ClientId, DataId, WriterRecord, mutant};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

type Channel = (ClientId, ChannelId);

/// The state of a target.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Index {
    chunks: BTreeMap<ChunkId, Entry>,
    /// Per used slot, the checksum of each block written since the slot was taken: as many as the highest
    /// block ever written.
    sums: FixedHashMap<SlotId, Vec<u32>>,
    writers: BTreeMap<Channel, (ChunkId, WriterRecord)>,
    writers_of: BTreeMap<ChunkId, BTreeSet<Channel>>,
    /// Chunks of which only a removal or an abort is left.
    tombstones: BTreeSet<ChunkId>,
    pub(crate) chain_version: ChainVersion,
}

impl Index {
    pub(crate) fn get(&self, chunk: ChunkId) -> Option<&Entry> {
        self.chunks.get(&chunk)
    }
    pub(crate) fn len(&self) -> usize {
        self.chunks.len()
    }
    /// Chunks behind `after`, in order.
    pub(crate) fn after(&self, after: Option<ChunkId>) -> impl Iterator<Item = (ChunkId, &Entry)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.chunks.range((from, Bound::Unbounded)).map(|(&chunk, entry)| (chunk, entry))
    }
    /// Chunks of `data` from `index` on, in order; from both ends.
    pub(crate) fn of_data(
        &self,
        data: DataId,
        index: u32,
    ) -> impl DoubleEndedIterator<Item = (ChunkId, &Entry)> {
        let range = ChunkId::new(data, index)..=ChunkId::new(data, u32::MAX);
        self.chunks.range(range).map(|(&chunk, entry)| (chunk, entry))
    }
    pub(crate) fn tombstones(&self) -> impl Iterator<Item = ChunkId> {
        self.tombstones.iter().copied()
    }
    pub(crate) fn is_tombstone(&self, chunk: ChunkId) -> bool {
        self.tombstones.contains(&chunk)
    }

    pub(crate) fn writer(&self, client: ClientId, channel: ChannelId) -> Option<(ChunkId, WriterRecord)> {
        self.writers.get(&(client, channel)).copied()
    }
    pub(crate) fn writers_of(&self, chunk: ChunkId) -> Vec<WriterRecord> {
        let channels = self.writers_of.get(&chunk).into_iter().flatten();
        channels.filter_map(|channel| self.writers.get(channel)).map(|(_, record)| *record).collect()
    }
    /// All records of writers behind `after`, in order.
    pub(crate) fn writers_after(
        &self,
        after: Option<Channel>,
    ) -> impl Iterator<Item = (Channel, ChunkId, WriterRecord)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.writers
            .range((from, Bound::Unbounded))
            .map(|(&channel, &(chunk, record))| (channel, chunk, record))
    }
    pub(crate) fn channels_of(&self, client: ClientId) -> Vec<Channel> {
        let range = (client, ChannelId(0))..=(client, ChannelId(u32::MAX));
        self.writers.range(range).map(|(&channel, _)| channel).collect()
    }

    /// Number of blocks written in a slot since it was taken.
    pub(crate) fn high(&self, at: SlotId) -> u32 {
        self.sums.get(&at).map_or(0, |sums| sums.len() as u32)
    }
    pub(crate) fn slot_sums(&self, at: SlotId) -> &[u32] {
        self.sums.get(&at).map_or(&[], Vec::as_slice)
    }
    pub(crate) fn used_slots(&self) -> impl Iterator<Item = SlotId> {
        self.chunks.values().flat_map(Entry::slots)
    }

    /// Checksums of blocks `[from, to)` of a content, each over the bytes that the content has of its block.
    pub(crate) fn content_sums(&self, content: &Content, from: u32, to: u32) -> Vec<u32> {
        let mut sums: Vec<u32> =
            (from..to).map(|block| crc::zeros(valid_bytes(content.length, block))).collect();
        for extent in content.extents.iter().filter_map(|e| e.clip(from, to)) {
            let stored = self.slot_sums(extent.at());
            for i in 0..u32::from(extent.blocks) {
                let stored = stored.get((u32::from(extent.block) + i) as usize).copied();
                sums[(extent.first() + i - from) as usize] = stored.unwrap_or(0);
            }
        }
        sums
    }

    /// The runs of all blocks of the slots of `entry`, as a checkpoint stores them.
    pub(crate) fn runs_of(&self, entry: &Entry) -> Vec<Run> {
        let slots = entry.slots().into_iter().filter(|at| self.high(*at) > 0);
        slots
            .map(|at| Run { at, block: 0, tail: crate::class::BLOCK, sums: self.slot_sums(at).to_vec() })
            .collect()
    }

    fn put_writer(&mut self, chunk: ChunkId, record: WriterRecord) {
        let channel = (record.tag.client, record.tag.channel);
        let old = self.writers.get(&channel);
        let newer = old.is_some_and(|(_, old)| old.tag.sequence > record.tag.sequence);
        if newer && !mutant!(r12_older_record_replaces_newer) {
            return;
        }
        if let Some((old_chunk, _)) = self.writers.insert(channel, (chunk, record)) {
            self.unlist(old_chunk, channel);
        }
        self.writers_of.entry(chunk).or_default().insert(channel);
    }

    fn unlist(&mut self, chunk: ChunkId, channel: Channel) {
        if let Some(channels) = self.writers_of.get_mut(&chunk) {
            channels.remove(&channel);
            if channels.is_empty() {
                self.writers_of.remove(&chunk);
            }
        }
    }

    fn replace(&mut self, chunk: ChunkId, entry: Option<Entry>) -> Vec<SlotId> {
        let tombstone = entry
            .as_ref()
            .is_some_and(|e| e.pending.is_none() && (e.committed.removed || e.committed.version.is_none()));
        if tombstone {
            self.tombstones.insert(chunk);
        } else {
            self.tombstones.remove(&chunk);
        }
        let kept = entry.as_ref().map(Entry::slots).unwrap_or_default();
        let old = match entry {
            Some(entry) => self.chunks.insert(chunk, entry),
            None => self.chunks.remove(&chunk),
        };
        let mut freed = old.map(|old| old.slots()).unwrap_or_default();
        freed.retain(|at| kept.binary_search(at).is_err());
        for at in &freed {
            self.sums.remove(at);
        }
        freed
    }

    fn put_run(&mut self, run: &Run) {
        let sums = self.sums.entry(run.at).or_default();
        let from = run.block as usize;
        if from == 0 {
            sums.clear();
        }
        // A gap can only be there while recovery replays records older than the checkpoint's state.
        if sums.len() < from + run.sums.len() {
            sums.resize(from + run.sums.len(), 0);
        }
        sums[from..from + run.sums.len()].copy_from_slice(&run.sums);
    }

    /// Makes it so; returns the slots that no version uses any more.
    pub(crate) fn apply(&mut self, record: &Record) -> Vec<SlotId> {
        match record {
            Record::Put { chunk, entry, runs, writers } => {
                let freed = self.replace(*chunk, Some(entry.clone()));
                runs.iter().for_each(|run| self.put_run(run));
                writers.iter().for_each(|w| self.put_writer(*chunk, *w));
                freed
            }
            Record::Drop { chunk } => self.replace(*chunk, None),
            Record::Writer { chunk, record } => {
                self.put_writer(*chunk, *record);
                Vec::new()
            }
            Record::Forget { client } => {
                for channel in self.channels_of(*client) {
                    if let Some((chunk, _)) = self.writers.remove(&channel) {
                        self.unlist(chunk, channel);
                    }
                }
                Vec::new()
            }
            Record::Chain { version } => {
                self.chain_version = self.chain_version.max(*version);
                Vec::new()
            }
            Record::Begin { .. } | Record::End { .. } => Vec::new(),
        }
    }

    /// After recovery: every extent lies in a slot of its chunk alone and has checksums. Forgets checksums
    /// of slots that nobody uses.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        let mut owner: FixedHashMap<SlotId, ChunkId> = FixedHashMap::default();
        for (&chunk, entry) in &self.chunks {
            for extent in entry.extents() {
                let other = owner.insert(extent.at(), chunk);
                if let Some(other) = other.filter(|&other| other != chunk) {
                    return Err(format!("chunks {other} and {chunk} share a slot"));
                }
                if extent.block_end() > self.high(extent.at()) {
                    return Err(format!("chunk {chunk} has blocks without checksums"));
                }
            }
        }
        self.sums.retain(|at, _| owner.contains_key(at));
        Ok(())
    }
}

/// Bytes that a content of `length` bytes has of block `block`.
pub(crate) fn valid_bytes(length: u32, block: u32) -> u32 {
    debug_assert!(block < blocks_of(length));
    (length - block * crate::class::BLOCK).min(crate::class::BLOCK)
}
