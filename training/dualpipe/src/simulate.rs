//! How long a step takes, and how much memory, if messages take no time.

use crate::schedule::{Compute, Payload, Pipeline, Step};
use crate::{DualPipeError, Result, demand};
use std::collections::BTreeMap;

/// Times of one stage for one micro-batch, in any unit.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Costs {
    /// Forward pass.
    pub forward: f64,
    /// Backward pass, weight gradients included.
    pub backward: f64,
    /// Weight gradients alone.
    pub weight: f64,
    /// A forward pass beside a backward pass.
    pub overlapped: f64,
}

impl Costs {
    fn check(&self) -> Result<()> {
        let Self { forward, backward, weight, overlapped } = *self;
        let all =
            [("forward", forward), ("backward", backward), ("weight", weight), ("overlapped", overlapped)];
        for (argument, cost) in all {
            demand(cost.is_finite() && cost >= 0.0, argument, || format!("{cost} is no time"))?;
        }
        demand(weight <= backward, "weight", || {
            format!("{weight} is more than the whole backward pass of {backward}")
        })
    }
    fn of(&self, compute: Compute) -> f64 {
        match compute {
            Compute::Forward(_) => self.forward,
            Compute::Backward(_) => self.backward,
            Compute::BackwardInput(_) => self.backward - self.weight,
            Compute::Weight(_) => self.weight,
            Compute::Overlapped { .. } => self.overlapped,
        }
    }
    /// The published bubble: `(stages / 2 - 1) (overlapped + backward - 3 weight)`, in DeepSeek-V3 Technical Report
    /// (arXiv 2412.19437) table 2.
    pub fn bubble(&self, pipeline: &Pipeline) -> f64 {
        (pipeline.stages() as f64 / 2.0 - 1.0) * (self.overlapped + self.backward - 3.0 * self.weight)
    }
}

/// Work with its time.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Block {
    /// What.
    pub compute: Compute,
    /// From when.
    pub begin: f64,
    /// Until when.
    pub end: f64,
}

/// What one rank does.
#[derive(Clone, PartialEq, Debug)]
pub struct Timeline {
    /// Its work, in order.
    pub blocks: Vec<Block>,
    /// Time of the whole step in which it has nothing to do.
    pub bubble: f64,
    /// Most micro-batches of both modules together whose backward pass has not ended. 0 without a backward pass.
    pub peak_activations: usize,
}

/// A step of all ranks.
#[derive(Clone, PartialEq, Debug)]
pub struct Simulation {
    /// From the first rank's beginning to the last rank's end.
    pub makespan: f64,
    /// By rank.
    pub ranks: Vec<Timeline>,
}

/// Sender, receiver, payload, module, micro-batch.
type Message = (usize, usize, Payload, usize, usize);

/// Runs the programs of all ranks.
///
/// # Errors
/// If a cost is no time.
pub fn simulate(pipeline: &Pipeline, costs: &Costs) -> Result<Simulation> {
    costs.check()?;
    let programs: Vec<Vec<Step>> =
        (0..pipeline.ranks()).map(|rank| pipeline.program(rank)).collect::<Result<_>>()?;
    let mut at = vec![(0usize, 0.0f64, false); programs.len()];
    let mut blocks: Vec<Vec<Block>> = vec![Vec::new(); programs.len()];
    let mut sent: BTreeMap<Message, f64> = BTreeMap::new();
    loop {
        let before = at.clone();
        for (rank, program) in programs.iter().enumerate() {
            let (step, now, posted) = &mut at[rank];
            while let Some(next) = program.get(*step) {
                match next {
                    Step::Compute(compute) => {
                        let block = Block { compute: *compute, begin: *now, end: *now + costs.of(*compute) };
                        *now = block.end;
                        blocks[rank].push(block);
                    }
                    Step::Exchange(transfers) => {
                        if !*posted {
                            let sends = transfers.iter().filter(|transfer| transfer.sends);
                            sent.extend(
                                sends.map(|t| ((rank, t.peer, t.payload, t.part.module, t.part.chunk), *now)),
                            );
                            *posted = true;
                        }
                        let receives = transfers.iter().filter(|transfer| !transfer.sends);
                        let arrivals: Option<Vec<f64>> = receives
                            .map(|t| {
                                sent.get(&(t.peer, rank, t.payload, t.part.module, t.part.chunk)).copied()
                            })
                            .collect();
                        let Some(arrivals) = arrivals else { break };
                        *now = arrivals.into_iter().fold(*now, f64::max);
                        *posted = false;
                    }
                }
                *step += 1;
            }
        }
        if at == before {
            break;
        }
    }
    if let Some(rank) = (0..programs.len()).find(|&rank| at[rank].0 < programs[rank].len()) {
        return Err(DualPipeError::Deadlock { rank, step: at[rank].0 });
    }
    let makespan = at.iter().map(|(_, now, _)| *now).fold(0.0, f64::max);
    let ranks = blocks.into_iter().map(|blocks| timeline(blocks, makespan)).collect();
    Ok(Simulation { makespan, ranks })
}

fn timeline(blocks: Vec<Block>, makespan: f64) -> Timeline {
    let busy: f64 = blocks.iter().map(|block| block.end - block.begin).sum();
    let (mut live, mut peak) = (0usize, 0usize);
    for block in &blocks {
        live += usize::from(block.compute.forward().is_some());
        peak = peak.max(live);
        live -= usize::from(block.compute.backward().is_some());
    }
    let backward = blocks.iter().any(|block| block.compute.backward().is_some());
    Timeline { blocks, bubble: makespan - busy, peak_activations: if backward { peak } else { 0 } }
}
