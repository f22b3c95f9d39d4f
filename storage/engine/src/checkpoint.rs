//! Checkpoints: the whole index in a file of frames, written while updates go on. The two newest are kept,
//! with the log since the older one, so that damage to one loses nothing.

use crate::class::{CLASSES, SlotId};
use crate::error::{EngineError, Result};
use crate::files::{File, Files};
use crate::frame::{self, CHECKPOINT, FrameOf};
use crate::index::Index;
use crate::inner::{Inner, add};
use crate::pages::Named;
use crate::reader::FrameReader;
use crate::record::{Record, put_rows};
use crate::rows::Rows;
use ember_rt::SharedBuf;
use ember_rt::disk::Priority;
use ember_rt::select::yield_now;
use ember_types::ChunkId;
use std::cell::RefCell;
use std::rc::Rc;

/// Bytes of records in a frame of a checkpoint, about.
const PIECE_BYTES: usize = 256 << 10;
/// Chunks between two turns of the reactor's other tasks.
const ROWS_AT_ONCE: usize = 512;
/// Sequences of pages, or slots, in a record.
const NUMBERS_AT_ONCE: u32 = 16 << 10;

pub(crate) fn checkpoint_name(number: u64) -> String {
    format!("checkpoint-{number:010}")
}

/// The name under which a checkpoint is written until it is complete.
pub(crate) fn unfinished_name(number: u64) -> String {
    format!("checkpoint-{number:010}.tmp")
}

/// The number in a file's name.
pub(crate) fn number_of(name: &str, prefix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?;
    (digits.len() == 10 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// Which checkpoints there are.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Generations {
    /// Number of the next one.
    pub(crate) next: u64,
    /// Those that are kept, oldest first: number, and the first segment of the log behind it.
    pub(crate) kept: Vec<(u64, u64)>,
}

struct Writer<'a> {
    files: &'a Files,
    file: File,
    of: FrameOf,
    offset: u64,
    sequence: u64,
    payload: Vec<u8>,
    count: u32,
}

impl Writer<'_> {
    async fn add(&mut self, record: &Record) -> Result<()> {
        record.encode(&mut self.payload);
        self.count += 1;
        if self.payload.len() >= PIECE_BYTES { self.write().await } else { Ok(()) }
    }
    async fn write(&mut self) -> Result<()> {
        let frame = frame::build(self.of, self.sequence, self.count, &self.payload);
        let length = frame.len() as u64;
        self.files.write(&self.file, Priority::Resync, self.offset, SharedBuf::from(frame)).await?;
        self.offset += length;
        self.sequence += 1;
        self.payload.clear();
        self.count = 0;
        Ok(())
    }
}

/// What goes into a checkpoint.
pub(crate) struct Source<'a> {
    /// Adds the next few chunks; returns how many.
    pub(crate) chunks: &'a mut dyn FnMut(&mut Rows) -> u64,
    /// All but its chunks.
    pub(crate) index: &'a RefCell<Index>,
    /// The sequences of pages of a class, from a page on, up to a number.
    pub(crate) pages: &'a dyn Fn(u8, u32, u32) -> Vec<u32>,
}

/// The chunks of an index, as each is when its turn comes.
pub(crate) fn chunks_of(index: &RefCell<Index>) -> impl FnMut(&mut Rows) -> u64 {
    let mut last: Option<ChunkId> = None;
    move |rows| {
        let mut count = 0;
        for (chunk, entry) in index.borrow().after(last).take(ROWS_AT_ONCE) {
            rows.add(chunk, entry);
            last = Some(chunk);
            count += 1;
        }
        count
    }
}

/// Writes checkpoint `number`, piece by piece: records that are applied meanwhile may or may not be in it, but
/// stand in the log from `first_segment` on.
pub(crate) async fn write_checkpoint(
    files: &Files,
    target: u64,
    number: u64,
    (first_segment, next_sequence): (u64, u64),
    source: Source<'_>,
) -> Result<()> {
    let Source { chunks, index, pages } = source;
    let name = unfinished_name(number);
    files.remove_if_there(&name)?;
    let file = files.create(&name)?;
    let of = FrameOf { target, kind: CHECKPOINT, file: number };
    let mut out =
        Writer { files, file: file.clone(), of, offset: 0, sequence: 0, payload: Vec::new(), count: 0 };
    let written = async {
        out.add(&Record::Begin { first_segment, next_sequence }).await?;
        let chain_version = index.borrow().chain_version;
        out.add(&Record::Chain { version: chain_version }).await?;
        let chunks = write_chunks(&mut out, chunks).await?;
        write_writers(&mut out, index).await?;
        // Behind the chunks: what was spoiled before they were written is in it, the rest follows from the log.
        let spoiled: Vec<SlotId> = index.borrow().spoiled().collect();
        for slots in spoiled.chunks(NUMBERS_AT_ONCE as usize) {
            out.add(&Record::Spoiled { slots: slots.to_vec() }).await?;
        }
        write_pages(&mut out, pages).await?;
        out.add(&Record::End { chunks }).await?;
        out.write().await?;
        files.sync(&file).await
    };
    let written = written.await;
    files.close(&file);
    written?;
    files.rename(&name, &checkpoint_name(number))?;
    files.sync_dir()
}

async fn write_chunks(out: &mut Writer<'_>, next: &mut dyn FnMut(&mut Rows) -> u64) -> Result<u64> {
    let mut chunks = 0;
    let mut rows = Rows::default();
    loop {
        let more = next(&mut rows);
        chunks += more;
        if rows.len() >= PIECE_BYTES || (more == 0 && rows.len() > 0) {
            put_rows(&mut out.payload, &rows.take());
            out.count += 1;
            out.write().await?;
        }
        if more == 0 {
            return Ok(chunks);
        }
        yield_now().await;
    }
}

async fn write_pages(out: &mut Writer<'_>, pages: &dyn Fn(u8, u32, u32) -> Vec<u32>) -> Result<()> {
    for class in 0..CLASSES {
        let mut first = 0;
        loop {
            let sequences = pages(class, first, NUMBERS_AT_ONCE);
            let count = sequences.len() as u32;
            if count == 0 {
                break;
            }
            out.add(&Record::Pages { class, first, sequences }).await?;
            first += count;
        }
    }
    Ok(())
}

async fn write_writers(out: &mut Writer<'_>, index: &RefCell<Index>) -> Result<()> {
    let mut last = None;
    loop {
        let next = index.borrow().writers_after(last).next();
        let Some((channel, chunk, record)) = next else { return Ok(()) };
        last = Some(channel);
        out.add(&Record::Writer { chunk, record }).await?;
    }
}

/// What a checkpoint holds.
pub(crate) struct Checkpoint {
    pub(crate) index: Index,
    pub(crate) pages: Named,
    /// The first segment of the log behind it, and its first sequence.
    pub(crate) position: (u64, u64),
}

/// Reads a checkpoint.
pub(crate) async fn read_checkpoint(files: &Files, target: u64, number: u64) -> Result<Checkpoint> {
    let name = checkpoint_name(number);
    let path = files.path(&name);
    let corrupt = |offset, what: &str| EngineError::corrupt(path.clone(), offset, what);
    let file = files.open(&name)?.ok_or_else(|| corrupt(0, "checkpoint is missing"))?;
    let of = FrameOf { target, kind: CHECKPOINT, file: number };
    let mut reader = FrameReader::new(files, file, of)?;
    let (mut index, mut pages) = (Index::default(), Named::default());
    let (mut begin, mut chunks, mut sequence) = (None, 0, 0);
    loop {
        let at = reader.offset();
        let frame = reader.next().await?.ok_or_else(|| corrupt(at, "checkpoint is damaged or cut short"))?;
        if frame.sequence != sequence {
            return Err(corrupt(at + 16, "checkpoint's frames are out of order"));
        }
        sequence += 1;
        for record in frame.records {
            match record {
                Record::Begin { first_segment, next_sequence } => {
                    begin = Some((first_segment, next_sequence));
                }
                Record::End { chunks: said } => {
                    let Some(position) = begin.filter(|_| said == chunks) else {
                        return Err(corrupt(at, "checkpoint holds another number of chunks than it says"));
                    };
                    if reader.offset() != reader.len() {
                        return Err(corrupt(reader.offset(), "bytes behind the end of the checkpoint"));
                    }
                    return Ok(Checkpoint { index, pages, position });
                }
                Record::Rows { rows } => {
                    chunks += rows.len() as u64;
                    index.load(rows);
                }
                Record::Pages { class, first, sequences } => {
                    if !pages.extend(class, first, &sequences) {
                        return Err(corrupt(at, "checkpoint's pages are out of order"));
                    }
                }
                record => {
                    // Format version 1 has its chunks as the log has them.
                    chunks += u64::from(matches!(record, Record::Put { .. }));
                    index.replay(&record);
                }
            }
        }
        yield_now().await;
    }
}

impl Inner {
    pub(crate) fn checkpoint_in_background(self: &Rc<Self>) {
        if self.checkpointing.available_permits() == 0 {
            return;
        }
        let inner = self.clone();
        self.rt.spawn("engine checkpoint", async move {
            if let Err(error) = inner.checkpoint().await {
                // Nothing is lost: the log goes on growing and the next batch tries again.
                tracing::warn!(%error, "checkpoint failed");
            }
        });
    }

    /// Writes a checkpoint and drops the log that it replaces.
    pub(crate) async fn checkpoint(self: &Rc<Self>) -> Result<()> {
        let closing = |_| self.failed_error("it is closing");
        let _one = self.checkpointing.acquire().await.map_err(closing)?;
        self.check_alive()?;
        let position = {
            let _gate = self.log.gate.acquire().await.map_err(closing)?;
            let position = self.rotate().await?;
            self.index.borrow_mut().overlay.freeze();
            position
        };
        self.write_generation(position).await
    }

    /// Writes a checkpoint with the log behind it from `position` on: what came before is frozen.
    pub(crate) async fn write_generation(&self, position: (u64, u64)) -> Result<()> {
        let number = self.generations.borrow().next;
        self.generations.borrow_mut().next += 1;
        let target = self.identity.target.0;
        let written = self.write_pages().await?;
        let pages = |class, first, limit| self.pages.borrow().named.with(&written, class, first, limit);
        let source = Source { chunks: &mut chunks_of(&self.index), index: &self.index, pages: &pages };
        write_checkpoint(&self.files, target, number, position, source).await?;
        self.pages_are_named(&written).await;
        add(&self.counters.checkpoints, 1);
        let kept = {
            let mut generations = self.generations.borrow_mut();
            generations.kept.push((number, position.0));
            let surplus = generations.kept.len().saturating_sub(2);
            generations.kept.drain(..surplus);
            generations.kept.clone()
        };
        remove_surplus(&self.files, &kept)
    }
}

/// Removes checkpoints that are not kept and segments older than the oldest one that is. Not flushed: a
/// removed file that comes back after a crash is not looked at, and removed again.
pub(crate) fn remove_surplus(files: &Files, kept: &[(u64, u64)]) -> Result<()> {
    let Some(&(_, first_segment)) = kept.first() else { return Ok(()) };
    let newest = kept.iter().map(|(number, _)| *number).max().unwrap_or(0);
    for name in files.list()? {
        let old_checkpoint = number_of(&name, "checkpoint-")
            .is_some_and(|number| number <= newest && kept.iter().all(|(kept, _)| *kept != number));
        let old_segment = number_of(&name, "log-").is_some_and(|number| number < first_segment);
        let unfinished = name.strip_suffix(".tmp").and_then(|name| number_of(name, "checkpoint-"));
        if old_checkpoint || old_segment || unfinished.is_some_and(|number| number <= newest) {
            files.remove(&name)?;
        }
    }
    Ok(())
}
