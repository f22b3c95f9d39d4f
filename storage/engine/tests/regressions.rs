//! Races of 3FS's chunk engine that left two chunks in one position, each by the number of its report. Here many
//! orders of completions of the same operations, side by side; afterwards everything free is written over, and
//! every chunk must still hold its own bytes, also after a loss of power.
#![allow(missing_docs)]

mod support;

use ember_engine::{Engine, EngineError, Prepare, Update, Which, fsck};
use ember_rt::LocalBoxFuture;
use ember_rt::select::join_all;
use ember_types::layout::SplitMix64;
use ember_types::{ChunkId, ChunkVersion, block_checksums};
use std::cell::Cell;
use std::collections::BTreeMap;
use support::disk::DiskState;
use support::{DIR, FOREGROUND, World, chunk, config, version};

/// Orders of completions of each race.
const SEEDS: u64 = 5;
const BLOCK: usize = 4096;

type Running<'a> = LocalBoxFuture<'a, ()>;

struct Target {
    world: World,
    engine: Engine,
    random: SplitMix64,
    /// What each live chunk must hold.
    expected: BTreeMap<ChunkId, Vec<u8>>,
    fillers: u64,
}

fn attempt(number: u64, attempt: u32) -> ChunkVersion {
    ChunkVersion { attempt, ..version(number) }
}

fn write(offset: usize, data: &[u8]) -> Update {
    Update::Write { offset: offset as u32, data: data.into(), checksums: block_checksums(data) }
}

async fn prepare(
    engine: &Engine,
    chunk: ChunkId,
    base: ChunkVersion,
    version: ChunkVersion,
    update: Update,
) -> Result<(), EngineError> {
    let (writer, expect, priority) = (None, None, FOREGROUND);
    engine.prepare(Prepare { chunk, version, base, update, writer, expect, priority }).await.map(|_| ())
}

/// The whole of an update.
async fn put(engine: &Engine, chunk: ChunkId, from: u64, update: Update) {
    prepare(engine, chunk, version(from), version(from + 1), update).await.unwrap();
    engine.commit(chunk, version(from + 1)).await.unwrap();
}

impl Target {
    fn new(seed: u64) -> Self {
        let world = World::new(DiskState::new(seed));
        let engine = world.must(world.create(config())).unwrap();
        Self { world, engine, random: SplitMix64(seed), expected: BTreeMap::new(), fillers: 1_000 }
    }
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let random = &mut self.random;
        (0..len).map(|_| random.next() as u8).collect()
    }
    /// A chunk at version 1.
    fn chunk(&mut self, id: ChunkId, len: usize) {
        let data = self.bytes(len);
        self.world.must(put(&self.engine, id, 0, write(0, &data)));
        self.expected.insert(id, data);
    }
    /// Cuts a chunk into pieces by overwriting single blocks of it; its version then.
    fn in_pieces(&mut self, id: ChunkId, pieces: u64) -> u64 {
        for piece in 0..pieces {
            let (at, data) = ((2 * piece as usize + 1) * BLOCK, self.bytes(BLOCK));
            self.world.must(put(&self.engine, id, piece + 1, write(at, &data)));
            self.expected.get_mut(&id).unwrap()[at..at + BLOCK].copy_from_slice(&data);
        }
        pieces + 1
    }
    /// Writes chunks over everything that is free.
    fn fill(&mut self) {
        for (blocks, count) in [(1, 8), (2, 5), (4, 4), (8, 3), (16, 2), (64, 2)] {
            for _ in 0..count {
                self.fillers += 1;
                self.chunk(chunk(self.fillers), blocks * BLOCK);
            }
        }
    }
    fn holds(&self, when: &str) {
        for (&id, data) in &self.expected {
            let read = self.world.must(self.engine.read(id, Which::Newest, 0, u32::MAX, FOREGROUND));
            let read = read.unwrap_or_else(|error| panic!("{when}: {id}: {error}"));
            assert!(*read.data == data[..], "{when}: {id} holds another's bytes");
        }
    }
    /// Nobody holds a position of another: not now, not when free ones are used again, not after a loss of power.
    fn no_position_is_shared(mut self) {
        self.holds("at once");
        self.fill();
        self.holds("with everything free written over");
        self.world.must(self.engine.flush()).unwrap();
        let Self { world, engine, expected, random, fillers } = self;
        drop(engine);
        let world = world.crash();
        let (engine, _) = world.must(world.open(config())).unwrap();
        let mut target = Self { world, engine, random, expected, fillers };
        target.holds("after a loss of power");
        target.fill();
        target.holds("with everything free written over once more");
        target.world.must(target.engine.close()).unwrap();
        let Self { world, engine, .. } = target;
        drop(engine);
        let world = world.kill();
        let report = world.must(fsck(&world.queue(), DIR)).unwrap();
        assert!(report.is_clean(), "{report:?}");
    }
}

/// Gives all free positions back to the file system, over and over: none of them may be taken meanwhile.
async fn trim(engine: &Engine) {
    for _ in 0..6 {
        engine.trim(1_000).await.unwrap();
    }
}

/// Reads a chunk over and over; whatever version is there, it is whole.
async fn reads(engine: &Engine, id: ChunkId) {
    for _ in 0..6 {
        match engine.read(id, Which::Newest, 0, u32::MAX, FOREGROUND).await {
            Ok(_) | Err(EngineError::NotFound(_)) => {}
            Err(error) => panic!("{id}: {error}"),
        }
    }
}

/// A chunk was removed while compaction rewrote it: its position was given back twice.
#[test]
fn regression_3fs_322_remove_and_compaction_do_not_share_a_position() {
    for seed in 0..SEEDS {
        let mut target = Target::new(seed);
        let id = chunk(1);
        target.chunk(id, 64 * BLOCK);
        // The next update rewrites it whole, since it is in too many pieces.
        let at = target.in_pieces(id, 7);
        let (data, new) = (target.bytes(100), target.bytes(5 * BLOCK));
        let engine = &target.engine;
        let wins = Cell::new(0);
        let (wins_now, base) = (&wins, version(at));
        let change = |to: ChunkVersion, update: Update| async move {
            if prepare(engine, id, base, to, update).await.is_ok() {
                engine.commit(id, to).await.unwrap();
                wins_now.set(wins_now.get() + 1);
            }
        };
        let (compacted, removed) = (attempt(at + 1, 1), attempt(at + 1, 2));
        let first = seed % 2 == 0;
        let mut race: Vec<Running<'_>> = vec![
            Box::pin(change(compacted, write(40 * BLOCK, &data))),
            Box::pin(change(removed, Update::Remove)),
            Box::pin(trim(engine)),
            Box::pin(reads(engine, id)),
            Box::pin(put(engine, chunk(2), 0, write(0, &new))),
        ];
        if first {
            race.swap(0, 1);
        }
        target.world.must(join_all(race));
        assert_eq!(wins.get(), 1, "two updates of one version");
        let now = engine.state(id).unwrap().committed_version();
        if now == compacted {
            let to = version(at + 2);
            let removal = async {
                prepare(engine, id, now, to, Update::Remove).await.unwrap();
                engine.commit(id, to).await.unwrap();
            };
            let race: Vec<Running<'_>> = vec![Box::pin(removal), Box::pin(trim(engine))];
            target.world.must(join_all(race));
        }
        target.expected.remove(&id);
        target.expected.insert(chunk(2), new);
        target.no_position_is_shared();
    }
}

/// A chunk moved to a position of another size while its old one was given to another chunk.
#[test]
fn regression_3fs_325_a_chunk_that_moves_shares_no_position() {
    for seed in 0..SEEDS {
        let mut target = Target::new(seed);
        let ids = [chunk(1), chunk(2), chunk(3)];
        let sizes = [1, 3, 8, 9, 40].map(|blocks| blocks * BLOCK - 77);
        let grown = ids.map(|_| target.bytes(sizes[4]));
        let engine = &target.engine;
        let grow = |id: ChunkId, data: &[u8]| {
            let data = data.to_vec();
            async move {
                let mut from = 0;
                for (version, end) in (0..).zip(sizes) {
                    put(engine, id, version, write(from, &data[from..end])).await;
                    from = end;
                }
            }
        };
        let mut race: Vec<Running<'_>> = Vec::new();
        for (id, data) in ids.into_iter().zip(&grown) {
            race.push(Box::pin(grow(id, data)));
            race.push(Box::pin(reads(engine, id)));
        }
        race.push(Box::pin(trim(engine)));
        target.world.must(join_all(race));
        target.expected.extend(ids.into_iter().zip(grown));
        target.no_position_is_shared();
    }
}

/// Chunks were removed in a batch, and positions of theirs were taken by new ones twice.
#[test]
fn regression_3fs_326_a_batch_of_removals_shares_no_position() {
    for seed in 0..SEEDS {
        let mut target = Target::new(seed);
        for i in 0..16 {
            target.chunk(chunk(i), (1 + i as usize % 5) * BLOCK);
        }
        let kept = target.expected.split_off(&chunk(12));
        let new: Vec<Vec<u8>> = (0..12).map(|i| target.bytes((1 + i % 5) * BLOCK)).collect();
        let engine = &target.engine;
        let mut race: Vec<Running<'_>> = Vec::new();
        for (i, data) in (0..12).zip(&new) {
            // Each twice, as when the client asks again; the later one finds it gone.
            race.push(Box::pin(put(engine, chunk(i), 1, Update::Remove)));
            race.push(Box::pin(put(engine, chunk(i), 1, Update::Remove)));
            race.push(Box::pin(put(engine, chunk(100 + i), 0, write(0, data))));
        }
        race.push(Box::pin(trim(engine)));
        target.world.must(join_all(race));
        target.expected = kept;
        target.expected.extend((100..).map(chunk).zip(new));
        target.no_position_is_shared();
    }
}

/// A commit gave the old position back while another commit of the chunk, or its next update, was under way.
#[test]
fn regression_3fs_329_commits_share_no_position() {
    for seed in 0..SEEDS {
        let mut target = Target::new(seed);
        let ids: Vec<ChunkId> = (0..6).map(chunk).collect();
        let mut updates = Vec::new();
        for (i, &id) in ids.iter().enumerate() {
            target.chunk(id, 20 * BLOCK);
            // Part of the old position stays in use; of the last two, nothing.
            let (at, len) = if i < 4 { (3 * BLOCK, 2 * BLOCK) } else { (0, 20 * BLOCK) };
            updates.push((id, at, target.bytes(len), target.bytes(len)));
        }
        let engine = &target.engine;
        let mut race: Vec<Running<'_>> = Vec::new();
        for (id, at, second, third) in &updates {
            let id = *id;
            let update = async move {
                prepare(engine, id, version(1), version(2), write(*at, second)).await.unwrap();
                let commit = || Box::pin(async move { engine.commit(id, version(2)).await.unwrap() });
                let next = async move {
                    while prepare(engine, id, version(2), version(3), write(*at, third)).await.is_err() {}
                    // A repeat of the commit before comes late.
                    engine.commit(id, version(2)).await.unwrap();
                    engine.commit(id, version(3)).await.unwrap();
                };
                let all: Vec<Running<'_>> = vec![commit(), Box::pin(next), commit(), commit()];
                join_all(all).await;
            };
            race.push(Box::pin(update));
            race.push(Box::pin(reads(engine, id)));
        }
        race.push(Box::pin(trim(engine)));
        target.world.must(join_all(race));
        for (id, at, _, third) in updates {
            target.expected.get_mut(&id).unwrap()[at..at + third.len()].copy_from_slice(&third);
        }
        target.no_position_is_shared();
    }
}
