//! Memory that the ranks of a job on one machine share: a heap for each, all laid out alike, in one file.
//!
//! [`Heap::join`] brings processes, or threads, together. Then each writes into the others' heaps ([`Heap::put`]),
//! tells them so ([`Heap::tell`]), and waits to be told ([`Heap::wait`]): for a bounded time, and not for a rank that
//! has died. What lies where, and when a place is free, is the users' business.
//!
//! Each rank holds a lock on its byte of the file. The kernel takes it away however the process ends, so that the
//! others see a death within a few naps; numbers of processes, which are used again, play no part.
#![deny(unsafe_code)]

mod memory;
mod ranks;

pub use ranks::{Heap, Join};

/// Why ranks have not come together, or don't stay so.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeapError {
    /// A rank has not done its part in time.
    #[error("rank {rank} has not {what} within {milliseconds} ms: it has died, hangs, or holds results")]
    Late {
        /// Which rank.
        rank: usize,
        /// What is waited for.
        what: &'static str,
        /// How long it was waited for.
        milliseconds: u128,
    },
    /// A rank's process, or the thread that it was, has ended.
    #[error("rank {rank} has died or left, and has not {what}")]
    Gone {
        /// Which rank.
        rank: usize,
        /// What is waited for.
        what: &'static str,
    },
    /// A rank has given up, because of another one or of itself.
    #[error("rank {rank} has ended the group because of rank {culprit}: see its error")]
    Ended {
        /// Which rank.
        rank: usize,
        /// The one that it names, as [`Heap::fail`] was told.
        culprit: usize,
    },
    /// A rank was started with another number.
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
    /// The file of the shared memory can't be made, or is somebody else's.
    #[error("{path}: {why}")]
    File {
        /// Which file.
        path: String,
        /// What is wrong, and what helps.
        why: String,
    },
}
