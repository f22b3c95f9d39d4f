//! A whole cluster in a world, its faults, its clients, and what must hold.

pub mod faults;
pub mod history;
pub mod kv;

use crate::runner::{Outcome, Settings};
use crate::world::World;

/// Runs a cluster from one seed.
pub fn simulate(seed: u64, settings: Settings) -> Outcome {
    let world = World::new(seed);
    world.trace().set_log(settings.log);
    world.tear_down();
    Outcome { seed, hash: world.trace().hash(), failure: world.failure(), counters: world.trace().counters() }
}
