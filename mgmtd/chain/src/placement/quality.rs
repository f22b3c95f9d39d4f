//! How evenly a placement spreads the traffic of a failure.

use super::{Disk, Placement};
use ember_types::NodeId;
use std::collections::BTreeMap;

/// The largest share of recovery traffic over the ideal share; 1 is the best. The ideal is an even spread in
/// whole chains over everything outside the failed node.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Quality {
    /// When one disk fails: the share of the busiest other disk.
    pub disk: f64,
    /// When one node fails: the share of the busiest other node.
    pub node: f64,
}

/// Rates a placement over all failures of one disk or node.
pub fn quality(chains: &Placement) -> Quality {
    let disks: BTreeMap<NodeId, std::collections::BTreeSet<u32>> =
        chains.iter().flatten().fold(BTreeMap::new(), |mut all, d| {
            all.entry(d.node).or_insert_with(Default::default).insert(d.disk);
            all
        });
    let total: usize = disks.values().map(|d| d.len()).sum();
    let outside = |d: &Disk| total - disks.get(&d.node).map_or(0, |own| own.len());
    Quality {
        disk: worst(chains, |d| *d, outside),
        node: worst(chains, |d| d.node, |_| disks.len().saturating_sub(1)),
    }
}

fn worst<K: Ord + Copy>(
    chains: &Placement,
    key: impl Fn(&Disk) -> K,
    outside: impl Fn(&Disk) -> usize,
) -> f64 {
    let mut load: BTreeMap<K, BTreeMap<K, u64>> = BTreeMap::new();
    let mut eligible: BTreeMap<K, usize> = BTreeMap::new();
    for chain in chains {
        for (at, failed) in chain.iter().enumerate() {
            eligible.entry(key(failed)).or_insert_with(|| outside(failed));
            for (other_at, other) in chain.iter().enumerate() {
                if other_at != at {
                    *load.entry(key(failed)).or_default().entry(key(other)).or_default() += 1;
                }
            }
        }
    }
    let ratio = |(failed, shares): (&K, &BTreeMap<K, u64>)| {
        let sum: u64 = shares.values().sum();
        let ideal = sum.div_ceil(eligible.get(failed).copied().unwrap_or(1).max(1) as u64).max(1);
        shares.values().copied().max().unwrap_or(0) as f64 / ideal as f64
    };
    load.iter().map(ratio).fold(1.0, f64::max)
}
