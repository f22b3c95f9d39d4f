//! A target in service whose files are damaged under it: noticed, written anew, and nothing is lost.
#![allow(missing_docs)]

mod support;

use ember_engine::{Engine, EngineError, Install, InstallContent, Prepare, Update, fsck};
use ember_types::layout::SplitMix64;
use std::cell::RefCell;
use support::disk::DiskState;
use support::model::{Model, history, observe};
use support::{DIR, FOREGROUND, World, config};

/// A target in service with two checkpoints and log behind them.
fn running(seed: u64) -> (World, Engine, RefCell<Model>) {
    let world = World::new(DiskState::new(seed));
    let engine = world.must(world.create(config())).unwrap();
    let model = RefCell::new(Model::default());
    for round in 0..3 {
        world.must(history(&engine, &model, seed + round, 3, 12));
        if round < 2 {
            world.must(engine.checkpoint()).unwrap();
        }
    }
    world.must(engine.flush()).unwrap();
    world.settle();
    (world, engine, model)
}

/// Names of files that begin so.
fn named(world: &World, prefix: &str) -> Vec<(String, usize)> {
    let prefix = format!("{DIR}/{prefix}");
    world.disk.borrow().files().into_iter().filter(|(name, _)| name.starts_with(&prefix)).collect()
}

/// A place in a file that isn't zero.
fn place(world: &World, name: &str, len: usize, random: &mut SplitMix64) -> usize {
    let mut at = random.below(len as u64) as usize;
    while world.disk.borrow().byte(name, at) == 0 {
        at = (at + 1) % len;
    }
    at
}

fn assert_same(world: &World, engine: &Engine, model: &RefCell<Model>) {
    for (id, states) in &model.borrow().chunks {
        let found = world.must(observe(engine, *id)).unwrap();
        assert_eq!(&found, states.last().unwrap(), "{id}");
    }
}

#[test]
fn damaged_superblocks_checkpoints_and_log_are_written_anew() {
    let mut random = SplitMix64(5);
    for (round, prefix) in ["superblock-", "checkpoint-", "log-"].into_iter().cycle().take(12).enumerate() {
        let (world, engine, model) = running(round as u64 * 11);
        let clean = world.must(engine.check_files(0)).unwrap();
        assert!(clean.damaged.is_empty() && clean.bytes > 0, "{:?}", clean.damaged);
        let names = named(&world, prefix);
        let (name, len) = names[round / 3 % names.len()].clone();
        let at = place(&world, &name, len, &mut random);
        world.disk.borrow_mut().edit(&name, |bytes| bytes[at] ^= 1 << random.below(8));
        let found = world.must(engine.check_files(0)).unwrap();
        assert!(!found.damaged.is_empty(), "{name} at {at}");
        assert!(found.damaged.iter().any(|error| error.to_string().contains(&name)), "{:?}", found.damaged);
        world.must(engine.heal_files(found)).unwrap();
        assert!(world.must(engine.check_files(0)).unwrap().damaged.is_empty(), "{name} at {at}");
        // The target goes on, and what is on the disk is whole.
        world.must(history(&engine, &model, 900 + round as u64, 3, 8));
        world.must(engine.flush()).unwrap();
        world.settle();
        drop(engine);
        let world = World::new(world.disk.borrow_mut().snapshot());
        let report = world.must(fsck(&world.queue(), DIR)).unwrap();
        assert!(report.is_clean(), "{name} at {at}: {:?}", report.problems);
        let world = World::new(world.disk.borrow_mut().snapshot());
        let (engine, recovery) = world.must(world.open(config())).unwrap();
        assert!(recovery.healed.is_empty(), "{:?}", recovery.healed);
        assert_same(&world, &engine, &model);
    }
}

#[test]
fn a_checkpoint_or_segment_that_is_gone_is_written_anew() {
    for prefix in ["checkpoint-", "log-", "superblock-"] {
        let (world, engine, model) = running(3);
        let (name, _) = named(&world, prefix).remove(0);
        world.disk.borrow_mut().unlink(&name);
        let found = world.must(engine.check_files(0)).unwrap();
        assert!(found.damaged.iter().any(|error| error.to_string().contains(&name)), "{:?}", found.damaged);
        world.must(engine.heal_files(found)).unwrap();
        assert!(world.must(engine.check_files(0)).unwrap().damaged.is_empty(), "{name}");
        drop(engine);
        let world = World::new(world.disk.borrow_mut().snapshot());
        let (engine, _) = world.must(world.open(config())).unwrap();
        assert_same(&world, &engine, &model);
    }
}

#[test]
fn fsck_looks_at_the_older_checkpoint_and_its_log_too() {
    for prefix in ["checkpoint-", "log-"] {
        let (world, engine, _) = running(8);
        drop(engine);
        let world = World::new(world.disk.borrow_mut().snapshot());
        // The older one: recovery would not even look at it.
        let (name, _) = named(&world, prefix).remove(0);
        world.disk.borrow_mut().edit(&name, |bytes| bytes[20] ^= 1);
        let report = world.must(fsck(&world.queue(), DIR)).unwrap();
        assert!(report.problems.iter().any(|problem| problem.file == name), "{name}: {:?}", report.problems);
    }
}

#[test]
fn files_removed_under_a_target_stop_it() {
    for prefix in ["log-", "data-"] {
        let (world, engine, _) = running(4);
        engine.check_names().unwrap();
        let (name, _) = named(&world, prefix).pop().unwrap();
        world.disk.borrow_mut().unlink(&name);
        let error = engine.check_names().unwrap_err();
        assert!(matches!(&error, EngineError::Refused { file, .. } if *file == name), "{error}");
        assert!(engine.failure().is_some_and(|why| why.contains("ember target replace")));
    }
}

#[test]
fn a_slot_with_bad_bytes_is_not_used_again() {
    let world = World::new(DiskState::new(1));
    let engine = world.must(world.create(config())).unwrap();
    let content = vec![7; 100_000];
    let write = |number: u64| {
        world.must(async {
            let id = support::chunk(1);
            let base = engine.state(id).map_or(ember_types::ChunkVersion::NONE, |s| s.committed_version());
            let version = support::version(number);
            let (data, checksums) = (content[..].into(), ember_types::block_checksums(&content));
            let update = Update::Whole { data, checksums, writers: Vec::new() };
            let request = Prepare {
                chunk: id,
                version,
                base,
                update,
                writer: None,
                expect: None,
                priority: FOREGROUND,
            };
            engine.prepare(request).await.unwrap();
            engine.commit(id, version).await.unwrap();
        });
    };
    write(1);
    let (name, _) = named(&world, "data-").remove(0);
    world.disk.borrow_mut().edit(&name, |bytes| bytes[5000] ^= 1);
    assert!(matches!(
        world.must(engine.verify(support::chunk(1), FOREGROUND)),
        Err(EngineError::Corrupt { offset: 4096, .. })
    ));
    assert_eq!(engine.quarantined(), 1);
    // As a repair does it.
    let state = engine.state(support::chunk(1)).unwrap().committed.unwrap();
    let committed = Some(InstallContent { state, data: content[..].into() });
    let install = Install { committed, ..Install::default() };
    world.must(engine.install(support::chunk(1), install)).unwrap();
    world.must(engine.verify(support::chunk(1), FOREGROUND)).unwrap();
    world.disk.borrow_mut().trace = Some(Vec::new());
    (2..8).for_each(write);
    let trace = world.disk.borrow_mut().trace.take().unwrap();
    let data: Vec<u64> = trace.iter().filter(|(file, ..)| *file == name).map(|(_, at, _)| *at).collect();
    assert!(data.len() >= 6 && !data.contains(&0), "the bad slot is at 0: {data:?}");
    assert_eq!(engine.quarantined(), 1);
}
