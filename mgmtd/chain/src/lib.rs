//! What the cluster manager decides about chains: their state machine, and which disks share a chain.
//!
//! Pure: no clock, randomness, I/O or async; `ember-mgmtd` observes nodes, calls [`transition`] and makes the
//! result durable. Invariants, checked by [`invariants::check`]: a chain's version grows with every change;
//! only targets that hold every acknowledged write are serving or lastsrv; serving members never change
//! order; at most one member is syncing; a chain never has serving and lastsrv members at once.
#![forbid(unsafe_code)]

mod blame;
pub mod invariants;
mod membership;
mod observation;
pub mod placement;
mod transition;

pub use blame::{Accusation, blame};
pub use membership::{MembershipError, accept_generation, add, new_chain, note_in_use, remove};
pub use observation::{Observation, Report};
pub use transition::{holds_everything, may_replace, transition};
