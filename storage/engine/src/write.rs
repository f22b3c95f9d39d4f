//! Updates: a change is built beside what is there, written, and becomes visible with its record.

use crate::api::{Install, InstallContent, Prepare, Prepared, Update};
use crate::class::{BLOCK, CHUNK_MAX, SlotId, blocks_of, class_for};
use crate::crc::{self, Changed};
use crate::error::{EngineError, Result};
use crate::index::valid_bytes;
use crate::inner::{Inner, add};
use crate::log::Part;
use crate::plan::{Change, Place, Plan, place, plan};
use crate::record::{Content, Entry, Extent, Record, Run, WRITERS_MAX};
use ember_rt::disk::Priority;
use ember_rt::{Buf, SharedBuf};
use ember_types::checksum::crc32c;
use ember_types::{ChunkId, ChunkVersion, Status, WriterRecord, block_checksums, mutant};
use std::rc::Rc;

/// An update of up to this many bytes is written side by side with its record, by urgent callers.
const BESIDE_RECORD_MAX: usize = 128 << 10;

/// New bytes for blocks `[from, to)`.
pub(crate) struct Fresh {
    pub(crate) from: u32,
    pub(crate) to: u32,
    /// Whole blocks.
    pub(crate) data: SharedBuf,
    /// Each over the bytes that the content has of its block.
    pub(crate) sums: Vec<u32>,
}

/// A content to be written.
pub(crate) struct Built {
    pub(crate) content: Content,
    pub(crate) fresh: Vec<Fresh>,
    pub(crate) plan: Plan,
}

/// Where the fresh bytes went.
#[derive(Default)]
pub(crate) struct Placed {
    pub(crate) runs: Vec<Run>,
    pub(crate) taken: Vec<SlotId>,
    /// Small writes go on beside that of the record.
    pub(crate) parts: Vec<Part>,
}

/// Checks a payload against its checksums; returns them.
fn check_payload(chunk: ChunkId, data: &[u8], checksums: &[u32]) -> Result<()> {
    let blocks = data.chunks(BLOCK as usize);
    if blocks.len() != checksums.len() {
        return Err(EngineError::Invalid { chunk, what: "not one checksum for each 4 KiB of the payload" });
    }
    match blocks.zip(checksums).position(|(block, sum)| crc32c(block) != *sum) {
        Some(block) => Err(EngineError::Payload { chunk, block }),
        None => Ok(()),
    }
}

fn check_writers(chunk: ChunkId, count: usize) -> Result<()> {
    match count > WRITERS_MAX {
        true => Err(EngineError::Invalid { chunk, what: "more than 4096 records of writers" }),
        false => Ok(()),
    }
}

/// Whether an update needs no byte of a content of `length` bytes.
fn replaces(update: &Update, length: u32) -> bool {
    match update {
        Update::Remove | Update::Whole { .. } => true,
        Update::Write { offset, data, .. } => *offset == 0 && data.len() >= length as usize,
        Update::Truncate { length } | Update::Cut { length } => *length == 0,
    }
}

/// Whole blocks of `data`, without a copy if it can be.
fn padded(data: &SharedBuf) -> SharedBuf {
    if data.is_aligned() && data.len().is_multiple_of(BLOCK as usize) {
        return data.clone();
    }
    let mut buf = Buf::scratch(data.len().next_multiple_of(BLOCK as usize));
    buf.bytes_mut()[..data.len()].copy_from_slice(data);
    buf.bytes_mut()[data.len()..].fill(0);
    buf.into()
}

impl Inner {
    /// What an idempotent or impossible prepare is answered without doing anything.
    fn precheck(&self, request: &Prepare, entry: &Entry) -> Result<Option<Prepared>> {
        let (chunk, version) = (request.chunk, request.version);
        let done = |c: &Content| Prepared { version: c.version, length: c.length, checksum: c.checksum };
        if version.is_none() {
            return Err(EngineError::Invalid { chunk, what: "version 0 is no version" });
        }
        let known = std::iter::once(&entry.committed).chain(entry.pending.as_deref());
        if let Some(same) = known.into_iter().find(|c| c.version == version) {
            return match request.expect {
                Some(expected) if expected != (same.length, same.checksum) => {
                    Err(EngineError::ResultDiffers { chunk, length: same.length, checksum: same.checksum })
                }
                _ => Ok(Some(done(same))),
            };
        }
        let aborted = entry.aborted();
        if version.number == aborted.number && version <= aborted {
            return Err(EngineError::Aborted { chunk, version });
        }
        if matches!(request.update, Update::Whole { .. }) {
            return Ok(None);
        }
        let committed = entry.committed.version;
        if request.base != committed || version.number <= committed.number {
            return Err(EngineError::BaseDiffers { chunk, base: request.base, committed });
        }
        if let Some(pending) = &entry.pending {
            return Err(EngineError::PendingDiffers { chunk, pending: pending.version });
        }
        if entry.committed.lost && !replaces(&request.update, entry.committed.length) {
            return Err(EngineError::Lost(chunk));
        }
        Ok(None)
    }

    pub(crate) async fn prepare(
        self: Rc<Self>,
        request: Prepare,
        built_as: impl FnOnce(Prepared),
    ) -> Result<Prepared> {
        let chunk = request.chunk;
        let guard = self.lock(chunk).await?;
        let mut entry = self.index.borrow().get(chunk).cloned().unwrap_or_default();
        if let Some(prepared) = self.precheck(&request, &entry)? {
            return Ok(prepared);
        }
        let mut built = self.build(&entry.committed, &request).await?;
        built.content.version = request.version;
        let (length, checksum) = (built.content.length, built.content.checksum);
        let differs = request.expect.is_some_and(|expected| expected != (length, checksum));
        if differs && !mutant!(r14_head_result_ignored) {
            return Err(EngineError::ResultDiffers { chunk, length, checksum });
        }
        built_as(Prepared { version: request.version, length, checksum });
        let (whole, mut writers) = match request.update {
            Update::Whole { writers, .. } => (true, writers),
            _ => (false, Vec::new()),
        };
        let (version, status) = (request.version, Status::Ok);
        writers.extend(request.writer.map(|tag| WriterRecord { tag, version, length, status }));
        check_writers(chunk, writers.len())?;
        let (content, placed) = self.place(&entry, built, request.priority).await?;
        let Placed { runs, taken, parts } = placed;
        let record = if whole {
            entry.pending = Some(Box::new(content));
            Record::Put { chunk, entry, runs, writers }
        } else {
            Record::Update { chunk, base: request.base, pending: content, runs, writers }
        };
        add(&self.counters.updates, 1);
        self.apply_durably(vec![record], Some(guard), (taken, parts)).await?;
        Ok(Prepared { version, length, checksum })
    }

    /// The content that an update makes of `old`.
    async fn build(self: &Rc<Self>, old: &Content, request: &Prepare) -> Result<Built> {
        let chunk = request.chunk;
        let too_long = EngineError::Invalid { chunk, what: "longer than 64 MiB" };
        match &request.update {
            Update::Remove => Ok(Built::unchanged(&Content { removed: true, ..Content::default() })),
            Update::Whole { data, checksums, .. } => self.build_whole(chunk, data, checksums),
            Update::Write { data, .. } if data.is_empty() => Ok(Built::unchanged(old)),
            Update::Write { offset, data, checksums } => {
                let end = u64::from(*offset) + data.len() as u64;
                if end > u64::from(CHUNK_MAX) {
                    return Err(too_long);
                }
                check_payload(chunk, data, checksums)?;
                let change = Change::Write { offset: *offset, bytes: data.len() as u32 };
                self.build_change(old, change, Some((data, checksums)), request.priority).await
            }
            Update::Truncate { length } if *length > CHUNK_MAX => Err(too_long),
            Update::Truncate { length } => {
                self.build_change(old, Change::Truncate { length: *length }, None, request.priority).await
            }
            Update::Cut { length } if old.removed || old.version.is_none() || *length >= old.length => {
                let mut built = Built::unchanged(old);
                built.content.removed |= old.version.is_none();
                Ok(built)
            }
            Update::Cut { length } => {
                self.build_change(old, Change::Truncate { length: *length }, None, request.priority).await
            }
        }
    }

    fn build_whole(&self, chunk: ChunkId, data: &SharedBuf, checksums: &[u32]) -> Result<Built> {
        if data.len() > CHUNK_MAX as usize {
            return Err(EngineError::Invalid { chunk, what: "longer than 64 MiB" });
        }
        check_payload(chunk, data, checksums)?;
        let length = data.len() as u32;
        let checksum = crc::combine(checksums, length);
        let (from, to) = (0, blocks_of(length));
        let fresh = Fresh { from, to, data: padded(data), sums: checksums.to_vec() };
        let (dirty, kept) = (vec![(from, to)], Vec::new());
        Ok(Built {
            content: Content { length, checksum, ..Content::default() },
            fresh: if length == 0 { Vec::new() } else { vec![fresh] },
            plan: Plan { length, kept, dirty, grows: false },
        })
    }

    async fn build_change(
        self: &Rc<Self>,
        old: &Content,
        change: Change,
        payload: Option<(&SharedBuf, &[u32])>,
        priority: Priority,
    ) -> Result<Built> {
        let plan = plan(old, change, self.config.extents_max);
        let mut fresh = Vec::new();
        for &(from, to) in &plan.dirty {
            fresh.push(self.fresh(old, plan.length, change, payload, (from, to), priority).await?);
        }
        let checksum = self.checksum(&plan, old, &fresh, priority).await?;
        let content = Content { length: plan.length, checksum, ..Content::default() };
        Ok(Built { content, fresh, plan })
    }

    /// The checksum of what is planned: `old` with fresh blocks and perhaps another length.
    async fn checksum(
        self: &Rc<Self>,
        plan: &Plan,
        old: &Content,
        fresh: &[Fresh],
        priority: Priority,
    ) -> Result<u32> {
        let (length, blocks) = (plan.length, blocks_of(plan.length));
        if let [part] = fresh
            && (part.from, part.to) == (0, blocks)
        {
            return Ok(crc::combine(&part.sums, length));
        }
        if length < old.length {
            let kept = Content { length, extents: plan.kept.clone().into(), ..Content::default() };
            let mut sums = self.sums_of(&kept, (0, blocks), old, priority).await?;
            for part in fresh {
                sums[part.from as usize..part.to as usize].copy_from_slice(&part.sums);
            }
            return Ok(crc::combine(&sums, length));
        }
        let old_blocks = blocks_of(old.length);
        let mut parts = Vec::with_capacity(fresh.len());
        for &Fresh { from, to, ref sums, .. } in fresh {
            let known = (from.min(old_blocks), to.min(old_blocks));
            let mut before = self.sums_of(old, known, old, priority).await?;
            if let Some(last) = before.last_mut() {
                *last = crc::extend(
                    *last,
                    valid_bytes(old.length, known.1 - 1),
                    valid_bytes(length, known.1 - 1),
                );
            }
            let zeros = (from.max(old_blocks)..to).map(|block| crc::zeros(valid_bytes(length, block)));
            before.extend(zeros);
            parts.push(Changed { from, before, after: sums.clone() });
        }
        Ok(crc::change(crc::extend(old.checksum, old.length, length), length, &parts))
    }

    /// The new bytes of blocks `[from, to)`: the payload's, and around them the old ones, verified (R14).
    async fn fresh(
        self: &Rc<Self>,
        old: &Content,
        length: u32,
        change: Change,
        payload: Option<(&SharedBuf, &[u32])>,
        (from, to): (u32, u32),
        priority: Priority,
    ) -> Result<Fresh> {
        let (start, end) = (from * BLOCK, (to * BLOCK).min(length));
        let written = match (change, payload) {
            (Change::Write { offset, bytes }, Some((data, sums)))
                if offset < end && offset + bytes > start =>
            {
                Some((offset, offset + bytes, data, sums))
            }
            _ => None,
        };
        if let Some((offset, stop, data, sums)) = written
            && offset == start
            && stop == end
        {
            return Ok(Fresh { from, to, data: padded(data), sums: sums.to_vec() });
        }
        let old_blocks = blocks_of(old.length.min(length));
        let mut buf = Buf::zeroed(((to - from) * BLOCK) as usize);
        let (offset, stop) = written.map_or((end, end), |(offset, stop, ..)| (offset, stop));
        // Old blocks that the payload doesn't cover whole: those before it, and those behind it.
        let before = (from, to.min(blocks_of(offset)).min(old_blocks));
        let behind = ((stop / BLOCK).max(before.1), to.min(old_blocks));
        for (a, b) in [before, behind].into_iter().filter(|(a, b)| a < b) {
            let (bytes, _) = self.read_blocks(old, a, b, priority).await?;
            add(&self.counters.merged_bytes, bytes.len() as u64);
            let valid = ((b * BLOCK).min(old.length).min(length) - a * BLOCK) as usize;
            let at = ((a - from) * BLOCK) as usize;
            buf.bytes_mut()[at..at + valid].copy_from_slice(&bytes[..valid]);
        }
        if let Some((offset, stop, data, _)) = written {
            let (at, until) = ((offset - start) as usize, (stop - start) as usize);
            buf.bytes_mut()[at..until].copy_from_slice(data);
        }
        let sums = block_checksums(&buf[..(end - start) as usize]);
        Ok(Fresh { from, to, data: buf.into(), sums })
    }

    /// Chooses places for the fresh bytes and writes them, or starts to. The content that it returns has the new
    /// extents alone.
    pub(crate) async fn place(
        &self,
        old: &Entry,
        built: Built,
        priority: Priority,
    ) -> Result<(Content, Placed)> {
        let Built { mut content, fresh, plan } = built;
        let mut placed = Placed::default();
        let (mut extents, mut writes) = (Vec::new(), Vec::new());
        for part in fresh {
            let place = place(&plan, (part.from, part.to), |at| {
                // Behind a failed write nothing is appended: its highest block is unknown.
                if self.slots.borrow().is_burnt(at) { u32::MAX } else { self.index.borrow().high(old, at) }
            });
            let (at, block) = match place {
                Place::InPlace { at, block } => (at, block),
                Place::NewSlot { class } => match self.allocate_for(class, part.to - part.from).await {
                    Ok(at) => {
                        placed.taken.push(at);
                        (at, 0)
                    }
                    Err(error) => {
                        self.give_back(&placed);
                        return Err(error);
                    }
                },
            };
            let last = part.to * BLOCK;
            let tail = BLOCK - last.saturating_sub(content.length).min(BLOCK - 1);
            extents.push(Extent::new(part.from, part.to - part.from, at, block));
            placed.runs.push(Run { at, block, tail, sums: part.sums });
            writes.push((at, block, part.data));
        }
        let bytes: usize = writes.iter().map(|(_, _, data)| data.len()).sum();
        for (at, block, data) in writes {
            // An error means that the queue was stopped, and with it the target.
            placed.parts.push(self.start_put(at, block, data, priority).await?);
        }
        // Others must not wait for much, nor for what isn't urgent: that is written before it joins a batch.
        if bytes > BESIDE_RECORD_MAX || priority != Priority::Foreground {
            self.end_writes(std::mem::take(&mut placed.parts)).await?;
        }
        content.extents = extents.into();
        Ok((content, placed))
    }

    /// A slot of `class`; where space is short, one that just holds the blocks.
    async fn allocate_for(&self, class: u8, blocks: u32) -> Result<SlotId> {
        match self.allocate(class).await {
            Err(EngineError::NoSpace { .. }) if class > class_for(blocks) => {
                self.allocate(class_for(blocks)).await
            }
            other => other,
        }
    }

    fn give_back(&self, placed: &Placed) {
        let mut slots = self.slots.borrow_mut();
        placed.taken.iter().for_each(|at| slots.free(*at));
    }

    async fn start_put(&self, at: SlotId, block: u32, data: SharedBuf, priority: Priority) -> Result<Part> {
        let Some(file) = self.data_file(at.class) else {
            return Err(self.failed_error("a data file is gone"));
        };
        add(&self.counters.data_bytes, data.len() as u64);
        let end = block + blocks_of(data.len() as u32);
        let settled = self.files.overwrites_in_place() && self.log.settled().covers(at, end);
        let write = self.files.start_write(file, priority, at.offset(block), data).await?;
        Ok(Part { at, block, end, settled, write })
    }

    pub(crate) async fn install(self: Rc<Self>, chunk: ChunkId, install: Install) -> Result<()> {
        let guard = self.lock(chunk).await?;
        let Install { committed, pending, mut writers } = install;
        let void = self.void_records(chunk, &writers);
        check_writers(chunk, writers.len() + void.len())?;
        let mut entry = Entry::default();
        let mut all = Placed::default();
        for (content, is_pending) in [(committed, false), (pending, true)] {
            let Some(content) = content else { continue };
            let (content, mut placed) = match self.write_installed(chunk, content).await {
                Ok(written) => written,
                Err(error) => {
                    self.give_back(&all);
                    return Err(error);
                }
            };
            all.runs.append(&mut placed.runs);
            all.taken.append(&mut placed.taken);
            all.parts.append(&mut placed.parts);
            if is_pending {
                entry.pending = Some(Box::new(content));
            } else {
                entry.committed = content;
            }
        }
        if entry == Entry::default() {
            if self.index.borrow().get(chunk).is_none() {
                return Ok(());
            }
            let void = void.into_iter().map(|record| Record::Writer { chunk, record });
            let records = std::iter::once(Record::Drop { chunk }).chain(void).collect();
            return self.apply_durably(records, Some(guard), Default::default()).await;
        }
        writers.extend(void);
        add(&self.counters.updates, 1);
        let record = Record::Put { chunk, entry, runs: all.runs, writers };
        self.apply_durably(vec![record], Some(guard), (all.taken, all.parts)).await
    }

    /// Records of the chunk that a state with the records `kept` contradicts: what they tell of isn't part of
    /// it, so a repeat of the update must not be answered by them (R12).
    fn void_records(&self, chunk: ChunkId, kept: &[WriterRecord]) -> Vec<WriterRecord> {
        let mut void = self.index.borrow().writers_of(chunk);
        void.retain(|record| !kept.contains(record));
        void.iter_mut().for_each(|record| record.status = Status::Aborted);
        void
    }

    async fn write_installed(&self, chunk: ChunkId, install: InstallContent) -> Result<(Content, Placed)> {
        let InstallContent { state, data } = install;
        let empty = state.removed || state.lost;
        if state.version.is_none() || (state.removed && state.length != 0) || (empty && !data.is_empty()) {
            return Err(EngineError::Invalid { chunk, what: "installed state contradicts itself" });
        }
        if state.lost {
            // Length and checksum stay known: a copy that turns up is recognised by them.
            let (version, length, checksum) = (state.version, state.length, state.checksum);
            let lost = Content { version, length, checksum, lost: true, ..Content::default() };
            return Ok((lost, Placed::default()));
        }
        let checksums = block_checksums(&data);
        let mut built = self.build_whole(chunk, &data, &checksums)?;
        if (built.content.length, built.content.checksum) != (state.length, state.checksum) {
            let (length, checksum) = (built.content.length, built.content.checksum);
            return Err(EngineError::ResultDiffers { chunk, length, checksum });
        }
        built.content.version = state.version;
        built.content.removed = state.removed;
        self.place(&Entry::default(), built, Priority::Resync).await
    }

    pub(crate) async fn commit(self: &Rc<Self>, chunk: ChunkId, version: ChunkVersion) -> Result<()> {
        let _guard = self.lock(chunk).await?;
        let (committed, pending, removes) = {
            let index = self.index.borrow();
            let entry = index.get(chunk);
            let pending = entry.and_then(|entry| entry.pending.as_deref());
            let committed = entry.map_or(ChunkVersion::NONE, |entry| entry.committed.version);
            (committed, pending.map(|p| p.version), pending.is_some_and(|p| p.removed))
        };
        if committed == version && !version.is_none() {
            return Ok(());
        }
        if pending != Some(version) {
            return Err(EngineError::NotFound(chunk));
        }
        let forgets = removes && mutant!(r05_tombstone_forgotten);
        self.apply_lazily(vec![if forgets {
            Record::Drop { chunk }
        } else {
            Record::Commit { chunk, version }
        }]);
        Ok(())
    }

    /// Drops the pending version; `remember` refuses late copies of it.
    pub(crate) async fn drop_pending(
        self: &Rc<Self>,
        chunk: ChunkId,
        version: Option<ChunkVersion>,
        remember: bool,
    ) -> Result<()> {
        let guard = self.lock(chunk).await?;
        let mut entry = self.index.borrow().get(chunk).cloned().unwrap_or_default();
        let pending = entry.pending.as_ref().map(|p| p.version);
        let Some(version) = version.or(pending) else { return Ok(()) };
        if entry.committed.version == version {
            return Err(EngineError::Invalid { chunk, what: "a committed version cannot be aborted" });
        }
        if pending == Some(version) {
            entry.pending = None;
        }
        if remember && !mutant!(r13_aborted_version_forgotten) {
            entry.set_aborted(entry.aborted().max(version));
        }
        let mut writers = self.index.borrow().writers_of(chunk);
        writers.retain(|w| w.version == version);
        writers.iter_mut().for_each(|w| w.status = Status::Aborted);
        let record = if entry == Entry::default() && writers.is_empty() {
            Record::Drop { chunk }
        } else {
            Record::Put { chunk, entry, runs: Vec::new(), writers }
        };
        self.apply_durably(vec![record], Some(guard), Default::default()).await
    }
}

impl Built {
    /// The same bytes under another version.
    fn unchanged(old: &Content) -> Self {
        let content = Content { version: ChunkVersion::NONE, ..old.clone() };
        let kept = old.extents.to_vec();
        let plan = Plan { length: old.length, kept, dirty: Vec::new(), grows: false };
        Self { content, fresh: Vec::new(), plan }
    }
}
