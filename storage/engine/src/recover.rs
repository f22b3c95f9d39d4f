//! Recovery: the newest whole checkpoint, then the log behind it. Reads only.
//!
//! The last frame of the log may refer to data that never reached the disk (both are written side by side),
//! so the blocks that came with its records are checked, and a record whose blocks are not there is dropped:
//! it was never acknowledged. Behind the last frame a torn one may lie. Damage anywhere else is an error.

use crate::checkpoint::{Checkpoint, checkpoint_name, number_of, read_checkpoint};
use crate::class::{BLOCK, CLASSES, data_name, slot_bytes};
use crate::error::{EngineError, Result};
use crate::files::{File, Files};
use crate::frame::{FrameOf, LOG};
use crate::index::Index;
use crate::inner::open_data;
use crate::log::segment_name;
use crate::pages::Named;
use crate::reader::{Frame, FrameReader};
use crate::record::{Entry, Extent, Record, Run};
use crate::sums::{PageId, stretches, sums_name};
use crate::used::Used;
use ember_rt::disk::Priority;
use ember_rt::select::yield_now;
use ember_types::checksum::crc32c;
use ember_types::{ChunkId, Status, WriterRecord, mutant};

/// Chunks that are checked between two turns of the reactor's other tasks.
const CHUNKS_AT_ONCE: usize = 2048;

/// What recovery found.
#[derive(Default, Debug)]
pub struct Recovery {
    /// Frames of the log that were replayed.
    pub frames: u64,
    /// Chunks whose last update was dropped because its data were not on the disk. After a loss of power that
    /// is what unacknowledged updates look like; otherwise their blocks were damaged.
    pub dropped: Vec<ChunkId>,
    /// Bytes behind the last frame of the log that were not zero: an unacknowledged batch that was torn.
    pub torn: bool,
    /// Damage that lost nothing: of a copy of the superblock, or of the newest checkpoint.
    pub healed: Vec<EngineError>,
}

/// The recovered state.
pub(crate) struct Loaded {
    pub(crate) target: u64,
    pub(crate) index: Index,
    pub(crate) pages: Named,
    pub(crate) used: Used,
    /// The checkpoint that was used, and the first segment behind it.
    pub(crate) checkpoint: (u64, u64),
    pub(crate) next_sequence: u64,
    /// Highest numbers seen.
    pub(crate) last_segment: u64,
    pub(crate) last_checkpoint: u64,
    /// A last segment without a frame: it was being made.
    pub(crate) empty_segment: Option<u64>,
    /// Records that undo, in the log, what was dropped.
    pub(crate) corrections: Vec<Record>,
    pub(crate) recovery: Recovery,
}

/// Loads a target's state without changing anything.
pub(crate) async fn load(files: &Files, target: u64) -> Result<Loaded> {
    let names = files.list()?;
    let numbers = |prefix| {
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name, prefix)).collect();
        numbers.sort_unstable();
        numbers
    };
    let (checkpoints, segments) = (numbers("checkpoint-"), numbers("log-"));
    let mut healed = Vec::new();
    for &number in checkpoints.iter().rev() {
        match read_checkpoint(files, target, number).await {
            Ok(Checkpoint { index, pages, position: (first_segment, next_sequence) }) => {
                let mut loaded = Loaded {
                    target,
                    index,
                    pages,
                    used: Used::default(),
                    checkpoint: (number, first_segment),
                    next_sequence,
                    last_segment: segments.last().copied().unwrap_or(0),
                    last_checkpoint: checkpoints.last().copied().unwrap_or(0),
                    empty_segment: None,
                    corrections: Vec::new(),
                    recovery: Recovery { healed, ..Recovery::default() },
                };
                replay(files, target, &segments, &mut loaded).await?;
                check(files, &mut loaded).await?;
                return Ok(loaded);
            }
            Err(error @ EngineError::Corrupt { .. }) => healed.push(error),
            Err(error) => return Err(error),
        }
    }
    let missing = || EngineError::corrupt(files.path(&checkpoint_name(1)), 0, "no checkpoint is there");
    Err(healed.into_iter().next().unwrap_or_else(missing))
}

async fn replay(files: &Files, target: u64, segments: &[u64], loaded: &mut Loaded) -> Result<()> {
    let (_, first) = loaded.checkpoint;
    let segments: Vec<u64> = segments.iter().copied().filter(|&number| number >= first).collect();
    if segments.first() != Some(&first) {
        return Err(EngineError::corrupt(
            files.path(&segment_name(first)),
            0,
            "segment of the log is missing",
        ));
    }
    // The newest frame waits until a later one shows that everything it refers to was flushed.
    let mut waiting: Option<Frame> = None;
    for &number in &segments {
        let name = segment_name(number);
        let Some(file) = files.open(&name)? else {
            return Err(EngineError::corrupt(files.path(&name), 0, "segment of the log is missing"));
        };
        let mut reader = FrameReader::new(files, file, FrameOf { target, kind: LOG, file: number })?;
        while let Some(frame) = reader.next().await? {
            if frame.sequence != loaded.next_sequence {
                let what = format!("frame {} where {} belongs", frame.sequence, loaded.next_sequence);
                return Err(EngineError::corrupt(reader.path(), frame.offset + 16, what));
            }
            loaded.next_sequence += 1;
            if let Some(flushed) = waiting.replace(frame) {
                apply(loaded, &flushed);
            }
        }
        let next = segments.iter().copied().find(|&next| next > number);
        let end = SegmentEnd { required: number == first, next, last: segments.last().copied() };
        end.check(files, target, loaded, &mut reader).await?;
    }
    if let Some(newest) = waiting {
        apply_unconfirmed(files, loaded, &newest).await?;
    }
    Ok(())
}

impl Loaded {
    /// Flushes what was loaded, and the names: if only the process died, they may still lie in a cache, and from
    /// here on recovery takes them for granted.
    pub(crate) async fn flush(&self, files: &Files) -> Result<()> {
        let data = DataFiles::open(files)?;
        for file in data.data.iter().flatten() {
            files.sync(file).await?;
        }
        for number in self.checkpoint.1..=self.last_segment {
            if let Some(file) = files.open(&segment_name(number))? {
                let synced = files.sync(&file).await;
                files.close(&file);
                synced?;
            }
        }
        files.sync_dir()
    }
}

/// Where the whole frames of a segment end.
struct SegmentEnd {
    /// The segment's first frame was flushed before the checkpoint was made.
    required: bool,
    next: Option<u64>,
    last: Option<u64>,
}

impl SegmentEnd {
    /// A segment ends where the next one begins: anything missing between them is damage. If the next one is
    /// the last and has no whole frame, it was being made when the power failed.
    async fn check(
        &self,
        files: &Files,
        target: u64,
        loaded: &mut Loaded,
        reader: &mut FrameReader<'_>,
    ) -> Result<()> {
        let at = reader.offset();
        let damaged = EngineError::corrupt(reader.path(), at, "frame of the log is damaged");
        if self.required && at == 0 {
            return Err(damaged);
        }
        if let Some(next) = self.next {
            let name = segment_name(next);
            let missing = || EngineError::corrupt(files.path(&name), 0, "segment of the log is missing");
            let file = files.open(&name)?.ok_or_else(missing)?;
            let mut begins = FrameReader::new(files, file, FrameOf { target, kind: LOG, file: next })?;
            match begins.next().await? {
                Some(frame) if frame.sequence == loaded.next_sequence => return Ok(()),
                Some(_) => return Err(damaged),
                None if self.last != Some(next) => {
                    return Err(EngineError::corrupt(begins.path(), 0, "frame of the log is damaged"));
                }
                None => {}
            }
        }
        if reader.has_later(loaded.next_sequence).await? {
            return Err(damaged);
        }
        if self.next.is_none() {
            loaded.recovery.torn = at < reader.len() && !reader.is_zero_here().await?;
            loaded.empty_segment = (at == 0).then_some(self.last).flatten();
        }
        Ok(())
    }
}

fn apply(loaded: &mut Loaded, frame: &Frame) {
    loaded.recovery.frames += 1;
    for record in &frame.records {
        loaded.index.replay(record);
    }
}

/// Applies the newest frame, without records whose data are not there.
async fn apply_unconfirmed(files: &Files, loaded: &mut Loaded, frame: &Frame) -> Result<()> {
    loaded.recovery.frames += 1;
    let data = DataFiles::open(files)?;
    for record in &frame.records {
        if let Some((chunk, runs, writers)) = record.came_with()
            && !data.hold(runs).await?
        {
            loaded.recovery.dropped.push(chunk);
            // What the frame says of writers is undone too: a repeat must not be answered by it (R12).
            let void = |w: &WriterRecord| WriterRecord { status: Status::Aborted, ..*w };
            let mut writers: Vec<WriterRecord> = writers.iter().map(void).collect();
            if mutant!(r12_dropped_update_keeps_its_writer) {
                writers.clear();
            }
            let entry = loaded.index.get(chunk).cloned();
            let mut corrections = match entry {
                Some(entry) => vec![Record::Put { chunk, entry, runs: Vec::new(), writers: Vec::new() }],
                None => vec![Record::Drop { chunk }],
            };
            corrections.extend(writers.into_iter().map(|record| Record::Writer { chunk, record }));
            corrections.iter().for_each(|record| loaded.index.replay(record));
            loaded.corrections.append(&mut corrections);
            continue;
        }
        loaded.index.replay(record);
    }
    Ok(())
}

/// The data files, opened to be read.
pub(crate) struct DataFiles<'a> {
    files: &'a Files,
    data: Vec<Option<File>>,
}

impl<'a> DataFiles<'a> {
    pub(crate) fn open(files: &'a Files) -> Result<Self> {
        Ok(Self { files, data: open_data(files)? })
    }
    pub(crate) fn file(&self, class: u8) -> Option<&File> {
        self.data.get(usize::from(class)).and_then(Option::as_ref)
    }

    /// Whether all blocks of the runs are on the disk as their checksums say.
    async fn hold(&self, runs: &[Run]) -> Result<bool> {
        for run in runs {
            let Some(file) = self.file(run.at.class) else { return Ok(false) };
            let length = run.sums.len() * BLOCK as usize;
            let bytes = self.files.read(file, Priority::Foreground, run.at.offset(run.block), length).await?;
            if bytes.len() != length {
                return Ok(false);
            }
            let mut blocks = bytes.chunks(BLOCK as usize).zip(&run.sums).enumerate();
            let last = run.sums.len() - 1;
            let tail = run.tail as usize;
            if !blocks.all(|(i, (block, sum))| crc32c(if i == last { &block[..tail] } else { block }) == *sum)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Drop for DataFiles<'_> {
    fn drop(&mut self) {
        self.data.iter().flatten().for_each(|file| self.files.close(file));
    }
}

/// Checks the index against itself and against the lengths of the files.
async fn check(files: &Files, loaded: &mut Loaded) -> Result<()> {
    let data = DataFiles::open(files)?;
    let lengths: Vec<u64> = (0..CLASSES)
        .map(|class| data.file(class).map_or(Ok(0), |file| files.len(file)))
        .collect::<Result<_>>()?;
    let (mut used, mut last) = (Used::default(), None);
    loop {
        let before = last;
        for (chunk, entry) in loaded.index.after(last).take(CHUNKS_AT_ONCE) {
            loaded.check_chunk(files, &lengths, (chunk, entry), &mut used)?;
            last = Some(chunk);
        }
        if last == before {
            break;
        }
        yield_now().await;
    }
    loaded.index.keep(&used);
    loaded.used = used;
    for class in 0..CLASSES {
        let (name, end) = (sums_name(class), loaded.pages.end(class));
        let length = match files.open(&name)? {
            Some(file) => {
                let length = files.len(&file);
                files.close(&file);
                length?
            }
            None => 0,
        };
        if end > length {
            let what = format!("the file ends before its last checksum page, which reaches to {end}");
            return Err(EngineError::corrupt(files.path(&name), length, what));
        }
    }
    Ok(())
}

impl Loaded {
    fn check_chunk(
        &self,
        files: &Files,
        lengths: &[u64],
        (chunk, entry): (ChunkId, &Entry),
        used: &mut Used,
    ) -> Result<()> {
        let inconsistent = |what| EngineError::corrupt(files.path(&segment_name(self.last_segment)), 0, what);
        self.index.note(chunk, entry, used).map_err(inconsistent)?;
        for extent in entry.extents() {
            let end = extent.at().offset(extent.block_end());
            let length = lengths[usize::from(extent.class)];
            if end > length {
                let what = format!("the file ends before chunk {chunk}, whose data reach to {end}");
                return Err(EngineError::corrupt(files.path(&data_name(extent.class)), length, what));
            }
            let mut parts = stretches(extent.at(), extent.block.into(), extent.blocks.into());
            if parts.any(|part| self.pages.get(part.page) == 0) && !self.has_sums(extent) {
                return Err(inconsistent(format!("chunk {chunk} has blocks without checksums")));
            }
        }
        Ok(())
    }

    /// Whether each block of an extent has a checksum, in the log or on a page that was written.
    fn has_sums(&self, extent: &Extent) -> bool {
        let (at, block) = (extent.at(), u32::from(extent.block));
        let mut sums = vec![None; usize::from(extent.blocks)];
        self.index.overlay.fill(at, block, &mut sums);
        let of_page = |i: usize| self.pages.get(PageId::of(at, block + i as u32)) > 0;
        sums.iter().enumerate().all(|(i, sum)| sum.is_some() || of_page(i))
    }
}

/// Slots that a class' file of `length` bytes holds.
pub(crate) fn slots_in(class: u8, length: u64) -> u32 {
    u32::try_from(length / slot_bytes(class)).unwrap_or(u32::MAX)
}
