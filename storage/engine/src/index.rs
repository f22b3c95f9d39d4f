//! What a target holds, in memory: the chunks in order, the checksums that are on no checksum page yet, the
//! records of the writers. It changes only by applying records, at run time as in recovery.

use crate::class::{SlotId, blocks_of, slot_blocks};
use crate::crc;
use crate::overlay::Overlay;
use crate::plan::onto;
use crate::record::{Content, Entry, Record, Run};
use crate::sums::{Stretch, stretches};
use crate::used::Used;
use ember_types::{ChainVersion, ChannelId, ChunkId, ChunkVersion, ClientId, DataId, WriterRecord, mutant};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

type Channel = (ClientId, ChannelId);

/// The state of a target.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Index {
    chunks: BTreeMap<ChunkId, Entry>,
    /// Checksums that no page holds yet.
    pub(crate) overlay: Overlay,
    /// Used slots that were written behind what their chunk shows: nothing is appended to them in place (R17).
    spoiled: BTreeSet<SlotId>,
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

    /// Blocks of a slot of the chunk `entry` up to the highest one ever written; more if that is unknown.
    pub(crate) fn high(&self, entry: &Entry, at: SlotId) -> u32 {
        if self.spoiled.contains(&at) {
            return u32::MAX;
        }
        entry.high(at).unwrap_or(0)
    }
    pub(crate) fn spoiled(&self) -> impl Iterator<Item = SlotId> {
        self.spoiled.iter().copied()
    }

    /// The runs of the slots of `entry` that are on no page yet.
    pub(crate) fn runs_of(&self, entry: &Entry) -> Vec<Run> {
        entry.slots().into_iter().flat_map(|at| self.overlay.runs(at)).collect()
    }

    /// Checksums of blocks `[from, to)` of a content, each over the bytes that the content has of its block, as
    /// far as they are known without a checksum page.
    pub(crate) fn wanted(&self, content: &Content, from: u32, to: u32) -> Wanted {
        let zeros = |block| crc::zeros(valid_bytes(content.length, block));
        let mut wanted = Wanted { sums: Vec::with_capacity((to - from) as usize), missing: Vec::new() };
        let mut known = Vec::new();
        for extent in content.extents.within(from, to) {
            let next = from + wanted.sums.len() as u32;
            wanted.sums.extend((next..extent.first()).map(zeros));
            known.clear();
            known.resize(usize::from(extent.blocks), None);
            self.overlay.fill(extent.at(), extent.block.into(), &mut known);
            let at = wanted.sums.len();
            wanted.sums.extend(known.iter().map(|sum| sum.unwrap_or(0)));
            let mut i = 0;
            while i < known.len() {
                let gap = known[i..].iter().take_while(|sum| sum.is_none()).count();
                let block = u32::from(extent.block) + i as u32;
                let mut out = at + i;
                for part in stretches(extent.at(), block, gap as u32) {
                    wanted.missing.push(Missing { part, out });
                    out += part.blocks as usize;
                }
                i += gap.max(1);
            }
        }
        let next = from + wanted.sums.len() as u32;
        wanted.sums.extend((next..to).map(zeros));
        wanted
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

    fn replace(&mut self, chunk: ChunkId, entry: Option<Entry>, runs: &[Run]) -> Vec<SlotId> {
        if entry.as_ref().is_some_and(Entry::is_tombstone) {
            self.tombstones.insert(chunk);
        } else {
            self.tombstones.remove(&chunk);
        }
        let old = match entry {
            Some(entry) => self.chunks.insert(chunk, entry),
            None => self.chunks.remove(&chunk),
        };
        let freed = old.map(|old| self.hidden(chunk, &old)).unwrap_or_default();
        if mutant!(r04_sums_of_unflushed_frees_forgotten) {
            freed.iter().for_each(|at| self.overlay.forget(*at));
        }
        self.put_runs(chunk, runs);
        freed
    }

    /// The chunk was `old`: returns the slots that it has no more, and marks those of which it shows less.
    fn hidden(&mut self, chunk: ChunkId, old: &Entry) -> Vec<SlotId> {
        let new = self.chunks.get(&chunk);
        let slots = new.map_or_else(|| old.slots(), |new| old.slots_unlike(new));
        let mut freed = Vec::new();
        for at in slots {
            // A slot of one block shows what it showed, or nothing.
            let shown = new.filter(|_| slot_blocks(at.class) > 1).and_then(|new| new.high(at));
            match shown {
                None => freed.push(at),
                Some(now) if Some(now) < old.high(at) => drop(self.spoiled.insert(at)),
                Some(_) => {}
            }
        }
        freed
    }

    fn put_runs(&mut self, chunk: ChunkId, runs: &[Run]) {
        for run in runs {
            self.overlay.put(run);
            if run.block == 0 {
                self.spoiled.remove(&run.at);
            }
            let end = run.block + run.sums.len() as u32;
            let high = || self.chunks.get(&chunk).and_then(|entry| entry.high(run.at));
            // A slot that is shown shows a block at least.
            if end > 1 && high().is_some_and(|now| now < end) {
                self.spoiled.insert(run.at);
            }
        }
    }

    /// A pending version is made of the committed one, if that is `base`: else the state is newer than the record.
    fn update(&mut self, chunk: ChunkId, base: ChunkVersion, pending: &Content, runs: &[Run]) {
        let known = self.chunks.get(&chunk);
        let committed = known.map_or(ChunkVersion::NONE, |entry| entry.committed.version);
        let other =
            known.and_then(|entry| entry.pending.as_ref()).is_some_and(|p| p.version != pending.version);
        if committed == base && !other {
            let entry = self.chunks.entry(chunk).or_default();
            entry.pending = Some(Box::new(onto(&entry.committed, pending)));
            self.tombstones.remove(&chunk);
        }
        self.put_runs(chunk, runs);
    }

    /// Commits what is pending, if it is `version`: else the state is newer than the record. Returns freed slots.
    fn commit(&mut self, chunk: ChunkId, version: ChunkVersion) -> Vec<SlotId> {
        let Some(entry) = self.chunks.get_mut(&chunk) else { return Vec::new() };
        let Some(pending) = entry.pending.take_if(|pending| pending.version == version) else {
            return Vec::new();
        };
        if entry.aborted().number <= version.number {
            entry.set_aborted(ChunkVersion::NONE);
        }
        let committed = std::mem::replace(&mut entry.committed, *pending);
        if entry.is_tombstone() {
            self.tombstones.insert(chunk);
        }
        // What was pending is shown still.
        self.hidden(chunk, &Entry::new(committed, None, ChunkVersion::NONE))
    }

    /// The record that frees a slot is durable. Before, what is known of the slot must stay: a checkpoint may
    /// show the chunk as that record makes it, while recovery ends at one before it.
    pub(crate) fn release(&mut self, at: SlotId) {
        self.overlay.forget(at);
        self.spoiled.remove(&at);
    }
    /// Makes a record of the disk so. What is known of slots that it frees stays until [`Index::keep`]: the next
    /// frame may undo it, because its data were not there.
    pub(crate) fn replay(&mut self, record: &Record) {
        self.apply(record);
    }

    /// Makes it so; returns the slots that no version uses any more: they are to be released.
    pub(crate) fn apply(&mut self, record: &Record) -> Vec<SlotId> {
        match record {
            Record::Put { chunk, entry, runs, writers } => {
                let freed = self.replace(*chunk, Some(entry.clone()), runs);
                writers.iter().for_each(|w| self.put_writer(*chunk, *w));
                freed
            }
            Record::Update { chunk, base, pending, runs, writers } => {
                self.update(*chunk, *base, pending, runs);
                writers.iter().for_each(|w| self.put_writer(*chunk, *w));
                Vec::new()
            }
            Record::Commit { chunk, version } => self.commit(*chunk, *version),
            Record::Drop { chunk } => self.replace(*chunk, None, &[]),
            Record::Rows { rows } => {
                self.load(rows.clone());
                Vec::new()
            }
            Record::Spoiled { slots } => {
                self.spoiled.extend(slots);
                Vec::new()
            }
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
            Record::Begin { .. } | Record::End { .. } | Record::Pages { .. } => Vec::new(),
        }
    }

    /// Takes chunks of a checkpoint.
    pub(crate) fn load(&mut self, rows: Vec<(ChunkId, Entry)>) {
        for (chunk, entry) in rows {
            if entry.is_tombstone() {
                self.tombstones.insert(chunk);
            }
            self.chunks.insert(chunk, entry);
        }
    }

    /// Notes the slots of a chunk that recovery found: each is of one chunk alone.
    pub(crate) fn note(&self, chunk: ChunkId, entry: &Entry, used: &mut Used) -> Result<(), String> {
        let shared = match (&entry.committed.extents[..], &entry.pending) {
            ([extent], None) => Some(extent.at()).filter(|at| !used.insert(*at)),
            _ => entry.slots().into_iter().find(|at| !used.insert(*at)),
        };
        let Some(at) = shared else { return Ok(()) };
        let uses = |(_, entry): &(ChunkId, &Entry)| entry.extents().any(|e| e.at() == at);
        let other = self.after(None).find(uses).map_or(chunk, |(other, _)| other);
        Err(format!("chunks {other} and {chunk} share a slot"))
    }
    /// Forgets what is known of slots that nobody uses.
    pub(crate) fn keep(&mut self, used: &Used) {
        self.overlay.retain(|at| used.contains(at));
        self.spoiled.retain(|at| used.contains(*at));
    }
}

/// Checksums of consecutive blocks of a content.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Wanted {
    pub(crate) sums: Vec<u32>,
    /// Those that are on checksum pages.
    pub(crate) missing: Vec<Missing>,
}

/// Checksums to be taken from a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Missing {
    pub(crate) part: Stretch,
    /// Where they go in [`Wanted::sums`].
    pub(crate) out: usize,
}

/// Bytes that a content of `length` bytes has of block `block`.
pub(crate) fn valid_bytes(length: u32, block: u32) -> u32 {
    debug_assert!(block < blocks_of(length));
    (length - block * crate::class::BLOCK).min(crate::class::BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Extent;

    fn put(number: u64, slots: &[(u32, u32)], runs: Vec<Run>) -> Record {
        let at = |slot| SlotId { class: 1, slot };
        let content = |&(slot, blocks): &(u32, u32)| Content {
            version: ChunkVersion { number, chain_version: ChainVersion(1), attempt: 0 },
            length: blocks * 4096,
            extents: [Extent::new(0, blocks, at(slot), 0)].into(),
            ..Content::default()
        };
        let committed = slots.first().map(content).unwrap_or_default();
        let pending = slots.get(1).map(|slot| Box::new(content(slot)));
        let entry = Entry::new(committed, pending, ChunkVersion::NONE);
        Record::Put { chunk: ChunkId::new(DataId(1), 0), entry, runs, writers: Vec::new() }
    }
    fn run(slot: u32, block: u32, sums: &[u32]) -> Run {
        Run { at: SlotId { class: 1, slot }, block, tail: 4096, sums: sums.to_vec() }
    }
    fn sums(index: &Index) -> Vec<u32> {
        let old = Content {
            length: 8192,
            extents: [Extent::new(0, 2, run(3, 0, &[]).at, 0)].into(),
            ..Content::default()
        };
        index.wanted(&old, 0, 2).sums
    }

    /// A checkpoint of now has the chunk without the slot; a recovery that ends before the record has it with it.
    #[test]
    fn r04_a_slots_checksums_stay_until_the_record_that_frees_it_is_durable() {
        let mut index = Index::default();
        index.apply(&put(1, &[(3, 2)], vec![run(3, 0, &[5, 6])]));
        index.apply(&put(1, &[(3, 2), (4, 1)], vec![run(4, 0, &[7])]));
        let freed = index.apply(&put(2, &[(4, 1)], Vec::new()));
        assert_eq!(freed, [SlotId { class: 1, slot: 3 }]);
        assert_eq!(sums(&index), [5, 6]);
        freed.into_iter().for_each(|at| index.release(at));
        assert_eq!(sums(&index), [0, 0]);
    }

    #[test]
    fn r04_what_a_frame_frees_is_known_when_the_next_one_undoes_it() {
        let mut index = Index::default();
        index.replay(&put(1, &[(3, 2)], vec![run(3, 0, &[5, 6])]));
        // The last frame before the power failed: its data were not there, and the next life undid it in the log.
        index.replay(&put(2, &[(4, 1)], vec![run(4, 0, &[7])]));
        index.replay(&put(1, &[(3, 2)], Vec::new()));
        let mut used = Used::default();
        index.after(None).for_each(|(chunk, entry)| index.note(chunk, entry, &mut used).unwrap());
        index.keep(&used);
        assert_eq!(sums(&index), [5, 6]);
        assert_eq!(index.overlay.runs(SlotId { class: 1, slot: 4 }).count(), 0);
    }

    #[test]
    fn r17_a_slot_that_was_written_behind_what_is_shown_is_known() {
        let mut index = Index::default();
        let high = |index: &Index, slot| {
            let entry = index.after(None).next().map(|(_, entry)| entry.clone());
            index.high(&entry.unwrap(), SlotId { class: 1, slot })
        };
        index.apply(&put(1, &[(3, 1)], vec![run(3, 0, &[5])]));
        assert_eq!(high(&index, 3), 1);
        // Appended to and aborted: block 1 is nobody's, and was written.
        index.apply(&put(1, &[(3, 1), (3, 2)], vec![run(3, 1, &[6])]));
        assert_eq!(high(&index, 3), 2);
        index.apply(&put(1, &[(3, 1)], Vec::new()));
        assert_eq!(high(&index, 3), u32::MAX);
        assert_eq!(index.spoiled().collect::<Vec<_>>(), [run(3, 0, &[]).at]);
        // As format version 1 has it in a checkpoint: with the checksums of all that was written.
        let mut old = Index::default();
        old.replay(&put(1, &[(3, 1)], vec![run(3, 0, &[5, 6])]));
        assert_eq!(high(&old, 3), u32::MAX);
        // Another life of the slot.
        index.replay(&put(2, &[(4, 1)], vec![run(4, 0, &[7])]));
        index.replay(&put(3, &[(3, 1)], vec![run(3, 0, &[8])]));
        assert_eq!(high(&index, 3), 1);
    }
}
