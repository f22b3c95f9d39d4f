//! The FUSE daemon: an EmberFS cluster as a mounted file system, over the client library.
//!
//! It mounts, answers the kernel's requests from a few reactors, and unmounts. It is not a cache: pages, names
//! and attributes are the kernel's, open files the client's; what it keeps of an inode ([`known`]) only saves
//! invalidations and may be forgotten. Semantics for users are in `docs/operations/mount.md`.
//!
//! Invariants:
//! - A node id is an inode id and a file handle the client's number of an open, so there is no table that maps
//!   one to the other.
//! - A request is answered exactly once, through the channel that brought it.
//! - A request that waits for the cluster holds a slot and nothing else: others go on.
//! - After open(2) the kernel serves neither pages nor a length older than what meta knew then.
//! - Nothing that the cluster can't do is answered with success.
#![forbid(unsafe_code)]

mod caller;
mod config;
mod convert;
mod error;
mod fs;
mod interrupt;
mod known;
mod mounted;
mod serve;
mod worker;

pub use config::FuseConfig;
pub use error::Error;
pub use serve::{Connect, Parts, run};
