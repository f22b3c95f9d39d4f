//! Weights, and their products with activations.

use crate::model::numbers::{add, add_product, transposed};
use anyhow::{Context, Result};
use ember_deepgemm::{
    ALIGNMENT, Cpu, Quantised, Recipe, ScaleFormat, Scaled, View, ViewMut, per_block, per_token,
};
use serde::{Deserialize, Serialize};

/// What products of weights are computed in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Precision {
    /// FP8 (E4M3): activations with a scale for each token and 128 numbers, weights for each 128 x 128, both factors of
    /// weight gradients for each row and 128 tokens.
    Fp8,
    /// `f32`: slow, to compare with.
    F32,
}

/// What multiplies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Math {
    pub(crate) cpu: Cpu,
    pub(crate) precision: Precision,
}

/// A weight `[outputs, inputs]` and the sum of its gradients.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    pub(crate) shape: [usize; 2],
    pub(crate) value: Vec<f32>,
    pub(crate) gradient: Vec<f32>,
    /// The weight as products with inputs and with gradients want it; made anew when the weight has changed.
    ready: Option<Ready>,
}

#[derive(Clone, Debug)]
enum Ready {
    Fp8 {
        forward: Quantised,
        backward: Quantised,
    },
    /// The transpose.
    F32(Vec<f32>),
}

impl Matrix {
    /// Of zeros.
    pub(crate) fn new(shape: [usize; 2]) -> Self {
        let zeros = vec![0.0; shape[0] * shape[1]];
        Self { shape, value: zeros.clone(), gradient: zeros, ready: None }
    }
    /// Makes it ready for products, after each change of the value.
    pub(crate) fn prepare(&mut self, math: &Math) -> Result<()> {
        let [outputs, inputs] = self.shape;
        let back = transposed(&self.value, self.shape);
        self.ready = Some(match math.precision {
            Precision::F32 => Ready::F32(back),
            Precision::Fp8 => Ready::Fp8 {
                forward: per_block(&View::new(&self.value, [outputs, inputs])?, ScaleFormat::F32)?,
                backward: per_block(&View::new(&back, [inputs, outputs])?, ScaleFormat::F32)?,
            },
        });
        Ok(())
    }

    fn ready(&self) -> &Ready {
        self.ready.as_ref().expect("weights are prepared before the first product")
    }
    /// What outputs, or with `back` gradients of inputs, are computed from.
    fn factor(&self, back: bool) -> Result<Option<Scaled<'_>>> {
        let [outputs, inputs] = self.shape;
        Ok(match (self.ready(), back) {
            (Ready::F32(_), _) => None,
            (Ready::Fp8 { forward, .. }, false) => Some(forward.scaled([outputs, inputs])?),
            (Ready::Fp8 { backward, .. }, true) => Some(backward.scaled([inputs, outputs])?),
        })
    }
    fn plain(&self, back: bool) -> &[f32] {
        match self.ready() {
            Ready::F32(transpose) if !back => transpose,
            _ => &self.value,
        }
    }
}

impl Math {
    /// Outputs `[rows, outputs]` for `x[rows, inputs]`.
    pub(crate) fn forward(&self, weight: &Matrix, x: &[f32]) -> Result<Vec<f32>> {
        let [outputs, inputs] = weight.shape;
        self.product(weight, x, inputs, outputs, false)
    }
    /// Gradients `[rows, inputs]` of the inputs from `dy[rows, outputs]`.
    pub(crate) fn backward(&self, weight: &Matrix, dy: &[f32]) -> Result<Vec<f32>> {
        let [outputs, inputs] = weight.shape;
        self.product(weight, dy, outputs, inputs, true)
    }

    fn product(&self, weight: &Matrix, x: &[f32], k: usize, n: usize, back: bool) -> Result<Vec<f32>> {
        let m = x.len() / k;
        let mut y = vec![0.0f32; m * n];
        match weight.factor(back)? {
            None => add_product(&mut y, x, weight.plain(back), [m, k, n]),
            Some(b) => {
                let a = per_token(&View::new(x, [m, k])?, ScaleFormat::F32)?;
                let d = ViewMut::new(&mut y, [m, n])?;
                self.cpu.fp8_gemm_nt(a.scaled([m, k])?, b, None, d, Recipe::Blocks)?;
            }
        }
        Ok(y)
    }

    /// Adds `dyᵀ x` to the weight's gradient.
    pub(crate) fn gradient(&self, weight: &mut Matrix, dy: &[f32], x: &[f32]) -> Result<()> {
        let [outputs, inputs] = weight.shape;
        let rows = x.len() / inputs;
        let left = transposed(dy, [rows, outputs]);
        match self.precision {
            Precision::F32 => add_product(&mut weight.gradient, &left, x, [outputs, rows, inputs]),
            Precision::Fp8 => {
                let right = transposed(x, [rows, inputs]);
                let a = per_token(&View::new(&left, [outputs, rows])?, ScaleFormat::F32)?;
                let b = per_token(&View::new(&right, [inputs, rows])?, ScaleFormat::F32)?;
                let mut sum = vec![0.0f32; outputs * inputs];
                let d = ViewMut::new(&mut sum, [outputs, inputs])?;
                let (a, b) = (a.scaled([outputs, rows])?, b.scaled([inputs, rows])?);
                self.cpu.fp8_gemm_nt::<f32>(a, b, None, d, Recipe::Rows)?;
                add(&mut weight.gradient, &sum);
            }
        }
        Ok(())
    }

    /// As [`Math::forward`], or with `back` [`Math::backward`], of several weights of one shape: `segments` says which
    /// rows of `x` belong to each. They begin at multiples of 128; other rows of the result are zeros.
    pub(crate) fn grouped(
        &self,
        weights: &[&Matrix],
        x: &[f32],
        segments: &Segments,
        back: bool,
    ) -> Result<Vec<f32>> {
        let [outputs, inputs] = weights[0].shape;
        let (k, n) = if back { (outputs, inputs) } else { (inputs, outputs) };
        let m = segments.padded();
        let mut factors = Vec::with_capacity(weights.len());
        for weight in weights {
            factors.extend(weight.factor(back)?);
        }
        if factors.is_empty() {
            let mut y = vec![0.0f32; m * n];
            for (weight, (from, to)) in weights.iter().zip(segments.ranges()) {
                let (x, y) = (&x[from * k..to * k], &mut y[from * n..to * n]);
                add_product(y, x, weight.plain(back), [to - from, k, n]);
            }
            return Ok(y);
        }
        let a = per_token(&View::new(x, [m, k])?, ScaleFormat::F32)?;
        self.contiguous(&a, &factors, [m, k, n], segments)
    }

    /// The same for rows that are in FP8 already.
    pub(crate) fn grouped_quantised(
        &self,
        weights: &[&Matrix],
        x: &Quantised,
        segments: &Segments,
    ) -> Result<Vec<f32>> {
        let [outputs, inputs] = weights[0].shape;
        let mut factors = Vec::with_capacity(weights.len());
        for weight in weights {
            factors.push(weight.factor(false)?.context("weights are in FP8 where activations are")?);
        }
        self.contiguous(x, &factors, [segments.padded(), inputs, outputs], segments)
    }

    fn contiguous(
        &self,
        a: &Quantised,
        b: &[Scaled<'_>],
        [m, k, n]: [usize; 3],
        segments: &Segments,
    ) -> Result<Vec<f32>> {
        let mut y = vec![0.0f32; m * n];
        let d = ViewMut::new(&mut y, [m, n])?;
        self.cpu.fp8_gemm_nt_contiguous(a.scaled([m, k])?, b, d, &segments.groups(), Recipe::Blocks)?;
        Ok(y)
    }

    /// As [`Math::gradient`], of several weights of one shape.
    pub(crate) fn grouped_gradient(
        &self,
        weights: &mut [&mut Matrix],
        dy: &[f32],
        x: &[f32],
        segments: &Segments,
    ) -> Result<()> {
        let [outputs, inputs] = weights[0].shape;
        // Zeros behind a group's rows add nothing.
        for (weight, (from, to)) in weights.iter_mut().zip(segments.padded_ranges()) {
            if from < to {
                self.gradient(weight, &dy[from * outputs..to * outputs], &x[from * inputs..to * inputs])?;
            }
        }
        Ok(())
    }
}

/// Rows of several experts behind each other, each expert's from a multiple of 128 on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Segments {
    counts: Vec<usize>,
    starts: Vec<usize>,
}

impl Segments {
    pub(crate) fn new(counts: Vec<usize>) -> Self {
        let (mut end, mut starts) = (0, Vec::with_capacity(counts.len()));
        for count in &counts {
            starts.push(end);
            end += count.next_multiple_of(ALIGNMENT);
        }
        Self { counts, starts }
    }
    /// First row of each.
    pub(crate) fn starts(&self) -> &[usize] {
        &self.starts
    }
    /// All rows, padding too.
    pub(crate) fn padded(&self) -> usize {
        self.padded_ranges().last().map_or(0, |(_, to)| to)
    }
    fn ranges(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.starts.iter().zip(&self.counts).map(|(&start, &count)| (start, start + count))
    }
    fn padded_ranges(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.ranges().map(|(from, to)| (from, from + (to - from).next_multiple_of(ALIGNMENT)))
    }
    /// Whose each row is, -1 in padding.
    fn groups(&self) -> Vec<i32> {
        let mut groups = vec![-1; self.padded()];
        for (group, (from, to)) in self.ranges().enumerate() {
            groups[from..to].fill(group as i32);
        }
        groups
    }
}
