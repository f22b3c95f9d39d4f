//! The storage service: targets on disks, replicas in chains.
//!
//! It joins what others decide and store: `ember-craq` says what a replica does, `ember-engine` keeps the bytes,
//! and this crate carries outputs of the one to the other, to other replicas and to mgmtd. It is not a protocol
//! of its own. Invariants:
//! - A request is answered only under a lease that a clock read after its arrival confirms (R8).
//! - Client requests carry a capability that was checked here; replicas prove that they are nodes.
//! - A target's directory is made only when routing has a generation of it that was never made; what is missing
//!   later is a fault, and what is damaged stays where it is.
//! - Bytes are compared with their checksums when they arrive and when they leave the disk; bad ones are never
//!   shown, and are repaired from another replica.
#![forbid(unsafe_code)]

mod config;
mod convert;
mod error;
mod health;
mod known;
mod late;
mod node;
mod pace;
mod peers;
mod remove;
mod repair;
mod resync;
mod scrub;
mod server;
mod slots;
mod target;

pub use config::StorageConfig;
pub use error::StorageError;
pub use node::{Parts, run};
