//! The engine's handle.

use crate::api::{ChunkState, Install, Prepare, Prepared, Read, TargetSpace, Which};
use crate::checkpoint::{Generations, Source, write_checkpoint};
use crate::class::{CLASSES, SlotId, blocks_of, class_for, slot_bytes};
use crate::error::{EngineError, Result};
use crate::files::Files;
use crate::index::Index;
use crate::inner::{CounterCells, Counters, EngineConfig, Inner, open_data};
use crate::log::{Log, Segment, create_segment, segment_name};
use crate::migrate;
use crate::pages::{Named, Pages};
use crate::record::{Entry, Record};
use crate::recover::{Recovery, load, slots_in};
use crate::scrub::FilesCheck;
use crate::slots::Slots;
use crate::superblock::{self, FORMAT, Identity};
use crate::used::Used;
use ember_rt::Rt;
use ember_rt::disk::{DiskQueue, Priority};
use ember_rt::sync::{Semaphore, oneshot};
use ember_types::{
    ChainVersion, ChannelId, ChunkId, ChunkVersion, ClientId, ClusterId, DataId, Instant, TargetId,
    WriterRecord, mutant,
};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Marks a directory whose target was never completely created.
const CREATING: &str = "creating";

/// One target. Cheap to clone; all clones are the same target. It stays on its reactor.
#[derive(Clone)]
pub struct Engine(Rc<Inner>);

/// Space set aside for an update; given back when dropped.
pub struct Reservation {
    inner: Rc<Inner>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.inner.reserved.set(self.inner.reserved.get() - self.bytes);
    }
}

/// What recovery found.
#[derive(Default)]
struct State {
    index: Index,
    pages: Named,
    used: Used,
}

fn is_ours(name: &str) -> bool {
    let prefixes = ["log-", "checkpoint-", "data-", "sums-", "superblock-"];
    prefixes.iter().any(|prefix| name.starts_with(prefix)) || migrate::is_ours(name)
}

impl Engine {
    /// Whether `dir` holds a target that was created to the end.
    pub fn exists(queue: &DiskQueue, dir: &str) -> Result<bool> {
        let files = Files::new(queue, dir);
        let names = match files.list() {
            Ok(names) => names,
            Err(EngineError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        Ok(!names.iter().any(|n| n == CREATING) && names.iter().any(|n| n.starts_with("superblock-")))
    }

    /// Makes a new target in `dir` (relative to the disk's root), which must hold none.
    pub async fn create(
        rt: &Rt,
        queue: &DiskQueue,
        dir: &str,
        identity: &Identity,
        config: EngineConfig,
    ) -> Result<Self> {
        let files = Files::new(queue, dir);
        files.create_dir()?;
        files.lock()?;
        let names = files.list()?;
        let unfinished = names.iter().any(|name| name == CREATING);
        if let Some(name) = names.iter().find(|name| is_ours(name)).filter(|_| !unfinished) {
            return Err(EngineError::Refused {
                file: files.path(name),
                offset: 0,
                what: "there is a target, or the rest of one, here".into(),
                remedy: "open it, or run `ember target replace`",
            });
        }
        // Its name is all that counts. It may be there, and still unflushed.
        if !unfinished {
            files.close(&files.create(CREATING)?);
        }
        files.sync_dir()?;
        for name in names.iter().filter(|name| is_ours(name)) {
            files.remove(name)?;
        }
        let segment = create_segment(&files, identity.target.0, 1, 1, &[]).await?;
        let index = RefCell::new(Index::default());
        let source = Source { chunks: &mut |_| 0, index: &index, pages: &|_, _, _| Vec::new() };
        write_checkpoint(&files, identity.target.0, 1, (1, 1), source).await?;
        superblock::write(&files, identity)?;
        files.remove(CREATING)?;
        files.sync_dir()?;
        let generations = Generations { next: 2, kept: vec![(1, 1)] };
        let state = State { index: index.into_inner(), ..State::default() };
        Self::assemble(rt, files, *identity, config, state, segment, generations)
    }

    /// Opens the target in `dir` and recovers its state. A target of an older format version is brought to
    /// [`crate::FORMAT`] first.
    pub async fn open(
        rt: &Rt,
        queue: &DiskQueue,
        dir: &str,
        expected: (ClusterId, TargetId),
        config: EngineConfig,
    ) -> Result<(Self, Recovery)> {
        Self::open_with(rt, queue, dir, expected, config, migrate::MIGRATIONS).await
    }

    /// Like [`Engine::open`], with other migrations than this release's: for tests of the way they are run.
    pub async fn open_with(
        rt: &Rt,
        queue: &DiskQueue,
        dir: &str,
        (cluster, target): (ClusterId, TargetId),
        config: EngineConfig,
        migrations: &[migrate::Migration],
    ) -> Result<(Self, Recovery)> {
        let files = Files::new(queue, dir);
        if files.list()?.iter().any(|name| name == CREATING) {
            return Err(EngineError::Refused {
                file: files.path(CREATING),
                offset: 0,
                what: "the target was never completely created".into(),
                remedy: "create it again",
            });
        }
        files.lock()?;
        migrate::run(&files, migrations)?;
        let (identity, damaged) = superblock::read(&files, FORMAT)?;
        superblock::expect(&files, &identity, cluster, target)?;
        let mut loaded = load(&files, target.0).await?;
        if !damaged.is_empty() {
            superblock::write(&files, &identity)?;
        }
        if let Some(number) = loaded.empty_segment {
            files.remove(&segment_name(number))?;
        }
        loaded.flush(&files).await?;
        let number = loaded.last_segment + 1;
        let sequence = loaded.next_sequence;
        let segment = create_segment(&files, target.0, number, sequence, &loaded.corrections).await?;
        let state = State { index: loaded.index, pages: loaded.pages, used: loaded.used };
        let generations = Generations { next: loaded.last_checkpoint + 1, kept: vec![loaded.checkpoint] };
        let engine = Self::assemble(rt, files, identity, config, state, segment, generations)?;
        engine.0.index.borrow_mut().overlay.freeze();
        engine.0.write_generation((number, sequence)).await?;
        loaded.recovery.healed.extend(damaged);
        Ok((engine, loaded.recovery))
    }

    fn assemble(
        rt: &Rt,
        files: Files,
        identity: Identity,
        config: EngineConfig,
        state: State,
        segment: Segment,
        generations: Generations,
    ) -> Result<Self> {
        let data = open_data(&files)?;
        let mut slots = Slots::new();
        for (class, file) in (0..CLASSES).zip(&data) {
            let Some(file) = file else { continue };
            slots.load(class, slots_in(class, files.len(file)?), &state.used);
        }
        let pages = Pages::open(&files, state.pages, config.checksum_cache_bytes)?;
        let log = Log::new(segment);
        for (class, file) in (0..CLASSES).zip(&data) {
            let Some(file) = file else { continue };
            log.settled().find(class, |from| files.written(file, from))?;
        }
        Ok(Self(Rc::new(Inner {
            rt: rt.clone(),
            files,
            identity,
            config,
            index: RefCell::new(state.index),
            slots: RefCell::new(slots),
            data: RefCell::new(data),
            pages: RefCell::new(pages),
            growing: Semaphore::new(1),
            log,
            checkpointing: Semaphore::new(1),
            generations: RefCell::new(generations),
            counters: CounterCells::default(),
            reserved: Cell::new(0),
            tombstones_seen: RefCell::default(),
            locks: RefCell::default(),
        })))
    }

    /// Runs an update to its end, whatever becomes of the caller: its bytes may be on their way to the disk.
    async fn detached<T: 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T>> + 'static,
    ) -> Result<T> {
        let (answer, result) = oneshot::channel();
        self.0.rt.spawn(name, async move {
            // A caller that went away learns the outcome from the chunk's state.
            let _ = answer.send(work.await);
        });
        result.await.unwrap_or_else(|_| Err(self.0.failed_error("its reactor is closing")))
    }

    /// Whose content this is.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }
    /// The first failure after which the target must be reopened, if there was one.
    pub fn failure(&self) -> Option<String> {
        self.0.log.failure()
    }

    // ---- what is here, from memory ----

    /// What the target knows of a chunk; `None`: nothing.
    pub fn state(&self, chunk: ChunkId) -> Option<ChunkState> {
        let index = self.0.index.borrow();
        index.get(chunk).map(|entry| ChunkState::new(entry, index.writers_of(chunk)))
    }
    /// Up to `limit` chunks behind `after`, in order, tombstones included.
    pub fn list(&self, after: Option<ChunkId>, limit: usize) -> Vec<(ChunkId, ChunkState)> {
        let index = self.0.index.borrow();
        let chunks = index.after(after).take(limit);
        chunks.map(|(chunk, entry)| (chunk, ChunkState::new(entry, index.writers_of(chunk)))).collect()
    }
    /// Number of chunks known, tombstones included.
    pub fn len(&self) -> usize {
        self.0.index.borrow().len()
    }
    /// Whether no chunk is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Up to `limit` chunks with a pending version behind `after`, in order (R4).
    pub fn pending(&self, after: Option<ChunkId>, limit: usize) -> Vec<ChunkId> {
        let index = self.0.index.borrow();
        let pending = index.after(after).filter(|(_, entry)| entry.pending.is_some());
        pending.map(|(chunk, _)| chunk).take(limit).collect()
    }
    /// Up to `limit` live committed chunks of `data` from `index` on, in order.
    pub fn chunks_of(&self, data: DataId, index: u32, limit: usize) -> Vec<ChunkId> {
        let all = self.0.index.borrow();
        let live = all.of_data(data, index).filter(|(_, entry)| is_live(entry));
        live.map(|(chunk, _)| chunk).take(limit).collect()
    }
    /// The last chunk of `data` whose committed content is not empty, as (index, length), and the number of
    /// live committed chunks of `data`.
    pub fn last_of(&self, data: DataId) -> (Option<(u32, u32)>, u64) {
        let all = self.0.index.borrow();
        let live = || all.of_data(data, 0).filter(|(_, entry)| is_live(entry));
        let last = live().rfind(|(_, entry)| entry.committed.length > 0);
        (last.map(|(chunk, entry)| (chunk.index, entry.committed.length)), live().count() as u64)
    }
    /// The last update of a channel on this target and its chunk (R12).
    pub fn writer(&self, client: ClientId, channel: ChannelId) -> Option<(ChunkId, WriterRecord)> {
        self.0.index.borrow().writer(client, channel)
    }
    /// The highest chain version that the target served under (R2).
    pub fn chain_version(&self) -> ChainVersion {
        self.0.index.borrow().chain_version
    }
    /// What was done since the target was opened.
    pub fn counters(&self) -> Counters {
        self.0.counters.read()
    }

    // ---- updates ----

    /// Makes an update durable as the chunk's pending version. A version that is pending or committed here
    /// already is answered again without doing anything (R5). Goes on if the caller goes away.
    pub async fn prepare(&self, request: Prepare) -> Result<Prepared> {
        self.detached("engine prepare", self.0.clone().prepare(request, |_| {})).await
    }
    /// The same; `built` hears what the update makes as soon as that is known, before it is durable, unless the
    /// version is here already. What comes of it may still be an error.
    pub async fn prepare_telling(
        &self,
        request: Prepare,
        built: impl FnOnce(Prepared) + 'static,
    ) -> Result<Prepared> {
        self.detached("engine prepare", self.0.clone().prepare(request, built)).await
    }
    /// The pending version becomes the committed one. It is logged but not flushed: after a crash it may be
    /// pending again (R4). Fine if it is committed already.
    pub async fn commit(&self, chunk: ChunkId, version: ChunkVersion) -> Result<()> {
        self.0.commit(chunk, version).await
    }
    /// Drops `version` durably and refuses late copies of it, whether it was prepared here or not (R13). The
    /// writer's record of it says `Aborted`.
    pub async fn abort(&self, chunk: ChunkId, version: ChunkVersion) -> Result<()> {
        self.0.drop_pending(chunk, Some(version), true).await
    }
    /// Drops the chunk's pending version durably, if there is one, without refusing it later: what a target
    /// does on entering syncing (R4).
    pub async fn discard_pending(&self, chunk: ChunkId) -> Result<()> {
        self.0.drop_pending(chunk, None, false).await
    }
    /// Replaces all that is here of a chunk, durably (R11). With neither committed nor pending content the
    /// chunk is forgotten without a tombstone. Goes on if the caller goes away.
    pub async fn install(&self, chunk: ChunkId, install: Install) -> Result<()> {
        self.detached("engine install", self.0.clone().install(chunk, install)).await
    }
    /// Notes, durably, that the target serves under `version` (R2); lower ones are ignored.
    pub async fn set_chain_version(&self, version: ChainVersion) -> Result<()> {
        if version <= self.chain_version() {
            return Ok(());
        }
        self.0.check_alive()?;
        let records = vec![Record::Chain { version }];
        if mutant!(r02_chain_version_not_durable) {
            self.0.apply_lazily(records);
            return Ok(());
        }
        self.0.apply_durably(records, None, Default::default()).await
    }
    /// Forgets the records of clients whose sessions have ended (R12). Logged, not flushed.
    pub fn forget_clients(&self, clients: &[ClientId]) {
        let known = |client: &&ClientId| !self.0.index.borrow().channels_of(**client).is_empty();
        let records: Vec<Record> =
            clients.iter().filter(known).map(|&client| Record::Forget { client }).collect();
        if !records.is_empty() {
            self.0.apply_lazily(records);
        }
    }
    /// Forgets up to `limit` tombstones that were there for the configured time since this process first saw
    /// them; call it now and then. Returns how many went. Logged, not flushed.
    pub fn expire_tombstones(&self, now: Instant, limit: usize) -> usize {
        self.0.expire_tombstones(now, limit)
    }

    // ---- reads ----

    /// Reads the blocks that hold bytes `[offset, offset + length)` of one version, verified.
    pub async fn read(
        &self,
        chunk: ChunkId,
        which: Which,
        offset: u32,
        length: u32,
        priority: Priority,
    ) -> Result<Read> {
        self.0.read(chunk, which, offset, length, priority).await
    }
    /// Reads and verifies every block of every version of a chunk.
    pub async fn verify(&self, chunk: ChunkId, priority: Priority) -> Result<()> {
        self.0.verify(chunk, priority).await
    }

    /// Reads superblock, checkpoints and log of the target in service, at most so many bytes a second; 0 is no limit.
    pub async fn check_files(&self, bytes_per_s: u64) -> Result<FilesCheck> {
        self.0.check_files(bytes_per_s).await
    }
    /// Writes anew what [`Engine::check_files`] found damaged. Goes on if the caller goes away.
    pub async fn heal_files(&self, found: FilesCheck) -> Result<()> {
        let inner = self.0.clone();
        self.detached("engine heal", async move { inner.heal_files(&found).await }).await
    }
    /// Slots whose bytes were found bad since the target was opened: they are not used again before a restart.
    pub fn quarantined(&self) -> usize {
        self.0.slots.borrow().quarantined()
    }
    /// Stops the target if its files have been removed: to be called now and then.
    pub fn check_names(&self) -> Result<()> {
        self.0.check_names()
    }

    /// A line of text that an earlier process left under this name; nothing if there is none, or no text.
    pub fn read_note(&self, name: &str) -> Result<Option<String>> {
        let bytes = self.0.files.read_small(&format!("note-{name}"))?;
        Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()))
    }
    /// Leaves a line of text for a later process: nothing that anything depends on.
    pub fn write_note(&self, name: &str, text: &str) -> Result<()> {
        self.0.check_alive()?;
        self.0.files.write_small(&format!("note-{name}"), text.as_bytes())
    }

    // ---- space and upkeep ----

    /// Sets space aside for an update of `bytes` bytes, so that it is refused before it gets a number (R13).
    pub fn reserve(&self, bytes: u32) -> Result<Reservation> {
        let class = class_for(blocks_of(bytes));
        let needed = slot_bytes(class);
        let reserved = self.0.reserved.get();
        let free = if self.0.slots.borrow().has_free(class) { needed } else { 0 };
        let available = (self.0.available()? + free).saturating_sub(reserved);
        if needed > available {
            return Err(EngineError::NoSpace { needed, available });
        }
        self.0.reserved.set(reserved + needed);
        Ok(Reservation { inner: self.0.clone(), bytes: needed })
    }
    /// Space of the target.
    pub fn space(&self) -> Result<TargetSpace> {
        let (files, free) = self.0.slots.borrow().bytes();
        let total = self.0.files.space()?.total;
        let available = (self.0.available()? + free).saturating_sub(self.0.reserved.get());
        Ok(TargetSpace { total, available, used: files.saturating_sub(free) })
    }
    /// Whether [`Engine::flush`] has something to do.
    pub fn needs_flush(&self) -> bool {
        self.0.log.needs_flush()
    }
    /// Makes everything logged so far durable, and confirms the last batch, so that recovery need not check
    /// its data. To be called about a second after the last update.
    pub async fn flush(&self) -> Result<()> {
        self.0.check_alive()?;
        if !self.needs_flush() {
            return Ok(());
        }
        self.0.apply_durably(Vec::new(), None, Default::default()).await
    }
    /// Writes a checkpoint and drops the log that it replaces. Happens by itself when the log is long.
    pub async fn checkpoint(&self) -> Result<()> {
        let inner = self.0.clone();
        self.detached("engine checkpoint", async move { inner.checkpoint().await }).await
    }
    /// Writes anew what lies in more than `compact_pieces` pieces of a committed version, so that it reads fast in
    /// order; its bytes, length and version stay. Nothing is done to a chunk with a pending version. Returns the bytes
    /// written; [`EngineError::NoSpace`] if only space is left that is set aside. Goes on if the caller goes away.
    pub async fn compact(&self, chunk: ChunkId) -> Result<u64> {
        self.detached("engine compact", self.0.clone().compact(chunk)).await
    }
    /// Gives the space of up to `limit` free slots of each class back to the file system. Returns the bytes.
    pub async fn trim(&self, limit: usize) -> Result<u64> {
        let inner = self.0.clone();
        self.detached("engine trim", async move { inner.trim(limit).await }).await
    }
    /// Flushes and writes a checkpoint: what a daemon does before it ends.
    pub async fn close(&self) -> Result<()> {
        self.flush().await?;
        self.checkpoint().await
    }
}

fn is_live(entry: &Entry) -> bool {
    !entry.committed.version.is_none() && !entry.committed.removed
}

impl Inner {
    fn expire_tombstones(self: &Rc<Self>, now: Instant, limit: usize) -> usize {
        let index = self.index.borrow();
        let mut seen = self.tombstones_seen.borrow_mut();
        seen.retain(|chunk, _| index.is_tombstone(*chunk));
        let mut old = Vec::new();
        for chunk in index.tombstones() {
            let Some(entry) = index.get(chunk) else { continue };
            let what = entry.committed.version.max(entry.aborted());
            let (since, at) = seen.entry(chunk).or_insert((what, now));
            if *since != what {
                (*since, *at) = (what, now);
            }
            let kept = now.since(*at) < self.config.tombstone_keep && !mutant!(r05_tombstone_kept_short);
            if old.len() < limit && !kept {
                old.push(chunk);
            }
        }
        drop((index, seen));
        // One that is being updated comes back as something else.
        old.retain(|chunk| self.try_lock(*chunk).is_some());
        let records: Vec<Record> = old.iter().map(|&chunk| Record::Drop { chunk }).collect();
        if !records.is_empty() {
            self.apply_lazily(records);
        }
        old.len()
    }

    async fn trim(&self, limit: usize) -> Result<u64> {
        let mut bytes = 0;
        for class in 0..CLASSES {
            let Some(file) = self.data_file(class) else { continue };
            let slots = self.slots.borrow_mut().take_unpunched(class, limit);
            for slot in slots {
                let at = SlotId { class, slot };
                let punched = self.files.punch(&file, at.offset(0), slot_bytes(class)).await;
                self.log.settled().punched(at);
                self.slots.borrow_mut().punched(at);
                punched?;
                bytes += slot_bytes(class);
            }
        }
        Ok(bytes)
    }
}
