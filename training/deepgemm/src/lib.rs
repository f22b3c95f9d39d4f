//! Matrix products of FP8 and BF16 numbers with fine-grained scales, for training and inference.
//!
//! The numbers, scales and rules are those of DeepSeek's DeepGEMM (<https://github.com/deepseek-ai/DeepGEMM>): FP8 is
//! E4M3 with a scale for each 128 columns of a row, or of 128 rows; the products of 128 columns are summed, and the
//! sum times both scales is added to an `f32`.
//!
//! [`Cpu`] computes on this machine's processors, with AMX or AVX-512 BF16 where there is one. These two sum in
//! different orders ([`Order`]). For each order there is portable code that gives the same bits: results depend on the
//! order alone, not on the code nor on the number of threads. [`cuda`] has the same products for Hopper GPUs; it has
//! not been run on one yet.
#![deny(unsafe_code)]

pub mod cuda;
mod e4m3;
mod gemm;
mod grouped;
mod kernel;
pub mod layout;
mod logits;
mod quantise;
pub mod ue8m0;
mod view;

pub use e4m3::E4m3;
pub use gemm::{Cpu, Element, Recipe, Scaled};
pub use grouped::ALIGNMENT;
pub use kernel::Order;
pub use logits::Indexer;
pub use quantise::{Quantised, ScaleFormat, per_block, per_channel, per_token};
pub use view::{Scales, View, ViewMut};

/// Columns, and rows of a weight, that have one scale.
pub const BLOCK: usize = 128;

/// What is wrong with an argument. Nothing has been written then.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{argument}: {rule}")]
pub struct GemmError {
    /// Its name.
    pub argument: &'static str,
    /// The rule that it breaks, with the numbers.
    pub rule: String,
}

/// Result with a [`GemmError`].
pub type Result<T> = std::result::Result<T, GemmError>;

/// An error unless `holds`.
fn demand(holds: bool, argument: &'static str, rule: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(GemmError { argument, rule: rule() }) }
}
