//! Rebalancing after disks were added.

use super::{Disk, NodeDisks, Placement, domains};
use std::collections::BTreeMap;

/// One replica that moves: added on the new disk, synced, and only then removed from the old one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// Position of the chain in the placement.
    pub chain: usize,
    /// The disk that gives a target away.
    pub from: Disk,
    /// The disk that gets one.
    pub to: Disk,
}

/// Moves that leave every disk of `nodes` with the same number of targets, give or take one, wherever the
/// failure domains allow it; no more moves than needed. Each chain keeps its replicas in different domains.
pub fn grow(nodes: &[NodeDisks], chains: &Placement) -> Vec<Move> {
    let replicas = chains.iter().map(Vec::len).max().unwrap_or(0) as u32;
    let domain: BTreeMap<_, _> = nodes.iter().map(|n| n.node).zip(domains(nodes, replicas)).collect();
    let mut chains = chains.clone();
    let mut members: BTreeMap<Disk, Vec<usize>> = BTreeMap::new();
    for node in nodes {
        for disk in 0..node.disks {
            members.insert(Disk { node: node.node, disk }, Vec::new());
        }
    }
    for (at, chain) in chains.iter().enumerate() {
        for disk in chain {
            members.entry(*disk).or_default().push(at);
        }
    }
    let mut moves = Vec::new();
    let mut stuck: Vec<Disk> = Vec::new();
    while let Some(to) = least(&members, &stuck) {
        let Some(step) = best_move(&chains, &members, &domain, to) else {
            stuck.push(to);
            continue;
        };
        for place in chains[step.chain].iter_mut().filter(|d| **d == step.from) {
            *place = to;
        }
        members.entry(step.from).or_default().retain(|c| *c != step.chain);
        members.entry(to).or_default().push(step.chain);
        moves.push(step);
    }
    moves
}

/// The emptiest disk that may still get a target; `None` if all are level.
fn least(members: &BTreeMap<Disk, Vec<usize>>, stuck: &[Disk]) -> Option<Disk> {
    let most = members.values().map(Vec::len).max()?;
    let open = members.iter().filter(|(disk, _)| !stuck.contains(disk));
    let (disk, own) = open.min_by_key(|(disk, own)| (own.len(), **disk))?;
    (own.len() + 1 < most).then_some(*disk)
}

/// A chain of the fullest disk possible that may have a replica on `to`, sharing as few chains with it as
/// possible.
fn best_move(
    chains: &Placement,
    members: &BTreeMap<Disk, Vec<usize>>,
    domain: &BTreeMap<ember_types::NodeId, usize>,
    to: Disk,
) -> Option<Move> {
    let own = members.get(&to)?;
    let shared = |other: &Disk| own.iter().filter(|c| chains[**c].contains(other)).count();
    let mut sources: Vec<(&Disk, &Vec<usize>)> =
        members.iter().filter(|(_, list)| list.len() > own.len() + 1).collect();
    sources.sort_by_key(|(disk, list)| (usize::MAX - list.len(), **disk));
    for (from, list) in sources {
        let apart = |chain: &&usize| {
            let others = chains[**chain].iter().filter(|d| *d != from);
            others.clone().all(|d| d.node != to.node && domain.get(&d.node) != domain.get(&to.node))
        };
        let cost = |chain: &&usize| {
            let others = chains[**chain].iter().filter(|d| *d != from);
            (others.map(shared).sum::<usize>(), **chain)
        };
        if let Some(chain) = list.iter().filter(apart).min_by_key(cost) {
            return Some(Move { chain: *chain, from: *from, to });
        }
    }
    None
}
