//! The storage profile: a small cluster whose disks are struck on purpose, cell by cell of the fault matrix.

use super::aim::Marksman;
use super::build::Plan;
use super::matrix::{Cell, Role, Stand};
use super::workload::{Stage, read_all};
use super::{MS, Run, S};
use crate::runner::{Outcome, Settings};
use crate::world::World;
use std::rc::Rc;
use std::time::Duration;

/// Strikes of one seed: the first one goes round all cells, seed by seed, the others are drawn.
const STRIKES: u64 = 3;
/// Longest pause between two operations of a worker.
const THINK_NS: u64 = 120 * MS;
/// Longest time of an operation of a client: its own limit, and what an answer may come late.
const HANG_NS: u64 = 12 * S;
/// Virtual time for the checks at the end at most.
const VERIFY_NS: u64 = 120 * S;

/// Runs a cluster from one seed.
pub fn simulate(seed: u64, settings: Settings) -> Outcome {
    let world = World::new(seed);
    world.trace().set_log(settings.log);
    let during = run(&world);
    world.tear_down();
    let failure = world.failure().map(|text| format!("{text}\nstrikes: {during}"));
    Outcome { seed, hash: world.trace().hash(), failure, counters: world.trace().counters() }
}

/// Runs; what was struck, for people.
fn run(world: &World) -> String {
    let mut rng = world.rng(6);
    let mut cells = vec![Cell::of(world.seed())];
    cells.extend((1..STRIKES).map(|_| Cell::of(rng.next())));
    let between_others = cells.iter().any(|cell| cell.stand == Stand::Beside(Role::Middle));
    let plan = Plan::storage(if between_others || rng.below(4) == 0 { 4 } else { 3 });
    let run = super::build(world, plan);
    run.stage.think_max_ns.set(THINK_NS);
    if !run.start() {
        return String::new();
    }
    world.spawn_harness("hang watcher", watch_hangs(world.clone(), run.stage.clone()));
    let marksman = Marksman::new(world, run.cast.clone(), run.inspector.clone());
    world.run_until(world.now_ns() + S / 4);
    let mut struck = Vec::new();
    for cell in cells {
        struck.push(cell.name().to_owned());
        marksman.strike(cell);
        if world.failure().is_some() {
            return struck.join("; ");
        }
    }
    run.end();
    struck.join("; ")
}

/// No operation of a client goes on beyond its deadline.
async fn watch_hangs(world: World, stage: Rc<Stage>) {
    let rt = world.harness_rt();
    loop {
        rt.sleep(Duration::from_millis(500)).await;
        let hangs = |&begin: &u64| world.now_ns() > begin + HANG_NS;
        if let Some(begin) = stage.oldest_ns().filter(hangs) {
            let text = format!("an operation that began at {} ms has not ended", begin / MS);
            world.fail("no request hangs", &text);
        }
    }
}

impl Run {
    /// Faults are over: every operation ends, everything serves, and what is found must be what was written.
    fn end(&self) {
        let world = &self.world;
        self.stage.stop.set(true);
        let limit = world.now_ns() + HANG_NS + S;
        while self.stage.oldest_ns().is_some() && world.now_ns() < limit && world.failure().is_none() {
            world.run_until(world.now_ns() + 50 * MS);
        }
        if !self.everything_serves() {
            return;
        }
        let (rt, stage) = (self.rt.clone(), self.stage.clone());
        self.verify(VERIFY_NS, Duration::ZERO, async move |client| {
            read_all(&client, &stage).await?;
            // Commits of the last updates reach the replicas on their own.
            rt.sleep(Duration::from_secs(2)).await;
            Ok(())
        });
    }
}
