//! Crashes: power fails at every write and flush of random histories, also of recovery and creation, and any
//! part of what was not flushed is lost. What was acknowledged is there, what is there is one of the states
//! that were asked for. The long run of the same code is `cargo xtask crash`.
#![allow(missing_docs)]

mod support;

use support::crash::{Plan, Report, run};
use support::disk::FlushClass;
use support::model::Kind;

fn many(seeds: std::ops::Range<u64>, plan: Plan) -> Report {
    let mut all = Report::default();
    for seed in seeds {
        let (report, result) = run(seed, plan);
        all.add(&report);
        result.unwrap_or_else(|violation| panic!("{:?}: {}", violation.kind, violation.what));
    }
    println!("{all:?}");
    all
}

#[test]
fn r04_acknowledged_updates_survive_power_loss_at_every_boundary() {
    let all = many(1..3, Plan { losses: 2, lives: 3, steps: 8, skip: None });
    assert!(all.distinct > 200 && all.dropped > 0 && all.compacted > 0, "the crashes are too tame: {all:?}");
}

/// The test above would notice: without these flushes something acknowledged is missing. `cargo xtask crash`
/// asks that of every kind of flush.
#[test]
fn leaving_out_a_flush_is_found() {
    for class in [FlushClass::Data, FlushClass::LogBatch, FlushClass::Checkpoint, FlushClass::DirTarget] {
        let plan = Plan { losses: 2, skip: Some(class), ..Plan::new() };
        let found = (0..4).find_map(|seed| {
            run(seed, plan).1.err().filter(|v| !matches!(v.kind, Kind::Panic | Kind::Healed))
        });
        println!("{}: {found:?}", class.name());
        assert!(found.is_some(), "nobody misses the flush of {}", class.name());
    }
}
