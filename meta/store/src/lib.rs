//! The namespace: inodes, directory entries, sessions, garbage and truncations as records in a transactional
//! key-value store, and every metadata operation as reads and writes of one transaction.
//!
//! It is not a service: it has no clock, no randomness, no network and no threads; times, ids and seeds are
//! arguments, and committing (with which durability, and again after a conflict) is the caller's. Invariants:
//! - An operation that is refused ([`Error::Refused`]) has written nothing, so that several operations share
//!   one transaction and fail one by one.
//! - An inode record exists as long as a name, a capability or unremoved data can refer to it; ids are never
//!   used twice (R3).
//! - Data go only by orders of durable transactions: [`garbage`] and [`truncate`] hand out work from committed
//!   records, in transactions that ask for a durable commit themselves (R3). The caller may ask for more
//!   durability before it runs operations, never for less after.
//! - Only [`file`]'s settlement and [`truncate`] change a length; both check the truncate version (R19).
#![forbid(unsafe_code)]

pub mod access;
pub mod attributes;
mod codec;
mod create;
mod dentry;
mod error;
pub mod file;
pub mod garbage;
pub mod ids;
pub mod read;
pub mod record;
mod remove;
mod rename;
pub mod request;
mod space;
pub mod table;
pub mod truncate;

pub use attributes::{Change, SetAttributes, SetTime};
pub use create::{NewIds, NodeRequest, Placement};
pub use dentry::{COOKIE_FIRST, position_of};
pub use error::{Error, Result};
pub use file::{Found, OpenFlags, OpenRequest, Opened, Report, Written};
pub use rename::RenameFlags;
pub use space::{Env, Space};

#[cfg(test)]
mod tests;
