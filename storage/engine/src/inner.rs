//! What the parts of an engine share: configuration, files, index, slots, log, and the order of updates of
//! each chunk.

use crate::checkpoint::Generations;
use crate::class::{CLASSES, SlotId, ZEROED_MAX, data_name, growth, slot_blocks, slot_bytes};
use crate::error::{EngineError, Result};
use crate::files::{File, Files, is_full};
use crate::index::Index;
use crate::log::Log;
use crate::pages::Pages;
use crate::slots::Slots;
use crate::superblock::Identity;
use ember_rt::Rt;
use ember_rt::sync::{OwnedSemaphorePermit, Semaphore};
use ember_types::{ChunkId, ChunkVersion, Instant};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// What a device promises, and so what has to be flushed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Durability {
    /// What it has taken is durable after a flush.
    #[default]
    Flush,
    /// It has power-loss protection: what it has taken is durable. Only what the file system has to note (new
    /// files, space, first writes) is still flushed; so is everything where [`Disk::overwrites_in_place`] is false.
    ///
    /// [`Disk::overwrites_in_place`]: ember_rt::disk::Disk::overwrites_in_place
    Plp,
}

/// Settings of an engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EngineConfig {
    /// A segment of the log this long, in bytes, starts a checkpoint.
    pub log_bytes: u64,
    /// Bytes of the file system that updates leave free.
    pub min_free_bytes: u64,
    /// A MiB of a chunk in more pieces than this is written anew by the next update that touches it. It has 256 blocks:
    /// from 256 on it is left to compaction, as many updates would wait for that at once.
    pub extents_max: usize,
    /// Compaction writes a MiB of a chunk in more pieces than this anew: reading it takes few operations of the device.
    pub compact_pieces: usize,
    /// Bytes of memory for checksum pages that were used lately.
    pub checksum_cache_bytes: u64,
    /// Checksums that are on no page yet start a checkpoint when they take this many bytes of memory.
    pub unsaved_sums_bytes: u64,
    /// How long tombstones are kept: longer than any forward can live (R5).
    pub tombstone_keep: Duration,
    /// What the device promises.
    pub durability: Durability,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            log_bytes: 64 << 20,
            min_free_bytes: 256 << 20,
            extents_max: 256,
            compact_pieces: 8,
            checksum_cache_bytes: 64 << 20,
            unsaved_sums_bytes: 32 << 20,
            tombstone_keep: Duration::from_secs(600),
            durability: Durability::Flush,
        }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Default)]
        pub(crate) struct CounterCells {
            $(pub(crate) $name: Cell<u64>,)*
        }
        /// What an engine did since it was opened.
        #[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }
        impl CounterCells {
            pub(crate) fn read(&self) -> Counters {
                Counters { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Flushes of log and data files.
    flushes,
    /// Frames written to the log.
    batches,
    /// Bytes written to the log.
    log_bytes,
    /// Bytes written to data files.
    data_bytes,
    /// Bytes of a base read to be merged with an update.
    merged_bytes,
    /// Bytes written anew by compaction.
    compacted_bytes,
    /// Updates prepared or installed.
    updates,
    /// Reads answered.
    reads,
    /// Bytes read from data files.
    read_bytes,
    /// Blocks that failed their checksum.
    corrupt_blocks,
    /// Checkpoints written.
    checkpoints,
    /// Checksum pages read because they were not in memory.
    sum_pages_read,
    /// Checksum pages written by checkpoints.
    sum_pages_written,
    /// Checksum pages that were damaged, or unreadable.
    corrupt_sum_pages,
    /// Checksums of blocks whose page was lost, found again from the bytes of whole chunks.
    sums_found,
}

pub(crate) fn add(counter: &Cell<u64>, n: u64) {
    counter.set(counter.get() + n);
}

pub(crate) struct Inner {
    pub(crate) rt: Rt,
    pub(crate) files: Files,
    pub(crate) identity: Identity,
    pub(crate) config: EngineConfig,
    pub(crate) index: RefCell<Index>,
    pub(crate) slots: RefCell<Slots>,
    pub(crate) data: RefCell<Vec<Option<File>>>,
    pub(crate) pages: RefCell<Pages>,
    /// Held while a data file grows.
    pub(crate) growing: Semaphore,
    pub(crate) log: Log,
    /// Held while a checkpoint is written.
    pub(crate) checkpointing: Semaphore,
    pub(crate) generations: RefCell<Generations>,
    pub(crate) counters: CounterCells,
    pub(crate) reserved: Cell<u64>,
    /// When each tombstone was first seen, and as what.
    pub(crate) tombstones_seen: RefCell<BTreeMap<ChunkId, (ChunkVersion, Instant)>>,
    pub(crate) locks: RefCell<BTreeMap<ChunkId, Arc<Semaphore>>>,
}

/// The right to update a chunk; updates of one chunk go one after the other, in the order in which they came.
pub(crate) struct ChunkGuard {
    inner: Rc<Inner>,
    chunk: ChunkId,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for ChunkGuard {
    fn drop(&mut self) {
        drop(self.permit.take());
        let mut locks = self.inner.locks.borrow_mut();
        // One count is the table's: nobody waits.
        if locks.get(&self.chunk).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.chunk);
        }
    }
}

/// Slots that a reader keeps from being reused (R17).
pub(crate) struct Held {
    inner: Rc<Inner>,
    slots: Vec<SlotId>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut slots = self.inner.slots.borrow_mut();
        self.slots.iter().for_each(|at| slots.unhold(*at));
    }
}

impl Inner {
    pub(crate) fn failed_error(&self, why: &str) -> EngineError {
        EngineError::Failed { dir: self.files.dir().to_owned(), why: why.to_owned() }
    }
    /// Refuses updates after a failure.
    pub(crate) fn check_alive(&self) -> Result<()> {
        self.log.failure().map_or(Ok(()), |why| Err(self.failed_error(&why)))
    }

    pub(crate) async fn lock(self: &Rc<Self>, chunk: ChunkId) -> Result<ChunkGuard> {
        let lock = {
            let mut locks = self.locks.borrow_mut();
            locks.entry(chunk).or_insert_with(|| Arc::new(Semaphore::new(1))).clone()
        };
        let mut guard = ChunkGuard { inner: self.clone(), chunk, permit: None };
        let permit = lock.acquire_owned().await.map_err(|_| self.failed_error("it is closing"))?;
        guard.permit = Some(permit);
        self.check_alive()?;
        Ok(guard)
    }
    /// The lock if nobody has it.
    pub(crate) fn try_lock(self: &Rc<Self>, chunk: ChunkId) -> Option<ChunkGuard> {
        let lock = {
            let mut locks = self.locks.borrow_mut();
            locks.entry(chunk).or_insert_with(|| Arc::new(Semaphore::new(1))).clone()
        };
        let permit = lock.try_acquire_owned().ok()?;
        Some(ChunkGuard { inner: self.clone(), chunk, permit: Some(permit) })
    }

    pub(crate) fn hold(self: &Rc<Self>, held: Vec<SlotId>) -> Held {
        let mut slots = self.slots.borrow_mut();
        held.iter().for_each(|at| slots.hold(*at));
        Held { inner: self.clone(), slots: held }
    }

    pub(crate) fn data_file(&self, class: u8) -> Option<File> {
        self.data.borrow().get(usize::from(class)).cloned().flatten()
    }

    /// Bytes of the file system that updates may still take.
    pub(crate) fn available(&self) -> Result<u64> {
        Ok(self.files.space()?.available.saturating_sub(self.config.min_free_bytes))
    }

    /// Takes a free slot; the class' file grows if there is none.
    pub(crate) async fn allocate(&self, class: u8) -> Result<SlotId> {
        if let Some(at) = self.slots.borrow_mut().allocate(class) {
            return Ok(at);
        }
        let _growing = self.growing.acquire().await.map_err(|_| self.failed_error("it is closing"))?;
        loop {
            if let Some(at) = self.slots.borrow_mut().allocate(class) {
                return Ok(at);
            }
            self.grow(class).await?;
        }
    }

    async fn grow(&self, class: u8) -> Result<()> {
        let file = match self.data_file(class) {
            Some(file) => file,
            None => {
                let file = self.files.create(&data_name(class))?;
                self.data.borrow_mut()[usize::from(class)] = Some(file.clone());
                // Flushes the directory for both, unless the other one is there.
                if self.pages.borrow().files[usize::from(class)].is_some() {
                    self.files.sync_dir()?;
                }
                file
            }
        };
        let total = self.slots.borrow().total(class);
        // Reservations were checked against the reserve; what is taken without one may use half of it.
        let floor = self.config.min_free_bytes / 2;
        let available = self.files.space()?.available.saturating_sub(floor);
        let fits = available / slot_bytes(class);
        let more = u64::from(growth(class, total)).min(fits);
        let refused = EngineError::NoSpace { needed: slot_bytes(class), available };
        if more == 0 || u64::from(total) + more > u64::from(u32::MAX) {
            return Err(refused);
        }
        match self.grow_sums(class, u64::from(total) + more).await {
            Err(error) if is_full(&error) => return Err(refused),
            grown => grown?,
        }
        let bytes = more * slot_bytes(class);
        let offset = u64::from(total) * slot_bytes(class);
        let reserved = match class <= ZEROED_MAX {
            true => self.files.zero(&file, offset, bytes).await,
            false => self.files.allocate(&file, offset, bytes).await,
        };
        match reserved {
            Ok(()) => {
                self.slots.borrow_mut().grow(class, total + more as u32);
                let zeroed = (total..total + more as u32).filter(|_| class <= ZEROED_MAX);
                let mut settled = self.log.settled();
                zeroed.for_each(|slot| settled.written(SlotId { class, slot }, 0, slot_blocks(class)));
            }
            Err(error) if is_full(&error) => return Err(refused),
            Err(error) => return Err(error),
        }
        self.log.mark_dirty(class);
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for file in self.data.borrow().iter().chain(&self.pages.borrow().files).flatten() {
            self.files.close(file);
        }
        self.files.close(&self.log.segment.borrow().file);
    }
}

/// The files of the classes that are there.
pub(crate) fn open_data(files: &Files) -> Result<Vec<Option<File>>> {
    (0..CLASSES).map(|class| files.open(&data_name(class))).collect()
}
