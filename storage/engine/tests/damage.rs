//! Damage: whatever byte of whatever file of a target is bent or cut off, the answer is right data or an
//! error that names the file, and never a panic.
#![allow(missing_docs)]

mod support;

use ember_engine::{EngineError, fsck};
use ember_types::layout::SplitMix64;
use std::cell::RefCell;
use support::disk::DiskState;
use support::model::{Chunk, Model, history, is_named, observe};
use support::{DIR, World, config};

/// A target with some history, its model, and the chunks' states.
fn target(seed: u64) -> (RefCell<DiskState>, Model) {
    let world = World::new(DiskState::new(seed));
    let engine = world.must(world.create(config())).unwrap();
    let model = RefCell::new(Model::default());
    world.must(history(&engine, &model, seed, 3, 40));
    world.must(engine.checkpoint()).unwrap();
    world.must(history(&engine, &model, seed + 1, 3, 40));
    // The second frame confirms the first one, which may carry commits.
    (0..2).for_each(|_| world.must(engine.flush()).unwrap());
    world.settle();
    drop(engine);
    let disk = world.disk.borrow_mut().snapshot();
    (RefCell::new(disk), model.into_inner())
}

/// Opens the damaged target and reads everything; returns how many errors there were.
fn examine(disk: DiskState, model: &Model, what: &str) -> u64 {
    let world = World::new(disk);
    let (engine, _) = match world.must(world.open(config())) {
        Ok(opened) => opened,
        Err(error) => {
            assert!(is_named(&error), "{what}: {error}");
            return 1;
        }
    };
    let mut errors = 0;
    for (id, states) in &model.chunks {
        match world.must(engine.verify(*id, support::FOREGROUND)) {
            Ok(()) => {
                let found: Chunk = world.must(observe(&engine, *id)).unwrap();
                assert_eq!(&found, states.last().unwrap(), "{what}: {id}");
            }
            Err(error) => {
                assert!(matches!(error, EngineError::Corrupt { .. }) && is_named(&error), "{what}: {error}");
                errors += 1;
            }
        }
    }
    errors
}

/// A place in one of the files, mostly where there is something.
fn place(disk: &mut DiskState, random: &mut SplitMix64) -> (String, usize) {
    let files: Vec<(String, usize)> = disk.files().into_iter().filter(|(_, len)| *len > 0).collect();
    let (name, len) = files[random.below(files.len() as u64) as usize].clone();
    for _ in 0..200 {
        let at = random.below(len as u64) as usize;
        if disk.byte(&name, at) != 0 {
            return (name, at);
        }
    }
    (name, random.below(len as u64) as usize)
}

#[test]
fn bent_bits_are_named_or_harmless() {
    let mut random = SplitMix64(77);
    let mut found = 0;
    for seed in 0..6 {
        let (disk, model) = target(seed * 7);
        assert_eq!(examine(disk.borrow_mut().snapshot(), &model, "undamaged"), 0);
        for _ in 0..80 {
            let mut damaged = disk.borrow_mut().snapshot();
            let (name, at) = place(&mut damaged, &mut random);
            let bit = random.below(8);
            damaged.edit(&name, |bytes| bytes[at] ^= 1 << bit);
            found += examine(damaged, &model, &format!("seed {seed}, {name} at {at}"));
        }
    }
    assert!(found > 50, "only {found} errors");
}

#[test]
fn cut_missing_longer_and_swapped_files_are_named_or_harmless() {
    let mut random = SplitMix64(78);
    for seed in 0..5 {
        let (disk, model) = target(1 + seed * 7);
        for round in 0..40 {
            let mut damaged = disk.borrow_mut().snapshot();
            let (name, at) = place(&mut damaged, &mut random);
            // The newest segment may end anywhere: that is how a torn batch looks. Cut only what must stay.
            let newest = damaged.files().into_iter().rfind(|(n, _)| n.contains("/log-"));
            let is_newest = newest.is_some_and(|(newest, _)| newest == name);
            let what = format!("seed {seed}, {name} cut at {at}, round {round}");
            match round % 4 {
                0 | 1 if !is_newest => damaged.edit(&name, |bytes| bytes.truncate(at)),
                2 if !is_newest => damaged.unlink(&name),
                3 => {
                    let (other, _) = place(&mut damaged, &mut random);
                    if other != name && name.contains("/data-") && other.contains("/data-") {
                        damaged.swap(&name, &other);
                    }
                }
                _ => damaged.edit(&name, |bytes| bytes.extend_from_slice(&[0x5a; 4096])),
            }
            examine(damaged, &model, &what);
        }
    }
}

#[test]
fn fsck_names_the_damage_and_changes_nothing() {
    let (disk, _) = target(3);
    let clean = World::new(disk.borrow_mut().snapshot());
    let report = clean.must(fsck(&clean.queue(), DIR)).unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
    assert!(report.chunks > 0 && report.blocks > 0 && report.dropped.is_empty());
    assert_eq!(report.identity, Some(support::IDENTITY));
    let mut random = SplitMix64(9);
    let mut found = 0;
    for _ in 0..150 {
        let mut damaged = disk.borrow_mut().snapshot();
        let (name, at) = place(&mut damaged, &mut random);
        let bit = random.below(8);
        damaged.edit(&name, |bytes| bytes[at] ^= 1 << bit);
        let before = damaged.files();
        let world = World::new(damaged);
        let report = world.must(fsck(&world.queue(), DIR)).unwrap();
        assert_eq!(world.disk.borrow().files(), before);
        for problem in &report.problems {
            // What is bent in the log or a checkpoint is found there; so is what is bent in a data file.
            assert!(problem.file.starts_with(DIR), "{problem:?}");
        }
        found += report.problems.len();
    }
    assert!(found > 30, "only {found} problems");
}
