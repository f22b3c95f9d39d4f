//! The simulator: a whole cluster, the code of the real daemons and clients, in one thread on virtual time.
//!
//! It implements the seam `ember_rt` (clock, tasks, network, disks, randomness) from one seed and plants faults
//! in it; it is no model of the daemons. Invariants: two runs of one seed do exactly the same, which the trace
//! hash proves; nothing here reads a clock, an environment variable or a random source of the machine.
#![forbid(unsafe_code)]

pub mod chain;
pub mod check;
pub mod cluster;
pub mod disk;
pub mod net;
pub mod process;
pub mod report;
pub mod runner;
pub mod trace;

mod task;
mod world;

pub use disk::{DiskConfig, PowerCut, SimFs};
pub use net::NetConfig;
pub use process::{CLOCK_DRIFT_PPM_MAX, Crash, ProcessId};
pub use world::World;

use runner::{Outcome, Settings};

/// Runs the simulation of one seed: the chain on its own, then the whole cluster. The first property that does
/// not hold ends it.
pub fn simulate(seed: u64, settings: Settings) -> Outcome {
    let chain = chain::simulate(seed, settings);
    if chain.failure.is_some() {
        return chain;
    }
    let mut outcome = cluster::simulate(seed, settings);
    outcome.hash ^= chain.hash.rotate_left(32);
    for (name, count) in chain.counters {
        *outcome.counters.entry(name).or_default() += count;
    }
    outcome
}
