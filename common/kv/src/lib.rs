//! The transactional key-value store under mgmtd and meta: FoundationDB's semantics behind the traits
//! [`Kv`] and [`Tx`], and the engines that implement them without a cluster.
//!
//! It is not a cache, and knows nothing of what is stored. Invariants: committed transactions are
//! strictly serializable in the order of their versionstamps; what survives a crash is a prefix of that order
//! and contains every commit that was answered as durable; damaged data are refused, never guessed.
#![forbid(unsafe_code)]

// The tests' support is shared with those outside the crate.
#[cfg(test)]
extern crate self as ember_kv;

mod buffer;
mod mutation;
mod oneshot;
mod tx;
mod watch;

pub mod api;
pub mod error;
pub mod faulty;
pub mod key;
pub mod local;
pub mod mem;
pub mod resolver;
pub mod retry;

pub use api::{
    BoxFuture, Committed, Durability, KeyRange, KeyValue, Kv, RangeOptions, ReadMode, Tx, Versionstamp, Watch,
};
pub use error::KvError;
pub use faulty::{CommitPlan, Faults, FaultyKv, Hold, Outcome, Release, hold};
pub use local::{ExportSummary, LocalKv, LocalOptions, LocalStats, verify_export};
pub use mem::MemKv;
pub use retry::{Attempt, RetryPolicy, WrapsKvError, run, run_attempts};
