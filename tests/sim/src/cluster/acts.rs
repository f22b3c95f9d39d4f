//! Short plays with a plot: the stories of the rules, acted out in a cluster that is whole and quiet otherwise.
//! Random faults seldom come together in the order that they need.

use super::faults::Cast;
use crate::process::{Crash, ProcessId};
use crate::world::{World, between};
use ember_kv::{Kv, RangeOptions, ReadMode};
use ember_mgmtd::record::{range, table};
use ember_types::layout::SplitMix64;
use std::rc::Rc;

const MS: u64 = 1_000_000;
/// Virtual time until the chains have answered to what an act did, in milliseconds.
const AFTERMATH_MS: u64 = 3_000;

/// A plot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    /// A node is cut off from mgmtd, and a client with it, which goes on reading there (R1).
    Island,
    /// A heartbeat's answer comes late, and is the last one (R8).
    LateAnswer,
    /// The chains in the store are those of a while ago (R2).
    Forgotten,
}

/// Plays one act, chosen by the seed. The clients' work goes on meanwhile.
pub fn play(world: &World, cast: &Rc<Cast>, rng: &mut SplitMix64) {
    let act = match rng.below(4) {
        0 => Act::Island,
        1 | 2 => Act::LateAnswer,
        _ => Act::Forgotten,
    };
    let scene = Scene {
        world: world.clone(),
        cast: cast.clone(),
        node: pick(rng, &cast.storage),
        client: pick(rng, &cast.clients),
    };
    world.trace().count("acts played", 1);
    match act {
        Act::Island => scene.island(rng),
        Act::LateAnswer => scene.late_answer(rng),
        Act::Forgotten => scene.forgotten(rng),
    }
    world.heal_all();
    scene.wait(AFTERMATH_MS);
}

fn pick(rng: &mut SplitMix64, from: &[ProcessId]) -> ProcessId {
    from.get(rng.below(from.len() as u64) as usize).copied().unwrap_or(ProcessId::HARNESS)
}

struct Scene {
    world: World,
    cast: Rc<Cast>,
    node: ProcessId,
    client: ProcessId,
}

impl Scene {
    fn wait(&self, ms: u64) {
        self.world.run_until(self.world.now_ns() + ms * MS);
    }
    fn to_mgmtd(&self, process: ProcessId, blocked: bool) {
        self.cast.mgmtd.iter().for_each(|&mgmtd| self.world.set_blocked(process, mgmtd, blocked));
    }
    fn mgmtd_to(&self, process: ProcessId, blocked: bool) {
        self.cast.mgmtd.iter().for_each(|&mgmtd| self.world.set_blocked(mgmtd, process, blocked));
    }

    fn island(&self, rng: &mut SplitMix64) {
        for process in [self.client, self.node] {
            self.to_mgmtd(process, true);
            self.mgmtd_to(process, true);
        }
        self.world.trace().count("partition, both ways", 1);
        self.wait(between(rng, 2_500, 4_500));
        self.to_mgmtd(self.node, false);
        self.mgmtd_to(self.node, false);
        self.wait(between(rng, 500, 1_500));
    }

    fn late_answer(&self, rng: &mut SplitMix64) {
        self.to_mgmtd(self.client, true);
        self.mgmtd_to(self.client, true);
        // Heartbeats arrive and are granted; their answers are held up.
        self.mgmtd_to(self.node, true);
        self.wait(between(rng, 150, 300));
        // The last answer is let through when it is almost too old for its asker, who is cut off now.
        self.to_mgmtd(self.node, true);
        self.wait(between(rng, 350, 550));
        self.mgmtd_to(self.node, false);
        self.world.trace().count("partition, one way", 1);
        self.wait(between(rng, 2_500, 3_500));
    }

    fn forgotten(&self, rng: &mut SplitMix64) {
        let Some(before) = self.world.block_on(self.world.now_ns() + 1_000 * MS, chains(self.cast.clone()))
        else {
            return;
        };
        // A change that will be forgotten: a node goes and comes back.
        self.world.kill(self.node, Crash::Kill);
        self.world.trace().count("process killed and restarted", 1);
        self.wait(between(rng, 2_500, 3_500));
        self.world.start(self.node);
        let serving = self.world.now_ns() + 20_000 * MS;
        while !(self.cast.all_serve)() && self.world.now_ns() < serving {
            self.wait(100);
        }
        for &process in &self.cast.mgmtd {
            self.world.kill(process, Crash::PowerLoss);
        }
        let restored = restore(self.cast.clone(), before);
        let _ = self.world.block_on(self.world.now_ns() + 1_000 * MS, restored);
        self.world.trace().count("chains in the store rolled back", 1);
        for &process in &self.cast.mgmtd {
            self.world.start(process);
        }
        self.wait(6_000);
        // And another change, which a manager that goes by the store alone numbers anew.
        let other = pick(rng, &self.cast.storage);
        self.world.kill(other, Crash::Kill);
        self.world.trace().count("process killed and restarted", 1);
        self.wait(between(rng, 2_500, 3_500));
        self.world.start(other);
    }
}

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// The chains as the store has them now.
async fn chains(cast: Rc<Cast>) -> Rows {
    let mut tx = cast.kv.mem.begin();
    let options = RangeOptions { limit: usize::MAX, reverse: false, mode: ReadMode::Snapshot };
    let rows: Rows = tx.get_range(range(table::CHAIN), options).await.unwrap_or_default();
    rows
}

/// Puts chains of before into the store.
async fn restore(cast: Rc<Cast>, rows: Rows) {
    let mut tx = cast.kv.mem.begin();
    for (key, value) in rows {
        tx.set(&key, &value);
    }
    let _ = tx.commit().await;
}
