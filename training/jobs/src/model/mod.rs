//! A small mixture-of-experts language model with latent attention, as DeepSeek-V3 is built (arXiv 2412.19437,
//! section 2.1), over bytes. Forward and backward passes are written out: there is no automatic differentiation.
//!
//! A layer is `x + attention(norm(x))`, then `x + experts(norm(x))`. All activations are `f32`, row-major, a row a
//! token; the products of weights are FP8 with the scales of DeepGEMM (or `f32`, to check against).

pub(crate) mod attention;
pub(crate) mod experts;
pub(crate) mod matrix;
pub(crate) mod norm;
pub(crate) mod numbers;
pub(crate) mod stage;
#[cfg(test)]
pub(crate) mod tests;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// Numbers of a latent key: what FlashMLA's cache holds of a token, but for the rotated part.
pub(crate) const LATENT: usize = 512;
/// Numbers of the rotated part of a key or a query.
pub(crate) const ROPE: usize = 64;
/// Different tokens: bytes.
pub(crate) const VOCABULARY: usize = 256;

/// What the model is made of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Numbers of a token between layers: a multiple of 128.
    #[arg(long, default_value_t = 128)]
    pub(crate) hidden: usize,
    /// Layers: a multiple of the stages.
    #[arg(long, default_value_t = 4)]
    pub(crate) layers: usize,
    /// Heads of attention.
    #[arg(long, default_value_t = 4)]
    pub(crate) heads: usize,
    /// Numbers of a head's query and key that aren't rotated, and of its value.
    #[arg(long, default_value_t = 32)]
    pub(crate) head: usize,
    /// Inner numbers of an expert: a multiple of 128.
    #[arg(long, default_value_t = 128)]
    pub(crate) inner: usize,
    /// Experts of a layer, besides the one that all tokens share.
    #[arg(long, default_value_t = 8)]
    pub(crate) experts: usize,
    /// Experts that a token goes to.
    #[arg(long, default_value_t = 2)]
    pub(crate) topk: usize,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 128)]
    pub(crate) context: usize,
}

impl Config {
    /// That the numbers fit together.
    pub(crate) fn check(&self) -> Result<()> {
        let Self { hidden, layers, heads, head, inner, experts, topk, context } = *self;
        for (name, number) in [("hidden", hidden), ("inner", inner)] {
            ensure!(number > 0 && number.is_multiple_of(128), "--{name}: {number} is no multiple of 128");
        }
        let least =
            [("layers", layers), ("heads", heads), ("head", head), ("topk", topk), ("context", context)];
        for (name, number) in least {
            ensure!(number > 0, "--{name} is at least 1");
        }
        ensure!(topk <= experts, "--topk: a token can't go to {topk} of {experts} experts");
        Ok(())
    }

    /// Numbers of all queries of a token.
    pub(crate) fn queries(&self) -> usize {
        self.heads * (self.head + ROPE)
    }
}
