//! Crashes: power fails at any event of random histories, also of recovery itself, and any part of what was
//! not flushed is lost. What was acknowledged is there, what is there is one of the states that were asked
//! for.
#![allow(missing_docs)]

mod support;

use ember_types::layout::SplitMix64;
use std::cell::RefCell;
use support::disk::DiskState;
use support::model::{Model, check_all, history};
use support::{World, config};

struct Outcome {
    crashes: u64,
    dropped: u64,
    torn: u64,
}

/// One history with power losses; `skip` leaves out the flushes of some files.
fn lose_power(seed: u64, rounds: u64, kills: bool, skip: Option<&'static str>) -> Outcome {
    let mut random = SplitMix64(seed);
    let mut outcome = Outcome { crashes: 0, dropped: 0, torn: 0 };
    let mut world = World::new(DiskState::new(seed));
    world.disk.borrow_mut().skip_syncs = skip;
    let settings = config();
    let engine = world.must(world.create(settings)).unwrap();
    drop(engine);
    let model = RefCell::new(Model::default());
    for round in 0..rounds {
        // Recovery under fire, then recovery that gets through.
        let now = world.disk.borrow().events;
        world.disk.borrow_mut().crash_at = Some(now + 1 + random.below(120));
        let opened = world.run(world.open(settings)).and_then(Result::ok);
        drop(opened);
        world = if kills && random.below(3) > 0 { world.kill() } else { world.crash() };
        let (engine, recovery) = world.must(world.open(settings)).unwrap();
        outcome.dropped += recovery.dropped.len() as u64;
        outcome.torn += u64::from(recovery.torn);
        assert!(recovery.healed.is_empty(), "{:?}", recovery.healed);
        world.must(check_all(&engine, &model));
        let now = world.disk.borrow().events;
        world.disk.borrow_mut().skip_syncs = skip;
        world.disk.borrow_mut().crash_at = Some(now + 1 + random.below(600));
        world.run(async {
            history(&engine, &model, seed * 100 + round, 4, 40).await;
        });
        outcome.crashes += 1;
        drop(engine);
        world = if kills && random.below(3) > 0 { world.kill() } else { world.crash() };
    }
    let (engine, _) = world.must(world.open(settings)).unwrap();
    world.must(check_all(&engine, &model));
    outcome
}

fn many(seeds: std::ops::Range<u64>, kill: bool) {
    let (mut crashes, mut dropped, mut torn) = (0, 0, 0);
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| lose_power(seed, 4, kill, None));
        let outcome = outcome.unwrap_or_else(|_| panic!("seed {seed}"));
        crashes += outcome.crashes;
        dropped += outcome.dropped;
        torn += outcome.torn;
    }
    println!("{crashes} crashes, {dropped} updates dropped, {torn} torn tails");
    assert!(kill || dropped + torn > 0, "the crashes are too tame");
}

#[test]
fn r04_acknowledged_updates_survive_power_loss() {
    many(0..40, false);
}

#[test]
fn acknowledged_updates_survive_power_loss_more_seeds() {
    many(1000..1030, false);
}

#[test]
fn acknowledged_updates_survive_a_killed_process() {
    many(2000..2020, true);
}

/// The tests above would notice: without any one flush, histories fail.
#[test]
fn leaving_out_a_flush_is_found() {
    std::panic::set_hook(Box::new(|_| {}));
    for skip in ["log-", "data-", "checkpoint-"] {
        let found =
            (0..60).any(|seed| std::panic::catch_unwind(|| lose_power(seed, 4, false, Some(skip))).is_err());
        assert!(found, "nobody misses the flushes of {skip}");
    }
}
