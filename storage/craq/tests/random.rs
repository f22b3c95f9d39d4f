//! Random schedules: whatever crashes, is lost or late, histories are linearizable, nothing acknowledged is
//! lost, and in the end every replica serves equal bytes.

mod support;

use ember_types::{ChunkId, PublicState};
use std::collections::BTreeMap;
use support::linear::{Operation, is_linearizable};
use support::world::{Faults, World};

/// Runs a seed; `Err` names the violated property.
fn run(seed: u64, nodes: usize, faults: Faults) -> Result<World, String> {
    let mut world = World::new(seed, nodes, 3, 40, faults);
    world.run(20_000, |w| w.clients.iter().all(|c| c.is_done()));
    world.heal();
    let settled = |w: &World| {
        w.clients.iter().all(|c| c.is_done())
            && w.mgmtd.chain.targets.iter().all(|t| t.state == PublicState::Serving)
            && w.nodes.iter().all(|n| {
                n.replica.as_ref().is_some_and(|r| r.chain() == Some(&w.mgmtd.chain) && r.active_len() == 0)
            })
    };
    let until = world.now + 30_000;
    world.run(until, |w| settled(w) || w.mgmtd.chain.targets.is_empty());
    if !settled(&world) {
        return Err(format!("not all replicas serve again: {:?}", world.mgmtd.chain.targets));
    }
    let mut histories: BTreeMap<ChunkId, Vec<Operation>> = BTreeMap::new();
    for client in &world.clients {
        for (chunk, history) in &client.history {
            histories.entry(*chunk).or_default().extend(history.iter().cloned());
        }
    }
    for (chunk, history) in &histories {
        if !is_linearizable(history) {
            let mut history = history.clone();
            history.sort_by_key(|op| op.begun);
            let lines: Vec<String> = history.iter().map(|op| format!("{op:?}")).collect();
            return Err(format!("chunk {chunk} is not linearizable:\n{}", lines.join("\n")));
        }
    }
    let first = &world.nodes[0].store.now;
    for node in &world.nodes[1..] {
        for chunk in first.keys().chain(node.store.now.keys()) {
            let (a, b) = (first.get(chunk).cloned().unwrap_or_default(), node.store.now.get(chunk).cloned());
            let b = b.unwrap_or_default();
            if (a.state.committed, &a.bytes) != (b.state.committed, &b.bytes) {
                return Err(format!("replicas differ in chunk {chunk}: {a:?} and {b:?}"));
            }
        }
    }
    Ok(world)
}

fn sweep(seeds: std::ops::Range<u64>, nodes: usize, faults: Faults) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for seed in seeds {
        match run(seed, nodes, faults) {
            Ok(world) => {
                for (what, n) in world.counts {
                    *counts.entry(what).or_default() += n;
                }
            }
            Err(why) => panic!("seed {seed}: {why}"),
        }
    }
    counts
}

const ROUGH: Faults = Faults { loss: 40, crash_ms: 2500, isolate_ms: 4000, full_ms: 1500 };

#[test]
fn trio_in_a_calm_world() {
    sweep(0..40, 3, Faults { loss: 0, crash_ms: 0, isolate_ms: 0, full_ms: 0 });
}

#[test]
fn pair_and_trio_in_a_rough_world() {
    let mut counts = sweep(0..250, 3, ROUGH);
    for (what, n) in sweep(1000..1100, 2, ROUGH) {
        *counts.entry(what).or_default() += n;
    }
    for what in
        ["crashes", "lost or late", "chain changes", "installs", "drops", "disk refusals", "isolations"]
    {
        assert!(counts.get(what).is_some_and(|&n| n > 50), "{what}: {counts:?}");
    }
}

#[test]
fn single_replica_restarts() {
    sweep(2000..2050, 1, ROUGH);
}
