//! What clients do: reads, writes, cuts and removals of a few hot chunks, and operations on names.

use super::history::{History, Place};
use crate::check::chunk::{CELL, ChunkOp, fill};
use crate::check::names::{Ask, Ino, Name, Refusal, Told};
use crate::trace::digest;
use crate::world::{World, between};
use ember_client::{ChunkUpdate, Client, ClientError, MetaOptions, OpenFile};
use ember_rt::{Rt, SharedBuf};
use ember_types::layout::SplitMix64;
use ember_types::{CapabilityKey, ChunkId, ClusterTime, DataId, InodeId, Layout, Rights, Status};
use ember_wire::meta::{Answer, OpenFlags, Operation};
use ember_wire::storage::UpdateKind;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a chunk of the files under test.
pub const CHUNK_SIZE: u32 = 64 << 10;
/// Chunks of each hot file.
pub const CHUNKS_PER_FILE: u32 = 2;
/// Cells of a chunk.
pub(super) const CELLS_PER_CHUNK: u32 = CHUNK_SIZE / CELL as u32;
/// Names that each directory may hold.
const NAMES: u64 = 5;
/// Inodes that a group remembers for its operations.
const REMEMBERED: usize = 8;

/// A file whose chunks are under test.
#[derive(Clone, Copy, Debug)]
pub struct HotFile {
    /// Its inode.
    pub inode: InodeId,
    /// Its data.
    pub data: DataId,
    /// Where its chunks lie.
    pub layout: Layout,
}

/// What the first client made for all others.
#[derive(Clone, Default, Debug)]
pub struct Setup {
    /// Files with chunks under test.
    pub hot: Vec<HotFile>,
    /// Directories of each group of names, never removed.
    pub groups: Vec<Vec<Ino>>,
    /// Directory of the files of which somebody keeps a ledger.
    pub ledger: InodeId,
}

/// What the clients of a run share; it belongs to no process.
pub struct Stage {
    /// The world.
    pub world: World,
    /// Histories.
    pub history: Rc<History>,
    /// What was set up.
    pub setup: RefCell<Setup>,
    /// Workers end their loops.
    pub stop: Cell<bool>,
    /// Signs capabilities for operations that no file handle allows.
    pub key: CapabilityKey,
    /// Longest pause between two operations of a worker, in nanoseconds.
    pub think_max_ns: Cell<u64>,
    /// When each operation on a chunk that has not ended began.
    busy: RefCell<BTreeMap<u64, u64>>,
    known: RefCell<BTreeMap<u32, Known>>,
}

/// Inodes seen lately in a group.
#[derive(Clone, Default)]
struct Known {
    dirs: Vec<Ino>,
    files: Vec<Ino>,
}

fn remember(list: &mut Vec<Ino>, ino: Ino) {
    if !list.contains(&ino) {
        if list.len() >= REMEMBERED {
            list.remove(0);
        }
        list.push(ino);
    }
}

impl Stage {
    /// A stage before setup.
    pub fn new(world: &World, history: Rc<History>, secret: &[u8; 32], think_max_ns: u64) -> Self {
        Self {
            world: world.clone(),
            history,
            setup: RefCell::default(),
            stop: Cell::new(false),
            key: CapabilityKey::new(secret),
            think_max_ns: Cell::new(think_max_ns),
            busy: RefCell::default(),
            known: RefCell::default(),
        }
    }

    /// When the oldest operation on a chunk began that has not ended. Of processes that died it stays.
    pub fn oldest_ns(&self) -> Option<u64> {
        self.busy.borrow().values().copied().min()
    }

    /// Counts an operation as under way until it ends, with an answer or an error.
    async fn watched<T>(
        &self,
        operation: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let key = self.busy.borrow().last_key_value().map_or(0, |(last, _)| last + 1);
        self.busy.borrow_mut().insert(key, self.world.now_ns());
        let result = operation.await;
        self.busy.borrow_mut().remove(&key);
        if result.is_err() {
            self.world.trace().count("operations on chunks that ended with an error", 1);
        }
        result
    }
}

/// Waits a random while; `false` when the run is over.
pub(super) async fn think(rt: &Rt, stage: &Stage, rng: &RefCell<SplitMix64>) -> bool {
    let pause = between(&mut rng.borrow_mut(), 1_000_000, stage.think_max_ns.get());
    rt.sleep(Duration::from_nanos(pause)).await;
    !stage.stop.get()
}

/// Whether a client must start anew, with another id.
pub(super) fn is_over(error: &ClientError) -> bool {
    matches!(error.status, Status::SessionEnded)
}

/// A worker on hot chunks. Ends when the run is over or the client's session is.
pub async fn chunk_worker(client: Client, stage: Rc<Stage>, rng: SplitMix64) {
    let rng = RefCell::new(rng);
    let hot = stage.setup.borrow().hot.clone();
    let mut files: BTreeMap<u32, Arc<OpenFile>> = BTreeMap::new();
    while think(client.rt(), &stage, &rng).await {
        let number = rng.borrow_mut().below(hot.len() as u64) as u32;
        let Some(target) = hot.get(number as usize) else { return };
        let file = match files.get(&number) {
            Some(file) => file.clone(),
            None => {
                let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
                match client.open(target.inode, flags, &MetaOptions::root()).await {
                    Ok(opened) => opened.file,
                    Err(error) if is_over(&error) => return,
                    Err(_) => continue,
                }
            }
        };
        files.insert(number, file.clone());
        let kind = rng.borrow_mut().below(100);
        let result = match kind {
            0..45 => stage.watched(read(&client, &stage, &rng, number, &file)).await,
            45..90 => stage.watched(write(&client, &stage, &rng, number, &file)).await,
            _ => stage.watched(cut(&client, &stage, &rng, number, target)).await,
        };
        match result {
            Err(error) if is_over(&error) => return,
            Err(error)
                if matches!(error.status, Status::BadCapability | Status::Stale | Status::BadHandle) =>
            {
                files.remove(&number);
                let _ = client.close(file.handle()).await;
            }
            _ => {}
        }
    }
}

/// A random run of cells of a hot file, seldom across the border of two chunks.
fn cells(rng: &RefCell<SplitMix64>) -> (u32, u32) {
    let mut rng = rng.borrow_mut();
    let longest = if rng.below(8) == 0 { 40 } else { 6 };
    let count = 1 + rng.below(longest) as u32;
    let chunk = rng.below(u64::from(CHUNKS_PER_FILE)) as u32;
    let first = match rng.below(10) {
        0 => CELLS_PER_CHUNK - 1,
        1..4 => 0,
        _ => rng.below(12) as u32,
    };
    let at = chunk * CELLS_PER_CHUNK + first;
    (at, count.min(CHUNKS_PER_FILE * CELLS_PER_CHUNK - at))
}

/// Reads every chunk under test; the error says which can't be read. What is found becomes part of the history.
pub async fn read_all(client: &Client, stage: &Stage) -> Result<(), String> {
    let hot = stage.setup.borrow().hot.clone();
    for (number, target) in hot.iter().enumerate() {
        let flags = OpenFlags { read: true, ..OpenFlags::default() };
        let opened = client.open(target.inode, flags, &MetaOptions::root()).await;
        let file = opened.map_err(|error| format!("file {number} can't be opened: {error}"))?.file;
        for chunk in 0..CHUNKS_PER_FILE {
            let begin = stage.world.now_ns();
            let at = u64::from(chunk) * u64::from(CHUNK_SIZE);
            let read = client.read(&file, at, u64::from(CHUNK_SIZE)).await;
            let segments = read.map_err(|error| format!("file {number} chunk {chunk}: {error}"))?;
            let bytes: Vec<u8> = segments.iter().flat_map(|s| s.iter().copied()).collect();
            stage.history.read_chunk((number as u32, chunk), begin, 0, &bytes);
        }
        let _ = client.close(file.handle()).await;
    }
    Ok(())
}

/// Splits a run of cells of a file at the borders of chunks: chunk, first cell within it, number.
fn pieces(at: u32, count: u32) -> Vec<(u32, u32, u32)> {
    let mut pieces = Vec::new();
    let (mut at, end) = (at, at + count);
    while at < end {
        let (chunk, first) = (at / CELLS_PER_CHUNK, at % CELLS_PER_CHUNK);
        let cells = (CELLS_PER_CHUNK - first).min(end - at);
        pieces.push((chunk, first, cells));
        at += cells;
    }
    pieces
}

async fn read(
    client: &Client,
    stage: &Stage,
    rng: &RefCell<SplitMix64>,
    number: u32,
    file: &OpenFile,
) -> Result<(), ClientError> {
    let (at, count) = cells(rng);
    let begin = stage.world.now_ns();
    stage.history.asked();
    let segments = client.read(file, u64::from(at) * CELL as u64, u64::from(count) * CELL as u64).await?;
    let bytes: Vec<u8> = segments.iter().flat_map(|s| s.iter().copied()).collect();
    stage.history.answered(&[1, u64::from(number), u64::from(at), digest(&bytes)]);
    if bytes.len() != count as usize * CELL {
        let text = format!("file {number}: {} bytes of {} cells from cell {at} on", bytes.len(), count);
        stage.world.fail("a file keeps its length", &text);
        return Ok(());
    }
    let mut done = 0;
    for (chunk, first, cells) in pieces(at, count) {
        let part = &bytes[done..done + cells as usize * CELL];
        stage.history.read_chunk((number, chunk), begin, first, part);
        done += part.len();
    }
    Ok(())
}

async fn write(
    client: &Client,
    stage: &Stage,
    rng: &RefCell<SplitMix64>,
    number: u32,
    file: &OpenFile,
) -> Result<(), ClientError> {
    let (at, count) = cells(rng);
    let stamp = stage.history.stamp();
    let mut data = Vec::new();
    let mut open = Vec::new();
    for (chunk, first, cells) in pieces(at, count) {
        data.extend(fill(stamp, first, cells));
        let op = ChunkOp::Write { stamp, first, cells };
        open.push(stage.history.begin_chunk((number, chunk), op));
    }
    stage.history.asked();
    let result = client.write(file, u64::from(at) * CELL as u64, SharedBuf::from(&data[..])).await;
    stage.history.answered(&[2, u64::from(number), u64::from(at), u64::from(result.is_ok())]);
    result?;
    open.into_iter().for_each(|op| stage.history.end_chunk(op));
    Ok(())
}

/// Cuts or removes a chunk behind the file's back, as meta does.
async fn cut(
    client: &Client,
    stage: &Stage,
    rng: &RefCell<SplitMix64>,
    number: u32,
    target: &HotFile,
) -> Result<(), ClientError> {
    let chunk = rng.borrow_mut().below(u64::from(CHUNKS_PER_FILE)) as u32;
    let cells = rng.borrow_mut().below(16) as u32;
    let (kind, op) = match rng.borrow_mut().below(5) {
        0 => (UpdateKind::Remove, ChunkOp::Remove),
        1..3 => (UpdateKind::Truncate { length: cells * CELL as u32 }, ChunkOp::Cut { cells }),
        _ => (UpdateKind::Cut { length: cells * CELL as u32 }, ChunkOp::Cut { cells }),
    };
    let view = client.routing().view();
    let chains = view.layout_chains(&target.layout).unwrap_or_default();
    let Some(&chain) = chains.get(chunk as usize % chains.len().max(1)) else { return Ok(()) };
    let rights = Rights::READ.and(Rights::WRITE).and(Rights::REMOVE);
    let expiry = ClusterTime(u64::MAX / 2);
    let capability =
        stage.key.mint(target.inode, target.data, client.shared().id(), rights, expiry, u32::MAX);
    let update = ChunkUpdate {
        chain,
        chunk: ChunkId::new(target.data, chunk),
        kind,
        chunk_size: CHUNK_SIZE,
        payload: SharedBuf::default(),
    };
    let open = stage.history.begin_chunk(place(number, chunk), op);
    stage.history.asked();
    let result = client.update_chunk(&update, capability).await;
    stage.history.answered(&[3, u64::from(number), u64::from(chunk), u64::from(result.is_ok())]);
    result?;
    stage.history.end_chunk(open);
    Ok(())
}

fn place(number: u32, chunk: u32) -> Place {
    (number, chunk)
}

/// A worker on names. Ends when the run is over or the client's session is.
pub async fn name_worker(client: Client, stage: Rc<Stage>, rng: SplitMix64) {
    let rng = RefCell::new(rng);
    let groups = stage.setup.borrow().groups.clone();
    while think(client.rt(), &stage, &rng).await {
        let group = rng.borrow_mut().below(groups.len() as u64) as u32;
        let Some(fixed) = groups.get(group as usize) else { return };
        let Some(ask) = draw(&stage, &rng, group, fixed) else { continue };
        let open = stage.history.begin_name(group, ask.clone());
        stage.history.asked();
        let told = perform(&client, &ask).await;
        stage.history.answered(&[4, u64::from(group), told_word(&told)]);
        match told {
            Ok(told) => {
                learn(&stage, group, &ask, &told);
                stage.history.end_name(open, told);
            }
            Err(error) if is_over(&error) => return,
            Err(error) if error.status.is_retryable() => {}
            Err(error) => {
                stage.world.fail("operations on names end as POSIX says", &format!("{ask:?}: {error}"));
            }
        }
    }
}

fn told_word(told: &Result<Told, ClientError>) -> u64 {
    match told {
        Ok(told) => digest(format!("{told:?}").as_bytes()),
        Err(error) => u64::from(error.status.code()),
    }
}

fn draw(stage: &Stage, rng: &RefCell<SplitMix64>, group: u32, fixed: &[Ino]) -> Option<Ask> {
    let known = stage.known.borrow().get(&group).cloned().unwrap_or_default();
    let mut rng = rng.borrow_mut();
    let dirs: Vec<Ino> = fixed.iter().chain(&known.dirs).copied().collect();
    let dir = |rng: &mut SplitMix64| {
        // Mostly one that is never removed.
        let from = if rng.below(4) == 0 { &dirs[..] } else { fixed };
        from.get(rng.below(from.len() as u64) as usize).copied()
    };
    let (a, b) = (dir(&mut rng)?, dir(&mut rng)?);
    let name = rng.below(NAMES) as Name;
    let other = rng.below(NAMES) as Name;
    let file = known.files.get(rng.below(known.files.len().max(1) as u64) as usize).copied();
    Some(match rng.below(100) {
        0..22 => Ask::Create { dir: a, name, exclusive: rng.below(3) > 0 },
        22..32 => Ask::MakeDirectory { dir: a, name },
        32..40 => Ask::Link { inode: file?, dir: a, name },
        40..55 => Ask::Unlink { dir: a, name },
        55..62 => Ask::RemoveDirectory { dir: a, name },
        62..75 => Ask::Rename { dir: a, name, new_dir: b, new_name: other, no_replace: rng.below(4) == 0 },
        75..85 => Ask::Lookup { dir: a, name },
        85..93 => Ask::List { dir: a },
        _ => Ask::Links { inode: file? },
    })
}

fn learn(stage: &Stage, group: u32, ask: &Ask, told: &Told) {
    let mut known = stage.known.borrow_mut();
    let known = known.entry(group).or_default();
    match (ask, told) {
        (Ask::Create { .. }, Told::Inode(ino)) => remember(&mut known.files, *ino),
        (Ask::MakeDirectory { .. }, Told::Inode(ino)) => remember(&mut known.dirs, *ino),
        _ => {}
    }
}

fn text(name: Name) -> Vec<u8> {
    format!("n{name}").into_bytes()
}

fn number(name: &[u8]) -> Option<Name> {
    std::str::from_utf8(name).ok()?.strip_prefix('n')?.parse().ok()
}

/// Asks the cluster. `Err` is an unknown outcome or an answer that no operation on names may have.
async fn perform(client: &Client, ask: &Ask) -> Result<Told, ClientError> {
    let root = MetaOptions::root();
    let operation = match *ask {
        Ask::Create { dir, name, exclusive } => {
            let flags = OpenFlags { read: true, ..OpenFlags::default() };
            let made = client.create(InodeId(dir), &text(name), 0o644, exclusive, flags, &root).await;
            return match made {
                Ok(opened) => {
                    // Whether it is closed well does not matter here: sessions end by themselves.
                    let _ = client.close(opened.file.handle()).await;
                    Ok(Told::Inode(opened.attributes.inode.0))
                }
                Err(error) => refused(error),
            };
        }
        Ask::MakeDirectory { dir, name } => {
            Operation::MakeDirectory { parent: InodeId(dir), name: text(name), mode: 0o755 }
        }
        Ask::Link { inode, dir, name } => {
            Operation::MakeLink { inode: InodeId(inode), parent: InodeId(dir), name: text(name) }
        }
        Ask::Unlink { dir, name } => Operation::Unlink { parent: InodeId(dir), name: text(name) },
        Ask::RemoveDirectory { dir, name } => {
            Operation::RemoveDirectory { parent: InodeId(dir), name: text(name) }
        }
        Ask::Rename { dir, name, new_dir, new_name, no_replace } => Operation::Rename {
            parent: InodeId(dir),
            name: text(name),
            new_parent: InodeId(new_dir),
            new_name: text(new_name),
            no_replace,
            exchange: false,
        },
        Ask::Lookup { dir, name } => Operation::Lookup { parent: InodeId(dir), name: text(name) },
        Ask::List { dir } => {
            Operation::ReadDirectory { inode: InodeId(dir), after: 0, limit: 100, attributes: false }
        }
        Ask::Links { inode } => Operation::GetAttributes { inode: InodeId(inode) },
    };
    match client.meta(operation, &root).await {
        Ok(answer) => Ok(told(ask, answer)),
        Err(error) => refused(error),
    }
}

fn told(ask: &Ask, answer: Answer) -> Told {
    match (ask, answer) {
        (Ask::Links { .. }, Answer::Entry(attributes)) => Told::Links(attributes.links),
        (_, Answer::Entry(attributes)) => Told::Inode(attributes.inode.0),
        (_, Answer::Entries { entries, .. }) => {
            let entry = |e: ember_wire::meta::DirectoryEntry| number(&e.name).map(|name| (name, e.inode.0));
            Told::Entries(entries.into_iter().filter_map(entry).collect())
        }
        _ => Told::Done,
    }
}

fn refused(error: ClientError) -> Result<Told, ClientError> {
    Ok(Told::Refused(match error.status {
        Status::NotFound => Refusal::NotFound,
        Status::Exists => Refusal::Exists,
        Status::NotEmpty => Refusal::NotEmpty,
        Status::IsDirectory => Refusal::IsDirectory,
        Status::NotDirectory => Refusal::NotDirectory,
        Status::Stale => Refusal::Stale,
        Status::InvalidArgument => Refusal::Loop,
        _ => return Err(error),
    }))
}
