//! Expert parallelism: tokens go to the ranks of the experts that they chose, and what comes of them comes back.
//!
//! A [`Group`] is one rank of several processes on one machine, which share memory. [`Group::dispatch`] sends each
//! token once to each rank that has an expert for it; [`Group::combine`] adds what those ranks send back. Order and
//! results are those of the normal mode of DeepSeek's DeepEP (<https://github.com/deepseek-ai/DeepEP>), and the same in
//! every run. A token's numbers are copied once on the way there: into their place in the receiver's memory.
//!
//! Not here yet: several machines, the low-latency mode, rows by expert, GPUs. A rank that dies or hangs is noticed by
//! the others when their limit is over, and ends the group.
#![deny(unsafe_code)]

mod exchange;
mod heap;
mod layout;
mod places;
mod tokens;

pub use exchange::{Combined, Dispatched, Group, Handle};
pub use layout::{Layout, Shape, layout};
pub use tokens::Tokens;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum EpError {
    /// An argument breaks a rule. Nothing has been sent.
    #[error("{argument}: {rule}")]
    Argument {
        /// Its name.
        argument: &'static str,
        /// The rule, with the numbers.
        rule: String,
    },
    /// A rank has not done its part in time. The group can't be used any more.
    #[error("rank {rank} has not {what} within {milliseconds} ms: it has died, hangs, or holds results")]
    Late {
        /// Which rank.
        rank: usize,
        /// What is waited for.
        what: &'static str,
        /// How long it was waited for.
        milliseconds: u128,
    },
    /// A rank was started with other numbers, or makes another call. The group can't be used any more.
    #[error("rank {rank} has {what} {theirs}, this one {ours}: they must be equal")]
    Disagree {
        /// Which rank.
        rank: usize,
        /// In what.
        what: &'static str,
        /// Its number.
        theirs: u64,
        /// This rank's number.
        ours: u64,
    },
    /// The file of the shared memory is somebody else's.
    #[error("{path}: {why}")]
    File {
        /// Which file.
        path: String,
        /// What is wrong, and what helps.
        why: String,
    },
    /// An earlier call failed half-way.
    #[error("the group has ended with an earlier error: {0}")]
    Ended(String),
}

/// Result with an [`EpError`].
pub type Result<T> = std::result::Result<T, EpError>;

/// An error unless `holds`.
fn demand(holds: bool, argument: &'static str, rule: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(EpError::Argument { argument, rule: rule() }) }
}
