//! The write-ahead log: segments of frames, group commit, rotation. One batch is in flight at a time; batch
//! `n + 1` is written only after batch `n` and everything that it refers to is flushed, so that only the last
//! frame of the log can be torn or refer to data that never reached the disk.

use crate::class::SlotId;
use crate::error::{EngineError, Result};
use crate::files::{File, Files, Writing, is_full};
use crate::frame::{self, FrameOf, LOG};
use crate::inner::{ChunkGuard, Durability, Inner, add};
use crate::record::Record;
use crate::settled::Settled;
use ember_rt::disk::Priority;
use ember_rt::select::{join, join_all};
use ember_rt::sync::{Semaphore, oneshot};
use ember_rt::{LocalBoxFuture, SharedBuf};
use ember_types::mutant;
use std::cell::{Cell, RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

/// Least and most bytes by which a segment grows, in zeros.
const SEGMENT_STEP: (u64, u64) = (1 << 20, 4 << 20);
/// A batch takes no more items from here on.
const BATCH_BYTES: usize = 1 << 20;
/// So many batches follow each other before a checkpoint may come between.
const BATCHES_AT_ONCE: u32 = 16;
/// Without anybody who waits, this many items start a batch.
const LAZY_MAX: usize = 1024;

pub(crate) fn segment_name(number: u64) -> String {
    format!("log-{number:010}")
}

/// Bytes of an update on their way to the disk.
pub(crate) struct Part {
    pub(crate) at: SlotId,
    /// Blocks `[block, end)` of the slot.
    pub(crate) block: u32,
    pub(crate) end: u32,
    /// They were settled before, and are written over where they are.
    pub(crate) settled: bool,
    pub(crate) write: Writing,
}

/// Records that become durable together, and what happens then.
pub(crate) struct Item {
    pub(crate) records: Vec<Record>,
    /// Slots freed by records that are applied already.
    pub(crate) frees: Vec<SlotId>,
    /// Somebody waits: the records are applied to the index once they are durable.
    pub(crate) urgent: Option<Urgent>,
}

pub(crate) struct Urgent {
    pub(crate) done: oneshot::Sender<Result<()>>,
    /// Keeps other updates of the chunk waiting until then.
    pub(crate) guard: Option<ChunkGuard>,
    /// Slots that are nobody's if the batch is refused for lack of space.
    pub(crate) taken: Vec<SlotId>,
    /// What the records tell of and isn't written yet.
    pub(crate) parts: Vec<Part>,
}

pub(crate) struct Segment {
    pub(crate) file: File,
    pub(crate) number: u64,
    /// Where the next frame goes, in bytes.
    pub(crate) offset: u64,
    pub(crate) allocated: u64,
    pub(crate) next_sequence: u64,
}

/// The log's state.
pub(crate) struct Log {
    /// Held by whoever writes to the log.
    pub(crate) gate: Semaphore,
    items: RefCell<VecDeque<Item>>,
    urgent: Cell<usize>,
    committing: Cell<bool>,
    pub(crate) segment: RefCell<Segment>,
    next_segment: Cell<u64>,
    /// Classes whose files take a flush of their own: what was written since the last one needs it.
    dirty: RefCell<BTreeSet<u8>>,
    /// The present segment has grown since its last flush.
    grown: Cell<bool>,
    settled: RefCell<Settled>,
    /// The last batch carried records, so recovery would have to check its data; or one that does is on its way.
    unconfirmed: Cell<bool>,
    failed: RefCell<Option<String>>,
}

impl Log {
    pub(crate) fn new(segment: Segment) -> Self {
        Self {
            gate: Semaphore::new(1),
            items: RefCell::default(),
            urgent: Cell::new(0),
            committing: Cell::new(false),
            next_segment: Cell::new(segment.number + 1),
            segment: RefCell::new(segment),
            dirty: RefCell::default(),
            grown: Cell::new(false),
            settled: RefCell::new(Settled::new()),
            unconfirmed: Cell::new(false),
            failed: RefCell::default(),
        }
    }
    /// Bytes in the present segment.
    pub(crate) fn bytes(&self) -> u64 {
        self.segment.borrow().offset
    }
    pub(crate) fn mark_dirty(&self, class: u8) {
        self.dirty.borrow_mut().insert(class);
    }
    pub(crate) fn settled(&self) -> RefMut<'_, Settled> {
        self.settled.borrow_mut()
    }
    /// Blocks `[from, end)` of a slot that weren't settled were written: they take a flush of their file.
    fn wrote_unsettled(&self, at: SlotId, from: u32, end: u32) {
        self.settled.borrow_mut().written(at, from, end);
        self.mark_dirty(at.class);
    }
    pub(crate) fn failure(&self) -> Option<String> {
        self.failed.borrow().clone()
    }
    pub(crate) fn fail(&self, why: &EngineError) {
        let mut failed = self.failed.borrow_mut();
        if failed.is_none() {
            tracing::error!(%why, "target stopped");
            *failed = Some(why.to_string());
        }
    }
    pub(crate) fn needs_flush(&self) -> bool {
        self.unconfirmed.get() || !self.items.borrow().is_empty()
    }
    fn wants_batch(&self) -> bool {
        self.urgent.get() > 0 || self.items.borrow().len() >= LAZY_MAX
    }

    /// The next batch, in order; at least one item if anything is to be done.
    fn take_batch(&self) -> (Vec<Item>, Vec<u8>, u32) {
        let (mut batch, mut payload, mut count) = (Vec::new(), Vec::new(), 0);
        let mut items = self.items.borrow_mut();
        while payload.len() < BATCH_BYTES
            && let Some(item) = items.pop_front()
        {
            count += item.encode(&mut payload);
            if item.urgent.is_some() {
                self.urgent.set(self.urgent.get() - 1);
            }
            batch.push(item);
        }
        if count > 0 && !mutant!(r04_flush_overlooks_batch_on_its_way) {
            self.unconfirmed.set(true);
        }
        (batch, payload, count)
    }
}

impl Item {
    /// Adds its records; returns their number.
    fn encode(&self, payload: &mut Vec<u8>) -> u32 {
        self.records.iter().for_each(|record| record.encode(payload));
        self.records.len() as u32
    }
}

fn encode(batch: &[Item]) -> (Vec<u8>, u32) {
    let mut payload = Vec::new();
    let count = batch.iter().map(|item| item.encode(&mut payload)).sum();
    (payload, count)
}

/// Makes a new segment whose first frame carries `records`; durable when it returns.
pub(crate) async fn create_segment(
    files: &Files,
    target: u64,
    number: u64,
    sequence: u64,
    records: &[Record],
) -> Result<Segment> {
    let file = files.create(&segment_name(number))?;
    let mut payload = Vec::new();
    records.iter().for_each(|record| record.encode(&mut payload));
    let of = FrameOf { target, kind: LOG, file: number };
    let frame = frame::build(of, sequence, records.len() as u32, &payload);
    let offset = frame.len() as u64;
    let allocated = SEGMENT_STEP.0.max(offset.next_multiple_of(frame::ALIGN as u64));
    let written = async {
        files.zero(&file, 0, allocated).await?;
        files.write(&file, Priority::Foreground, 0, frame.into()).await?;
        files.sync(&file).await?;
        files.sync_dir()
    };
    if let Err(error) = written.await {
        files.close(&file);
        return Err(error);
    }
    Ok(Segment { file, number, offset, allocated, next_sequence: sequence + 1 })
}

impl Inner {
    /// Applies records now; they reach the disk with the next batch.
    pub(crate) fn apply_lazily(self: &Rc<Self>, records: Vec<Record>) {
        let mut index = self.index.borrow_mut();
        let mut frees: Vec<SlotId> = records.iter().flat_map(|record| index.apply(record)).collect();
        drop(index);
        if mutant!(r17_slot_reused_before_flush) {
            frees.drain(..).for_each(|at| self.slots.borrow_mut().free(at));
        }
        self.log.items.borrow_mut().push_back(Item { records, frees, urgent: None });
        if self.log.wants_batch() {
            self.kick();
        }
    }

    /// Makes records durable, then applies them. The chunk stays locked until then, whatever becomes of the
    /// caller.
    pub(crate) fn apply_durably(
        self: &Rc<Self>,
        records: Vec<Record>,
        guard: Option<ChunkGuard>,
        (taken, parts): (Vec<SlotId>, Vec<Part>),
    ) -> impl Future<Output = Result<()>> + use<> {
        let (done, ended) = oneshot::channel();
        let urgent = Some(Urgent { done, guard, taken, parts });
        self.log.items.borrow_mut().push_back(Item { records, frees: Vec::new(), urgent });
        self.log.urgent.set(self.log.urgent.get() + 1);
        self.kick();
        let inner = self.clone();
        async move { ended.await.unwrap_or_else(|_| Err(inner.failed_error("its log task ended"))) }
    }

    fn kick(self: &Rc<Self>) {
        if !self.log.committing.replace(true) {
            let inner = self.clone();
            self.rt.spawn("engine log", async move { inner.commit_batches().await });
        }
    }

    async fn commit_batches(self: Rc<Self>) {
        loop {
            let Ok(gate) = self.log.gate.acquire().await else { return };
            if !self.log.wants_batch() {
                self.log.committing.set(false);
                break;
            }
            // What has become durable is applied and answered while the next frame is on its way.
            let mut durable = Vec::new();
            for _ in 0..BATCHES_AT_ONCE {
                let (mut batch, payload, count) = self.log.take_batch();
                let before = async { self.batch_is_durable(std::mem::take(&mut durable)) };
                let written = match self.log.failure() {
                    Some(why) => {
                        before.await;
                        Err(self.failed_error(&why))
                    }
                    None => join(self.write_batch(&mut batch, &payload, count), before).await.0,
                };
                match written {
                    Ok(()) => durable = batch,
                    Err(error) => self.batch_failed(batch, &error),
                }
                if !self.log.wants_batch() {
                    break;
                }
            }
            self.batch_is_durable(durable);
            drop(gate);
        }
        let sums = self.index.borrow().overlay.bytes() as u64;
        let long = self.log.bytes() >= self.config.log_bytes || sums >= self.config.unsaved_sums_bytes;
        if long && self.log.failure().is_none() {
            self.checkpoint_in_background();
        }
    }

    fn batch_is_durable(&self, batch: Vec<Item>) {
        let mut index = self.index.borrow_mut();
        let mut answers = Vec::new();
        for item in batch {
            let mut frees = item.frees;
            if let Some(urgent) = item.urgent {
                frees.extend(item.records.iter().flat_map(|record| index.apply(record)));
                answers.push(urgent);
            }
            let mut slots = self.slots.borrow_mut();
            for at in frees {
                index.release(at);
                slots.free(at);
            }
        }
        drop(index);
        for Urgent { done, guard, .. } in answers {
            drop(guard);
            // A caller that went away learns the outcome from the chunk's state.
            let _ = done.send(Ok(()));
        }
    }

    /// Out of space before anything was written: those who wait are told, the rest stays for later. Anything
    /// else leaves it unknown what is on the disk.
    fn batch_failed(&self, batch: Vec<Item>, error: &EngineError) {
        let full = matches!(error, EngineError::NoSpace { .. });
        if !full {
            self.log.fail(error);
        }
        let mut kept = Vec::new();
        for mut item in batch {
            let Some(urgent) = item.urgent.take() else {
                kept.push(item);
                continue;
            };
            let answer = match error {
                EngineError::NoSpace { needed, available } => {
                    self.forget_written(&item.records, &urgent.taken);
                    EngineError::NoSpace { needed: *needed, available: *available }
                }
                _ => self.failed_error(&error.to_string()),
            };
            let _ = urgent.done.send(Err(answer));
        }
        let mut items = self.log.items.borrow_mut();
        kept.into_iter().rev().for_each(|item| items.push_front(item));
    }

    /// The bytes of refused records lie on the disk unowned: whole slots are free again, behind others
    /// nothing is appended in place (R17).
    fn forget_written(&self, records: &[Record], taken: &[SlotId]) {
        let mut slots = self.slots.borrow_mut();
        taken.iter().for_each(|at| slots.free(*at));
        for record in records {
            let Some((_, runs, _)) = record.came_with() else { continue };
            runs.iter().filter(|run| run.block > 0).for_each(|run| slots.burn(run.at));
        }
    }

    /// Writes one frame, side by side with data that are still on their way; then flushes it and every data file
    /// that needs a flush of its own. Others were written to before: where overwrites are in place the flush of the
    /// log is theirs too, and with [`Durability::Plp`] neither takes one. Items whose data could not be written are
    /// answered and taken from the batch.
    async fn write_batch(&self, batch: &mut Vec<Item>, payload: &[u8], count: u32) -> Result<()> {
        let frame = self.start_frame(payload, count).await;
        // Also if there is no frame: afterwards the slots may be somebody else's (R17).
        let all = batch.len();
        self.end_parts(batch).await;
        let (mut frame, mut end) = frame?;
        if batch.len() < all && !mutant!(r17_failed_write_stays_in_the_log) {
            // Nobody counts on the frame yet: it is written again without them.
            frame.end().await?;
            let (payload, count) = encode(batch);
            (frame, end) = self.start_frame(&payload, count).await?;
        }
        frame.end().await?;
        self.flush_batch().await?;
        let mut segment = self.log.segment.borrow_mut();
        segment.offset = end;
        segment.next_sequence += 1;
        self.log.unconfirmed.set(count > 0);
        Ok(())
    }

    /// Starts to write the next frame; returns where it ends.
    async fn start_frame(&self, payload: &[u8], count: u32) -> Result<(Writing, u64)> {
        let (file, frame, offset) = {
            let segment = self.log.segment.borrow();
            let of = FrameOf { target: self.identity.target.0, kind: LOG, file: segment.number };
            let frame = frame::build(of, segment.next_sequence, count, payload);
            (segment.file.clone(), frame, segment.offset)
        };
        let end = offset + frame.len() as u64;
        self.extend_segment(&file, end).await?;
        add(&self.counters.log_bytes, frame.len() as u64);
        let write = self.files.start_write(file, Priority::Foreground, offset, SharedBuf::from(frame));
        Ok((write.await?, end))
    }

    /// Waits until all data of a batch are written. Items for which that fails are answered and removed.
    async fn end_parts(&self, batch: &mut Vec<Item>) {
        let mut failed = BTreeMap::new();
        for (i, item) in batch.iter_mut().enumerate() {
            let parts = item.urgent.iter_mut().flat_map(|urgent| std::mem::take(&mut urgent.parts));
            if let Err(error) = self.end_writes(parts.collect()).await {
                failed.insert(i, error);
            }
        }
        if failed.is_empty() {
            return;
        }
        let mut i = 0;
        batch.retain_mut(|item| {
            let error = failed.remove(&i);
            i += 1;
            let Some(error) = error else { return true };
            if let Some(urgent) = item.urgent.take() {
                let _ = urgent.done.send(Err(error));
            }
            false
        });
    }

    /// Waits for writes. If one fails it is unknown what their slots hold: none is used again before a restart, and
    /// nothing is appended to one that held something (R17).
    pub(crate) async fn end_writes(&self, parts: Vec<Part>) -> Result<()> {
        let mut ended = Ok(());
        let appended: Vec<SlotId> = parts.iter().filter(|part| part.block > 0).map(|part| part.at).collect();
        for Part { at, block, end, settled, write } in parts {
            match write.end().await {
                // Any flush that begins from now on is theirs too.
                Ok(()) if settled => {}
                Ok(()) => self.log.wrote_unsettled(at, block, end),
                failed => ended = failed,
            }
        }
        if ended.is_err() && !mutant!(r17_append_behind_failed_write) {
            appended.into_iter().for_each(|at| self.slots.borrow_mut().burn(at));
        }
        ended
    }

    async fn flush_batch(&self) -> Result<()> {
        let dirty = std::mem::take(&mut *self.log.dirty.borrow_mut());
        let completed_is_durable =
            self.config.durability == Durability::Plp && self.files.overwrites_in_place();
        let flush = self.log.grown.replace(false) || !completed_is_durable;
        let mut flushes: Vec<LocalBoxFuture<'_, Result<()>>> = Vec::with_capacity(dirty.len() + 1);
        for &class in &dirty {
            let Some(data) = self.data_file(class) else { continue };
            self.log.settled().flush_begins(class);
            flushes.push(Box::pin(async move { self.files.sync(&data).await }));
        }
        if flush {
            let file = self.log.segment.borrow().file.clone();
            flushes.push(Box::pin(async move { self.files.sync(&file).await }));
        }
        add(&self.counters.flushes, flushes.len() as u64);
        add(&self.counters.batches, 1);
        join_all(flushes).await.into_iter().collect::<Result<()>>()?;
        dirty.into_iter().for_each(|class| self.log.settled().flush_ended(class));
        Ok(())
    }

    async fn extend_segment(&self, file: &File, end: u64) -> Result<()> {
        let allocated = self.log.segment.borrow().allocated;
        if end <= allocated {
            return Ok(());
        }
        let more = (end / 4)
            .next_multiple_of(frame::ALIGN as u64)
            .clamp(SEGMENT_STEP.0, SEGMENT_STEP.1)
            .max(end - allocated);
        match self.files.zero(file, allocated, more).await {
            Ok(()) => {
                self.log.segment.borrow_mut().allocated = allocated + more;
                self.log.grown.set(true);
            }
            Err(error) if is_full(&error) => {
                return Err(EngineError::NoSpace { needed: more, available: 0 });
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Goes on in a new segment. The gate is held by the caller. Returns the new segment's number and the
    /// sequence of its first frame.
    pub(crate) async fn rotate(&self) -> Result<(u64, u64)> {
        let sequence = self.log.segment.borrow().next_sequence;
        let number = self.log.next_segment.get();
        self.log.next_segment.set(number + 1);
        let created = create_segment(&self.files, self.identity.target.0, number, sequence, &[]).await;
        match created {
            Ok(segment) => {
                let old = self.log.segment.replace(segment);
                self.files.close(&old.file);
                self.log.unconfirmed.set(false);
                Ok((number, sequence))
            }
            Err(error) => {
                // A left-over segment would contradict the frames that the present one still gets.
                let removed = self.files.remove_if_there(&segment_name(number));
                if let Err(failure) = removed.and_then(|()| self.files.sync_dir()) {
                    self.log.fail(&failure);
                }
                Err(error)
            }
        }
    }
}
