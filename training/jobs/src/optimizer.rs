//! AdamW (arXiv 1711.05101), on the rank that owns a parameter.

use serde::{Deserialize, Serialize};

const FIRST: f32 = 0.9;
const SECOND: f32 = 0.95;
const EPSILON: f32 = 1e-8;

/// How far parameters go in a step.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pace {
    /// Greatest learning rate.
    #[arg(long, default_value_t = 0.003)]
    pub(crate) rate: f32,
    /// Steps until it is reached; from then on it falls to a tenth in the last step.
    #[arg(long, default_value_t = 20)]
    pub(crate) warmup: u64,
    /// Weight decay of matrices.
    #[arg(long, default_value_t = 0.01)]
    pub(crate) decay: f32,
    /// Gradients longer than this, all together, are made so long.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) clip: f32,
}

impl Pace {
    /// Learning rate of a step, counted from 1.
    pub(crate) fn at(&self, step: u64, steps: u64) -> f32 {
        if step < self.warmup {
            return self.rate * step as f32 / self.warmup as f32;
        }
        let share = (step - self.warmup) as f64 / steps.saturating_sub(self.warmup).max(1) as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * share.min(1.0)).cos());
        self.rate * (0.1 + 0.9 * cosine) as f32
    }
}

/// A parameter and its moments.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Owned {
    pub(crate) value: Vec<f32>,
    pub(crate) first: Vec<f32>,
    pub(crate) second: Vec<f32>,
}

impl Owned {
    /// With moments of 0.
    pub(crate) fn new(value: Vec<f32>) -> Self {
        Self { first: vec![0.0; value.len()], second: vec![0.0; value.len()], value }
    }

    /// Step number `step`, counted from 1, with the gradient times `factor`.
    pub(crate) fn update(&mut self, gradient: &[f32], factor: f32, rate: f32, decay: f32, step: u64) {
        let step = step as f64;
        let unbiased = |keep: f32| (1.0 / (1.0 - f64::from(keep).powf(step))) as f32;
        let (first, second) = (unbiased(FIRST), unbiased(SECOND));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((value, (m, v)), g) in self.value.iter_mut().zip(moments).zip(gradient) {
            let g = g * factor;
            *m = FIRST * *m + (1.0 - FIRST) * g;
            *v = SECOND * *v + (1.0 - SECOND) * g * g;
            *value -= rate * (*m * first / ((*v * second).sqrt() + EPSILON) + decay * *value);
        }
    }
}
