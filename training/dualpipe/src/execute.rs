//! Runs a rank's program with real stages.

use crate::schedule::{Compute, Part, Payload, Pipeline, Step};
use crate::transport::{Tag, Transport, TransportError};
use crate::{DualPipeError, demand};
use std::collections::{BTreeMap, VecDeque};

/// A stage of a model: what one module of a rank computes.
///
/// Between the forward and the backward pass of a micro-batch the stage keeps what the latter needs.
pub trait Stage {
    /// What goes from stage to stage, and its gradient on the way back.
    type Tensor;
    /// What the weight gradients of a micro-batch are computed from.
    type Deferred;
    /// What can go wrong in it.
    type Error;

    /// Output for an input. `keep` is false where no backward pass follows.
    fn forward(&mut self, chunk: usize, input: Self::Tensor, keep: bool)
    -> Result<Self::Tensor, Self::Error>;
    /// Gradient of the input from that of the output, and what is put off.
    fn backward_input(
        &mut self,
        chunk: usize,
        gradient: Self::Tensor,
    ) -> Result<(Self::Tensor, Self::Deferred), Self::Error>;
    /// Adds the weight gradients of a micro-batch.
    fn weight_gradients(&mut self, deferred: Self::Deferred) -> Result<(), Self::Error>;
    /// Both in one.
    fn backward(&mut self, chunk: usize, gradient: Self::Tensor) -> Result<Self::Tensor, Self::Error> {
        let (gradient, deferred) = self.backward_input(chunk, gradient)?;
        self.weight_gradients(deferred)?;
        Ok(gradient)
    }
    /// A forward pass of one stage beside a backward pass of another; returns output and input gradient. A stage whose
    /// passes are made of communication and computation interleaves them here; without that, one follows the other.
    fn overlapped(
        forward: (&mut Self, usize, Self::Tensor),
        backward: (&mut Self, usize, Self::Tensor),
    ) -> Result<(Self::Tensor, Self::Tensor), Self::Error> {
        let output = forward.0.forward(forward.1, forward.2, true)?;
        Ok((output, backward.0.backward(backward.1, backward.2)?))
    }
}

/// What a rank gets from outside in a step, by module; empty where the module takes nothing.
pub struct Feed<T, L> {
    /// Inputs of the modules that are the first stage, in order.
    pub inputs: [Vec<T>; 2],
    /// What the outputs of the modules that are the last stage are compared with, in order.
    pub labels: [Vec<L>; 2],
}

impl<T, L> Default for Feed<T, L> {
    fn default() -> Self {
        Self { inputs: [Vec::new(), Vec::new()], labels: [Vec::new(), Vec::new()] }
    }
}

/// What a rank has at the end of a step: nothing unless it holds the last stage.
#[derive(Clone, PartialEq, Debug)]
pub struct Outcome<T, V> {
    /// Losses, in the order of the labels.
    pub losses: Vec<V>,
    /// Outputs, if they were asked for.
    pub outputs: Vec<T>,
}

/// Why a step ended early. Nothing is left that could be gone on with: gradients are incomplete.
#[derive(Debug, thiserror::Error)]
pub enum RunError<E> {
    /// An argument breaks a rule.
    #[error(transparent)]
    Argument(#[from] DualPipeError),
    /// A stage of this rank failed.
    #[error("stage {stage}, micro-batch {chunk} of module {module}: {error}")]
    Stage {
        /// Which stage.
        stage: usize,
        /// Module of the rank.
        module: usize,
        /// Micro-batch of the module.
        chunk: usize,
        /// What it says.
        error: E,
    },
    /// A message didn't come or go: most likely another rank has failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// A rank of a pipeline.
pub struct Rank<'a, X> {
    /// The pipeline.
    pub pipeline: &'a Pipeline,
    /// This rank's number in it.
    pub rank: usize,
    /// The number in `transport` of each rank of the pipeline.
    pub mapping: &'a [usize],
    /// The way to the others.
    pub transport: X,
}

/// Tensors by what they are and whose.
type Tensors<T> = BTreeMap<(Payload, Part), T>;

struct Running<'r, 'a, S: Stage, X, L, C, V> {
    of: &'r mut Rank<'a, X>,
    modules: &'r mut [S; 2],
    criterion: C,
    inputs: [VecDeque<S::Tensor>; 2],
    labels: [VecDeque<L>; 2],
    /// What the modules of this rank will take.
    arrived: Tensors<S::Tensor>,
    /// What goes to other ranks.
    leaving: Tensors<S::Tensor>,
    put_off: VecDeque<(Part, S::Deferred)>,
    keeps_outputs: bool,
    outcome: Outcome<S::Tensor, V>,
}

impl<X> Rank<'_, X> {
    /// Runs one step. `modules` are stages `pipeline.stage(rank, 0)` and `pipeline.stage(rank, 1)`; `criterion` gives
    /// the loss of an output and its gradient.
    ///
    /// With [`Kind::DualPipe`](crate::Kind::DualPipe) the gradients of a stage are complete when those of both its
    /// copies, here and on [`Pipeline::twin`], are added.
    ///
    /// # Errors
    /// [`RunError`]; other ranks then end with an error too, as soon as they miss a message.
    pub fn step<S, L, V, C>(
        &mut self,
        modules: &mut [S; 2],
        feed: Feed<S::Tensor, L>,
        keeps_outputs: bool,
        criterion: C,
    ) -> Result<Outcome<S::Tensor, V>, RunError<S::Error>>
    where
        S: Stage,
        S::Tensor: Clone,
        X: Transport<S::Tensor>,
        C: FnMut(&S::Tensor, L) -> (V, S::Tensor),
    {
        let program = self.pipeline.program(self.rank)?;
        self.check(&feed)?;
        let mut running = Running {
            of: self,
            modules,
            criterion,
            inputs: feed.inputs.map(VecDeque::from),
            labels: feed.labels.map(VecDeque::from),
            arrived: Tensors::new(),
            leaving: Tensors::new(),
            put_off: VecDeque::new(),
            keeps_outputs,
            outcome: Outcome { losses: Vec::new(), outputs: Vec::new() },
        };
        for step in &program {
            running.step(step)?;
        }
        Ok(running.outcome)
    }

    fn check<T, L>(&self, feed: &Feed<T, L>) -> Result<(), DualPipeError> {
        let (pipeline, rank) = (self.pipeline, self.rank);
        demand(self.mapping.len() == pipeline.ranks(), "mapping", || {
            format!("names {} ranks, the pipeline has {}", self.mapping.len(), pipeline.ranks())
        })?;
        let mut different = self.mapping.to_vec();
        different.sort_unstable();
        different.dedup();
        demand(different.len() == pipeline.ranks(), "mapping", || "names a rank twice".into())?;
        for module in 0..2 {
            let chunks = pipeline.chunks_of_module();
            let ends = [
                ("inputs", pipeline.is_first(rank, module), feed.inputs[module].len()),
                ("labels", pipeline.is_last(rank, module), feed.labels[module].len()),
            ];
            for (argument, takes, given) in ends {
                let wanted = if takes { chunks } else { 0 };
                demand(given == wanted, argument, || {
                    format!("module {module} of rank {rank} takes {wanted} of them, not {given}")
                })?;
            }
        }
        Ok(())
    }
}

impl<S, X, L, C, V> Running<'_, '_, S, X, L, C, V>
where
    S: Stage,
    S::Tensor: Clone,
    X: Transport<S::Tensor>,
    C: FnMut(&S::Tensor, L) -> (V, S::Tensor),
{
    fn step(&mut self, step: &Step) -> Result<(), RunError<S::Error>> {
        let compute = match step {
            Step::Compute(compute) => *compute,
            Step::Exchange(transfers) => {
                let tag = |payload, part| Tag { payload, part };
                let (mut sends, mut receives) = (Vec::new(), Vec::new());
                for transfer in transfers {
                    let (peer, key) = (self.of.mapping[transfer.peer], (transfer.payload, transfer.part));
                    match transfer.sends {
                        true => {
                            let what = self.leaving.remove(&key).expect("a program sends what it computes");
                            sends.push((peer, tag(key.0, key.1), what));
                        }
                        false => receives.push((peer, tag(key.0, key.1))),
                    }
                }
                let got = self.of.transport.exchange(sends, &receives)?;
                demand(got.len() == receives.len(), "transport", || {
                    format!("has given {} messages for {} that were asked for", got.len(), receives.len())
                })?;
                let keys = receives.iter().map(|(_, tag)| (tag.payload, tag.part));
                self.arrived.extend(keys.zip(got));
                return Ok(());
            }
        };
        match compute {
            Compute::Forward(part) => {
                let input = self.input(part);
                let keep = !self.of.pipeline.is_forward_only();
                let output = self.modules[part.module].forward(part.chunk, input, keep);
                let output = output.map_err(|error| self.failed(part, error))?;
                self.output(part, output);
            }
            Compute::Backward(part) => {
                let gradient = self.gradient(part);
                let back = self.modules[part.module].backward(part.chunk, gradient);
                let back = back.map_err(|error| self.failed(part, error))?;
                self.input_gradient(part, back);
            }
            Compute::BackwardInput(part) => {
                let gradient = self.gradient(part);
                let back = self.modules[part.module].backward_input(part.chunk, gradient);
                let (back, deferred) = back.map_err(|error| self.failed(part, error))?;
                self.put_off.push_back((part, deferred));
                self.input_gradient(part, back);
            }
            Compute::Weight(_) => {
                let (part, deferred) =
                    self.put_off.pop_front().expect("a program computes what it has put off");
                let added = self.modules[part.module].weight_gradients(deferred);
                added.map_err(|error| self.failed(part, error))?;
            }
            Compute::Overlapped { forward, backward } => {
                let (input, gradient) = (self.input(forward), self.gradient(backward));
                let [first, second] = &mut *self.modules;
                let (ahead, back) = if forward.module == 0 { (first, second) } else { (second, first) };
                let both = S::overlapped((ahead, forward.chunk, input), (back, backward.chunk, gradient));
                let (output, back) = both.map_err(|error| self.failed(forward, error))?;
                self.output(forward, output);
                self.input_gradient(backward, back);
            }
        }
        Ok(())
    }

    fn failed(&self, part: Part, error: S::Error) -> RunError<S::Error> {
        let stage = self.of.pipeline.stage(self.of.rank, part.module);
        RunError::Stage { stage, module: part.module, chunk: part.chunk, error }
    }

    fn arrived(&mut self, payload: Payload, part: Part) -> S::Tensor {
        let arrived = self.arrived.remove(&(payload, part));
        arrived.expect("a program receives what it computes with")
    }
    fn input(&mut self, part: Part) -> S::Tensor {
        match self.inputs[part.module].pop_front() {
            Some(input) => input,
            None => self.arrived(Payload::Activation, part),
        }
    }
    fn gradient(&mut self, part: Part) -> S::Tensor {
        self.arrived(Payload::Gradient, part)
    }

    /// An output goes on, or becomes a loss, whose gradient then waits for the backward pass.
    fn output(&mut self, part: Part, output: S::Tensor) {
        let (pipeline, rank) = (self.of.pipeline, self.of.rank);
        if pipeline.is_last(rank, part.module) {
            let label = self.labels[part.module].pop_front().expect("the feed was counted");
            let (loss, gradient) = (self.criterion)(&output, label);
            self.outcome.losses.push(loss);
            if !pipeline.is_forward_only() {
                self.arrived.insert((Payload::Gradient, part), gradient);
            }
            if self.keeps_outputs {
                self.outcome.outputs.push(output);
            }
        } else if pipeline.turns(rank) && part.module == 0 {
            self.arrived.insert((Payload::Activation, Part { module: 1, ..part }), output);
        } else {
            self.leaving.insert((Payload::Activation, part), output);
        }
    }

    fn input_gradient(&mut self, part: Part, gradient: S::Tensor) {
        let (pipeline, rank) = (self.of.pipeline, self.of.rank);
        if pipeline.is_first(rank, part.module) {
            return;
        }
        if pipeline.turns(rank) && part.module == 1 {
            self.arrived.insert((Payload::Gradient, Part { module: 0, ..part }), gradient);
        } else {
            self.leaving.insert((Payload::Gradient, part), gradient);
        }
    }
}
