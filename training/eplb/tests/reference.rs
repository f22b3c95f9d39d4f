//! Cases of the original algorithm, with ties decided by the lower index, and properties of random ones.

use ember_eplb::{LoadAverage, Placement, Shape, count_tokens, keep_in_place, moves, rebalance_experts};
use proptest::prelude::*;
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    note: String,
    weight: Vec<Vec<f32>>,
    num_replicas: usize,
    num_groups: usize,
    num_nodes: usize,
    num_gpus: usize,
    phy2log: Vec<Vec<i64>>,
    log2phy: Vec<Vec<Vec<i64>>>,
    logcnt: Vec<Vec<i64>>,
    max_over_mean_gpu_load: Vec<f64>,
}

#[test]
fn cases_of_the_original_give_its_placements() {
    let cases: Cases = serde_json::from_str(include_str!("data/cases.json")).unwrap();
    assert!(!cases.cases.is_empty());
    for case in cases.cases {
        let shape = Shape {
            experts: case.weight[0].len(),
            replicas: case.num_replicas,
            groups: case.num_groups,
            nodes: case.num_nodes,
            gpus: case.num_gpus,
        };
        let weight = case.weight.concat();
        let placement = rebalance_experts(&weight, &shape).unwrap();
        let note = &case.note;
        assert_eq!(placement.phy2log(), case.phy2log.concat(), "{note}: phy2log");
        assert_eq!(placement.log2phy(), case.log2phy.concat().concat(), "{note}: log2phy");
        assert_eq!(placement.logcnt(), case.logcnt.concat(), "{note}: logcnt");
        let loads = placement.gpu_loads(&weight, shape.gpus).unwrap();
        for (row, expected) in loads.chunks(shape.gpus).zip(&case.max_over_mean_gpu_load) {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let found = row.iter().copied().fold(0.0, f64::max) / mean;
            assert!((found - expected).abs() < 1e-6, "{note}: {found} instead of {expected}");
        }
    }
}

fn of(weight: &[f32], replicas: usize, groups: usize, nodes: usize, gpus: usize) -> Placement {
    let shape = Shape { experts: weight.len(), replicas, groups, nodes, gpus };
    rebalance_experts(weight, &shape).unwrap()
}

#[test]
fn equal_loads_are_placed_by_index() {
    // The first expert gets the first spare slot, and so on; packs are filled from the first.
    let placement = of(&[1.0; 4], 6, 1, 1, 2);
    assert_eq!(placement.logcnt(), [2, 2, 1, 1]);
    // Loads ½ ½ 1 1 ½ ½ of replicas 0 1 2 3 0 1: 2 and 3 first, one to each GPU, then by index.
    assert_eq!(placement.phy2log(), [2, 0, 0, 3, 1, 1]);
    assert_eq!(placement.log2phy(), [1, 2, 4, 5, 0, -1, 3, -1]);
    let zeros = of(&[0.0, -0.0, 0.0, -0.0], 8, 2, 2, 4);
    assert_eq!(zeros, of(&[0.0; 4], 8, 2, 2, 4));
    assert_eq!(zeros.logcnt(), [3, 1, 3, 1], "of equal loads the first expert gets all");
}

#[test]
fn one_slot_for_each_gpu_is_not_sorted() {
    assert_eq!(of(&[1.0, 3.0, 2.0], 3, 1, 1, 3).phy2log(), [0, 1, 2]);
}

#[test]
fn wrong_arguments_are_named() {
    let shape = Shape { experts: 4, replicas: 6, groups: 2, nodes: 2, gpus: 2 };
    let argument = |weight: &[f32], shape: &Shape| rebalance_experts(weight, shape).unwrap_err().argument;
    assert_eq!(argument(&[1.0; 5], &shape), "weight");
    for wrong in [f32::NAN, f32::INFINITY, -1.0] {
        assert_eq!(argument(&[1.0, wrong, 1.0, 1.0], &shape), "weight");
    }
    assert_eq!(argument(&[1.0; 4], &Shape { gpus: 0, ..shape }), "gpus");
    assert_eq!(argument(&[1.0; 4], &Shape { gpus: 4, ..shape }), "gpus");
    assert_eq!(argument(&[1.0; 4], &Shape { replicas: 3, ..shape }), "replicas");
    assert_eq!(argument(&[1.0; 4], &Shape { groups: 3, ..shape }), "groups");
    assert_eq!(argument(&[1.0; 4], &Shape { nodes: 4, ..shape }), "nodes");
    let placement = rebalance_experts(&[1.0; 4], &shape).unwrap();
    assert_eq!(placement.gpu_loads(&[1.0; 3], 2).unwrap_err().argument, "weight");
    assert_eq!(placement.gpu_loads(&[1.0; 4], 4).unwrap_err().argument, "gpus");
    let other = rebalance_experts(&[1.0; 8], &shape).unwrap();
    assert_eq!(moves(&placement, &other, 2).unwrap_err().argument, "new");
    assert_eq!(count_tokens(&[0, 4], 4).unwrap_err().argument, "chosen");
    assert_eq!(LoadAverage::new(1, 4, 0.0).unwrap_err().argument, "half_life");
    assert_eq!(LoadAverage::new(1, 4, 1.0).unwrap().observe(&[1; 3]).unwrap_err().argument, "counts");
}

#[test]
fn an_average_forgets_by_half_in_a_half_life() {
    let mut average = LoadAverage::new(1, 2, 1.0).unwrap();
    assert_eq!(average.loads(), [0.0, 0.0]);
    average.observe(&count_tokens(&[0, 0, 0, -1], 2).unwrap()).unwrap();
    assert_eq!(average.loads(), [3.0, 0.0], "one step is its own average");
    average.observe(&[0, 6]).unwrap();
    assert_eq!(average.loads(), [1.0, 4.0], "the step before counts half");
}

/// Numbers of nodes, groups of a node, experts of a group, GPUs of a node, slots of a GPU, and weights.
fn shapes() -> impl Strategy<Value = (Shape, Vec<f32>)> {
    let numbers = (1usize..4, 1usize..4, 1usize..5, 1usize..5, 1usize..6, 1usize..3);
    let valid = numbers.prop_filter_map("too few slots", |(nodes, groups, experts, gpus, slots, layers)| {
        let shape = Shape {
            experts: nodes * groups * experts,
            replicas: nodes * gpus * slots,
            groups: nodes * groups,
            nodes,
            gpus: nodes * gpus,
        };
        (shape.replicas >= shape.experts).then_some((shape, layers))
    });
    // Few different loads, so that there are many ties.
    valid.prop_flat_map(|(shape, layers)| {
        let weights = prop::collection::vec((0u8..6).prop_map(f32::from), layers * shape.experts);
        (Just(shape), weights)
    })
}

fn max_replica_load(placement: &Placement, weight: &[f32]) -> f32 {
    let loads = weight.iter().zip(placement.logcnt()).map(|(weight, &count)| weight / count as f32);
    loads.fold(0.0, f32::max)
}

proptest! {
    #[test]
    fn every_placement_is_whole((shape, weight) in shapes()) {
        let placement = rebalance_experts(&weight, &shape).unwrap();
        let most = placement.replicas_max();
        for layer in 0..placement.layers() {
            let row = placement.layer(layer);
            prop_assert_eq!(row.len(), shape.replicas);
            let counts = &placement.logcnt()[layer * shape.experts..][..shape.experts];
            prop_assert_eq!(counts.iter().sum::<i64>(), shape.replicas as i64);
            for (expert, &count) in counts.iter().enumerate() {
                prop_assert!(count >= 1);
                let slots = &placement.log2phy()[(layer * shape.experts + expert) * most..][..most];
                let (held, none) = slots.split_at(count as usize);
                prop_assert!(held.iter().all(|&slot| row[slot as usize] == expert as i64));
                prop_assert!(none.iter().all(|&slot| slot == -1));
                let mut different = held.to_vec();
                different.sort_unstable();
                different.dedup();
                prop_assert_eq!(different.len(), held.len());
            }
        }
    }

    #[test]
    fn a_group_stays_on_one_node((shape, weight) in shapes()) {
        let placement = rebalance_experts(&weight, &shape).unwrap();
        for layer in 0..placement.layers() {
            let mut nodes = BTreeMap::new();
            for (slot, &expert) in placement.layer(layer).iter().enumerate() {
                let group = expert as usize / (shape.experts / shape.groups);
                let node = slot / (shape.replicas / shape.nodes);
                prop_assert_eq!(*nodes.entry(group).or_insert(node), node);
            }
        }
    }

    #[test]
    fn more_slots_never_raise_the_greatest_load((shape, weight) in shapes()) {
        let more = Shape { replicas: shape.replicas + shape.gpus, ..shape };
        let (few, many) = (rebalance_experts(&weight, &shape).unwrap(), rebalance_experts(&weight, &more).unwrap());
        prop_assert!(max_replica_load(&many, &weight) <= max_replica_load(&few, &weight));
    }

    #[test]
    fn copies_lead_from_one_placement_to_the_next((shape, weight) in shapes()) {
        let mut other = weight.clone();
        other.reverse();
        let (old, new) = (rebalance_experts(&weight, &shape).unwrap(), rebalance_experts(&other, &shape).unwrap());
        let kept = keep_in_place(&old, &new, shape.gpus).unwrap();
        let loads = |of: &Placement| of.gpu_loads(&other, shape.gpus).unwrap();
        prop_assert!(loads(&kept).iter().zip(loads(&new)).all(|(a, b)| (a - b).abs() < 1e-9));
        prop_assert_eq!(kept.logcnt(), new.logcnt());
        let copies = moves(&old, &kept, shape.gpus).unwrap();
        prop_assert!(copies.len() <= moves(&old, &new, shape.gpus).unwrap().len());
        prop_assert!(moves(&old, &old, shape.gpus).unwrap().is_empty());
        let mut held: Vec<Vec<i64>> = (0..old.layers()).map(|layer| old.layer(layer).to_vec()).collect();
        for copy in &copies {
            prop_assert_eq!(old.layer(copy.layer)[copy.from], copy.expert as i64);
            held[copy.layer][copy.to] = copy.expert as i64;
        }
        prop_assert_eq!(held.concat(), kept.phy2log());
        // What stays on its GPU is never copied to it.
        let each = shape.replicas / shape.gpus;
        for layer in 0..old.layers() {
            for gpu in 0..shape.gpus {
                let count = |placement: &Placement, expert: i64| {
                    placement.layer(layer)[gpu * each..][..each].iter().filter(|&&held| held == expert).count()
                };
                for expert in 0..shape.experts {
                    let here = |copy: &&ember_eplb::Move| {
                        (copy.layer, copy.expert, copy.to / each) == (layer, expert, gpu)
                    };
                    let expert = expert as i64;
                    let needed = count(&kept, expert).saturating_sub(count(&old, expert));
                    prop_assert_eq!(copies.iter().filter(here).count(), needed);
                }
            }
        }
    }
}
