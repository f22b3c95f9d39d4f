//! A whole target's directory, damaged: `Engine::open`, and everything that is then read.
//!
//! Input: edits of 8 bytes each, of the directory that a short history of an engine leaves.
//! ```text
//! 0   which file, in order of names   u8     4   byte in the page      u16
//! 1   what is done: see `Edit`        u8     6   value                 u16
//! 2   which page that isn't zeros     u16
//! ```

use crate::memory::{Memory, Tree};
use crate::reactor::Reactor;
use ember_engine::{Engine, EngineConfig, EngineError, Identity, Prepare, Update, Which, fsck};
use ember_rt::disk::{DiskQueue, Priority};
use ember_types::checksum::crc32c;
use ember_types::{
    ChainVersion, ChannelId, ChunkId, ChunkVersion, ClientId, ClusterId, DataId, Generation, Sequence,
    TargetId, WriterTag, block_checksums,
};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

const DIR: &str = "target";
const IDENTITY: Identity =
    Identity { cluster: ClusterId([1; 16]), target: TargetId(7), generation: Generation(3) };
const PAGE: usize = 4096;
/// Edits of an input that count.
const EDITS_MAX: usize = 64;
const EDIT: usize = 8;

/// A directory, and every content that each of its chunks ever had.
struct Base {
    files: Tree,
    contents: BTreeMap<ChunkId, Vec<Vec<u8>>>,
}

fn config() -> EngineConfig {
    EngineConfig { min_free_bytes: 1 << 20, extents_max: 4, ..EngineConfig::default() }
}

fn chunk(i: u32) -> ChunkId {
    ChunkId::new(DataId(u64::from(1 + i / 3)), i % 3)
}

fn version(number: u64) -> ChunkVersion {
    if number == 0 {
        return ChunkVersion::NONE;
    }
    ChunkVersion { number, chain_version: ChainVersion(1), attempt: 0 }
}

fn bytes(seed: u32, len: usize) -> Vec<u8> {
    (0..len).map(|i| (seed as usize * 31 + i / 7 + i) as u8).collect()
}

fn prepare(id: ChunkId, from: u64, update: Update) -> Prepare {
    let writer =
        WriterTag { client: ClientId([9; 16]), channel: ChannelId(id.index), sequence: Sequence(from + 1) };
    Prepare {
        chunk: id,
        version: version(from + 1),
        base: version(from),
        update,
        writer: Some(writer),
        expect: None,
        priority: Priority::Foreground,
    }
}

fn write(offset: u32, data: &[u8]) -> Update {
    Update::Write { offset, data: data.into(), checksums: block_checksums(data) }
}

/// Updates before and behind a checkpoint: overwrites, appends, truncations, removals, versions that are pending.
async fn history(engine: &Engine, contents: &mut BTreeMap<ChunkId, Vec<Vec<u8>>>) -> Result<(), EngineError> {
    for round in 0..3_u64 {
        for i in 0..9 {
            let id = chunk(i);
            let all = contents.entry(id).or_insert_with(|| vec![Vec::new()]);
            let mut now = all.last().cloned().unwrap_or_default();
            let update = match (round, i) {
                (1, 1) => Update::Remove,
                (1, 2) | (2, 3) => Update::Truncate { length: now.len() as u32 / 2 + 11 },
                _ => {
                    let offset = if round == 0 { 0 } else { (i as usize * 2_500) % (now.len() + 1) };
                    let data = bytes(i + round as u32, 700 * (i as usize + 1));
                    now.resize(now.len().max(offset + data.len()), 0);
                    now[offset..offset + data.len()].copy_from_slice(&data);
                    write(offset as u32, &data)
                }
            };
            match &update {
                Update::Remove => now.clear(),
                Update::Truncate { length } => now.resize(*length as usize, 0),
                _ => {}
            }
            all.push(now);
            engine.prepare(prepare(id, round, update)).await?;
            if round < 2 || i % 2 == 0 {
                engine.commit(id, version(round + 1)).await?;
            }
        }
        engine.set_chain_version(ChainVersion(round + 1)).await?;
        if round == 1 {
            engine.checkpoint().await?;
        }
    }
    engine.flush().await
}

fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let (reactor, disk) = (Rc::new(Reactor::new()), Memory::default());
        let queue = DiskQueue::start(&reactor.rt, Box::new(disk.clone()), 16);
        let rt = reactor.rt.clone();
        let contents = reactor.run(async move {
            let engine = Engine::create(&rt, &queue, DIR, &IDENTITY, config()).await?;
            let mut contents = BTreeMap::new();
            history(&engine, &mut contents).await?;
            Ok::<_, EngineError>(contents)
        });
        let contents = contents.expect("the history of the directory");
        Base { files: disk.files(), contents }
    })
}

/// What is done to a file.
enum Edit {
    Flip,
    Number,
    /// The file ends there.
    Cut,
    Grow,
    Remove,
    /// Another file has its name, and the reverse.
    Swap,
    /// A page of another file lies there.
    Misdirect,
    /// A number, with the checksum of its frame or superblock made right.
    Sealed,
}

impl Edit {
    fn of(byte: u8) -> Self {
        match byte % 10 {
            0 => Self::Flip,
            1 => Self::Number,
            2 => Self::Cut,
            3 => Self::Grow,
            4 => Self::Remove,
            5 => Self::Swap,
            6 => Self::Misdirect,
            _ => Self::Sealed,
        }
    }
}

/// Where the pages of a file begin that aren't zeros.
fn page_at(bytes: &[u8], which: usize) -> usize {
    let full: Vec<usize> = bytes
        .chunks(PAGE)
        .enumerate()
        .filter(|(_, page)| page.iter().any(|byte| *byte != 0))
        .map(|(at, _)| at * PAGE)
        .collect();
    full.get(which % full.len().max(1)).copied().unwrap_or(0)
}

/// Makes the checksum of the frame or superblock right that begins at a page.
fn seal(bytes: &mut [u8], page: usize) {
    let Some(whole) = bytes.get_mut(page..) else { return };
    if whole.starts_with(b"EMBERTGT") && whole.len() >= PAGE {
        whole[12..16].fill(0);
        let sum = crc32c(&whole[..PAGE]).to_le_bytes();
        whole[12..16].copy_from_slice(&sum);
    } else if whole.starts_with(b"EFRM") && whole.len() >= PAGE {
        let said = whole[8..12].iter().rev().fold(0, |all, &byte| all << 8 | usize::from(byte));
        let end = said.saturating_add(48).next_multiple_of(PAGE);
        if let Some(frame) = whole.get(8..end) {
            let sum = crc32c(frame).to_le_bytes();
            whole[4..8].copy_from_slice(&sum);
        }
    }
}

/// Edits the files; whether checksums were forged.
fn edited(files: &mut Tree, input: &[u8]) -> bool {
    let mut forged = false;
    for edit in input.chunks_exact(EDIT).take(EDITS_MAX) {
        let number = |at: usize| usize::from(u16::from_le_bytes([edit[at], edit[at + 1]]));
        let name = |which: usize| files.keys().nth(which % files.len().max(1)).cloned();
        let (Some(own), Some(other)) = (name(usize::from(edit[0])), name(number(6))) else { return forged };
        let bytes = files.get(&own).cloned().unwrap_or_default();
        let page = page_at(&bytes, number(2));
        let at = page + number(4) % PAGE;
        let mut bytes = bytes;
        match Edit::of(edit[1]) {
            Edit::Flip if at < bytes.len() => Arc::make_mut(&mut bytes)[at] ^= 1 << (edit[6] % 8),
            Edit::Number if at + 2 <= bytes.len() => {
                Arc::make_mut(&mut bytes)[at..at + 2].copy_from_slice(&edit[6..8]);
            }
            Edit::Cut => Arc::make_mut(&mut bytes).truncate(at),
            Edit::Grow => {
                let length = bytes.len() + number(6);
                Arc::make_mut(&mut bytes).resize(length, 0);
            }
            Edit::Remove => {
                files.remove(&own);
                continue;
            }
            Edit::Swap => {
                let theirs = files.get(&other).cloned().unwrap_or_default();
                files.insert(other, bytes);
                bytes = theirs;
            }
            Edit::Misdirect => {
                let theirs = files.get(&other).cloned().unwrap_or_default();
                let from = page_at(&theirs, number(4));
                let part = theirs.get(from..from + PAGE).unwrap_or_default();
                let end = page + part.len();
                if end <= bytes.len() {
                    Arc::make_mut(&mut bytes)[page..end].copy_from_slice(part);
                }
            }
            Edit::Sealed if at + 2 <= bytes.len() => {
                forged = true;
                let bytes = Arc::make_mut(&mut bytes);
                bytes[at..at + 2].copy_from_slice(&edit[6..8]);
                seal(bytes, page);
            }
            _ => {}
        }
        files.insert(own, bytes);
    }
    forged
}

/// Whether an error may be what comes of damage. It names a file of the target.
fn is_told(error: &EngineError) -> bool {
    match error {
        EngineError::Corrupt { file, .. }
        | EngineError::Refused { file, .. }
        | EngineError::Io { file, .. } => file.starts_with(DIR),
        EngineError::NotFound(_) | EngineError::Lost(_) => true,
        _ => false,
    }
}

/// Reads all that is there. What is read was once written, unless checksums were forged.
async fn read_all(engine: &Engine, base: &Base, forged: bool) {
    for (id, state) in engine.list(None, usize::MAX) {
        for which in [Which::Committed, Which::Newest] {
            match engine.read(id, which, 0, u32::MAX, Priority::Foreground).await {
                Ok(read) => {
                    let known =
                        base.contents.get(&id).is_some_and(|all| all.iter().any(|c| **c == *read.data));
                    assert!(known || forged, "{id}: bytes that nobody wrote; {state:?}");
                }
                Err(error) => assert!(is_told(&error), "{id}: {error}"),
            }
        }
    }
}

/// A damaged directory is opened, or refused by an error that names a file; what is read of it is right or an
/// error; and what opens goes on working.
pub(crate) fn directory(input: &[u8]) {
    let base = base();
    let mut files = base.files.clone();
    let forged = edited(&mut files, input);
    let (reactor, disk) = (Reactor::new(), Memory::new(files));
    let queue = || DiskQueue::start(&reactor.rt, Box::new(disk.clone()), 16);
    let (rt, own) = (reactor.rt.clone(), queue());
    let checked = reactor.run(async move { fsck(&own, DIR).await });
    assert!(checked.as_ref().err().is_none_or(is_told), "{checked:?}");
    let own = queue();
    let expected = (IDENTITY.cluster, IDENTITY.target);
    reactor.run(async move {
        let engine = match Engine::open(&rt, &own, DIR, expected, config()).await {
            Ok((engine, _)) => engine,
            Err(error) => return assert!(is_told(&error), "{error}"),
        };
        read_all(&engine, base, forged).await;
        let id = ChunkId::new(DataId(1_000), 0);
        let from = engine.state(id).map_or(0, |state| state.committed_version().number);
        if from > 0 || engine.prepare(prepare(id, 0, write(0, b"new"))).await.is_err() {
            assert!(forged, "a target that opens takes updates");
            return;
        }
        engine.commit(id, version(1)).await.expect("a commit of what is pending");
        let closed = engine.close().await;
        assert!(closed.is_ok() || forged, "{closed:?}");
        drop(engine);
        match Engine::open(&rt, &own, DIR, expected, config()).await {
            Ok((again, recovery)) => {
                assert_eq!(again.state(id).map(|state| state.committed_version()), Some(version(1)));
                assert!(recovery.healed.is_empty() || forged, "{:?}", recovery.healed);
                read_all(&again, base, true).await;
            }
            Err(error) => assert!(forged && is_told(&error), "{error}"),
        }
    });
}

/// Inputs: nothing, and one edit of each kind on each kind of file.
pub(crate) fn samples() -> Vec<Vec<u8>> {
    let mut samples = vec![Vec::new()];
    for kind in 0..8 {
        let mut input = Vec::new();
        for file in 0..3_u8 {
            input.extend([
                file.wrapping_mul(4).wrapping_add(kind),
                kind,
                file,
                0,
                40 + 8 * kind,
                0,
                1 + kind,
                0,
            ]);
        }
        samples.push(input);
    }
    samples.extend((0..12_u8).map(|file| vec![file, 9, 1, 0, 60 + file, 0, 0xff, 0xff]));
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_opens_undamaged_and_holds_its_history() {
        let base = base();
        assert!(base.files.len() >= 8, "{:?}", base.files.keys());
        assert!(base.contents.len() == 9 && base.contents.values().all(|all| all.len() == 4));
        directory(b"");
    }

    /// The target sees what it is there for: bytes that nobody wrote.
    #[test]
    #[should_panic(expected = "bytes that nobody wrote")]
    fn other_bytes_are_noticed() {
        let none = Base { files: base().files.clone(), contents: BTreeMap::new() };
        let (reactor, disk) = (Reactor::new(), Memory::new(none.files.clone()));
        let queue = DiskQueue::start(&reactor.rt, Box::new(disk), 16);
        let rt = reactor.rt.clone();
        reactor.run(async move {
            let expected = (IDENTITY.cluster, IDENTITY.target);
            let (engine, _) = Engine::open(&rt, &queue, DIR, expected, config()).await.expect("it opens");
            read_all(&engine, &none, false).await;
        });
    }
}
