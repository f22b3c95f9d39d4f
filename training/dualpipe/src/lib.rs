//! Bidirectional pipeline parallelism: DualPipe and DualPipeV.
//!
//! A [`Pipeline`] says what each rank computes, sends and receives, in order ([`Pipeline::program`]); [`simulate()`]
//! says how long that takes and draws it, and [`Rank::step`] does it with any [`Stage`] over any [`Transport`]. The
//! schedules are those of DeepSeek's DualPipe (<https://github.com/deepseek-ai/DualPipe>; DeepSeek-V3 Technical
//! Report, arXiv 2412.19437, section 3.2.1).
//!
//! Not here: tensors, devices and optimisers, and the sum of the gradients of the two copies of a stage
//! ([`Pipeline::twin`]). Equal stages and inputs give equal losses, bit for bit, whatever the number of ranks.
#![forbid(unsafe_code)]

mod draw;
mod execute;
mod message;
mod schedule;
mod shm;
mod simulate;
mod tcp;
mod transport;

pub use execute::{Feed, Outcome, Rank, RunError, Stage};
pub use message::Message;
pub use schedule::{Compute, Kind, Part, Payload, Pipeline, Step, Transfer};
pub use shm::{Shared, ShmTransport};
pub use simulate::{Block, Costs, Simulation, Timeline, simulate};
pub use tcp::{JoinError, Mesh, TcpTransport};
pub use transport::{Tag, ThreadTransport, Transport, TransportError};

/// What can go wrong.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DualPipeError {
    /// An argument breaks a rule.
    #[error("{argument}: {rule}")]
    Argument {
        /// Its name.
        argument: &'static str,
        /// The rule, with the numbers.
        rule: String,
    },
    /// A schedule whose ranks wait for each other.
    #[error("rank {rank} waits for ever at step {step} of its program")]
    Deadlock {
        /// A rank that waits.
        rank: usize,
        /// Where in its program.
        step: usize,
    },
}

/// Result with a [`DualPipeError`].
pub type Result<T> = std::result::Result<T, DualPipeError>;

/// An error unless `holds`.
fn demand(holds: bool, argument: &'static str, rule: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(DualPipeError::Argument { argument, rule: rule() }) }
}
