//! Root mean square norm (arXiv 1910.07467).

use crate::model::numbers::dot;

const EPSILON: f32 = 1e-6;

/// A weight for each number, and the sum of its gradients.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub(crate) value: Vec<f32>,
    pub(crate) gradient: Vec<f32>,
}

impl Norm {
    /// Of so many numbers.
    pub(crate) fn new(numbers: usize) -> Self {
        Self { value: vec![0.0; numbers], gradient: vec![0.0; numbers] }
    }
    fn inverse(row: &[f32]) -> f32 {
        1.0 / (dot(row, row) / row.len() as f32 + EPSILON).sqrt()
    }

    /// Each row of `x`, divided by the root of its mean square, times the weight.
    pub(crate) fn forward(&self, x: &[f32]) -> Vec<f32> {
        let mut out = Vec::with_capacity(x.len());
        for row in x.chunks_exact(self.value.len()) {
            let inverse = Self::inverse(row);
            out.extend(row.iter().zip(&self.value).map(|(x, weight)| x * inverse * weight));
        }
        out
    }

    /// Gradient of `x`; that of the weight is added.
    pub(crate) fn backward(&mut self, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let numbers = self.value.len();
        let mut out = Vec::with_capacity(x.len());
        for (x, dy) in x.chunks_exact(numbers).zip(dy.chunks_exact(numbers)) {
            let inverse = Self::inverse(x);
            let weighted: Vec<f32> = dy.iter().zip(&self.value).map(|(dy, weight)| dy * weight).collect();
            let common = dot(&weighted, x) * inverse * inverse / numbers as f32;
            out.extend(weighted.iter().zip(x).map(|(g, x)| inverse * (g - common * x)));
            let sums = self.gradient.iter_mut().zip(dy.iter().zip(x));
            sums.for_each(|(sum, (dy, x))| *sum += dy * x * inverse);
        }
        out
    }
}
