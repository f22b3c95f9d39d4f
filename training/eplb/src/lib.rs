//! Expert-parallel load balancing: which physical slot of which GPU holds a replica of which expert.
//!
//! Experts of a mixture-of-experts model get unequal numbers of tokens. [`rebalance_experts`] gives the heavy ones
//! more replicas and spreads all replicas over GPUs so that the loads are near each other; it is the algorithm of
//! DeepSeek's EPLB (<https://github.com/deepseek-ai/EPLB>) with ties decided by the lower index. [`LoadAverage`] says
//! what the loads are, [`moves`] what has to be copied to get from one placement to the next.
//!
//! Pure: nothing here talks to a GPU or a network. Equal input gives equal output, bit for bit, on every machine.
#![forbid(unsafe_code)]

mod average;
mod moves;
mod packing;
mod placement;
mod rebalance;

pub use average::{LoadAverage, count_tokens};
pub use moves::{Move, keep_in_place, moves};
pub use placement::Placement;
pub use rebalance::{Shape, rebalance_experts};

/// What is wrong with an argument.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{argument}: {rule}")]
pub struct EplbError {
    /// Its name.
    pub argument: &'static str,
    /// The rule that it breaks, with the numbers.
    pub rule: String,
}

/// Result with an [`EplbError`].
pub type Result<T> = std::result::Result<T, EplbError>;

/// An error unless `holds`.
fn demand(holds: bool, argument: &'static str, rule: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(EplbError { argument, rule: rule() }) }
}
