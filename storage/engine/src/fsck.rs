//! Checks a stopped target. Reads only.

use crate::checkpoint::number_of;
use crate::class::{BLOCK, data_name};
use crate::error::{EngineError, Result};
use crate::files::{File, Files};
use crate::index::valid_bytes;
use crate::pages::{open_sums, read_page};
use crate::record::{Content, Extent};
use crate::recover::{DataFiles, Loaded, load};
use crate::scrub::{Pace, check_checkpoint, check_log};
use crate::sums::{Page, PageId, sums_name};
use crate::superblock::{self, Identity};
use ember_rt::disk::{DiskQueue, Priority};
use ember_types::ChunkId;
use ember_types::checksum::crc32c;

/// Most problems that a report lists.
const PROBLEMS_MAX: usize = 10_000;

/// One damaged place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// File, relative to the disk's root.
    pub file: String,
    /// Where, in bytes from the file's start.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
    /// Whose content it is, if it is a chunk's.
    pub chunk: Option<ChunkId>,
}

/// What [`fsck`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FsckReport {
    /// Whose content it is; `None` if there is no readable superblock.
    pub identity: Option<Identity>,
    /// Chunks known, tombstones included.
    pub chunks: u64,
    /// Blocks read and compared with their checksums.
    pub blocks: u64,
    /// Updates that recovery would drop because their data are not there; unacknowledged, or damaged.
    pub dropped: Vec<ChunkId>,
    /// What is damaged, at most 10,000 places.
    pub problems: Vec<Problem>,
}

impl FsckReport {
    /// Whether nothing is damaged.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }
    fn add(&mut self, error: EngineError, chunk: Option<ChunkId>) -> Result<()> {
        let (file, offset, what) = match error {
            EngineError::Corrupt { file, offset, what } => (file, offset, what),
            EngineError::Refused { file, offset, what, remedy } => {
                (file, offset, format!("{what}; {remedy}"))
            }
            EngineError::Io { file, operation: "read", source } => {
                (file, 0, format!("cannot be read: {source}"))
            }
            other => return Err(other),
        };
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { file, offset, what, chunk });
        }
        Ok(())
    }
}

/// Verifies the target in `dir`, which nobody may serve meanwhile: superblock, checkpoints, log and every
/// block of every chunk. An error means that it could not be checked; damage is in the report.
pub async fn fsck(queue: &DiskQueue, dir: &str) -> Result<FsckReport> {
    let files = Files::new(queue, dir);
    files.lock()?;
    let mut report =
        FsckReport { identity: None, chunks: 0, blocks: 0, dropped: Vec::new(), problems: Vec::new() };
    let identity = match superblock::read(&files, superblock::READABLE) {
        Ok((identity, damaged)) => {
            damaged.into_iter().try_for_each(|error| report.add(error, None))?;
            identity
        }
        Err(error) => {
            report.add(error, None)?;
            return Ok(report);
        }
    };
    report.identity = Some(identity);
    match load(&files, identity.target.0).await {
        Ok(mut loaded) => {
            let healed = std::mem::take(&mut loaded.recovery.healed);
            healed.into_iter().try_for_each(|error| report.add(error, None))?;
            report.dropped = std::mem::take(&mut loaded.recovery.dropped);
            check_older(&files, &loaded, &mut report).await?;
            check_blocks(&files, &loaded, &mut report).await?;
        }
        Err(error) => report.add(error, None)?,
    }
    Ok(report)
}

/// Where bytes of a chunk lie.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// File, relative to the disk's root.
    pub file: String,
    /// Where, in bytes from the file's start.
    pub offset: u64,
    /// How many bytes; those behind a chunk's end in its last block are not counted.
    pub length: u64,
    /// Whose content it is.
    pub chunk: ChunkId,
}

/// Where the bytes of all chunks of the target in `dir` lie, as its files say. Reads only, and takes no lock: of a
/// target in service it may be out of date when it is there.
pub async fn pieces(queue: &DiskQueue, dir: &str) -> Result<Vec<Piece>> {
    let files = Files::new(queue, dir);
    let (identity, _) = superblock::read(&files, superblock::READABLE)?;
    let loaded = load(&files, identity.target.0).await?;
    let mut found = Vec::new();
    for (chunk, entry) in loaded.index.after(None) {
        for content in std::iter::once(&entry.committed).chain(entry.pending.as_deref()) {
            found.extend(content.extents.iter().map(|extent| {
                let end = (extent.end() * BLOCK).min(content.length);
                let length = u64::from(end.saturating_sub(extent.first() * BLOCK));
                let offset = extent.at().offset(extent.block.into());
                Piece { file: files.path(&data_name(extent.class)), offset, length, chunk }
            }));
        }
    }
    Ok(found)
}

/// The older checkpoint and the log behind it: what recovery would fall back on.
async fn check_older(files: &Files, loaded: &Loaded, report: &mut FsckReport) -> Result<()> {
    let target = report.identity.map_or(0, |identity| identity.target.0);
    let pace = Pace::unlimited();
    let names = files.list()?;
    let numbers = |prefix| {
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name, prefix)).collect();
        numbers.sort_unstable();
        numbers
    };
    let older = numbers("checkpoint-").into_iter().rfind(|number| *number < loaded.checkpoint.0);
    let Some(number) = older else { return Ok(()) };
    let first = match check_checkpoint(files, target, number, &pace).await {
        Ok(first) => first,
        Err(error) => return report.add(error, None),
    };
    let segments: Vec<u64> = numbers("log-").into_iter().filter(|number| *number >= first).collect();
    match check_log(files, target, &segments, None, &pace).await {
        Ok(()) => Ok(()),
        Err(error) => report.add(error, None),
    }
}

async fn check_blocks(files: &Files, loaded: &Loaded, report: &mut FsckReport) -> Result<()> {
    let data = DataFiles::open(files)?;
    let mut pages = ReadPages { files, loaded, sums: open_sums(files)?, last: None };
    for (chunk, entry) in loaded.index.after(None) {
        report.chunks += 1;
        for content in std::iter::once(&entry.committed).chain(entry.pending.as_deref()) {
            for extent in &content.extents {
                check_extent(&data, &mut pages, (chunk, content, extent), report).await?;
            }
        }
    }
    Ok(())
}

async fn check_extent(
    data: &DataFiles<'_>,
    pages: &mut ReadPages<'_>,
    (chunk, content, extent): (ChunkId, &Content, &Extent),
    report: &mut FsckReport,
) -> Result<()> {
    let files = pages.files;
    let path = files.path(&data_name(extent.class));
    let mut first = extent.first();
    while first < extent.end() {
        let end = (first + 256).min(extent.end());
        let start = extent.at().offset(u32::from(extent.block) + first - extent.first());
        let length = ((end - first) * BLOCK) as usize;
        let bytes = match data.file(extent.class) {
            Some(file) => match files.read(file, Priority::Scrub, start, length).await {
                Ok(bytes) => bytes,
                Err(error) => {
                    let what = format!("blocks {first} to {end} of chunk {chunk} can't be read: {error}");
                    report.add(EngineError::corrupt(path.clone(), start, what), Some(chunk))?;
                    first = end;
                    continue;
                }
            },
            None => ember_rt::Buf::default(),
        };
        let sums = match pages.sums(content, first, end).await {
            Ok(sums) => sums,
            Err(error) => {
                report.add(error, Some(chunk))?;
                first = end;
                continue;
            }
        };
        for (i, (block, sum)) in (first..end).zip(sums).enumerate() {
            let at = i * BLOCK as usize;
            let valid = valid_bytes(content.length, block) as usize;
            report.blocks += 1;
            if bytes.get(at..at + valid).map(crc32c) != Some(sum) {
                let what = format!("block {block} of chunk {chunk} fails its checksum");
                report.add(EngineError::corrupt(path.clone(), start + at as u64, what), Some(chunk))?;
            }
        }
        first = end;
    }
    Ok(())
}

/// Reads checksum pages; keeps the last one.
struct ReadPages<'a> {
    files: &'a Files,
    loaded: &'a Loaded,
    sums: Vec<Option<File>>,
    last: Option<(PageId, Page)>,
}

impl ReadPages<'_> {
    /// Checksums of blocks `[from, to)` of a content.
    async fn sums(&mut self, content: &Content, from: u32, to: u32) -> Result<Vec<u32>> {
        let mut wanted = self.loaded.index.wanted(content, from, to);
        for id in wanted.pages() {
            let page = match self.last.take() {
                Some((last, page)) if last == id => page,
                _ => {
                    let file = self.sums[usize::from(id.class)].as_ref();
                    let of = (self.loaded.target, id, self.loaded.pages.get(id));
                    read_page(self.files, file, of, Priority::Scrub).await?.1
                }
            };
            let taken = wanted.take(id, &page);
            self.last = Some((id, page));
            taken.map_err(|index| {
                let place = id.first() + u64::from(index);
                let what = format!("the page doesn't know the checksum of block {place} of the data file");
                let offset = id.offset(self.loaded.pages.get(id));
                EngineError::corrupt(self.files.path(&sums_name(id.class)), offset, what)
            })?;
        }
        Ok(wanted.sums)
    }
}

impl Drop for ReadPages<'_> {
    fn drop(&mut self) {
        self.sums.iter().flatten().for_each(|file| self.files.close(file));
    }
}
