//! Random histories without faults against the reference model, with reopening in between.
#![allow(missing_docs)]

mod support;

use std::cell::RefCell;
use support::disk::DiskState;
use support::model::{Model, check_all, history};
use support::{World, config};

#[test]
fn random_histories_equal_the_model() {
    for seed in 0..30 {
        let mut world = World::new(DiskState::new(seed));
        let mut engine = world.must(world.create(config())).unwrap();
        let model = RefCell::new(Model::default());
        for round in 0..3 {
            world.must(history(&engine, &model, seed * 10 + round, 3, 60));
            world.must(engine.trim(100)).unwrap();
            world.must(engine.close()).unwrap();
            let before = model.borrow().chunks.clone();
            drop(engine);
            world.settle();
            let disk = world.disk.borrow_mut().snapshot();
            world = World::new(disk);
            engine = world.must(world.open(config())).unwrap().0;
            // After a clean close nothing at all is undone.
            let kept = before.into_iter().map(|(id, mut states)| (id, vec![states.pop().unwrap()]));
            model.borrow_mut().chunks = kept.collect();
            world.must(check_all(&engine, &model)).unwrap();
            let space = engine.space().unwrap();
            assert!(space.used < 64 << 20, "{space:?}");
        }
        assert!(model.borrow().compacted > 0, "no chunk was in many pieces");
    }
}

#[test]
fn a_log_that_grows_long_is_replaced_by_checkpoints() {
    let world = World::new(DiskState::new(5));
    let mut settings = config();
    settings.log_bytes = 40 << 10;
    let engine = world.must(world.create(settings)).unwrap();
    let model = RefCell::new(Model::default());
    world.must(history(&engine, &model, 1, 4, 200));
    world.settle();
    assert!(engine.counters().checkpoints > 3, "{:?}", engine.counters());
    let files = world.disk.borrow().files();
    let count = |part: &str| files.iter().filter(|(name, _)| name.contains(part)).count();
    assert_eq!(count("checkpoint-"), 2);
    assert!(count("log-") <= 3, "{files:?}");
    let world = world.crash();
    let (engine, _) = world.must(world.open(settings)).unwrap();
    world.must(check_all(&engine, &model)).unwrap();
}
