//! The rules of the protocol that the engine keeps, one test each, and its answers to bad input.
#![allow(missing_docs)]

mod support;

use ember_engine::{
    ContentState, Engine, EngineConfig, EngineError, Install, InstallContent, Prepare, Prepared, Update,
    Which,
};
use ember_rt::SharedBuf;
use ember_rt::select::{join_all, select, yield_now};
use ember_types::checksum::crc32c;
use ember_types::{
    ChainVersion, ChannelId, ChunkId, ChunkVersion, ClientId, ClusterId, Instant, Sequence, Status, TargetId,
    WriterTag, block_checksums,
};
use std::future::pending;
use std::time::Duration;
use support::disk::DiskState;
use support::{DIR, FOREGROUND, IDENTITY, World, chunk, config, version};

fn write(offset: u32, data: &[u8]) -> Update {
    Update::Write { offset, data: data.into(), checksums: block_checksums(data) }
}
fn request(chunk: ChunkId, base: ChunkVersion, to: ChunkVersion, update: Update) -> Prepare {
    Prepare { chunk, version: to, base, update, writer: None, expect: None, priority: FOREGROUND }
}
fn attempt(number: u64, attempt: u32) -> ChunkVersion {
    ChunkVersion { attempt, ..version(number) }
}
fn tag(sequence: u64) -> WriterTag {
    WriterTag { client: ClientId([9; 16]), channel: ChannelId(2), sequence: Sequence(sequence) }
}

struct Target {
    world: World,
    engine: Engine,
}

impl Target {
    fn new(seed: u64) -> Self {
        let world = World::new(DiskState::new(seed));
        world.disk.borrow_mut().trace = Some(Vec::new());
        let engine = world.must(world.create(config())).unwrap();
        Self { world, engine }
    }
    fn prepare(&self, request: Prepare) -> Result<Prepared, EngineError> {
        self.world.must(self.engine.prepare(request))
    }
    fn commit(&self, chunk: ChunkId, version: ChunkVersion) {
        self.world.must(self.engine.commit(chunk, version)).unwrap();
    }
    fn put(&self, chunk: ChunkId, from: u64, update: Update) {
        self.prepare(request(chunk, version(from), version(from + 1), update)).unwrap();
        self.commit(chunk, version(from + 1));
    }
    fn read(&self, chunk: ChunkId, which: Which) -> Result<Vec<u8>, EngineError> {
        self.world.must(self.engine.read(chunk, which, 0, u32::MAX, FOREGROUND)).map(|r| r.data.to_vec())
    }
    fn crash(self) -> Self {
        drop(self.engine);
        let world = self.world.crash();
        world.disk.borrow_mut().trace = Some(Vec::new());
        let (engine, _) = world.must(world.open(config())).unwrap();
        Self { world, engine }
    }
    /// Where data were written since the last call.
    fn written(&self) -> Vec<(String, u64, usize)> {
        let all = self.world.disk.borrow_mut().trace.replace(Vec::new()).unwrap();
        all.into_iter().filter(|(name, ..)| name.contains("/data-")).collect()
    }
}

const NONE: ChunkVersion = ChunkVersion::NONE;

#[test]
fn r02_the_chain_version_is_durable_and_never_falls() {
    let mut target = Target::new(1);
    target.world.must(target.engine.set_chain_version(ChainVersion(5))).unwrap();
    target = target.crash();
    assert_eq!(target.engine.chain_version(), ChainVersion(5));
    target.world.must(target.engine.set_chain_version(ChainVersion(3))).unwrap();
    assert_eq!(target.engine.chain_version(), ChainVersion(5));
}

#[test]
fn r04_a_commit_is_undone_to_pending_at_worst() {
    for seed in 0..30 {
        let mut target = Target::new(seed);
        target.put(chunk(1), 0, write(0, &[7; 5000]));
        target = target.crash();
        let state = target.engine.state(chunk(1)).unwrap();
        assert_eq!(target.read(chunk(1), Which::Newest).unwrap(), [7; 5000]);
        if state.committed.is_none() {
            assert_eq!(target.engine.pending(None, 9), [chunk(1)]);
            target.commit(chunk(1), version(1));
        }
        target.world.must(target.engine.flush()).unwrap();
        target = target.crash();
        assert_eq!(target.engine.state(chunk(1)).unwrap().committed_version(), version(1));
    }
}

#[test]
fn r04_a_flush_waits_for_a_commit_that_is_on_its_way() {
    for moment in 0..20 {
        let mut target = Target::new(moment);
        target.prepare(request(chunk(1), NONE, version(1), write(0, &[7; 5000]))).unwrap();
        target.world.must(target.engine.flush()).unwrap();
        target.commit(chunk(1), version(1));
        // It goes to the disk with the update of another chunk.
        let other = target.engine.prepare(request(chunk(2), NONE, version(1), write(0, &[8; 5000])));
        let flush = async {
            for _ in 0..moment {
                yield_now().await;
            }
            target.engine.flush().await.unwrap();
        };
        let other = async {
            other.await.unwrap();
            pending::<()>().await
        };
        target.world.must(select(flush, other));
        target = target.crash();
        let state = target.engine.state(chunk(1)).unwrap();
        assert_eq!(state.committed_version(), version(1), "flushed at moment {moment}");
    }
}

#[test]
fn r05_a_version_is_compared_whole() {
    let target = Target::new(2);
    let id = chunk(1);
    target.prepare(request(id, NONE, attempt(1, 4), write(0, b"four"))).unwrap();
    let again = target.prepare(request(id, NONE, attempt(1, 4), write(0, b"four"))).unwrap();
    assert_eq!(again.length, 4);
    let other = target.prepare(request(id, NONE, attempt(1, 5), write(0, b"five")));
    assert!(matches!(other, Err(EngineError::PendingDiffers { .. })));
    target.commit(id, attempt(1, 4));
    let missing = target.world.must(target.engine.commit(id, attempt(1, 5)));
    assert!(matches!(missing, Err(EngineError::NotFound(_))));
    let wrong_base = target.prepare(request(id, attempt(1, 5), version(2), write(0, b"x")));
    assert!(matches!(wrong_base, Err(EngineError::BaseDiffers { .. })));
    assert_eq!(target.read(id, Which::Exact(attempt(1, 4))).unwrap(), b"four");
    assert!(matches!(target.read(id, Which::Exact(attempt(1, 5))), Err(EngineError::NotFound(_))));
}

#[test]
fn r05_a_late_create_does_not_resurrect_a_removed_chunk() {
    let mut target = Target::new(3);
    let id = chunk(1);
    target.put(id, 0, write(0, b"old"));
    target.put(id, 1, Update::Remove);
    assert!(matches!(target.read(id, Which::Committed), Err(EngineError::NotFound(_))));
    let late = || request(id, NONE, version(1), write(0, b"late"));
    assert!(matches!(target.prepare(late()), Err(EngineError::BaseDiffers { .. })));
    target.world.must(target.engine.flush()).unwrap();
    target = target.crash();
    assert!(target.engine.state(id).unwrap().committed.unwrap().removed);
    assert!(matches!(target.prepare(late()), Err(EngineError::BaseDiffers { .. })));
    let at = |s| Instant(0) + Duration::from_secs(s);
    assert_eq!(target.engine.expire_tombstones(at(100), 10), 0);
    assert_eq!(target.engine.expire_tombstones(at(699), 10), 0);
    // Created again it goes on counting, and is no tombstone any more.
    target.put(id, 2, write(0, b"new"));
    assert_eq!(target.engine.expire_tombstones(at(2000), 10), 0);
    target.put(id, 3, Update::Remove);
    assert_eq!(target.engine.expire_tombstones(at(2001), 10), 0);
    assert_eq!(target.engine.expire_tombstones(at(2601), 10), 1);
    assert!(target.engine.state(id).is_none());
}

#[test]
fn r12_writers_are_remembered_with_their_pending_version() {
    let mut target = Target::new(4);
    let with = |chunk, to, sequence| Prepare {
        writer: Some(tag(sequence)),
        ..request(chunk, NONE, to, write(0, b"data"))
    };
    target.prepare(with(chunk(1), version(1), 7)).unwrap();
    target = target.crash();
    let find = |target: &Target| target.engine.writer(tag(0).client, tag(0).channel).unwrap();
    let (at, record) = find(&target);
    assert_eq!((at, record.tag, record.version, record.length), (chunk(1), tag(7), version(1), 4));
    assert_eq!(target.engine.state(chunk(1)).unwrap().writers, [record]);
    target.prepare(with(chunk(2), version(1), 8)).unwrap();
    assert!(target.engine.state(chunk(1)).unwrap().writers.is_empty());
    // An older sequence never replaces a newer one.
    target.prepare(with(chunk(3), version(1), 6)).unwrap();
    assert_eq!(find(&target).1.tag, tag(8));
    target.world.must(target.engine.abort(chunk(2), version(1))).unwrap();
    target = target.crash();
    assert_eq!((find(&target).1.tag, find(&target).1.status), (tag(8), Status::Aborted));
    target.engine.forget_clients(&[tag(0).client]);
    target.world.must(target.engine.flush()).unwrap();
    target = target.crash();
    assert!(target.engine.writer(tag(0).client, tag(0).channel).is_none());
}

/// A start undoes the update for good: also for one that reads the same log once more.
#[test]
fn r12_a_dropped_update_says_nothing_of_its_writer() {
    let target = Target::new(18);
    target.written();
    let update =
        Prepare { writer: Some(tag(5)), ..request(chunk(1), NONE, version(1), write(0, &[1; 4096])) };
    target.prepare(update).unwrap();
    let (file, at, _) = target.written().remove(0);
    drop(target.engine);
    let mut world = target.world.kill();
    world.disk.borrow_mut().edit(&file, |bytes| bytes[at as usize] ^= 1);
    for start in 0..2 {
        let newest = |names: Vec<(String, usize)>| {
            names.into_iter().map(|(name, _)| name).filter(|name| name.contains("/checkpoint-")).max()
        };
        let before = newest(world.disk.borrow().files());
        let (engine, recovery) = world.must(world.open(config())).unwrap();
        assert_eq!(recovery.dropped.len(), 1 - start);
        assert!(engine.state(chunk(1)).is_none());
        let (_, record) = engine.writer(tag(5).client, tag(5).channel).unwrap();
        assert_eq!((record.tag, record.status), (tag(5), Status::Aborted));
        drop(engine);
        world = world.kill();
        // The checkpoint that this start made didn't reach the disk.
        let made = newest(world.disk.borrow().files()).filter(|name| Some(name) != before.as_ref()).unwrap();
        world.disk.borrow_mut().unlink(&made);
    }
}

#[test]
fn r13_late_copies_of_an_aborted_version_are_refused() {
    let mut target = Target::new(5);
    let id = chunk(1);
    target.put(id, 0, write(0, b"base"));
    target.prepare(request(id, version(1), attempt(2, 1), write(0, b"one!"))).unwrap();
    target.world.must(target.engine.abort(id, attempt(2, 1))).unwrap();
    // One that never came here is refused when it comes.
    target.world.must(target.engine.abort(id, attempt(2, 2))).unwrap();
    target = target.crash();
    for late in [1, 2] {
        let refused = target.prepare(request(id, version(1), attempt(2, late), write(0, b"late")));
        assert!(matches!(refused, Err(EngineError::Aborted { .. })), "{late}");
    }
    assert_eq!(target.read(id, Which::Newest).unwrap(), b"base");
    target.prepare(request(id, version(1), attempt(2, 3), write(0, b"good"))).unwrap();
    target.commit(id, attempt(2, 3));
    assert_eq!(target.read(id, Which::Committed).unwrap(), b"good");
}

#[test]
fn r13_a_full_disk_refuses_first_and_hurts_nobody_else() {
    let target = Target::new(6);
    target.put(chunk(1), 0, write(0, &[1; 5000]));
    target.world.disk.borrow_mut().total = 6 << 20;
    assert!(matches!(target.engine.reserve(8 << 20), Err(EngineError::NoSpace { .. })));
    let held = target.engine.reserve(1 << 20).unwrap();
    assert!(matches!(target.engine.reserve(2 << 20), Err(EngineError::NoSpace { .. })));
    drop(held);
    let big = vec![3; 16 << 20];
    let refused = target.prepare(request(chunk(2), NONE, version(1), write(0, &big)));
    assert!(matches!(refused, Err(EngineError::NoSpace { .. })));
    assert!(target.engine.failure().is_none());
    assert_eq!(target.read(chunk(1), Which::Committed).unwrap(), [1; 5000]);
    target.put(chunk(1), 1, Update::Remove);
    target.world.disk.borrow_mut().total = 1 << 30;
    target.prepare(request(chunk(2), NONE, version(1), write(0, &big))).unwrap();
    assert_eq!(target.read(chunk(2), Which::Newest).unwrap(), big);
}

#[test]
fn r14_rot_is_not_laundered() {
    let target = Target::new(7);
    let id = chunk(1);
    target.put(id, 0, write(0, &[5; 10_000]));
    target.world.settle();
    target.world.disk.borrow_mut().edit("targets/7/data-16k", |bytes| bytes[4200] ^= 1);
    let merged = target.prepare(request(id, version(1), version(2), write(5000, &[6; 10])));
    match merged {
        Err(EngineError::Corrupt { file, offset, .. }) => {
            assert_eq!((file.as_str(), offset), ("targets/7/data-16k", 4096));
        }
        other => panic!("{other:?}"),
    }
    assert!(target.engine.state(id).unwrap().pending.is_none());
    // Blocks that are not damaged are still read.
    let read = target.world.must(target.engine.read(id, Which::Committed, 8192, 100, FOREGROUND)).unwrap();
    assert_eq!((read.start, &read.data[..]), (8192, &[5; 1808][..]));
    assert!(target.read(id, Which::Committed).is_err());
    // The whole content from another replica heals it.
    let data = [5; 10_000];
    let whole = Update::Whole {
        data: data.as_slice().into(),
        checksums: block_checksums(&data),
        writers: Vec::new(),
    };
    target.put(id, 1, whole);
    assert_eq!(target.read(id, Which::Committed).unwrap(), data);
}

#[test]
fn r10_a_lost_content_stays_known_and_is_replaced_whole() {
    let target = Target::new(9);
    let id = chunk(1);
    let data = [5; 10_000];
    let checksum = crc32c(&data);
    let state = ContentState { version: version(3), length: 10_000, checksum, removed: false, lost: true };
    let lost = || Some(InstallContent { state, data: SharedBuf::default() });
    let install = |committed| {
        let install = Install { committed, pending: None, writers: Vec::new() };
        target.world.must(target.engine.install(id, install)).unwrap();
    };
    install(lost());
    assert_eq!(target.engine.state(id).unwrap().committed, Some(state));
    assert!(matches!(target.read(id, Which::Committed), Err(EngineError::Lost(_))));
    let verified = target.world.must(target.engine.verify(id, FOREGROUND));
    assert!(verified.is_err_and(|error| error.is_bad_bytes()));
    let part = target.prepare(request(id, version(3), version(4), write(1, &[6; 9_999])));
    assert!(matches!(part, Err(EngineError::Lost(_))));
    // A copy that turns up.
    let found = ContentState { lost: false, ..state };
    install(Some(InstallContent { state: found, data: data.as_slice().into() }));
    assert_eq!(target.read(id, Which::Committed).unwrap(), data);
    // Or a writer that replaces all of it.
    install(lost());
    target.put(id, 3, write(0, &[6; 10_000]));
    assert_eq!(target.read(id, Which::Committed).unwrap(), [6; 10_000]);
}

#[test]
fn r14_another_result_than_the_heads_is_not_stored() {
    let target = Target::new(8);
    let id = chunk(1);
    let differs = Prepare { expect: Some((4, 1)), ..request(id, NONE, version(1), write(0, b"data")) };
    assert!(matches!(target.prepare(differs), Err(EngineError::ResultDiffers { length: 4, .. })));
    let data = vec![1; 9000];
    let mut checksums = block_checksums(&data);
    checksums[2] ^= 1;
    let update = Update::Write { offset: 3, data: data.as_slice().into(), checksums };
    let bent = target.prepare(request(id, NONE, version(1), update));
    assert!(matches!(bent, Err(EngineError::Payload { block: 2, .. })));
    assert!(target.engine.state(id).is_none());
}

#[test]
fn r17_nothing_is_appended_over_bytes_once_written() {
    let target = Target::new(9);
    let id = chunk(1);
    target.put(id, 0, write(0, &[1; 40 << 10]));
    target.written();
    target.prepare(request(id, version(1), attempt(2, 1), write(40 << 10, &[2; 4096]))).unwrap();
    let appended = target.written();
    assert_eq!(appended, [("targets/7/data-64k".to_owned(), 40 << 10, 4096)]);
    target.world.must(target.engine.abort(id, attempt(2, 1))).unwrap();
    target.prepare(request(id, version(1), attempt(2, 2), write(40 << 10, &[3; 4096]))).unwrap();
    let moved = target.written();
    assert_ne!(moved[0], appended[0]);
    let mut expected = vec![1; 40 << 10];
    expected.extend([3; 4096]);
    assert_eq!(target.read(id, Which::Newest).unwrap(), expected);
}

#[test]
fn r17_nothing_is_appended_behind_a_failed_write() {
    let target = Target::new(16);
    let id = chunk(1);
    target.put(id, 0, write(0, &[1; 40 << 10]));
    target.world.disk.borrow_mut().fail_writes = Some("/data-");
    let failed = target.prepare(request(id, version(1), attempt(2, 1), write(40 << 10, &[2; 4096])));
    assert!(matches!(failed, Err(EngineError::Io { .. })));
    target.world.disk.borrow_mut().fail_writes = None;
    target.written();
    // The failed write may still reach the disk one day.
    target.prepare(request(id, version(1), attempt(2, 2), write(40 << 10, &[3; 4096]))).unwrap();
    assert_ne!(target.written()[0], ("targets/7/data-64k".to_owned(), 40 << 10, 4096));
}

/// Recovery checks the data of the newest frame only: an older one may tell of nothing that isn't there.
#[test]
fn r17_an_update_whose_data_failed_is_in_no_frame() {
    let target = Target::new(17);
    target.put(chunk(1), 0, write(0, &[1; 4096]));
    let before = target.engine.counters().batches;
    target.world.disk.borrow_mut().fail_writes = Some("/data-");
    let both = [
        request(chunk(2), NONE, version(1), write(0, &[2; 4096])),
        request(chunk(3), NONE, version(1), Update::Truncate { length: 0 }),
    ];
    let [failed, done] = &target.world.must(join_all(both.map(|update| target.engine.prepare(update))))[..]
    else {
        panic!("two answers")
    };
    assert!(matches!(failed, Err(EngineError::Io { .. })) && done.is_ok(), "{failed:?}, {done:?}");
    assert_eq!(target.engine.counters().batches, before + 1, "they share a frame");
    target.world.disk.borrow_mut().fail_writes = None;
    target.put(chunk(4), 0, write(0, &[4; 4096]));
    let target = target.crash();
    assert!(target.engine.state(chunk(2)).is_none());
    assert!(target.engine.state(chunk(3)).is_some() && target.engine.state(chunk(4)).is_some());
}

#[test]
fn r17_a_slot_is_reused_only_after_the_flush_that_frees_it() {
    let target = Target::new(10);
    let place = |target: &Target| target.written()[0].1;
    target.put(chunk(1), 0, write(0, &[1; 16 << 10]));
    let first = place(&target);
    target.put(chunk(1), 1, write(0, &[2; 16 << 10]));
    assert_ne!(place(&target), first);
    // The commit that frees the first slot is not flushed yet.
    target.put(chunk(2), 0, write(0, &[3; 16 << 10]));
    assert_ne!(place(&target), first);
    // It went with the last batch.
    target.put(chunk(3), 0, write(0, &[4; 16 << 10]));
    assert_eq!(place(&target), first);
    assert_eq!(target.read(chunk(1), Which::Committed).unwrap(), [2; 16 << 10]);
}

#[test]
fn updates_that_wait_share_their_flushes() {
    let target = Target::new(11);
    let before = target.engine.counters();
    let all =
        (0..200).map(|i| target.engine.prepare(request(chunk(i), NONE, version(1), write(0, &[1; 4096]))));
    let results = target.world.must(join_all(all));
    assert!(results.iter().all(Result::is_ok));
    let after = target.engine.counters();
    assert!(after.flushes - before.flushes <= 60, "{after:?}");
    assert_eq!(after.data_bytes - before.data_bytes, 200 * 4096);
    let space = target.engine.space().unwrap();
    assert_eq!(space.used, 200 * 4096, "a small chunk takes a small slot");
}

#[test]
fn an_abandoned_prepare_still_ends() {
    let target = Target::new(12);
    let prepare = target.engine.prepare(request(chunk(1), NONE, version(1), write(0, b"data")));
    target.world.must(async {
        let mut prepare = std::pin::pin!(prepare);
        std::future::poll_fn(|cx| {
            let _ = prepare.as_mut().poll(cx);
            std::task::Poll::Ready(())
        })
        .await;
    });
    for _ in 0..100 {
        target.world.settle();
    }
    assert_eq!(target.read(chunk(1), Which::Newest).unwrap(), b"data");
}

#[test]
fn another_ones_directory_is_refused() {
    let target = Target::new(13);
    let (world, queue) = (&target.world, target.world.queue());
    let open = |cluster, id, dir| {
        let opened = world.must(Engine::open(&world.rt, &queue, dir, (cluster, id), EngineConfig::default()));
        opened.map(|_| ()).unwrap_err()
    };
    let busy = open(IDENTITY.cluster, IDENTITY.target, DIR);
    assert!(busy.to_string().contains("locked by process 1") && busy.is_in_use(), "{busy}");
    drop(target.engine);
    let again = world.must(Engine::create(&world.rt, &world.queue(), DIR, &IDENTITY, config()));
    assert!(matches!(again, Err(EngineError::Refused { .. })));
    for (cluster, id, offset) in [(ClusterId([2; 16]), TargetId(7), 16), (IDENTITY.cluster, TargetId(8), 32)]
    {
        world.settle();
        let refused = world.must(async {
            let opened = Engine::open(&world.rt, &world.queue(), DIR, (cluster, id), config()).await;
            opened.map(|_| ()).unwrap_err()
        });
        assert!(refused.is_anothers() && !refused.is_in_use() && !busy.is_anothers(), "{refused}");
        match refused {
            EngineError::Refused { offset: at, remedy, .. } => {
                assert_eq!((at, remedy.is_empty()), (offset, false))
            }
            other => panic!("{other}"),
        }
    }
    assert!(Engine::exists(&queue, DIR).unwrap());
    assert!(!Engine::exists(&queue, "nowhere").unwrap());
}

#[test]
fn after_a_failed_flush_nothing_is_accepted() {
    let target = Target::new(14);
    target.put(chunk(1), 0, write(0, b"good"));
    target.world.disk.borrow_mut().fail_writes = Some("/log-");
    let failed = target.prepare(request(chunk(2), NONE, version(1), write(0, b"lost")));
    assert!(failed.is_err_and(|e| e.stops_target()));
    target.world.disk.borrow_mut().fail_writes = None;
    let refused = target.prepare(request(chunk(3), NONE, version(1), write(0, b"more")));
    assert!(refused.is_err_and(|e| e.stops_target()));
    assert!(target.engine.failure().is_some());
    let target = target.crash();
    assert!(target.engine.state(chunk(3)).is_none());
    assert_eq!(target.read(chunk(1), Which::Newest).unwrap(), b"good");
}

#[test]
fn a_device_error_is_told_to_the_asker_alone() {
    let target = Target::new(15);
    target.put(chunk(1), 0, write(0, b"good"));
    target.world.disk.borrow_mut().fail_reads = Some("/data-");
    assert!(matches!(target.read(chunk(1), Which::Committed), Err(EngineError::Io { .. })));
    target.world.disk.borrow_mut().fail_reads = None;
    assert_eq!(target.read(chunk(1), Which::Committed).unwrap(), b"good");
    target.world.disk.borrow_mut().fail_writes = Some("/data-");
    let failed = target.prepare(request(chunk(1), version(1), version(2), write(0, b"none")));
    assert!(matches!(failed, Err(EngineError::Io { .. })));
    target.world.disk.borrow_mut().fail_writes = None;
    target.put(chunk(1), 1, write(0, b"next"));
    assert_eq!(target.read(chunk(1), Which::Committed).unwrap(), b"next");
}

/// A new disk has no `targets` directory yet: it, too, is to survive.
#[test]
fn a_new_target_survives_with_all_directories_above_it() {
    for seed in 0..20 {
        let target = Target::new(seed);
        target.put(chunk(0), 0, write(0, &[7; 100]));
        let target = target.crash();
        assert!(target.read(chunk(0), Which::Newest).is_ok());
    }
}
