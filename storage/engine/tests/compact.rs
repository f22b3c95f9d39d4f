//! Compaction: chunks in many pieces are written anew in few, and nobody notices.
#![allow(missing_docs)]

mod support;

use ember_engine::{ChunkState, Counters, Engine, EngineConfig, EngineError, Prepare, Update, Which};
use ember_rt::disk::Priority;
use ember_rt::select::join;
use ember_types::layout::SplitMix64;
use ember_types::{ChannelId, ChunkVersion, ClientId, Sequence, WriterTag, block_checksums};
use support::disk::DiskState;
use support::{FOREGROUND, World, chunk, config, version};

const MIB: usize = 1 << 20;
/// The chunk of all tests: its second MiB is short.
const LENGTH: usize = MIB + 300_001;
const TAG: WriterTag = WriterTag { client: ClientId([9; 16]), channel: ChannelId(2), sequence: Sequence(5) };

fn settings() -> EngineConfig {
    EngineConfig { extents_max: 192, compact_pieces: 8, ..config() }
}

/// A chunk that was overwritten at random, and what it must hold.
struct Target {
    world: World,
    engine: Engine,
    bytes: Vec<u8>,
    version: ChunkVersion,
}

impl Target {
    fn new(seed: u64) -> Self {
        let world = World::new(DiskState::new(seed));
        let engine = world.must(world.create(settings())).unwrap();
        let mut target = Self { world, engine, bytes: Vec::new(), version: version(0) };
        let mut random = SplitMix64(seed);
        target.put(0, (0..LENGTH).map(|i| (i / 5000) as u8 ^ i as u8).collect());
        for _ in 0..120 {
            let block = random.below(LENGTH as u64 / 4096) as usize;
            target.put(block * 4096, vec![random.next() as u8; 4096]);
        }
        target.flush();
        target
    }
    fn prepare(&self, offset: usize, data: &[u8], attempt: u32) -> ChunkVersion {
        let to = ChunkVersion { attempt, ..version(self.version.number + 1) };
        let update =
            Update::Write { offset: offset as u32, data: data.into(), checksums: block_checksums(data) };
        let request = Prepare {
            chunk: chunk(1),
            version: to,
            base: self.version,
            update,
            writer: Some(TAG),
            expect: None,
            priority: FOREGROUND,
        };
        self.world.must(self.engine.prepare(request)).unwrap();
        to
    }
    fn commit(&mut self, offset: usize, data: &[u8], to: ChunkVersion) {
        self.world.must(self.engine.commit(chunk(1), to)).unwrap();
        self.version = to;
        self.bytes.resize(self.bytes.len().max(offset + data.len()), 0);
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
    }
    fn put(&mut self, offset: usize, data: Vec<u8>) {
        let to = self.prepare(offset, &data, 8);
        self.commit(offset, &data, to);
    }
    fn flush(&self) {
        self.world.must(self.engine.flush()).unwrap();
    }
    fn compact(&self) -> Result<u64, EngineError> {
        self.world.must(self.engine.compact(chunk(1)))
    }
    fn state(&self) -> ChunkState {
        self.engine.state(chunk(1)).unwrap()
    }
    fn read(&self) -> Vec<u8> {
        self.world.must(self.engine.verify(chunk(1), Priority::Scrub)).unwrap();
        let read = self.engine.read(chunk(1), Which::Committed, 0, u32::MAX, FOREGROUND);
        self.world.must(read).unwrap().data.to_vec()
    }
    /// Most reads at once that reading the first MiB takes.
    fn reads(&self) -> usize {
        self.world.disk.borrow_mut().reads_at_once = 0;
        let read = self.engine.read(chunk(1), Which::Committed, 0, MIB as u32, FOREGROUND);
        self.world.must(read).unwrap();
        self.world.disk.borrow().reads_at_once
    }
    fn used(&self) -> u64 {
        self.engine.space().unwrap().used
    }
    fn counters(&self) -> Counters {
        self.engine.counters()
    }
    fn crash(self) -> Self {
        drop(self.engine);
        let world = self.world.crash();
        let (engine, _) = world.must(world.open(settings())).unwrap();
        Self { world, engine, ..self }
    }
}

#[test]
fn a_scattered_chunk_reads_in_few_pieces_and_stays_what_it_is() {
    for seed in 0..4 {
        let mut target = Target::new(seed);
        let aborted = target.prepare(0, b"gone", 7);
        target.world.must(target.engine.abort(chunk(1), aborted)).unwrap();
        let (before, used) = (target.state(), target.used());
        assert_eq!((before.aborted, before.writers.len()), (aborted, 1));
        assert!(target.reads() > 8, "the chunk is in few pieces");
        let length = LENGTH.next_multiple_of(4096);
        assert_eq!(target.compact().unwrap(), length as u64);
        assert_eq!((target.counters().compacted_bytes, target.reads()), (length as u64, 1));
        // A slot of each MiB is left.
        assert!(target.used() < used && target.used() == (MIB + MIB / 2) as u64, "{}", target.used());
        assert_eq!(target.compact().unwrap(), 0);
        for crashed in [false, true] {
            assert_eq!((target.state(), target.used()), (before.clone(), (MIB + MIB / 2) as u64));
            assert!(target.read() == target.bytes);
            if !crashed {
                target = target.crash();
            }
        }
        // It can be changed as before.
        target.put(LENGTH, vec![3; 9000]);
        target.put(5000, vec![4; 5000]);
        target.flush();
        target.world.must(target.engine.trim(10_000)).unwrap();
        target = target.crash();
        assert!(target.read() == target.bytes);
    }
}

#[test]
fn readers_and_updates_go_on_beside_a_compaction() {
    for seed in 0..10 {
        let mut target = Target::new(seed);
        let to = ChunkVersion { attempt: 1, ..version(target.version.number + 1) };
        let data = vec![seed as u8; 8192];
        let update = Update::Write {
            offset: LENGTH as u32,
            data: data.as_slice().into(),
            checksums: block_checksums(&data),
        };
        let (chunk, base, writer, expect) = (chunk(1), target.version, Some(TAG), None);
        let request = Prepare { chunk, version: to, base, update, writer, expect, priority: FOREGROUND };
        let read = target.engine.read(chunk, Which::Committed, 0, u32::MAX, FOREGROUND);
        let update = target.engine.prepare(request);
        let all = join(join(target.engine.compact(chunk), update), read);
        let ((compacted, prepared), read) = target.world.must(all);
        assert!(compacted.unwrap() > 0 && prepared.is_ok() && read.unwrap().data[..] == target.bytes);
        target.commit(LENGTH, &data, to);
        target.flush();
        assert!(target.read() == target.bytes);
        target = target.crash();
        assert!(target.read() == target.bytes);
    }
}

#[test]
fn r04_a_pending_version_puts_compaction_off() {
    let mut target = Target::new(1);
    let to = target.prepare(4096, &[8; 4096], 0);
    assert_eq!(target.compact().unwrap(), 0);
    assert_eq!(target.state().pending.map(|pending| pending.version), Some(to));
    target.commit(4096, &[8; 4096], to);
    assert!(target.compact().unwrap() > 0);
    assert!(target.read() == target.bytes);
}

#[test]
fn without_space_or_anything_to_do_nothing_changes() {
    let target = Target::new(2);
    let before = (target.state(), target.used());
    let total = target.world.disk.borrow().total;
    // As much as is set aside, and a little more, is left.
    let held = target.engine.reserve(64 << 20).unwrap();
    let available = target.engine.space().unwrap().available;
    target.world.disk.borrow_mut().total = total - available + MIB as u64;
    assert!(matches!(target.compact(), Err(EngineError::NoSpace { .. })));
    assert_eq!((target.state(), target.used()), before);
    drop(held);
    assert!(target.read() == target.bytes);
    assert!(target.compact().unwrap() > 0);
    for unknown in [2, 3] {
        assert_eq!(target.world.must(target.engine.compact(chunk(unknown))).unwrap(), 0);
    }
}

#[test]
fn rot_is_not_laundered_and_holes_stay() {
    let mut target = Target::new(3);
    target.put(5 * MIB, vec![1; 4096]);
    let used = target.used();
    assert!(target.compact().unwrap() < 2 * MIB as u64);
    assert!(target.used() < used && target.read() == target.bytes);
    let target = Target::new(4);
    target.world.settle();
    target.world.disk.borrow_mut().edit("targets/7/data-4k", |bytes| bytes.iter_mut().for_each(|b| *b ^= 1));
    let before = target.state();
    assert!(matches!(target.compact(), Err(EngineError::Corrupt { .. })));
    assert_eq!((target.state(), target.counters().compacted_bytes), (before, 0));
}
