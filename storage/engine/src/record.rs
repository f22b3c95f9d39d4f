//! Records of log and checkpoint. Replaying them twice, or over a newer state, ends in the same state: all but two
//! say what is, and those two what becomes of a version that they name (docs/design/engine.md).

use crate::class::{BLOCK, BLOCKS_MAX, CHUNK_MAX, CLASSES, SlotId, blocks_of, slot_blocks};
use crate::extents::Extents;
use crate::rows;
use ember_types::{
    ChainVersion, ChannelId, ChunkId, ChunkVersion, ClientId, DataId, Sequence, Status, WriterRecord,
    WriterTag,
};

/// Most records of writers in one put.
pub(crate) const WRITERS_MAX: usize = 4096;
const EXTENTS_MAX: usize = BLOCKS_MAX as usize;
/// The kind of [`Record::Rows`].
const ROWS: u8 = 8;

/// Appends a record of rows that are encoded already.
pub(crate) fn put_rows(out: &mut Vec<u8>, rows: &[u8]) {
    out.extend([ROWS, 0, 0, 0]);
    out.extend((rows.len() as u32).to_le_bytes());
    out.extend(rows);
}

/// A run of blocks of a chunk's content and where it lies. Blocks in no extent are zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    /// First block within the chunk.
    pub(crate) first: u16,
    /// Number of blocks.
    pub(crate) blocks: u16,
    /// First block within the slot.
    pub(crate) block: u16,
    /// Class of the slot.
    pub(crate) class: u8,
    /// The slot.
    pub(crate) slot: u32,
}

impl Extent {
    pub(crate) fn new(first: u32, blocks: u32, at: SlotId, block: u32) -> Self {
        debug_assert!(first + blocks <= BLOCKS_MAX && block + blocks <= slot_blocks(at.class));
        Self {
            first: first as u16,
            blocks: blocks as u16,
            block: block as u16,
            class: at.class,
            slot: at.slot,
        }
    }
    pub(crate) fn at(&self) -> SlotId {
        SlotId { class: self.class, slot: self.slot }
    }
    pub(crate) fn first(&self) -> u32 {
        u32::from(self.first)
    }
    pub(crate) fn end(&self) -> u32 {
        u32::from(self.first) + u32::from(self.blocks)
    }
    pub(crate) fn block_end(&self) -> u32 {
        u32::from(self.block) + u32::from(self.blocks)
    }
    /// The part within blocks `[from, to)` of the chunk.
    pub(crate) fn clip(&self, from: u32, to: u32) -> Option<Self> {
        let (first, end) = (self.first().max(from), self.end().min(to));
        let skipped = first.checked_sub(self.first())?;
        (first < end).then(|| Self::new(first, end - first, self.at(), u32::from(self.block) + skipped))
    }
}

/// One version of a chunk.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Content {
    pub(crate) version: ChunkVersion,
    pub(crate) length: u32,
    /// CRC32C of the whole content.
    pub(crate) checksum: u32,
    /// A removal.
    pub(crate) removed: bool,
    /// No replica had the bytes when this was installed.
    pub(crate) lost: bool,
    pub(crate) extents: Extents,
}

impl Content {
    /// Whether it can be: what is wrong if it can't.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if self.length > CHUNK_MAX || self.extents.len() > EXTENTS_MAX {
            return Err("chunk content out of range");
        }
        let mut from = 0;
        for extent in &self.extents {
            if extent.class >= CLASSES || extent.blocks == 0 || extent.block_end() > slot_blocks(extent.class)
            {
                return Err("extent outside its slot");
            }
            if extent.first() < from || extent.end() > blocks_of(self.length) {
                return Err("extents overlap or exceed the chunk");
            }
            from = extent.end();
        }
        if self.removed && self.length != 0 {
            return Err("a removal with content");
        }
        Ok(())
    }
}

/// What a target holds of a chunk.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Entry {
    /// Version `NONE`: nothing.
    pub(crate) committed: Content,
    pub(crate) pending: Option<Box<Content>>,
    /// Few chunks have one.
    aborted: Option<Box<ChunkVersion>>,
}

impl Entry {
    pub(crate) fn new(committed: Content, pending: Option<Box<Content>>, aborted: ChunkVersion) -> Self {
        let mut entry = Self { committed, pending, aborted: None };
        entry.set_aborted(aborted);
        entry
    }
    /// The last version that was aborted; `NONE` if none was.
    pub(crate) fn aborted(&self) -> ChunkVersion {
        self.aborted.as_deref().copied().unwrap_or(ChunkVersion::NONE)
    }
    pub(crate) fn set_aborted(&mut self, version: ChunkVersion) {
        self.aborted = (!version.is_none()).then(|| Box::new(version));
    }
    /// All extents, committed ones first.
    pub(crate) fn extents(&self) -> impl Iterator<Item = &Extent> {
        self.committed.extents.iter().chain(self.pending.iter().flat_map(|p| p.extents.iter()))
    }
    /// Only a removal or an abort is left.
    pub(crate) fn is_tombstone(&self) -> bool {
        self.pending.is_none() && (self.committed.removed || self.committed.version.is_none())
    }
    /// All slots, sorted, each once.
    pub(crate) fn slots(&self) -> Vec<SlotId> {
        self.highs().into_iter().map(|(at, _)| at).collect()
    }
    /// The number of blocks of a slot up to the highest one that is shown; `None` if none is.
    pub(crate) fn high(&self, at: SlotId) -> Option<u32> {
        self.extents().filter(|e| e.at() == at).map(Extent::block_end).max()
    }
    /// Slots, sorted, of which something is shown that `other` doesn't show just so.
    pub(crate) fn slots_unlike(&self, other: &Self) -> Vec<SlotId> {
        let mut slots = Vec::new();
        for content in std::iter::once(&self.committed).chain(self.pending.as_deref()) {
            let mut unlike = content.extents.unlike(&other.committed.extents);
            if let Some(pending) = &other.pending {
                unlike.retain(|extent| !pending.extents.contains(extent));
            }
            slots.extend(unlike.iter().map(Extent::at));
        }
        slots.sort_unstable();
        slots.dedup();
        slots
    }
    /// All slots, sorted, each with the number of blocks up to the highest one that is shown.
    pub(crate) fn highs(&self) -> Vec<(SlotId, u32)> {
        let mut highs: Vec<(SlotId, u32)> = self.extents().map(|e| (e.at(), e.block_end())).collect();
        highs.sort_unstable_by_key(|(at, high)| (*at, std::cmp::Reverse(*high)));
        highs.dedup_by_key(|(at, _)| *at);
        highs
    }
}

/// Blocks written together, with their checksums.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) at: SlotId,
    /// First block within the slot.
    pub(crate) block: u32,
    /// Bytes of the last block that its checksum covers: 1 to 4096.
    pub(crate) tail: u32,
    pub(crate) sums: Vec<u32>,
}

/// A record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Record {
    /// The chunk is this now; `runs` are the blocks that came with it.
    Put { chunk: ChunkId, entry: Entry, runs: Vec<Run>, writers: Vec<WriterRecord> },
    /// If the committed version is `base`, a pending one is made of it: `pending`, whose extents are those that are
    /// new. `runs` are the blocks that came with it.
    Update {
        chunk: ChunkId,
        base: ChunkVersion,
        pending: Content,
        runs: Vec<Run>,
        writers: Vec<WriterRecord>,
    },
    /// If `version` is pending, it is committed.
    Commit { chunk: ChunkId, version: ChunkVersion },
    /// Nothing is known of the chunk any more.
    Drop { chunk: ChunkId },
    /// The last update of a channel.
    Writer { chunk: ChunkId, record: WriterRecord },
    /// The client's session has ended.
    Forget { client: ClientId },
    /// The highest chain version served under.
    Chain { version: ChainVersion },
    /// First record of a checkpoint: where the log goes on.
    Begin { first_segment: u64, next_sequence: u64 },
    /// Last record of a checkpoint: how many chunks it holds.
    End { chunks: u64 },
    /// Chunks of a checkpoint, in order.
    Rows { rows: Vec<(ChunkId, Entry)> },
    /// Of a checkpoint: the sequences of a class' checksum pages from page `first` on; 0: never written.
    Pages { class: u8, first: u32, sequences: Vec<u32> },
    /// Of a checkpoint: used slots that were written behind what their chunk shows.
    Spoiled { slots: Vec<SlotId> },
}

fn put_version(out: &mut Vec<u8>, v: &ChunkVersion) {
    out.extend(v.number.to_le_bytes());
    out.extend(v.chain_version.0.to_le_bytes());
    out.extend(v.attempt.to_le_bytes());
}

fn put_chunk(out: &mut Vec<u8>, chunk: &ChunkId) {
    out.extend(chunk.data.0.to_le_bytes());
    out.extend(chunk.index.to_le_bytes());
    out.extend([0; 4]);
}

fn put_content(out: &mut Vec<u8>, c: &Content) {
    put_version(out, &c.version);
    out.extend(c.length.to_le_bytes());
    out.extend(c.checksum.to_le_bytes());
    out.extend((u16::from(c.removed) | u16::from(c.lost) << 1).to_le_bytes());
    out.extend((c.extents.len() as u16).to_le_bytes());
    for e in &c.extents {
        out.extend(e.first.to_le_bytes());
        out.extend(e.blocks.to_le_bytes());
        out.extend(e.block.to_le_bytes());
        out.extend([e.class, 0]);
        out.extend(e.slot.to_le_bytes());
    }
}

fn put_run(out: &mut Vec<u8>, run: &Run) {
    out.extend(run.at.slot.to_le_bytes());
    out.extend((run.block as u16).to_le_bytes());
    out.extend([run.at.class, 0]);
    out.extend((run.tail as u16).to_le_bytes());
    out.extend((run.sums.len() as u16).to_le_bytes());
    out.extend(run.sums.iter().flat_map(|sum| sum.to_le_bytes()));
}

fn put_writer(out: &mut Vec<u8>, w: &WriterRecord) {
    out.extend(w.tag.client.0);
    out.extend(w.tag.channel.0.to_le_bytes());
    out.extend(w.tag.sequence.0.to_le_bytes());
    put_version(out, &w.version);
    out.extend(w.length.to_le_bytes());
    out.extend(w.status.code().to_le_bytes());
    out.extend([0; 2]);
}

impl Record {
    /// Appends the record: kind u8, three zero bytes, length of the body u32, body.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([self.kind(), 0, 0, 0, 0, 0, 0, 0]);
        match self {
            Self::Put { chunk, entry, runs, writers } => {
                put_chunk(out, chunk);
                put_version(out, &entry.aborted());
                out.extend(u16::from(entry.pending.is_some()).to_le_bytes());
                out.extend((runs.len() as u16).to_le_bytes());
                out.extend((writers.len() as u16).to_le_bytes());
                out.extend([0; 2]);
                put_content(out, &entry.committed);
                if let Some(pending) = &entry.pending {
                    put_content(out, pending);
                }
                runs.iter().for_each(|run| put_run(out, run));
                writers.iter().for_each(|w| put_writer(out, w));
            }
            Self::Update { chunk, base, pending, runs, writers } => {
                put_chunk(out, chunk);
                put_version(out, base);
                out.extend((runs.len() as u16).to_le_bytes());
                out.extend((writers.len() as u16).to_le_bytes());
                put_content(out, pending);
                runs.iter().for_each(|run| put_run(out, run));
                writers.iter().for_each(|w| put_writer(out, w));
            }
            Self::Commit { chunk, version } => {
                put_chunk(out, chunk);
                put_version(out, version);
            }
            Self::Drop { chunk } => put_chunk(out, chunk),
            Self::Writer { chunk, record } => {
                put_chunk(out, chunk);
                put_writer(out, record);
            }
            Self::Forget { client } => out.extend(client.0),
            Self::Chain { version } => out.extend(version.0.to_le_bytes()),
            Self::Begin { first_segment, next_sequence } => {
                out.extend(first_segment.to_le_bytes());
                out.extend(next_sequence.to_le_bytes());
            }
            Self::End { chunks } => out.extend(chunks.to_le_bytes()),
            Self::Rows { rows } => {
                let mut all = rows::Rows::default();
                rows.iter().for_each(|(chunk, entry)| all.add(*chunk, entry));
                out.extend(all.take());
            }
            Self::Pages { class, first, sequences } => {
                out.extend(u32::from(*class).to_le_bytes());
                out.extend(first.to_le_bytes());
                out.extend(sequences.iter().flat_map(|sequence| sequence.to_le_bytes()));
            }
            Self::Spoiled { slots } => {
                for at in slots {
                    out.extend(at.slot.to_le_bytes());
                    out.extend(u32::from(at.class).to_le_bytes());
                }
            }
        }
        let length = (out.len() - start - 8) as u32;
        out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    }

    /// What came with it, of which chunk.
    pub(crate) fn came_with(&self) -> Option<(ChunkId, &[Run], &[WriterRecord])> {
        match self {
            Self::Put { chunk, runs, writers, .. } | Self::Update { chunk, runs, writers, .. } => {
                Some((*chunk, runs, writers))
            }
            _ => None,
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Put { .. } => 1,
            Self::Drop { .. } => 2,
            Self::Writer { .. } => 3,
            Self::Forget { .. } => 4,
            Self::Chain { .. } => 5,
            Self::Begin { .. } => 6,
            Self::End { .. } => 7,
            Self::Rows { .. } => ROWS,
            Self::Pages { .. } => 9,
            Self::Spoiled { .. } => 10,
            Self::Update { .. } => 11,
            Self::Commit { .. } => 12,
        }
    }

    /// Reads the record at the start of `bytes`, and how many bytes it takes.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Self, usize), &'static str> {
        let mut head = Reader(bytes);
        let kind = head.array::<4>()?[0];
        let length = head.u32()? as usize;
        let mut body = Reader(head.bytes(length)?);
        let record = match kind {
            1 => body.put()?,
            2 => Self::Drop { chunk: body.chunk()? },
            3 => Self::Writer { chunk: body.chunk()?, record: body.writer()? },
            4 => Self::Forget { client: ClientId(body.array()?) },
            5 => Self::Chain { version: ChainVersion(body.u64()?) },
            6 => Self::Begin { first_segment: body.u64()?, next_sequence: body.u64()? },
            7 => Self::End { chunks: body.u64()? },
            ROWS => Self::Rows { rows: rows::decode(std::mem::take(&mut body.0))? },
            9 => body.pages()?,
            10 => body.spoiled()?,
            11 => body.update()?,
            12 => Self::Commit { chunk: body.chunk()?, version: body.version()? },
            _ => return Err("record of an unknown kind"),
        };
        if !body.0.is_empty() {
            return Err("record longer than its content");
        }
        Ok((record, 8 + length))
    }
}

/// Reads little-endian fields with bounds checked.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn bytes(&mut self, n: usize) -> Result<&'a [u8], &'static str> {
        let (bytes, rest) = self.0.split_at_checked(n).ok_or("record cut short")?;
        self.0 = rest;
        Ok(bytes)
    }
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        self.bytes(N)?.try_into().map_err(|_| "record cut short")
    }
    fn u16(&mut self) -> Result<u16, &'static str> {
        self.array().map(u16::from_le_bytes)
    }
    pub(crate) fn u32(&mut self) -> Result<u32, &'static str> {
        self.array().map(u32::from_le_bytes)
    }
    pub(crate) fn u64(&mut self) -> Result<u64, &'static str> {
        self.array().map(u64::from_le_bytes)
    }
    fn chunk(&mut self) -> Result<ChunkId, &'static str> {
        let chunk = ChunkId::new(DataId(self.u64()?), self.u32()?);
        self.array::<4>().map(|_| chunk)
    }
    fn version(&mut self) -> Result<ChunkVersion, &'static str> {
        Ok(ChunkVersion {
            number: self.u64()?,
            chain_version: ChainVersion(self.u64()?),
            attempt: self.u32()?,
        })
    }
    fn writer(&mut self) -> Result<WriterRecord, &'static str> {
        let tag = WriterTag {
            client: ClientId(self.array()?),
            channel: ChannelId(self.u32()?),
            sequence: Sequence(self.u64()?),
        };
        let (version, length) = (self.version()?, self.u32()?);
        let status = Status::from_code(self.u16()?);
        self.u16()?;
        Ok(WriterRecord { tag, version, length, status })
    }

    fn extent(&mut self) -> Result<Extent, &'static str> {
        let (first, blocks, block) = (self.u16()?, self.u16()?, self.u16()?);
        let class = self.array::<2>()?[0];
        Ok(Extent { first, blocks, block, class, slot: self.u32()? })
    }

    fn content(&mut self) -> Result<Content, &'static str> {
        let (version, length, checksum) = (self.version()?, self.u32()?, self.u32()?);
        let flags = self.u16()?;
        let count = usize::from(self.u16()?);
        if flags > 3 || count > EXTENTS_MAX {
            return Err("chunk content out of range");
        }
        let mut extents = Vec::with_capacity(count.min(self.0.len() / 12));
        for _ in 0..count {
            extents.push(self.extent()?);
        }
        let (removed, lost) = (flags & 1 != 0, flags & 2 != 0);
        let content = Content { version, length, checksum, removed, lost, extents: extents.into() };
        content.check().map(|()| content)
    }

    /// The rest, as words.
    fn words(&mut self) -> Result<Vec<u32>, &'static str> {
        if !self.0.len().is_multiple_of(4) {
            return Err("record of words ends within one");
        }
        let words = std::mem::take(&mut self.0).chunks_exact(4);
        Ok(words.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    fn class(class: u32) -> Result<u8, &'static str> {
        u8::try_from(class).ok().filter(|class| *class < CLASSES).ok_or("class out of range")
    }

    fn pages(&mut self) -> Result<Record, &'static str> {
        let (class, first) = (Self::class(self.u32()?)?, self.u32()?);
        Ok(Record::Pages { class, first, sequences: self.words()? })
    }

    fn spoiled(&mut self) -> Result<Record, &'static str> {
        let words = self.words()?;
        if !words.len().is_multiple_of(2) {
            return Err("record of slots ends within one");
        }
        let slots = words.chunks_exact(2).map(|w| Ok(SlotId { slot: w[0], class: Self::class(w[1])? }));
        Ok(Record::Spoiled { slots: slots.collect::<Result<_, &'static str>>()? })
    }

    fn run(&mut self) -> Result<Run, &'static str> {
        let slot = self.u32()?;
        let block = u32::from(self.u16()?);
        let class = self.array::<2>()?[0];
        let (tail, count) = (u32::from(self.u16()?), u32::from(self.u16()?));
        if class >= CLASSES
            || count == 0
            || block + count > slot_blocks(class)
            || !(1..=BLOCK).contains(&tail)
        {
            return Err("run of blocks outside its slot");
        }
        let sums = self.bytes(count as usize * 4)?.chunks_exact(4);
        let sums = sums.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok(Run { at: SlotId { class, slot }, block, tail, sums })
    }

    fn put(&mut self) -> Result<Record, &'static str> {
        let (chunk, aborted) = (self.chunk()?, self.version()?);
        let (has_pending, runs, writers) = (self.u16()?, self.u16()?, self.u16()?);
        self.u16()?;
        if has_pending > 1 || usize::from(writers) > WRITERS_MAX {
            return Err("chunk record out of range");
        }
        let committed = self.content()?;
        let pending = if has_pending == 1 { Some(Box::new(self.content()?)) } else { None };
        let (runs, writers) = self.came_with(runs, writers)?;
        Ok(Record::Put { chunk, entry: Entry::new(committed, pending, aborted), runs, writers })
    }

    fn update(&mut self) -> Result<Record, &'static str> {
        let (chunk, base) = (self.chunk()?, self.version()?);
        let (runs, writers) = (self.u16()?, self.u16()?);
        if usize::from(writers) > WRITERS_MAX {
            return Err("chunk record out of range");
        }
        let pending = self.content()?;
        let (runs, writers) = self.came_with(runs, writers)?;
        Ok(Record::Update { chunk, base, pending, runs, writers })
    }

    fn came_with(&mut self, runs: u16, writers: u16) -> Result<(Vec<Run>, Vec<WriterRecord>), &'static str> {
        let runs = (0..runs).map(|_| self.run()).collect::<Result<_, _>>()?;
        Ok((runs, (0..writers).map(|_| self.writer()).collect::<Result<_, _>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ember_types::layout::SplitMix64;

    pub(crate) fn samples() -> Vec<Record> {
        let version = |number| ChunkVersion { number, chain_version: ChainVersion(3), attempt: 1 };
        let at = SlotId { class: 2, slot: 9 };
        let writer = WriterRecord {
            tag: WriterTag { client: ClientId([7; 16]), channel: ChannelId(2), sequence: Sequence(5) },
            version: version(2),
            length: 8192,
            status: Status::Ok,
        };
        let committed = Content {
            version: version(1),
            length: 5000,
            checksum: 77,
            extents: [Extent::new(0, 1, at, 0), Extent::new(1, 1, at, 2)].into(),
            ..Content::default()
        };
        let removed = Content { version: version(2), removed: true, ..Content::default() };
        let chunk = ChunkId::new(DataId(4), 8);
        let entry = Entry::new(committed, Some(Box::new(removed)), version(2));
        let runs = vec![Run { at, block: 2, tail: 904, sums: vec![1, 2] }];
        vec![
            Record::Rows { rows: vec![(chunk, entry.clone())] },
            Record::Pages { class: 3, first: 2, sequences: vec![0, 7] },
            Record::Spoiled { slots: vec![at] },
            Record::Update {
                chunk,
                base: version(1),
                pending: entry.committed.clone(),
                runs: runs.clone(),
                writers: vec![writer],
            },
            Record::Commit { chunk, version: version(2) },
            Record::Put { chunk, entry, runs, writers: vec![writer] },
            Record::Drop { chunk },
            Record::Writer { chunk, record: writer },
            Record::Forget { client: ClientId([9; 16]) },
            Record::Chain { version: ChainVersion(12) },
            Record::Begin { first_segment: 3, next_sequence: 44 },
            Record::End { chunks: 5 },
        ]
    }

    #[test]
    fn records_survive_the_disk() {
        for record in samples() {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            assert_eq!(Record::decode(&bytes), Ok((record, bytes.len())));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic() {
        let mut random = SplitMix64(3);
        for round in 0..30_000 {
            let mut bytes = Vec::new();
            let samples = samples();
            samples[round % samples.len()].encode(&mut bytes);
            for _ in 0..=random.below(3) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = random.next() as u8;
            }
            bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
            if let Ok((Record::Put { entry, .. }, _)) = Record::decode(&bytes) {
                assert!(entry.extents().all(|e| e.end() <= BLOCKS_MAX));
            }
        }
    }
}
