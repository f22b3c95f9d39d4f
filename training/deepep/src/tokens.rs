//! What is sent.

use crate::layout::{Shape, layout};
use crate::places::BLOCK;
use crate::{Result, demand};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use zerocopy::IntoBytes;

/// Tokens of a rank, `[tokens, hidden]`.
#[derive(Clone, Copy, Debug)]
pub enum Tokens<'a> {
    /// In BF16.
    Bf16(&'a [bf16]),
    /// In FP8, a byte each, with a scale for each 128: `[tokens, ceil(hidden / 128)]`.
    Fp8 {
        /// The numbers' bits.
        values: &'a [u8],
        /// The scales.
        scales: &'a [f32],
    },
}

impl<'a> Tokens<'a> {
    /// Bytes of a number, which also tell the kinds apart.
    pub(crate) fn width(&self) -> usize {
        match self {
            Self::Bf16(_) => 2,
            Self::Fp8 { .. } => 1,
        }
    }
    pub(crate) fn bytes(&self) -> &'a [u8] {
        match self {
            Self::Bf16(values) => values.reinterpret_cast().as_bytes(),
            Self::Fp8 { values, .. } => values,
        }
    }
    pub(crate) fn scales(&self) -> &'a [f32] {
        match self {
            Self::Bf16(_) => &[],
            Self::Fp8 { scales, .. } => scales,
        }
    }
    /// Number of tokens.
    pub(crate) fn check(&self, shape: &Shape) -> Result<usize> {
        let numbers = self.bytes().len() / self.width();
        demand(numbers.is_multiple_of(shape.hidden), "tokens", || {
            format!("{numbers} numbers are no whole number of tokens of {}", shape.hidden)
        })?;
        let tokens = numbers / shape.hidden;
        demand(tokens <= shape.tokens, "tokens", || {
            format!("{tokens} are more than the {} of the group", shape.tokens)
        })?;
        let scales = if self.width() == 1 { tokens * shape.hidden.div_ceil(BLOCK) } else { 0 };
        demand(self.scales().len() == scales, "scales", || {
            format!("there are {}, not the {scales} of {tokens} tokens", self.scales().len())
        })?;
        let bad = self.scales().iter().position(|scale| !scale.is_finite());
        demand(bad.is_none(), "scales", || {
            let at = bad.unwrap_or(0);
            format!("number {at} is {}, not finite", self.scales()[at])
        })?;
        Ok(tokens)
    }
}

/// An error unless `chosen` are the experts of so many tokens.
pub(crate) fn check_chosen(shape: &Shape, count: usize, chosen: &[i64]) -> Result<()> {
    let (needed, topk) = (count * shape.topk, shape.topk);
    demand(chosen.len() == needed, "chosen", || {
        format!("has {} numbers, not the {needed} of {count} tokens with {topk} experts", chosen.len())
    })?;
    layout(chosen, shape).map(drop)
}

/// An error unless `weights` are those of so many tokens.
pub(crate) fn check_weights(shape: &Shape, count: usize, weights: &[f32]) -> Result<()> {
    let (needed, topk) = (count * shape.topk, shape.topk);
    demand(weights.len() == needed, "weights", || {
        format!("has {} numbers, not the {needed} of {count} tokens with {topk} experts", weights.len())
    })
}
