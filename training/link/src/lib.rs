//! Messages between ranks on several machines, over the file system's transport (`ember-net`).
//!
//! A [`Listener`] is where a rank can be reached; [`Link::join`] connects it with the others, each to each, in both
//! directions. Then [`Link::send`] takes a message and returns, and [`Link::receive`] waits for one: for a bounded
//! time, and not from a rank that has died. A thread of its own, a reactor, drives the connections.
//!
//! Invariants: who doesn't know the job's key is no rank; nothing that comes over the wire panics, or takes more memory
//! than [`Join::message_max`] for each message and [`MESSAGES_MAX`] messages for each rank; messages of one rank in
//! one channel arrive whole and once, found by their number. What is sent is authenticated at the beginning and
//! checked, not encrypted. Byte boxes: `docs/design/ranks.md`.
#![forbid(unsafe_code)]

mod mailbox;
mod reactor;

pub use reactor::{Join, Link, Listener};

/// Messages of a rank that may wait to be received.
pub const MESSAGES_MAX: usize = 8;

/// Which message of a rank.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Tag {
    /// What it is about: below 2^31.
    pub channel: u32,
    /// Its number there.
    pub number: u32,
}

/// Why ranks have not come together, or don't stay so.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LinkError {
    /// There is no listening at an address, or no thread for it.
    #[error("{0}")]
    Listener(String),
    /// A rank can't be reached, or refuses this one.
    #[error("rank {rank} at {address}: {why}")]
    Missing {
        /// Which rank.
        rank: usize,
        /// Where it should be.
        address: String,
        /// What happened.
        why: String,
    },
    /// A rank has not done its part in time.
    #[error("rank {rank} has not {what} within {milliseconds} ms: it has died, or hangs")]
    Late {
        /// Which rank.
        rank: usize,
        /// What is waited for.
        what: &'static str,
        /// How long it was waited for.
        milliseconds: u128,
    },
    /// A rank's process has ended, or its machine can't be reached any more.
    #[error("rank {rank} has died or left, and has not {what} ({why})")]
    Gone {
        /// Which rank.
        rank: usize,
        /// What is waited for.
        what: &'static str,
        /// What the connection says.
        why: String,
    },
    /// A rank has given up, because of another one or of itself.
    #[error("rank {rank} has ended the group because of rank {culprit}: see its error")]
    Ended {
        /// Which rank.
        rank: usize,
        /// The one that it names, as [`Link::fail`] was told.
        culprit: usize,
    },
    /// What a rank has sent breaks a rule.
    #[error("rank {rank} has sent what is no message: {why}")]
    Damaged {
        /// Which rank.
        rank: usize,
        /// Which rule.
        why: String,
    },
}
