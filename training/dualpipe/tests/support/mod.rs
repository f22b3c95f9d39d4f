//! A small model, and what one process makes of it.
#![allow(dead_code, missing_docs, unreachable_pub)]

use ember_dualpipe::{Feed, Kind, Pipeline, Stage};
use std::collections::BTreeMap;

/// Numbers of a tensor.
pub const WIDTH: usize = 3;

pub type Tensor = Vec<f64>;

/// `tanh(W x)`.
#[derive(Clone)]
pub struct Layer {
    pub weights: Vec<f64>,
    pub gradients: Vec<f64>,
    pub kept: BTreeMap<usize, (Tensor, Tensor)>,
    pub fails_at: Option<usize>,
    /// Micro-batches in the order of their weight gradients.
    pub weighed: Vec<usize>,
}

pub fn noise(seed: usize, count: usize) -> Vec<f64> {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    (0..count).map(|_| next()).collect()
}

impl Layer {
    pub fn new(stage: usize) -> Self {
        let weights = noise(1000 + stage, WIDTH * WIDTH).iter().map(|w| 2.0 * w).collect();
        let gradients = vec![0.0; WIDTH * WIDTH];
        Self { weights, gradients, kept: BTreeMap::new(), fails_at: None, weighed: Vec::new() }
    }
}

impl Stage for Layer {
    type Tensor = Tensor;
    type Deferred = (usize, Tensor, Tensor);
    type Error = String;

    fn forward(&mut self, chunk: usize, input: Tensor, keep: bool) -> Result<Tensor, String> {
        if self.fails_at == Some(chunk) {
            return Err("no memory".into());
        }
        let row = |row: &[f64]| row.iter().zip(&input).map(|(w, x)| w * x).sum::<f64>().tanh();
        let output: Tensor = self.weights.chunks(WIDTH).map(row).collect();
        if keep {
            self.kept.insert(chunk, (input, output.clone()));
        }
        Ok(output)
    }
    fn backward_input(&mut self, chunk: usize, gradient: Tensor) -> Result<(Tensor, Self::Deferred), String> {
        let (input, output) = self.kept.remove(&chunk).ok_or("no forward pass before")?;
        let inner: Tensor = gradient.iter().zip(&output).map(|(g, y)| g * (1.0 - y * y)).collect();
        let column = |j: usize| (0..WIDTH).map(|i| self.weights[i * WIDTH + j] * inner[i]).sum();
        Ok(((0..WIDTH).map(column).collect(), (chunk, inner, input)))
    }
    fn weight_gradients(&mut self, (chunk, inner, input): Self::Deferred) -> Result<(), String> {
        self.weighed.push(chunk);
        for (i, g) in inner.iter().enumerate() {
            for (j, x) in input.iter().enumerate() {
                self.gradients[i * WIDTH + j] += g * x;
            }
        }
        Ok(())
    }
}

/// Half the squared distance, and its gradient.
pub fn criterion(output: &Tensor, label: Tensor) -> (f64, Tensor) {
    let gradient: Tensor = output.iter().zip(&label).map(|(y, l)| y - l).collect();
    (gradient.iter().map(|d| d * d / 2.0).sum(), gradient)
}

/// Inputs and labels of the micro-batches that enter at either end.
pub fn batch(direction: usize, count: usize) -> (Vec<Tensor>, Vec<Tensor>) {
    let all = |kind: usize| (0..count).map(|i| noise(10 * (100 * direction + i) + kind, WIDTH)).collect();
    (all(1), all(2))
}

pub fn feed(pipeline: &Pipeline, rank: usize) -> Feed<Tensor, Tensor> {
    let mut feed = Feed::default();
    for module in 0..2 {
        // What goes down in DualPipeV is what went up.
        let direction = if pipeline.kind() == Kind::DualPipe { module } else { 0 };
        let (inputs, labels) = batch(direction, pipeline.chunks_of_module());
        if pipeline.is_first(rank, module) {
            feed.inputs[module] = inputs;
        }
        if pipeline.is_last(rank, module) {
            feed.labels[module] = labels;
        }
    }
    feed
}

pub struct Alone {
    pub losses: Vec<f64>,
    pub outputs: Vec<Tensor>,
}

/// All stages in one process, a micro-batch after the other; weight gradients stay in `stages`.
pub fn alone(stages: &mut [Layer], direction: usize, count: usize) -> Alone {
    let (inputs, labels) = batch(direction, count);
    let mut found = Alone { losses: Vec::new(), outputs: Vec::new() };
    for (chunk, (input, label)) in inputs.into_iter().zip(labels).enumerate() {
        let forward = |x, stage: &mut Layer| stage.forward(chunk, x, true).unwrap();
        let output = stages.iter_mut().fold(input, forward);
        let (loss, gradient) = criterion(&output, label);
        stages.iter_mut().rev().fold(gradient, |g, stage| stage.backward(chunk, g).unwrap());
        found.losses.push(loss);
        found.outputs.push(output);
    }
    found
}
