//! Attention with latent keys and values (MLA): decoding from a paged cache, and sparse attention.
//!
//! Inputs, outputs and rules are those of DeepSeek's FlashMLA (<https://github.com/deepseek-ai/FlashMLA>): a key has
//! 576 numbers, of which the first 512 are the value too; pages hold 64 tokens. Sums are in `f32`. Everything runs on
//! this machine's processors, on all that the process may use, and gives the same bits with any number of them.
//! [`cuda`] has decoding for Hopper GPUs; it has not been run on one yet.
//!
//! Not here: who owns the cache, and how tokens are chosen for sparse attention.
#![forbid(unsafe_code)]

mod cache;
pub mod cuda;
mod dense;
mod schedule;
mod softmax;
mod sparse;
mod threads;

pub use cache::{dequantise, quantise};
pub use dense::{Dense, dense_decode};
pub use schedule::{Part, Schedule, schedule};
pub use sparse::{Prefill, Prefilled, SparseDecode, sparse_decode, sparse_prefill};

use half::bf16;

/// Numbers of a key.
pub const WIDTH: usize = 576;
/// Numbers of a value: the first ones of the key.
pub const VALUE_WIDTH: usize = 512;
/// Tokens of a page of the cache.
pub const PAGE: usize = 64;
/// Bytes of a token in the FP8 cache.
pub const CACHE_BYTES: usize = 656;

/// What came of an attention.
#[derive(Clone, PartialEq, Debug)]
pub struct Attended {
    /// `[batch, queries, heads, 512]`; zeros where a query sees nothing.
    pub out: Vec<bf16>,
    /// `[batch, heads, queries]`: natural logarithm of the sum of the exponentials of the logits; +infinity where a
    /// query sees nothing.
    pub lse: Vec<f32>,
}

/// What is wrong with an argument.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{argument}: {rule}")]
pub struct MlaError {
    /// Its name.
    pub argument: &'static str,
    /// The rule that it breaks, with the numbers.
    pub rule: String,
}

/// Result with an [`MlaError`].
pub type Result<T> = std::result::Result<T, MlaError>;

/// An error unless `holds`.
fn demand(holds: bool, argument: &'static str, rule: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(MlaError { argument, rule: rule() }) }
}

/// An error unless there are so many numbers.
fn demand_len(length: usize, argument: &'static str, shape: &[usize]) -> Result<()> {
    let needed = shape.iter().fold(1usize, |product, &number| product.saturating_mul(number));
    demand(length == needed, argument, || format!("has {length} elements, not the {needed} of {shape:?}"))
}

/// What logits are multiplied by: the root of 1/576 if nothing is given.
fn scale_of(scale: Option<f32>) -> Result<f32> {
    let scale = scale.unwrap_or(1.0 / 24.0);
    demand(scale.is_finite() && scale > 0.0, "scale", || format!("{scale} is no scale of logits"))?;
    Ok(scale)
}
