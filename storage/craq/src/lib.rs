//! The replica protocol of one target in one chain: CRAQ with the rules R2, R4 to R7, R10 to R14 and R18.
//!
//! Pure: no clock, I/O, randomness or async. [`Replica::handle`] takes what happened and says what is to be
//! done; the storage service turns the outputs into calls of the chunk engine and RPCs. It does not hold
//! bytes (the shell keeps them under the request's token), check capabilities or choose chain members.
//!
//! Invariants, per chunk and chain version:
//! - at most one update, installation, repair or sync is in progress; what else wants the chunk waits in order;
//! - a version held (pending or committed) by a serving replica is held by every serving replica before it;
//! - the tail alone decides to commit; a version is committed elsewhere only after the successor said so;
//! - nothing is committed or told before mgmtd has noted that the chain version is in use;
//! - a pending version goes only by a commit, by an abort that its successors have carried out, or on entering
//!   syncing;
//! - every map and queue is bounded, and every request is answered exactly once.
#![forbid(unsafe_code)]

mod channels;
mod io;
mod replica;
mod state;

pub use channels::CHANNELS_MAX;
pub use io::{
    Address, Answer, Failure, Forward, Input, Message, Output, Page, Payload, SendId, SyncItem, Token,
};
pub use replica::{Identity, Replica, Role, SyncStatus};
pub use state::{Change, ChunkState, Content, Pending, Summary, View};
