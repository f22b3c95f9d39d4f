//! Placement: domains, equal load, quality, growth.

use ember_chain::placement::{
    Disk, NodeDisks, Placement, PlacementError, grow, quality, spread, targets_per_disk,
};
use ember_types::NodeId;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn nodes(count: u32, disks: u32) -> Vec<NodeDisks> {
    (1..=count).map(|n| NodeDisks { node: NodeId(n), disks, rack: None }).collect()
}

fn load(chains: &Placement) -> BTreeMap<Disk, usize> {
    chains.iter().flatten().fold(BTreeMap::new(), |mut all, disk| {
        *all.entry(*disk).or_default() += 1;
        all
    })
}

fn assert_sound(chains: &Placement, nodes: &[NodeDisks], replicas: u32, per_disk: u32) {
    for chain in chains {
        assert_eq!(chain.len(), replicas as usize);
        let distinct: BTreeSet<NodeId> = chain.iter().map(|d| d.node).collect();
        assert_eq!(distinct.len(), chain.len(), "replicas share a node: {chain:?}");
    }
    let disks: usize = nodes.iter().map(|n| n.disks as usize).sum();
    let load = load(chains);
    assert_eq!(load.len(), disks);
    assert!(load.values().all(|n| *n == per_disk as usize), "{load:?}");
}

#[test]
fn three_nodes_with_one_disk() {
    let nodes = nodes(3, 1);
    let chains = spread(&nodes, 3, 4).expect("placement");
    assert_eq!(chains.len(), 4);
    assert_sound(&chains, &nodes, 3, 4);
    let heads: BTreeSet<NodeId> = chains.iter().map(|c| c[0].node).collect();
    assert_eq!(heads.len(), 3, "heads are spread: {chains:?}");
    assert!(quality(&chains).disk <= 1.0 && quality(&chains).node <= 1.0);
}

#[test]
fn quality_of_a_large_cluster() {
    let nodes = nodes(180, 16);
    let chains = spread(&nodes, 3, 6).expect("placement");
    assert_sound(&chains, &nodes, 3, 6);
    let found = quality(&chains);
    assert!(found.disk <= 1.2, "{found:?}");
    assert!(found.node <= 1.7, "{found:?}");
}

#[test]
fn racks_are_failure_domains_where_there_are_enough() {
    let mut nodes = nodes(12, 2);
    for node in &mut nodes {
        node.rack = Some(format!("r{}", node.node.0 % 4));
    }
    let chains = spread(&nodes, 3, 6).expect("placement");
    assert_sound(&chains, &nodes, 3, 6);
    for chain in &chains {
        let racks: BTreeSet<u32> = chain.iter().map(|d| d.node.0 % 4).collect();
        assert_eq!(racks.len(), 3);
    }
}

#[test]
fn impossible_wishes_are_refused_with_a_reason() {
    let few = spread(&nodes(2, 4), 3, 3);
    assert_eq!(few, Err(PlacementError::TooFewNodes { replicas: 3, nodes: 2 }));
    let mut lopsided = nodes(3, 1);
    lopsided[0].disks = 5;
    assert!(matches!(spread(&lopsided, 3, 3), Err(PlacementError::Lopsided { .. })));
    assert!(matches!(spread(&nodes(4, 1), 3, 1), Err(PlacementError::Invalid(_))));
    assert_eq!(targets_per_disk(4, 3, 1), 3);
    assert_eq!(targets_per_disk(3, 3, 4), 4);
    assert_eq!(targets_per_disk(5, 2, 3), 4);
}

#[test]
fn growth_levels_the_load_with_few_moves() {
    let old = nodes(6, 2);
    let chains = spread(&old, 3, 8).expect("placement");
    let new = nodes(8, 2);
    let moves = grow(&new, &chains);
    let mut grown = chains.clone();
    for step in &moves {
        let place = grown[step.chain].iter_mut().find(|d| **d == step.from).expect("a replica to move");
        *place = step.to;
    }
    for chain in &grown {
        assert_eq!(chain.iter().map(|d| d.node).collect::<BTreeSet<_>>().len(), 3);
    }
    let load = load(&grown);
    assert_eq!(load.len(), 16);
    assert!(load.values().all(|n| *n == 6), "{load:?}");
    assert_eq!(moves.len(), 4 * 6);
    assert!(grow(&new, &grown).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_cluster_is_placed_soundly(
        disks in proptest::collection::vec(1u32..5, 3..12), replicas in 1u32..4, at_least in 1u32..9,
    ) {
        let nodes: Vec<NodeDisks> = disks.iter().zip(1..)
            .map(|(d, n)| NodeDisks { node: NodeId(n), disks: *d, rack: None }).collect();
        let total: u64 = disks.iter().map(|d| u64::from(*d)).sum();
        let per_disk = targets_per_disk(total, replicas, at_least);
        match spread(&nodes, replicas, per_disk) {
            Ok(chains) => assert_sound(&chains, &nodes, replicas, per_disk),
            Err(PlacementError::Lopsided { node, .. }) => {
                prop_assert!(u64::from(disks[node.0 as usize - 1]) * u64::from(replicas) > total);
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}
