//! Exchanges of disks between chains on one node, which leave every load as it is, until no two disks share
//! more chains than an even spread makes them.

use super::{Disk, NodeDisks, Placement};
use ember_types::NodeId;
use ember_types::collections::FixedHashMap;
use std::collections::BTreeMap;

/// Passes over all chains; each has fewer pairs to mend than the one before.
const PASSES: u32 = 4;

type Pairs = FixedHashMap<(Disk, Disk), u32>;

fn key(a: Disk, b: Disk) -> (Disk, Disk) {
    (a.min(b), a.max(b))
}

pub(super) fn polish(chains: &mut Placement, nodes: &[NodeDisks], replicas: u32, per_disk: u32) {
    let disks: u64 = nodes.iter().map(|n| u64::from(n.disks)).sum();
    let largest = nodes.iter().map(|n| u64::from(n.disks)).max().unwrap_or(0);
    let partners = u64::from(per_disk) * u64::from(replicas.saturating_sub(1));
    let ideal = partners.div_ceil((disks - largest).max(1)).max(1) as u32;
    let mut pairs = Pairs::default();
    let mut of_node: BTreeMap<NodeId, Vec<(usize, usize)>> = BTreeMap::new();
    for (at, chain) in chains.iter().enumerate() {
        for (place, disk) in chain.iter().enumerate() {
            of_node.entry(disk.node).or_default().push((at, place));
            for other in &chain[place + 1..] {
                *pairs.entry(key(*disk, *other)).or_default() += 1;
            }
        }
    }
    for _ in 0..PASSES {
        let mut mended = false;
        for at in 0..chains.len() {
            for place in 0..chains[at].len() {
                let own = chains[at][place];
                let crowded = |other: &Disk| {
                    *other != own && pairs.get(&key(own, *other)).copied().unwrap_or(0) > ideal
                };
                if chains[at].iter().any(crowded) {
                    let others = of_node.get(&own.node).map_or(&[][..], Vec::as_slice);
                    mended |= exchange(chains, &mut pairs, ideal, (at, place), others);
                }
            }
        }
        if !mended {
            return;
        }
    }
}

/// What a disk at that place of a chain costs beyond the ideal, if it replaced the one that is there.
fn excess(chain: &[Disk], pairs: &Pairs, ideal: u32, place: usize, disk: Disk, add: u32) -> u32 {
    let others = chain.iter().enumerate().filter(|(other, _)| *other != place);
    others.map(|(_, o)| (pairs.get(&key(disk, *o)).copied().unwrap_or(0) + add).saturating_sub(ideal)).sum()
}

fn count(chain: &[Disk], pairs: &mut Pairs, place: usize, up: bool) {
    for (other, disk) in chain.iter().enumerate() {
        if other != place {
            let shared = pairs.entry(key(chain[place], *disk)).or_default();
            *shared = if up { *shared + 1 } else { shared.saturating_sub(1) };
        }
    }
}

/// Exchanges the disk at `first` with another one of its node in another chain, if that makes things better.
fn exchange(
    chains: &mut Placement,
    pairs: &mut Pairs,
    ideal: u32,
    first: (usize, usize),
    others: &[(usize, usize)],
) -> bool {
    let (chain, place) = first;
    let own = chains[chain][place];
    for &(other_chain, other_place) in others {
        let other = chains[other_chain][other_place];
        if other == own || other_chain == chain {
            continue;
        }
        let old = excess(&chains[chain], pairs, ideal, place, own, 0)
            + excess(&chains[other_chain], pairs, ideal, other_place, other, 0);
        let new = excess(&chains[chain], pairs, ideal, place, other, 1)
            + excess(&chains[other_chain], pairs, ideal, other_place, own, 1);
        if new < old {
            count(&chains[chain], pairs, place, false);
            count(&chains[other_chain], pairs, other_place, false);
            chains[chain][place] = other;
            chains[other_chain][other_place] = own;
            count(&chains[chain], pairs, place, true);
            count(&chains[other_chain], pairs, other_place, true);
            return true;
        }
    }
    false
}
