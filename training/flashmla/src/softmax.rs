//! Sums over tokens, a page at a time.

use crate::VALUE_WIDTH;
use half::bf16;
use std::f32::consts::{LN_2, LOG2_E};

/// Partial sums of a product: so many independent ones, added in a fixed order.
const LANES: usize = 16;

pub(crate) fn widen(from: &[bf16]) -> Vec<f32> {
    from.iter().map(|x| x.to_f32()).collect()
}

pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    for (x, y) in x.chunks_exact(LANES).zip(y.chunks_exact(LANES)) {
        for i in 0..LANES {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum()
}

/// 2ˣ for x up to 0, by a polynomial: the same bits on every machine, off by less than 2⁻²² of it.
fn exp2(x: f32) -> f32 {
    if x < -126.0 {
        return 0.0;
    }
    let whole = x.round_ties_even();
    let y = (x - whole) * LN_2;
    let mut power = 1.0 / 5040.0;
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        power = power * y + factor;
    }
    power * f32::from_bits(((whole as i32 + 127) as u32) << 23)
}

/// The tokens so far: greatest logit, and sums of exponentials relative to it. Logits are in units of log 2.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Sums {
    greatest: f32,
    sum: f32,
    out: Vec<f32>,
}

impl Sums {
    pub(crate) fn new() -> Self {
        Self { greatest: f32::NEG_INFINITY, sum: 0.0, out: vec![0.0; VALUE_WIDTH] }
    }

    /// Adds tokens with their logits (of base e) and values.
    pub(crate) fn add<'v>(&mut self, logits: &[f32], value: impl Fn(usize) -> &'v [f32]) {
        let logit = |i: usize| logits[i] * LOG2_E;
        let greatest = (0..logits.len()).map(logit).fold(self.greatest, f32::max);
        if greatest == f32::NEG_INFINITY {
            return;
        }
        let kept = if self.sum == 0.0 { 0.0 } else { exp2(self.greatest - greatest) };
        self.greatest = greatest;
        self.sum *= kept;
        self.out.iter_mut().for_each(|out| *out *= kept);
        for i in 0..logits.len() {
            let share = exp2(logit(i) - greatest);
            self.sum += share;
            for (out, value) in self.out.iter_mut().zip(value(i)) {
                *out += share * value;
            }
        }
    }

    /// Adds what others have summed over other tokens.
    pub(crate) fn join(&mut self, other: &Self) {
        if other.sum == 0.0 {
            return;
        }
        let greatest = self.greatest.max(other.greatest);
        let kept = if self.sum == 0.0 { 0.0 } else { exp2(self.greatest - greatest) };
        let share = exp2(other.greatest - greatest);
        self.greatest = greatest;
        self.sum = self.sum * kept + other.sum * share;
        for (out, other) in self.out.iter_mut().zip(&other.out) {
            *out = *out * kept + other * share;
        }
    }

    /// The greatest logit, of base e; -infinity if there is none.
    pub(crate) fn greatest(&self) -> f32 {
        if self.sum == 0.0 { f32::NEG_INFINITY } else { self.greatest / LOG2_E }
    }

    /// The mean of the values, and the natural logarithm of the sum of the exponentials. A sink is one more token, with
    /// this logit and a value of zeros; the logarithm is without it.
    pub(crate) fn finish(&self, sink: Option<f32>) -> (Vec<bf16>, f32) {
        if self.sum == 0.0 {
            return (vec![bf16::ZERO; VALUE_WIDTH], f32::INFINITY);
        }
        let lse = (self.greatest + self.sum.log2()) * LN_2;
        let with_sink = sink.map_or(1.0, |sink| 1.0 / (1.0 + (sink - lse).exp()));
        let factor = with_sink / self.sum;
        (self.out.iter().map(|out| bf16::from_f32(out * factor)).collect(), lse)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn powers_are_near() {
        for i in 0..200_000 {
            let x = -126.0 * (i as f32 / 200_000.0);
            let exact = f64::from(x).exp2();
            let off = (f64::from(super::exp2(x)) - exact).abs() / exact;
            assert!(off < 1.0 / f64::from(1 << 22), "2^{x} is off by {off}");
        }
        assert_eq!(super::exp2(0.0), 1.0);
        assert_eq!(super::exp2(f32::NEG_INFINITY), 0.0);
    }
}
