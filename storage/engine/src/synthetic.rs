//! Makes a target that knows many chunks without having their data, as it is after the end of its process: to
//! measure how long recovery takes and what memory it needs.

use crate::checkpoint::{Source, write_checkpoint};
use crate::class::{BLOCK, SlotId, data_name, slot_blocks, slot_bytes};
use crate::engine::Engine;
use crate::error::Result;
use crate::files::Files;
use crate::frame::{self, FrameOf, LOG};
use crate::index::Index;
use crate::inner::EngineConfig;
use crate::log::create_segment;
use crate::record::{Content, Entry, Extent, Record, Run};
use crate::rows::Rows;
use crate::settled::Settled;
use crate::sums::{PER_PAGE, sums_bytes, sums_name};
use crate::superblock::Identity;
use ember_rt::Rt;
use ember_rt::disk::{DiskQueue, OpenMode, Priority};
use ember_types::{
    ChainVersion, ChannelId, ChunkId, ChunkVersion, ClientId, DataId, Sequence, Status, WriterRecord,
    WriterTag,
};
use std::cell::RefCell;

/// Class of the chunks: 1 MiB.
const CLASS: u8 = 8;
/// Chunks of a file.
const FILE: u64 = 1000;
/// One of so many chunks has a redirected block.
const REDIRECTED: u64 = 16;
/// Updates in a frame of the log.
const BATCH: u64 = 500;

/// How much.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// Chunks of 1 MiB, all in the checkpoint.
    pub chunks: u64,
    /// Bytes of the log behind it: every update in it replaced a whole chunk.
    pub log_bytes: u64,
}

fn chunk(number: u64) -> ChunkId {
    ChunkId::new(DataId(1 + number / FILE), (number % FILE) as u32)
}

fn content(number: u64, version: u64, slot: u64) -> Content {
    let at = SlotId { class: CLASS, slot: slot as u32 };
    let whole = Extent::new(0, slot_blocks(CLASS), at, 0);
    let extents = match number % REDIRECTED {
        0 if version == 1 => {
            let block = SlotId { class: 0, slot: (number / REDIRECTED) as u32 };
            let (before, behind) = (whole.clip(0, 9), whole.clip(10, slot_blocks(CLASS)));
            let new = Some(Extent::new(9, 1, block, 0));
            [before, new, behind].into_iter().flatten().collect()
        }
        _ => vec![whole],
    };
    Content {
        version: ChunkVersion {
            number: version,
            chain_version: ChainVersion(3),
            attempt: number as u32 % 50,
        },
        length: slot_bytes(CLASS) as u32,
        checksum: number as u32 ^ 0x5bd1_e995,
        extents: extents.into(),
        ..Content::default()
    }
}

/// Update `number` of the log.
fn update(number: u64, chunks: u64) -> Record {
    let which = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % chunks;
    let entry = Entry::new(content(which, 2 + number, chunks + number), None, ChunkVersion::NONE);
    let at = SlotId { class: CLASS, slot: (chunks + number) as u32 };
    let runs =
        vec![Run { at, block: 0, tail: BLOCK, sums: vec![number as u32; slot_blocks(CLASS) as usize] }];
    let record = WriterRecord {
        tag: WriterTag {
            client: ClientId([7; 16]),
            channel: ChannelId(number as u32 % 1000),
            sequence: Sequence(number),
        },
        version: entry.committed.version,
        length: entry.committed.length,
        status: Status::Ok,
    };
    Record::Put { chunk: chunk(which), entry, runs, writers: vec![record] }
}

/// The part of a target's memory that grows with its chunks, as a checkpoint of so many chunks fills it.
pub struct Memory {
    index: Index,
    _settled: Settled,
}

impl Memory {
    /// That of `chunks` chunks.
    pub fn of(chunks: u64) -> Result<Self, &'static str> {
        let (mut index, mut rows, mut settled) = (Index::default(), Rows::default(), Settled::new());
        for number in 0..chunks {
            rows.add(chunk(number), &Entry::new(content(number, 1, number), None, ChunkVersion::NONE));
            if number % BATCH == BATCH - 1 || number == chunks - 1 {
                index.load(crate::rows::decode(&rows.take())?);
            }
        }
        for (class, slots) in [(CLASS, chunks), (0, chunks.div_ceil(REDIRECTED))] {
            let end = slots * slot_bytes(class);
            let written = |from| Ok((from < end).then_some(from..end).into_iter().collect());
            settled.find(class, written).map_err(|_| "what is written isn't known")?;
        }
        Ok(Self { index, _settled: settled })
    }
    /// Chunks that it knows.
    pub fn chunks(&self) -> u64 {
        self.index.len() as u64
    }
}

/// Makes the target in `dir`. Its files are as long as they would be, with holes for what is never read.
pub async fn create(rt: &Rt, queue: &DiskQueue, dir: &str, identity: &Identity, size: Size) -> Result<()> {
    drop(Engine::create(rt, queue, dir, identity, EngineConfig::default()).await?);
    let files = Files::new(queue, dir);
    let segment = create_segment(&files, identity.target.0, 2, 100, &[]).await?;
    let of = FrameOf { target: identity.target.0, kind: LOG, file: 2 };
    let (mut offset, mut sequence, mut updates) = (segment.offset, segment.next_sequence, 0);
    // The last frame is one without records: what comes before it counts as flushed.
    loop {
        let batch = if offset < size.log_bytes { BATCH } else { 0 };
        let mut payload = Vec::new();
        (updates..updates + batch).for_each(|n| update(n, size.chunks).encode(&mut payload));
        let frame = frame::build(of, sequence, batch as u32, &payload);
        (offset, sequence, updates) = (offset + frame.len() as u64, sequence + 1, updates + batch);
        files.write(&segment.file, Priority::Foreground, offset - frame.len() as u64, frame.into()).await?;
        if batch == 0 {
            break;
        }
    }
    files.sync(&segment.file).await?;
    files.close(&segment.file);
    for (class, slots) in [(CLASS, size.chunks + updates), (0, size.chunks.div_ceil(REDIRECTED))] {
        let lengths = [
            (data_name(class), slots * slot_bytes(class)),
            (sums_name(class), sums_bytes(slots * u64::from(slot_blocks(class)))),
        ];
        for (name, length) in lengths {
            let mode = OpenMode { create: true, exclusive: true, direct: false };
            let path = files.path(&name);
            let opened = queue.disk().open_file(&path, mode);
            let made = opened.and_then(|id| {
                let made = queue.disk().set_file_len(id, length);
                queue.disk().close_file(id);
                made
            });
            made.map_err(|source| crate::EngineError::Io { file: path, operation: "make", source })?;
        }
    }
    let mut next = 0;
    let mut chunks = |rows: &mut Rows| {
        let end = (next + BATCH).min(size.chunks);
        for number in next..end {
            rows.add(chunk(number), &Entry::new(content(number, 1, number), None, ChunkVersion::NONE));
        }
        let count = end - next;
        next = end;
        count
    };
    let pages = |class: u8, first: u32, limit: u32| {
        let slots = match class {
            CLASS => size.chunks,
            0 => size.chunks.div_ceil(REDIRECTED),
            _ => 0,
        };
        let end = (slots * u64::from(slot_blocks(class))).div_ceil(PER_PAGE.into()) as u32;
        vec![1; end.saturating_sub(first).min(limit) as usize]
    };
    let index = RefCell::new(Index::default());
    let source = Source { chunks: &mut chunks, index: &index, pages: &pages };
    write_checkpoint(&files, identity.target.0, 2, (2, 100), source).await
}
