//! What an engine must hold, and random histories.

use super::{FOREGROUND, chunk};
use ember_engine::{
    ChunkState, ContentState, Engine, EngineError, Install, InstallContent, Prepare, Update, Which,
};
use ember_rt::SharedBuf;
use ember_types::checksum::crc32c;
use ember_types::layout::SplitMix64;
use ember_types::{
    ChainVersion, ChannelId, ChunkId, ChunkVersion, ClientId, Sequence, WriterTag, block_checksums,
};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Content {
    pub version: ChunkVersion,
    pub removed: bool,
    pub bytes: Rc<Vec<u8>>,
}

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Chunk {
    pub committed: Option<Content>,
    pub pending: Option<Content>,
    pub aborted: ChunkVersion,
}

impl Chunk {
    fn base(&self) -> ChunkVersion {
        self.committed.as_ref().map_or(ChunkVersion::NONE, |c| c.version)
    }
    fn bytes(&self) -> &[u8] {
        self.committed.as_ref().map_or(&[], |c| &c.bytes)
    }
}

/// What recovery broke.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Something acknowledged is missing.
    Lost,
    /// Bytes that no update made.
    Mixed,
    /// Bytes that are acknowledged fail their checksum.
    Unreadable,
    /// The target does not open.
    Refused,
    /// Nothing is lost, but recovery takes what a power loss leaves for damage.
    Healed,
    /// The engine or the test panicked.
    Panic,
}

/// A violation of the durability contract.
#[derive(Clone, Debug)]
pub struct Violation {
    pub kind: Kind,
    pub what: String,
}

impl Violation {
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into() }
    }
}

/// Per chunk the states that recovery may find, oldest first; the last one is what is so now.
#[derive(Clone)]
pub struct Model {
    pub chunks: BTreeMap<ChunkId, Vec<Chunk>>,
    pub chain_versions: Vec<ChainVersion>,
    /// Per writer the sequences of which recovery may find the record.
    pub sequences: BTreeMap<u8, Vec<u64>>,
    pub next_attempt: u32,
    /// The target was created to the end.
    pub created: bool,
    /// Small chunks only.
    pub small: bool,
    /// Grows with every change.
    pub epoch: u64,
    pub checkpoint_ended: bool,
    /// The name of the checkpoint that was acknowledged last: recovery starts there or later.
    pub checkpoint: Option<String>,
    /// Compactions that wrote something.
    pub compacted: u64,
}

impl Default for Model {
    fn default() -> Self {
        let chain_versions = vec![ChainVersion(0)];
        Self {
            chunks: BTreeMap::new(),
            chain_versions,
            sequences: BTreeMap::new(),
            next_attempt: 0,
            created: false,
            small: false,
            epoch: 0,
            checkpoint_ended: false,
            checkpoint: None,
            compacted: 0,
        }
    }
}

impl Model {
    pub fn now(&self, chunk: ChunkId) -> Chunk {
        self.chunks.get(&chunk).and_then(|states| states.last()).cloned().unwrap_or_default()
    }
    /// As if everything were durable: what must be so as long as the machine runs.
    pub fn latest(&self) -> Self {
        let last = |states: &Vec<Chunk>| states.last().cloned().into_iter().collect();
        let chunks = self.chunks.iter().map(|(id, states)| (*id, last(states))).collect();
        Self { chunks, ..self.clone() }
    }
    /// From now on it may be this.
    fn may(&mut self, chunk: ChunkId, state: Chunk) {
        self.epoch += 1;
        self.chunks.entry(chunk).or_insert_with(|| vec![Chunk::default()]).push(state);
    }
    /// What is so now is durable.
    fn durable(&mut self, chunk: ChunkId) {
        self.epoch += 1;
        if let Some(states) = self.chunks.get_mut(&chunk) {
            states.drain(..states.len() - 1);
        }
    }
    /// A checkpoint that was acknowledged stays: `last` is the newest there is.
    pub fn note_checkpoint(&mut self, last: Option<&String>) {
        if std::mem::take(&mut self.checkpoint_ended) {
            self.checkpoint = last.cloned();
            self.epoch += 1;
        }
    }
}

fn summary(content: &Content) -> ContentState {
    ContentState {
        version: content.version,
        length: content.bytes.len() as u32,
        checksum: crc32c(&content.bytes),
        removed: content.removed,
        lost: false,
    }
}

/// A way to change bytes.
#[derive(Clone, Debug)]
enum Edit {
    Write(usize, Vec<u8>),
    Truncate(usize),
    Cut(usize),
    Remove,
    Whole(Vec<u8>),
}

fn data(random: &mut SplitMix64, len: usize) -> Vec<u8> {
    let seed = random.next();
    (0..len).map(|i| (seed >> (i % 7 * 8)) as u8 ^ (i / 97) as u8).collect()
}

impl Edit {
    fn random(random: &mut SplitMix64, length: usize, small: bool) -> Self {
        let part = if small { 6 } else { 1 };
        let any = |random: &mut SplitMix64, bound: usize| random.below(bound as u64) as usize;
        let block = 4096;
        match random.below(12) {
            0..=2 => {
                // Appends, mostly of whole blocks.
                let at = if random.below(3) == 0 { length } else { length.next_multiple_of(block) };
                let len = if random.below(3) == 0 {
                    1 + any(random, 9000 / part)
                } else {
                    block * (1 + any(random, 8))
                };
                Self::Write(at, data(random, len))
            }
            3..=5 => Self::Write(any(random, length + 1), {
                let n = 1 + any(random, 6000 / part);
                data(random, n)
            }),
            6 => Self::Write(length + any(random, 50_000 / part), {
                let n = 1 + any(random, 3000);
                data(random, n)
            }),
            7 => Self::Truncate(any(random, length + 30_000 / part)),
            8 => Self::Cut(any(random, length + 5000)),
            9 => Self::Remove,
            _ => Self::Whole({
                let n = any(random, 70_000 / part);
                data(random, n)
            }),
        }
    }
    fn apply(&self, old: &Chunk, version: ChunkVersion) -> Content {
        let mut bytes = old.bytes().to_vec();
        let mut removed = false;
        match self {
            Self::Write(at, data) => {
                bytes.resize(bytes.len().max(at + data.len()), 0);
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
            Self::Truncate(length) => bytes.resize(*length, 0),
            Self::Cut(length) => {
                bytes.truncate(*length);
                removed = old.committed.as_ref().is_none_or(|c| c.removed);
            }
            Self::Remove => {
                bytes.clear();
                removed = true;
            }
            Self::Whole(data) => bytes = data.clone(),
        }
        Content { version, removed, bytes: Rc::new(bytes) }
    }
    fn update(&self) -> Update {
        match self {
            Self::Write(at, data) => Update::Write {
                offset: *at as u32,
                data: data.as_slice().into(),
                checksums: block_checksums(data),
            },
            Self::Truncate(length) => Update::Truncate { length: *length as u32 },
            Self::Cut(length) => Update::Cut { length: *length as u32 },
            Self::Remove => Update::Remove,
            Self::Whole(data) => Update::Whole {
                data: data.as_slice().into(),
                checksums: block_checksums(data),
                writers: Vec::new(),
            },
        }
    }
}

/// One client with chunks of its own.
pub struct Worker<'a> {
    pub id: u8,
    pub chunks: u64,
    pub random: SplitMix64,
    pub model: &'a RefCell<Model>,
}

impl Worker<'_> {
    pub fn client(id: u8) -> ClientId {
        ClientId([id + 1; 16])
    }

    pub async fn run(mut self, engine: &Engine, steps: usize) {
        for _ in 0..steps {
            let id = chunk(u64::from(self.id) * self.chunks + self.random.below(self.chunks));
            self.step(engine, id).await;
        }
    }

    async fn step(&mut self, engine: &Engine, id: ChunkId) {
        let now = self.model.borrow().now(id);
        match (now.pending.clone(), self.random.below(20)) {
            (_, 0) => self.flush(engine).await,
            (_, 1) => self.raise_chain(engine).await,
            (_, 2) => drop(check_chunk(engine, id, &[now]).await.unwrap()),
            (_, 3) if self.random.below(4) == 0 => {
                powered(engine.checkpoint().await).await;
                self.model.borrow_mut().checkpoint_ended = true;
            }
            (_, 4) => self.install(engine, id).await,
            (Some(_), 5..=15) => self.commit(engine, id, now).await,
            (Some(pending), _) => {
                let aborted = now.aborted.max(pending.version);
                self.model.borrow_mut().may(id, Chunk { pending: None, aborted, ..now });
                powered(engine.abort(id, pending.version).await).await;
                self.model.borrow_mut().durable(id);
            }
            (None, 5..=6) => self.compact(engine, id).await,
            (None, _) => {
                let small = self.model.borrow().small;
                let edit = Edit::random(&mut self.random, now.bytes().len(), small);
                self.prepare(engine, id, now, edit).await;
            }
        }
    }

    fn version(&self, now: &Chunk) -> ChunkVersion {
        let mut model = self.model.borrow_mut();
        model.next_attempt += 1;
        let number = now.base().number + 1;
        ChunkVersion { number, chain_version: ChainVersion(1), attempt: model.next_attempt }
    }

    async fn commit(&self, engine: &Engine, id: ChunkId, now: Chunk) {
        let Some(pending) = now.pending else { return };
        let kept = now.aborted.number > pending.version.number;
        let aborted = if kept { now.aborted } else { ChunkVersion::NONE };
        let next = Chunk { aborted, committed: Some(pending.clone()), pending: None };
        self.model.borrow_mut().may(id, next);
        powered(engine.commit(id, pending.version).await).await;
    }

    async fn prepare(&mut self, engine: &Engine, id: ChunkId, now: Chunk, edit: Edit) {
        let version = self.version(&now);
        let content = edit.apply(&now, version);
        let state = summary(&content);
        let sequence = {
            let mut model = self.model.borrow_mut();
            model.may(id, Chunk { pending: Some(content), ..now.clone() });
            let sequences = model.sequences.entry(self.id).or_insert_with(|| vec![0]);
            let next = sequences.last().unwrap() + 1;
            sequences.push(next);
            next
        };
        let channel = ChannelId(1);
        let writer = WriterTag { client: Self::client(self.id), channel, sequence: Sequence(sequence) };
        let expect = Some((state.length, state.checksum));
        let request = Prepare {
            chunk: id,
            version,
            base: now.base(),
            update: edit.update(),
            writer: Some(writer),
            expect,
            priority: FOREGROUND,
        };
        let prepared = powered(engine.prepare(request).await).await;
        assert_eq!((prepared.length, prepared.checksum), (state.length, state.checksum));
        let mut model = self.model.borrow_mut();
        model.durable(id);
        let sequences = model.sequences.get_mut(&self.id).unwrap();
        sequences.drain(..sequences.len() - 1);
    }

    async fn install(&mut self, engine: &Engine, id: ChunkId) {
        let now = self.model.borrow().now(id);
        let mut random = SplitMix64(self.random.next());
        let content = |random: &mut SplitMix64, now: &Chunk| {
            let version = self.version(now);
            let removed = random.below(4) == 0;
            let most = if self.model.borrow().small { 7000 } else { 40_000 };
            let len = if removed { 0 } else { random.below(most) as usize };
            let fill = random.next() as u8;
            Content { version, removed, bytes: Rc::new((0..len).map(|i| fill ^ (i / 50) as u8).collect()) }
        };
        let committed = (random.below(4) != 0).then(|| content(&mut random, &now));
        let next = Chunk { committed, ..Chunk::default() };
        let pending = (next.committed.is_some() && random.below(2) == 0).then(|| content(&mut random, &next));
        let next = Chunk { pending, ..next };
        self.model.borrow_mut().may(id, next.clone());
        let part = |content: &Content| InstallContent {
            state: summary(content),
            data: SharedBuf::from(content.bytes.as_slice()),
        };
        let install = Install {
            committed: next.committed.as_ref().map(part),
            pending: next.pending.as_ref().map(part),
            writers: Vec::new(),
        };
        powered(engine.install(id, install).await).await;
        self.model.borrow_mut().durable(id);
    }

    /// Nothing changes. Small chunks are seldom in pieces: one is made so.
    async fn compact(&mut self, engine: &Engine, id: ChunkId) {
        if self.model.borrow().small {
            let whole = 9 * 4096 + self.random.below(4096) as usize;
            let block = 1 + self.random.below(7) as usize;
            for (at, len) in [(0, whole), (block * 4096, 4096)] {
                let edit = Edit::Write(at, data(&mut self.random, len));
                let now = self.model.borrow().now(id);
                self.prepare(engine, id, now, edit).await;
                let now = self.model.borrow().now(id);
                self.commit(engine, id, now).await;
            }
        }
        if powered(engine.compact(id).await).await > 0 {
            self.model.borrow_mut().compacted += 1;
            self.model.borrow_mut().durable(id);
        }
    }

    async fn raise_chain(&mut self, engine: &Engine) {
        let next = {
            let mut model = self.model.borrow_mut();
            let last = model.chain_versions.last().copied().unwrap_or_default();
            let next = ChainVersion(last.0 + 1);
            model.chain_versions.push(next);
            model.epoch += 1;
            next
        };
        powered(engine.set_chain_version(next).await).await;
        // R2: from here on it never goes below.
        let mut model = self.model.borrow_mut();
        model.chain_versions.retain(|v| *v >= next);
        model.epoch += 1;
    }

    async fn flush(&mut self, engine: &Engine) {
        powered(engine.flush().await).await;
        let own = u64::from(self.id) * self.chunks;
        (own..own + self.chunks).for_each(|i| self.model.borrow_mut().durable(chunk(i)));
    }
}

/// What a call gave; one that failed for lack of power never comes back.
async fn powered<T>(result: ember_engine::Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) if error.to_string().contains("the power is off") => std::future::pending().await,
        Err(error) => panic!("{error}"),
    }
}

async fn read_content(engine: &Engine, id: ChunkId, state: &ContentState) -> Result<Content, Violation> {
    let mut bytes = Vec::new();
    if !state.removed {
        let which = Which::Exact(state.version);
        let read = engine.read(id, which, 0, u32::MAX, FOREGROUND).await;
        let read = read.map_err(|error| Violation::new(Kind::Unreadable, format!("{id}: {error}")))?;
        assert_eq!(read.chunk_length, state.length);
        bytes = read.data.to_vec();
        assert_eq!(block_checksums(&bytes), read.checksums);
        assert_eq!(crc32c(&bytes), state.checksum);
    }
    Ok(Content { version: state.version, removed: state.removed, bytes: Rc::new(bytes) })
}

/// Reads all that the engine holds of a chunk.
pub async fn observe(engine: &Engine, id: ChunkId) -> Result<Chunk, Violation> {
    let state: ChunkState = engine.state(id).unwrap_or_default();
    let mut chunk = Chunk { aborted: state.aborted, ..Chunk::default() };
    if let Some(committed) = &state.committed {
        chunk.committed = Some(read_content(engine, id, committed).await?);
    }
    if let Some(pending) = &state.pending {
        chunk.pending = Some(read_content(engine, id, pending).await?);
    }
    Ok(chunk)
}

async fn check_chunk(engine: &Engine, id: ChunkId, allowed: &[Chunk]) -> Result<Chunk, Violation> {
    let found = observe(engine, id).await?;
    if allowed.contains(&found) {
        return Ok(found);
    }
    let versions = |c: &Chunk| {
        let part = |c: &Option<Content>| c.as_ref().map(|c| (c.version, c.removed, c.bytes.len()));
        (part(&c.committed), part(&c.pending), c.aborted)
    };
    let same = allowed.iter().any(|allowed| versions(allowed) == versions(&found));
    let allowed: Vec<_> = allowed.iter().map(versions).collect();
    let what = format!("{id}: {:?} is none of {allowed:?}", versions(&found));
    Err(Violation::new(if same { Kind::Mixed } else { Kind::Lost }, what))
}

/// After recovery: everything is one of what it may be. The model then goes on from there.
pub async fn check_all(engine: &Engine, model: &RefCell<Model>) -> Result<(), Violation> {
    let states = model.borrow().chunks.clone();
    for (id, allowed) in states {
        let found = check_chunk(engine, id, &allowed).await?;
        model.borrow_mut().chunks.insert(id, vec![found]);
    }
    let known: Vec<ChunkId> = engine.list(None, usize::MAX).into_iter().map(|(id, _)| id).collect();
    assert!(known.is_sorted());
    let chain = engine.chain_version();
    let mut model = model.borrow_mut();
    if let Some(id) = known.iter().find(|id| !model.chunks.contains_key(id)) {
        return Err(Violation::new(Kind::Mixed, format!("{id}: nobody asked for it")));
    }
    let possible = &model.chain_versions;
    let lowest = possible.first().copied().unwrap_or_default();
    let highest = possible.last().copied().unwrap_or_default();
    if chain < lowest || highest < chain {
        return Err(Violation::new(Kind::Lost, format!("chain version {chain} of {possible:?}")));
    }
    model.chain_versions = vec![chain];
    for (id, sequences) in &mut model.sequences {
        let record = engine.writer(Worker::client(*id), ChannelId(1));
        let found = record.map_or(0, |(_, record)| record.tag.sequence.0);
        if !sequences.contains(&found) {
            return Err(Violation::new(Kind::Lost, format!("writer {id}: {found} of {sequences:?}")));
        }
        *sequences = vec![found];
    }
    model.epoch += 1;
    Ok(())
}

/// Runs `workers` clients side by side.
pub async fn history(engine: &Engine, model: &RefCell<Model>, seed: u64, workers: u8, steps: usize) {
    let run = |id| {
        let random = SplitMix64(seed.wrapping_mul(1000) + u64::from(id));
        Worker { id, chunks: 3, random, model }.run(engine, steps)
    };
    ember_rt::select::join_all((0..workers).map(run)).await;
}

/// Whether an error names a file of the target.
pub fn is_named(error: &EngineError) -> bool {
    match error {
        EngineError::Corrupt { file, .. } | EngineError::Refused { file, .. } => file.contains(super::DIR),
        _ => false,
    }
}
