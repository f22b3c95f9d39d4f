//! Checksum pages: read beside the data, never trusted when they are damaged, old or somebody else's, and found
//! again.
#![allow(missing_docs)]

mod support;

use ember_engine::{Counters, Engine, EngineConfig, EngineError, Prepare, Update, Which, fsck};
use ember_rt::disk::Priority;
use ember_types::{ChunkId, block_checksums};
use support::disk::DiskState;
use support::{DIR, FOREGROUND, World, chunk, config, version};

const DATA: &str = "targets/7/data-64k";
const SUMS: &str = "targets/7/sums-64k";
const PAGE: usize = 4096;
const LENGTH: usize = 60_000;

struct Target {
    world: World,
    engine: Engine,
}

fn bytes(id: ChunkId, number: u64) -> Vec<u8> {
    (0..LENGTH).map(|i| (i as u64 * 7 + id.data.0 * 5 + u64::from(id.index) + number) as u8).collect()
}

impl Target {
    /// Four chunks of one version, on pages.
    fn new(cached: bool) -> Self {
        let world = World::new(DiskState::new(1));
        let engine = world.must(world.create(settings(cached))).unwrap();
        let target = Self { world, engine };
        (0..4).for_each(|i| target.put(chunk(i), 1));
        target.checkpoint();
        target
    }
    /// The chunk becomes what it is in a version.
    fn put(&self, id: ChunkId, number: u64) {
        let data = bytes(id, number);
        let (checksums, data) = (block_checksums(&data), data.as_slice().into());
        let base = version(number - 1);
        let update = Update::Write { offset: 0, data, checksums };
        let to = version(number);
        let request = Prepare {
            chunk: id,
            version: to,
            base,
            update,
            writer: None,
            expect: None,
            priority: FOREGROUND,
        };
        self.world.must(self.engine.prepare(request)).unwrap();
        self.world.must(self.engine.commit(id, to)).unwrap();
    }
    fn checkpoint(&self) {
        self.world.must(self.engine.flush()).unwrap();
        self.world.must(self.engine.checkpoint()).unwrap();
    }
    fn read(&self, id: ChunkId) -> Result<Vec<u8>, EngineError> {
        let read = self.engine.read(id, Which::Committed, 0, u32::MAX, FOREGROUND);
        self.world.must(read).map(|read| read.data.to_vec())
    }
    fn counters(&self) -> Counters {
        self.engine.counters()
    }
    fn edit(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        self.world.settle();
        self.world.disk.borrow_mut().edit(name, edit);
    }
    fn bytes_of(&self, name: &str) -> Vec<u8> {
        let mut found = Vec::new();
        self.edit(name, |bytes| found = bytes.clone());
        found
    }
    fn reopen(self, cached: bool) -> Self {
        drop(self.engine);
        self.world.settle();
        let world = World::new(self.world.disk.borrow_mut().snapshot());
        let (engine, _) = world.must(world.open(settings(cached))).unwrap();
        Self { world, engine }
    }
}

fn settings(cached: bool) -> EngineConfig {
    EngineConfig { checksum_cache_bytes: if cached { 1 << 20 } else { 0 }, ..config() }
}

#[test]
fn a_cold_read_asks_for_data_and_checksums_at_once() {
    let target = Target::new(true).reopen(true);
    target.world.disk.borrow_mut().reads_at_once = 0;
    let read = |offset| {
        let read = target.engine.read(chunk(1), Which::Committed, offset, 100, FOREGROUND);
        target.world.must(read).unwrap()
    };
    let before = target.counters();
    assert_eq!(read(8192).data[..100], bytes(chunk(1), 1)[8192..8292]);
    assert_eq!(target.world.disk.borrow().reads_at_once, 2);
    assert_eq!(target.counters().sum_pages_read - before.sum_pages_read, 1);
    // From then on the page is in memory.
    read(0);
    assert_eq!(target.read(chunk(2)).unwrap(), bytes(chunk(2), 1));
    assert_eq!(target.counters().sum_pages_read - before.sum_pages_read, 1);
}

#[test]
fn a_damaged_page_is_found_again_from_whole_chunks_and_written_anew() {
    let target = Target::new(false);
    target.edit(SUMS, |all| all[PAGE + 300] ^= 1);
    let report = {
        let world = World::new(target.world.disk.borrow_mut().snapshot());
        world.must(fsck(&world.queue(), DIR)).unwrap()
    };
    assert!(report.problems.iter().all(|p| (p.file.as_str(), p.offset) == (SUMS, PAGE as u64)));
    assert_eq!(report.problems.len(), 4, "one for each chunk: {:?}", report.problems);
    assert_eq!(target.read(chunk(1)).unwrap(), bytes(chunk(1), 1));
    let found = target.counters();
    assert!(found.corrupt_sum_pages > 0 && found.sums_found == 15, "{found:?}");
    // What was found is known from then on.
    assert_eq!(target.read(chunk(1)).unwrap(), bytes(chunk(1), 1));
    assert_eq!(target.counters().sums_found, 15);
    target.checkpoint();
    let target = target.reopen(false);
    assert_eq!(target.read(chunk(1)).unwrap(), bytes(chunk(1), 1));
    assert_eq!(target.counters().sums_found, 0);
    // The page was written anew without the others' checksums; they are found from their chunks.
    assert_eq!(target.read(chunk(2)).unwrap(), bytes(chunk(2), 1));
    assert_eq!(target.counters().sums_found, 15);
}

#[test]
fn checksums_that_are_lost_never_excuse_damaged_data() {
    let target = Target::new(false);
    target.edit(SUMS, |all| all[PAGE + 300] ^= 1);
    target.edit(DATA, |all| all[5000] ^= 1);
    match target.read(chunk(0)) {
        Err(EngineError::Corrupt { file, offset, .. }) => {
            assert_eq!((file.as_str(), offset), (SUMS, PAGE as u64));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(target.read(chunk(1)).unwrap(), bytes(chunk(1), 1));
    // A small overwrite merges what it can't verify: refused. One of the whole chunk heals it.
    let small = Update::Write { offset: 5, data: b"x".as_slice().into(), checksums: block_checksums(b"x") };
    let (base, to) = (version(1), version(2));
    let request = Prepare {
        chunk: chunk(0),
        version: to,
        base,
        update: small,
        writer: None,
        expect: None,
        priority: FOREGROUND,
    };
    let refused = target.world.must(target.engine.prepare(request));
    assert!(matches!(refused, Err(EngineError::Corrupt { .. })), "{refused:?}");
    target.put(chunk(0), 2);
    for _ in 0..2 {
        target.checkpoint();
        assert_eq!(target.read(chunk(0)).unwrap(), bytes(chunk(0), 2));
        assert_eq!(target.read(chunk(3)).unwrap(), bytes(chunk(3), 1));
    }
}

/// A write that the device said it made and didn't, and one that went elsewhere.
#[test]
fn an_old_page_and_another_one_are_noticed() {
    let target = Target::new(false);
    let first = target.bytes_of(SUMS);
    target.put(chunk(0), 2);
    target.checkpoint();
    target.put(chunk(0), 3);
    target.checkpoint();
    let newest = target.bytes_of(SUMS);
    assert_ne!(first[PAGE..2 * PAGE], newest[PAGE..2 * PAGE], "the third one is where the first one was");
    target.edit(SUMS, |all| all[PAGE..2 * PAGE].copy_from_slice(&first[PAGE..2 * PAGE]));
    assert_eq!(target.read(chunk(0)).unwrap(), bytes(chunk(0), 3));
    let after = target.counters();
    assert!(after.corrupt_sum_pages > 0 && after.sums_found > 0 && after.corrupt_blocks == 0, "{after:?}");
    target.edit(SUMS, |all| {
        all[PAGE..2 * PAGE].copy_from_slice(&newest[..PAGE]);
        all[..PAGE].copy_from_slice(&newest[PAGE..2 * PAGE]);
    });
    let target = target.reopen(false);
    assert_eq!(target.read(chunk(3)).unwrap(), bytes(chunk(3), 1));
}

/// The place that is being written may be torn by a loss of power: the other one stays.
#[test]
fn the_page_that_a_checkpoint_names_is_never_written_over() {
    let target = Target::new(false);
    let mut last = target.bytes_of(SUMS);
    for number in 2..6 {
        target.put(chunk(0), number);
        target.checkpoint();
        let now = target.bytes_of(SUMS);
        let (new, kept) = if number % 2 == 0 { (0, PAGE) } else { (PAGE, 0) };
        assert_ne!(now[new..new + PAGE], last[new..new + PAGE]);
        assert_eq!(now[kept..kept + PAGE], last[kept..kept + PAGE]);
        last = now;
    }
    // A checkpoint that fails is made up for at the same place.
    target.put(chunk(0), 6);
    target.world.must(target.engine.flush()).unwrap();
    target.world.disk.borrow_mut().fail_writes = Some("/checkpoint-");
    assert!(target.world.must(target.engine.checkpoint()).is_err());
    target.world.disk.borrow_mut().fail_writes = None;
    assert_eq!(target.read(chunk(0)).unwrap(), bytes(chunk(0), 6));
    let failed = target.bytes_of(SUMS);
    assert_eq!(failed[PAGE..2 * PAGE], last[PAGE..2 * PAGE]);
    target.put(chunk(1), 2);
    target.checkpoint();
    let made_up = target.bytes_of(SUMS);
    assert_eq!(made_up[PAGE..2 * PAGE], last[PAGE..2 * PAGE]);
    assert_ne!(made_up[..PAGE], failed[..PAGE]);
    let target = target.reopen(false);
    for (i, number) in [(0, 6), (1, 2), (2, 1), (3, 1)] {
        assert_eq!(target.read(chunk(i)).unwrap(), bytes(chunk(i), number));
    }
    assert_eq!(target.counters().sums_found, 0);
}

#[test]
fn an_older_checkpoint_and_a_longer_log_do_with_newer_pages() {
    let target = Target::new(false);
    target.put(chunk(0), 2);
    target.checkpoint();
    target.put(chunk(0), 3);
    target.checkpoint();
    let newest =
        target.world.disk.borrow().files().into_iter().rfind(|(name, _)| name.contains("/checkpoint-"));
    target.edit(&newest.unwrap().0, |all| all[100] ^= 1);
    drop(target.engine);
    target.world.settle();
    let world = World::new(target.world.disk.borrow_mut().snapshot());
    let (engine, recovery) = world.must(world.open(settings(false))).unwrap();
    assert_eq!(recovery.healed.len(), 1);
    let target = Target { world, engine };
    for (i, number) in [(0, 3), (1, 1), (2, 1), (3, 1)] {
        assert_eq!(target.read(chunk(i)).unwrap(), bytes(chunk(i), number));
    }
    assert_eq!((target.counters().corrupt_sum_pages, target.counters().sums_found), (0, 0));
}

#[test]
fn a_scrub_looks_at_the_disk_and_the_next_checkpoint_heals_it() {
    let target = Target::new(true).reopen(true);
    assert_eq!(target.read(chunk(1)).unwrap(), bytes(chunk(1), 1));
    target.edit(SUMS, |all| all[PAGE + 300] ^= 1);
    // The page is in memory: reads go on.
    assert_eq!(target.read(chunk(2)).unwrap(), bytes(chunk(2), 1));
    assert_eq!(target.counters().corrupt_sum_pages, 0);
    target.world.must(target.engine.verify(chunk(2), Priority::Scrub)).unwrap();
    assert_eq!(target.counters().corrupt_sum_pages, 1);
    target.checkpoint();
    let target = target.reopen(false);
    for i in 0..4 {
        target.world.must(target.engine.verify(chunk(i), Priority::Scrub)).unwrap();
    }
    assert_eq!((target.counters().corrupt_sum_pages, target.counters().sums_found), (0, 0));
}

#[test]
fn checksums_that_are_on_no_page_yet_are_bounded() {
    let world = World::new(DiskState::new(5));
    let settings = EngineConfig { unsaved_sums_bytes: 2_000, ..settings(true) };
    let engine = world.must(world.create(settings)).unwrap();
    let target = Target { world, engine };
    for i in 0..60 {
        target.put(chunk(i), 1);
    }
    target.world.settle();
    let counters = target.counters();
    assert!(counters.checkpoints > 3 && counters.sum_pages_written > 3, "{counters:?}");
    (0..60).for_each(|i| assert_eq!(target.read(chunk(i)).unwrap(), bytes(chunk(i), 1)));
}

#[test]
fn a_missing_or_short_file_of_checksums_is_named() {
    for cut in [None, Some(PAGE)] {
        let target = Target::new(false);
        drop(target.engine);
        target.world.settle();
        let mut disk = target.world.disk.borrow_mut().snapshot();
        match cut {
            None => disk.unlink(SUMS),
            Some(length) => disk.edit(SUMS, |all| all.truncate(length)),
        }
        let world = World::new(disk);
        match world.must(world.open(settings(false))).map(|_| ()) {
            Err(EngineError::Corrupt { file, offset, .. }) => {
                assert_eq!((file.as_str(), offset), (SUMS, cut.unwrap_or(0) as u64));
            }
            other => panic!("{other:?}"),
        }
    }
}
