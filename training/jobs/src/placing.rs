//! Where the replicas of the experts are, by the load that they have had.

use crate::checkpoint::{State, first_places};
use crate::job::{Report, Settings};
use anyhow::{Result, ensure};
use ember_eplb::{Placement, Shape, keep_in_place, moves, rebalance_experts};

/// Adds a step's tokens of a layer's experts, and changes the biases by which they are chosen: down for those that had
/// more than the mean, up for the others (arXiv 2408.15664).
pub(crate) fn count(state: &mut State, layer: usize, counts: &[u64], by: f32) {
    let total: u64 = counts.iter().sum();
    let experts = counts.len() as u64;
    let sums = state.counts[layer].iter_mut().zip(&mut state.bias[layer]);
    for (&count, (sum, bias)) in counts.iter().zip(sums) {
        *sum += count;
        match (count * experts).cmp(&total) {
            std::cmp::Ordering::Less => *bias += by,
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => *bias -= by,
        }
    }
}

fn placement(state: &State) -> Result<Placement> {
    Ok(Placement::from_slots(state.config.experts, &state.places)?)
}

/// Greatest load of a rank, over the mean of its layer.
fn imbalance(placement: &Placement, loads: &[f32], ranks: usize) -> Result<f64> {
    let of_layer = |loads: &[f64]| {
        let mean = loads.iter().sum::<f64>() / loads.len() as f64;
        loads.iter().copied().fold(0.0, f64::max) / mean.max(f64::MIN_POSITIVE)
    };
    Ok(placement.gpu_loads(loads, ranks)?.chunks(ranks).map(of_layer).fold(0.0, f64::max))
}

/// Gives the slots out anew, by the counts since the last time, and begins to count anew.
pub(crate) fn place(state: &mut State, settings: &Settings) -> Result<Report> {
    let (config, ranks) = (&settings.config, settings.ranks.expert);
    let loads: Vec<f32> = state.counts.iter().flatten().map(|count| *count as f32).collect();
    let shape =
        Shape { experts: config.experts, replicas: settings.ranks.slots, groups: 1, nodes: 1, gpus: ranks };
    let old = placement(state)?;
    let new = keep_in_place(&old, &rebalance_experts(&loads, &shape)?, ranks)?;
    let report = Report::Placed {
        step: state.step,
        moves: moves(&old, &new, ranks)?.len(),
        imbalance: (imbalance(&old, &loads, ranks)?, imbalance(&new, &loads, ranks)?),
    };
    let slots = |layer| new.layer(layer).iter().map(|expert| *expert as usize).collect();
    state.places = (0..config.layers).map(slots).collect();
    state.counts.iter_mut().for_each(|counts| counts.fill(0));
    Ok(report)
}

/// The state of a checkpoint for a job that may have other ranks, but must have the same model.
pub(crate) fn fitting(state: State, settings: &Settings) -> Result<State> {
    let (theirs, ours) = (&state.config, &settings.config);
    ensure!(
        theirs == ours,
        "the checkpoint of step {} is of another model: {theirs:?}, and this job's is {ours:?}",
        state.step
    );
    ensure!(
        state.step <= settings.steps,
        "the checkpoint is of step {}, behind --steps {}",
        state.step,
        settings.steps
    );
    let other = state.ranks.slots != settings.ranks.slots;
    let places = if other { first_places(ours, &settings.ranks) } else { state.places };
    let state = State { ranks: settings.ranks.clone(), places, ..state };
    placement(&state)?;
    Ok(state)
}
