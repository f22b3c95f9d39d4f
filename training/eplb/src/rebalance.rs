//! The placement of all layers.

use crate::packing::{pack_evenly, replicate};
use crate::placement::Placement;
use crate::{Result, demand};

/// Numbers of things.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Logical experts of a layer.
    pub experts: usize,
    /// Physical slots of a layer, over all GPUs.
    pub replicas: usize,
    /// Groups of experts that are chosen together; those of a group stay on one node if `nodes` divides `groups`.
    pub groups: usize,
    /// Nodes, whose GPUs reach each other faster.
    pub nodes: usize,
    /// GPUs of all nodes.
    pub gpus: usize,
}

impl Shape {
    /// Whether groups can be divided among nodes. If not, nodes and groups are left out of account.
    fn is_hierarchical(&self) -> bool {
        self.groups.is_multiple_of(self.nodes)
    }

    fn check(&self) -> Result<()> {
        let Self { experts, replicas, groups, nodes, gpus } = *self;
        for (argument, number) in [
            ("experts", experts),
            ("replicas", replicas),
            ("groups", groups),
            ("nodes", nodes),
            ("gpus", gpus),
        ] {
            demand(number > 0, argument, || "must be at least 1".into())?;
        }
        let divides = |argument, (what, number): (&str, usize), (by, parts): (&str, usize)| {
            demand(number.is_multiple_of(parts), argument, || {
                format!("{number} {what} can't be divided among {parts} {by}")
            })
        };
        demand(replicas >= experts, "replicas", || format!("{replicas} slots can't hold {experts} experts"))?;
        divides("groups", ("experts", experts), ("groups", groups))?;
        divides("gpus", ("slots", replicas), ("GPUs", gpus))?;
        divides("nodes", ("GPUs", gpus), ("nodes", nodes))?;
        if self.is_hierarchical() {
            divides("nodes", ("slots", replicas), ("nodes", nodes))?;
        }
        Ok(())
    }
}

/// Places replicas of the experts of all layers. `weight[layers, experts]`, row-major, are their loads: finite
/// numbers from 0 on.
///
/// If `nodes` divides `groups` the policy is hierarchical: groups are packed onto nodes, the experts of a node are
/// replicated there and the replicas packed onto its GPUs. Otherwise it is global: the same as if there were one node
/// and one group. All sums and quotients are in `f32` and in order of the index; of equals the lower index is first.
///
/// # Errors
/// What is wrong with the numbers or a load.
pub fn rebalance_experts(weight: &[f32], shape: &Shape) -> Result<Placement> {
    shape.check()?;
    demand(weight.len().is_multiple_of(shape.experts), "weight", || {
        format!("{} values are no whole number of layers of {} experts", weight.len(), shape.experts)
    })?;
    let wrong = weight.iter().position(|load| !load.is_finite() || *load < 0.0);
    demand(wrong.is_none(), "weight", || {
        let at = wrong.unwrap_or(0);
        let (layer, expert) = (at / shape.experts, at % shape.experts);
        format!(
            "{} of expert {expert} in layer {layer} is no load: it must be finite and at least 0",
            weight[at]
        )
    })?;
    let shape = match shape.is_hierarchical() {
        true => *shape,
        false => Shape { groups: 1, nodes: 1, ..*shape },
    };
    // A zero has no sign among loads.
    let weight: Vec<f32> = weight.iter().map(|load| load + 0.0).collect();
    let layers: Vec<_> = weight.chunks(shape.experts).map(|row| place_layer(row, &shape)).collect();
    let mut placement = Placement::new(shape.experts, &layers);
    placement.slots = shape.replicas;
    Ok(placement)
}

/// Expert and number of the replica of each slot.
fn place_layer(weight: &[f32], shape: &Shape) -> Vec<(usize, usize)> {
    let (of_group, of_node) = (shape.experts / shape.groups, shape.experts / shape.nodes);
    let groups: Vec<f32> = weight.chunks(of_group).map(|group| group.iter().sum()).collect();
    let packed = pack_evenly(&groups, shape.nodes);
    // The experts in the order of the nodes that their groups went to.
    let mut order = vec![0; shape.experts];
    for (group, (node, rank)) in packed.pack.iter().zip(&packed.rank).enumerate() {
        let to = (node * (shape.groups / shape.nodes) + rank) * of_group;
        for member in 0..of_group {
            order[to + member] = group * of_group + member;
        }
    }
    order.chunks(of_node).flat_map(|experts| place_node(weight, experts, shape)).collect()
}

fn place_node(weight: &[f32], experts: &[usize], shape: &Shape) -> Vec<(usize, usize)> {
    let (slots, gpus) = (shape.replicas / shape.nodes, shape.gpus / shape.nodes);
    let weight: Vec<f32> = experts.iter().map(|&expert| weight[expert]).collect();
    let made = replicate(&weight, slots);
    let each: Vec<f32> =
        made.expert.iter().map(|&expert| weight[expert] / made.count[expert] as f32).collect();
    let packed = pack_evenly(&each, gpus);
    let mut placed = vec![(0, 0); slots];
    for (replica, (gpu, rank)) in packed.pack.iter().zip(&packed.rank).enumerate() {
        placed[gpu * (slots / gpus) + rank] = (experts[made.expert[replica]], made.rank[replica]);
    }
    placed
}
