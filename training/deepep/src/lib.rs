//! Expert parallelism: tokens go to the ranks of the experts that they chose, and what comes of them comes back.
//!
//! A [`Group`] is one rank of several processes, which share memory on each machine ([`Group::join_across`] takes those
//! of several machines together). [`Group::dispatch`] sends each token once to each rank that has an expert for it;
//! [`Dispatched::expand`] gives a row for each expert of it; [`Group::combine`] and [`Group::combine_expanded`] add
//! what comes back. Order and results are those of DeepSeek's DeepEP (<https://github.com/deepseek-ai/DeepEP>), and
//! the same in every run. A token's numbers are copied once on the way there: into their place in the receiver's
//! memory. [`Group::low_latency_dispatch`] and [`Group::low_latency_combine`] come in two halves, with time to
//! compute between them.
//!
//! [`cuda`] has the ranks of one GPU; it has not been run on one yet.
//!
//! Not here: several GPUs, and results that are computed right into the memory of the rank that they go back to. A rank
//! that dies is noticed by the others within a moment, one that hangs when their limit is over; both end the group.
#![forbid(unsafe_code)]

mod combine;
pub mod cuda;
mod dispatch;
mod expand;
mod group;
mod layout;
mod low;
mod nodes;
mod numbers;
mod places;
mod returned;
mod tokens;
mod ways;

pub use combine::{Combined, Reduction};
pub use dispatch::Dispatched;
pub use expand::{Expanded, Values};
pub use group::{Group, Join, Returns};
pub use layout::{Layout, Shape, layout};
pub use low::{Cast, LowCombine, LowDispatch, LowDispatched};
pub use nodes::Across;
pub use tokens::Tokens;
pub use ways::Handle;

use ember_heap::HeapError;
use ember_link::LinkError;

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
    /// A rank's process or thread has ended. The group can't be used any more.
    #[error("rank {rank} has died or left, and has not {what}")]
    Gone {
        /// Which rank.
        rank: usize,
        /// What is waited for.
        what: &'static str,
    },
    /// A rank has ended the group.
    #[error("rank {rank} has ended the group because of rank {culprit}: see its error")]
    GivenUp {
        /// Which rank.
        rank: usize,
        /// The rank that it names.
        culprit: usize,
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
    /// This rank can't listen.
    #[error("{0}")]
    Listener(String),
    /// A rank of another machine can't be reached, or refuses this one.
    #[error("rank {rank} at {address}: {why}")]
    Missing {
        /// Which rank.
        rank: usize,
        /// Where it should be.
        address: String,
        /// What happened.
        why: String,
    },
    /// What a rank has sent over the network breaks a rule. The group can't be used any more.
    #[error("rank {rank} has sent what is no message: {why}")]
    Damaged {
        /// Which rank.
        rank: usize,
        /// Which rule.
        why: String,
    },
    /// The GPU, its driver or its compiler.
    #[error(transparent)]
    Cuda(#[from] ember_cuda::CudaError),
    /// An earlier call failed half-way.
    #[error("the group has ended with an earlier error: {0}")]
    Ended(String),
}

impl EpError {
    /// The rank that is to blame, if it is one.
    pub(crate) fn culprit(&self) -> Option<usize> {
        match *self {
            Self::Late { rank, .. }
            | Self::Gone { rank, .. }
            | Self::Disagree { rank, .. }
            | Self::Missing { rank, .. }
            | Self::Damaged { rank, .. } => Some(rank),
            Self::GivenUp { culprit, .. } => Some(culprit),
            Self::Argument { .. }
            | Self::File { .. }
            | Self::Listener(_)
            | Self::Cuda(_)
            | Self::Ended(_) => None,
        }
    }

    /// With the number in the group of a rank that has number `r` among some: `first + r * stride`.
    pub(crate) fn moved(mut self, stride: usize, first: usize) -> Self {
        match &mut self {
            Self::Late { rank, .. }
            | Self::Gone { rank, .. }
            | Self::GivenUp { rank, .. }
            | Self::Disagree { rank, .. }
            | Self::Missing { rank, .. }
            | Self::Damaged { rank, .. } => *rank = first + *rank * stride,
            Self::Argument { .. }
            | Self::File { .. }
            | Self::Listener(_)
            | Self::Cuda(_)
            | Self::Ended(_) => {}
        }
        self
    }
}

impl From<LinkError> for EpError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Listener(why) => Self::Listener(why),
            LinkError::Missing { rank, address, why } => Self::Missing { rank, address, why },
            LinkError::Late { rank, what, milliseconds } => Self::Late { rank, what, milliseconds },
            LinkError::Gone { rank, what, .. } => Self::Gone { rank, what },
            LinkError::Ended { rank, culprit } => Self::GivenUp { rank, culprit },
            LinkError::Damaged { rank, why } => Self::Damaged { rank, why },
        }
    }
}

impl From<HeapError> for EpError {
    fn from(error: HeapError) -> Self {
        match error {
            HeapError::Late { rank, what, milliseconds } => Self::Late { rank, what, milliseconds },
            HeapError::Gone { rank, what } => Self::Gone { rank, what },
            HeapError::Ended { rank, culprit } => Self::GivenUp { rank, culprit },
            HeapError::Disagree { rank, what, theirs, ours } => Self::Disagree { rank, what, theirs, ours },
            HeapError::File { path, why } => Self::File { path, why },
        }
    }
}

/// Result with an [`EpError`].
pub type Result<T> = std::result::Result<T, EpError>;

/// An error unless `holds`.
fn demand(holds: bool, argument: &'static str, rule: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(EpError::Argument { argument, rule: rule() }) }
}
