//! From one placement to the next.

use crate::placement::Placement;
use crate::{Result, demand};

/// A replica that has to be copied before a new placement can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// Layer.
    pub layer: usize,
    /// Expert whose parameters are needed.
    pub expert: usize,
    /// Slot that gets them.
    pub to: usize,
    /// A slot that has them in the old placement: on the same GPU if one has them, else on the GPU that has given
    /// least in this layer so far.
    pub from: usize,
}

/// GPUs of both placements.
fn slots_of_gpu(old: &Placement, new: &Placement, gpus: usize) -> Result<usize> {
    let shape = |placement: &Placement| (placement.layers, placement.experts, placement.slots);
    demand(shape(old) == shape(new), "new", || {
        format!(
            "has layers, experts and slots {:?}, and `old` has {:?}: they must be equal",
            shape(new),
            shape(old)
        )
    })?;
    demand(gpus > 0 && old.slots.is_multiple_of(gpus), "gpus", || {
        format!("{} slots can't be divided among {gpus} GPUs", old.slots)
    })?;
    Ok(old.slots / gpus)
}

/// The copies that lead from `old` to `new`, by layer and slot. What a slot holds already isn't copied.
///
/// # Errors
/// If the placements differ in shape, or `gpus` doesn't divide their slots.
pub fn moves(old: &Placement, new: &Placement, gpus: usize) -> Result<Vec<Move>> {
    let each = slots_of_gpu(old, new, gpus)?;
    let mut found = Vec::new();
    for layer in 0..old.layers {
        let (before, after) = (old.layer(layer), new.layer(layer));
        let mut given = vec![0usize; gpus];
        for (to, &expert) in after.iter().enumerate().filter(|&(to, expert)| before[to] != *expert) {
            let holders = before.iter().enumerate().filter(|(_, held)| **held == expert);
            let from = holders.map(|(slot, _)| slot).min_by_key(|&slot| {
                let gpu = slot / each;
                (gpu != to / each, given[gpu], slot)
            });
            let Some(from) = from else { continue };
            if from / each != to / each {
                given[from / each] += 1;
            }
            found.push(Move { layer, expert: expert as usize, to, from });
        }
    }
    Ok(found)
}

/// `new` with the slots of each GPU in an order that leaves in its place what the GPU has already: the loads are the
/// same, and there is less to copy.
///
/// # Errors
/// As [`moves`].
pub fn keep_in_place(old: &Placement, new: &Placement, gpus: usize) -> Result<Placement> {
    let each = slots_of_gpu(old, new, gpus)?;
    let most = new.replicas_max();
    let mut layers = Vec::with_capacity(new.layers);
    for layer in 0..new.layers {
        // With each expert goes the number of its replica.
        let mut replicas = vec![0; new.slots];
        for (at, &slot) in new.log2phy[layer * new.experts * most..][..new.experts * most].iter().enumerate()
        {
            if let Ok(slot) = usize::try_from(slot) {
                replicas[slot] = at % most;
            }
        }
        let wanted: Vec<(usize, usize)> = new
            .layer(layer)
            .iter()
            .zip(replicas)
            .map(|(&expert, replica)| (expert as usize, replica))
            .collect();
        let gpus = old.layer(layer).chunks(each).zip(wanted.chunks(each));
        layers.push(gpus.flat_map(|(before, wanted)| order(before, wanted)).collect());
    }
    Ok(Placement::new(new.experts, &layers))
}

/// The wanted ones: those that are there at their places, the others at what is left.
fn order(before: &[i64], wanted: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let mut left = wanted.to_vec();
    let mut take = |expert: i64| {
        let at = left.iter().position(|(other, _)| *other as i64 == expert)?;
        Some(left.remove(at))
    };
    let kept: Vec<Option<(usize, usize)>> = before.iter().map(|&expert| take(expert)).collect();
    let mut left = left.into_iter();
    kept.into_iter().filter_map(|slot| slot.or_else(|| left.next())).collect()
}
