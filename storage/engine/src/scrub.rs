//! Looks at the files of a target in service: superblock, checkpoints, log. Damage to them costs nothing as long as
//! the process lives, since what they say is in memory too: they are written anew from there.

use crate::checkpoint::checkpoint_name;
use crate::class::{CLASSES, data_name};
use crate::error::{EngineError, Result};
use crate::files::Files;
use crate::frame::{CHECKPOINT, FrameOf, LOG};
use crate::inner::Inner;
use crate::log::segment_name;
use crate::reader::FrameReader;
use crate::record::Record;
use crate::sums::sums_name;
use crate::superblock;
use ember_rt::Rt;
use ember_rt::disk::Priority;
use ember_types::Instant;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// How often a check starts anew because files came and went meanwhile.
const TRIES: u32 = 4;

/// What a look at a target's files found.
#[derive(Default, Debug)]
pub struct FilesCheck {
    /// Bytes read.
    pub bytes: u64,
    /// What is damaged, one place a file.
    pub damaged: Vec<EngineError>,
    superblock: bool,
    logged: bool,
}

/// Reads no faster than it may.
pub(crate) struct Pace {
    /// `None`: as fast as it goes.
    limit: Option<(Rt, u64)>,
    bytes: Cell<u64>,
    /// When what was read so far may have been read.
    due: Cell<Instant>,
}

/// Shorter pauses are saved up: many frames are small.
const PAUSE_MIN: Duration = Duration::from_millis(20);

impl Pace {
    pub(crate) fn unlimited() -> Self {
        Self { limit: None, bytes: Cell::new(0), due: Cell::default() }
    }
    fn of(rt: &Rt, bytes_per_s: u64) -> Self {
        let limit = (bytes_per_s > 0).then(|| (rt.clone(), bytes_per_s));
        Self { limit, bytes: Cell::new(0), due: Cell::default() }
    }
    async fn spend(&self, bytes: u64) {
        self.bytes.set(self.bytes.get() + bytes);
        if let Some((rt, rate)) = &self.limit {
            let cost = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
            self.due.set(self.due.get().max(rt.now()) + cost);
            if self.due.get() > rt.now() + PAUSE_MIN {
                rt.sleep_until(self.due.get()).await;
            }
        }
    }
}

/// Whether a file's bytes can't be had, so that writing it anew helps.
fn is_damage(error: &EngineError) -> bool {
    matches!(error, EngineError::Corrupt { .. } | EngineError::Io { operation: "read", .. })
}

/// Whether checkpoint `number` is whole; returns the first segment of the log behind it.
pub(crate) async fn check_checkpoint(files: &Files, target: u64, number: u64, pace: &Pace) -> Result<u64> {
    let name = checkpoint_name(number);
    let path = files.path(&name);
    let corrupt = |offset, what: &str| EngineError::corrupt(path.clone(), offset, what);
    let file = files.open(&name)?.ok_or_else(|| corrupt(0, "checkpoint is missing"))?;
    let of = FrameOf { target, kind: CHECKPOINT, file: number };
    let mut reader = FrameReader::new(files, file, of)?.at(Priority::Scrub);
    let (mut sequence, mut behind) = (0, 0);
    loop {
        let at = reader.offset();
        let frame = reader.next().await?.filter(|frame| frame.sequence == sequence);
        let frame = frame.ok_or_else(|| corrupt(at, "checkpoint is damaged or cut short"))?;
        pace.spend(reader.offset() - at).await;
        sequence += 1;
        if let Some(Record::Begin { first_segment, .. }) = frame.records.first() {
            behind = *first_segment;
        }
        if matches!(frame.records.last(), Some(Record::End { .. })) {
            return match reader.offset() == reader.len() {
                true => Ok(behind),
                false => Err(corrupt(reader.offset(), "bytes behind the end of the checkpoint")),
            };
        }
    }
}

/// Whether the segments of the log in `segments`, in order, are whole and follow each other. `end`: how far the last
/// one is written; if unknown, up to its last whole frame.
pub(crate) async fn check_log(
    files: &Files,
    target: u64,
    segments: &[u64],
    end: Option<u64>,
    pace: &Pace,
) -> Result<()> {
    let mut expected = None;
    // Where the segment before this one ends: what is missing is missing there.
    let mut before: Option<(String, u64)> = None;
    for &number in segments {
        let name = segment_name(number);
        let missing = || EngineError::corrupt(files.path(&name), 0, "segment of the log is missing");
        let file = files.open(&name)?.ok_or_else(missing)?;
        let mut reader =
            FrameReader::new(files, file, FrameOf { target, kind: LOG, file: number })?.at(Priority::Scrub);
        let is_last = segments.last() == Some(&number);
        let end = end.filter(|_| is_last);
        while end.is_none_or(|end| reader.offset() < end) {
            let at = reader.offset();
            let damaged = |path: &str, at| EngineError::corrupt(path, at, "frame of the log is damaged");
            let Some(frame) = reader.next().await? else {
                // A segment without a frame at the end was being made when the power failed.
                let unfinished = is_last && end.is_none();
                if (at == 0 && !unfinished) || end.is_some() {
                    return Err(damaged(reader.path(), at));
                }
                break;
            };
            pace.spend(reader.offset() - at).await;
            if expected.is_some_and(|expected| expected != frame.sequence) {
                let (path, at) = before.take().unwrap_or_else(|| (reader.path().to_owned(), at));
                return Err(damaged(&path, at));
            }
            expected = Some(frame.sequence + 1);
            before = None;
        }
        before = Some((reader.path().to_owned(), reader.offset()));
    }
    Ok(())
}

impl Inner {
    /// Looks at superblock, checkpoints and log.
    pub(crate) async fn check_files(&self, bytes_per_s: u64) -> Result<FilesCheck> {
        let pace = Pace::of(&self.rt, bytes_per_s);
        let mut found = FilesCheck::default();
        match superblock::read_queued(&self.files).await {
            Ok((identity, damaged)) => {
                found.damaged.extend(damaged);
                if identity != self.identity {
                    let path = self.files.path(superblock::NAMES[0]);
                    found.damaged.push(EngineError::corrupt(path, 16, "superblock of something else"));
                }
            }
            Err(error @ (EngineError::Corrupt { .. } | EngineError::Refused { .. })) => {
                found.damaged.push(error);
            }
            Err(error) if is_damage(&error) => found.damaged.push(error),
            Err(error) => return Err(error),
        }
        found.superblock = !found.damaged.is_empty();
        for _ in 0..TRIES {
            let kept = self.generations.borrow().kept.clone();
            let damage = self.check_logged(&kept, &pace).await;
            if kept != self.generations.borrow().kept {
                // Files went while they were read.
                continue;
            }
            if let Err(error) = damage {
                if !is_damage(&error) {
                    return Err(error);
                }
                found.damaged.push(error);
                found.logged = true;
            }
            break;
        }
        found.bytes = pace.bytes.get();
        Ok(found)
    }

    async fn check_logged(&self, kept: &[(u64, u64)], pace: &Pace) -> Result<()> {
        let target = self.identity.target.0;
        for &(number, _) in kept {
            check_checkpoint(&self.files, target, number, pace).await?;
        }
        let first = kept.first().map_or(0, |&(_, first)| first);
        let (last, end) = {
            let segment = self.log.segment.borrow();
            (segment.number, segment.offset)
        };
        let names = self.files.list()?;
        let numbers = names.iter().filter_map(|name| crate::checkpoint::number_of(name, "log-"));
        let mut segments: Vec<u64> = numbers.filter(|number| (first..=last).contains(number)).collect();
        segments.extend([first, last].iter().filter(|number| !names.contains(&segment_name(**number))));
        segments.sort_unstable();
        segments.dedup();
        check_log(&self.files, target, &segments, Some(end), pace).await
    }

    /// Writes anew what a look found damaged. Both checkpoints go, and with them the log behind the older one.
    pub(crate) async fn heal_files(self: &Rc<Self>, found: &FilesCheck) -> Result<()> {
        self.check_alive()?;
        if found.superblock {
            superblock::write(&self.files, &self.identity)?;
        }
        if found.logged {
            self.checkpoint().await?;
            self.checkpoint().await?;
        }
        Ok(())
    }

    /// Whether the files that are in use still have their names. If not, what is written is lost with the process:
    /// the target stops.
    pub(crate) fn check_names(&self) -> Result<()> {
        let names = match self.files.list() {
            Ok(names) => names,
            Err(EngineError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        let data = (0..CLASSES).filter(|class| self.data_file(*class).is_some()).map(data_name);
        let sums = (0..CLASSES).filter(|class| self.pages.borrow().files[usize::from(*class)].is_some());
        let used = data.chain(sums.map(sums_name)).chain([segment_name(self.log.segment.borrow().number)]);
        let Some(gone) = used.into_iter().find(|name| !names.contains(name)) else { return Ok(()) };
        let error = EngineError::Refused {
            file: self.files.path(&gone),
            offset: 0,
            what: "the file was removed while the target was in service".into(),
            remedy: "`ember target replace` fills the target anew",
        };
        self.log.fail(&error);
        Err(error)
    }
}
