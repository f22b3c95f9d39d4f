//! The chunk engine: what a target keeps on its disk. One [`Engine`] per target, a directory of one disk.
//!
//! It stores versions of chunks durably, reads them back verified, and recovers after a crash. It is not the
//! replica protocol: which version follows which, who may commit and what may be read is decided by
//! `ember-craq` and the storage service. It has no thread and no clock, and reaches the disk only through
//! [`ember_rt::disk`].
//!
//! Invariants (formats and reasons in `docs/design/engine.md`):
//! - When [`Engine::prepare`], [`Engine::abort`], [`Engine::install`] or [`Engine::set_chain_version`] return
//!   `Ok`, their effect survives any crash. [`Engine::commit`] may be undone by a crash, to pending.
//! - Bytes that a committed version shows are never written over; a slot is reused only after the record that
//!   frees it is flushed and no reader holds it (R17).
//! - Every block that is read, also to be merged with an update, is compared with its checksum.
//! - No byte pattern on the disk makes it panic: it ends in [`EngineError::Corrupt`] with file and offset.
//! - After a failed log write or flush it takes no more updates until it is reopened.
#![forbid(unsafe_code)]

mod api;
mod cache;
mod checkpoint;
mod class;
mod compact;
mod crc;
pub mod decode;
mod engine;
mod error;
mod extents;
mod files;
mod frame;
mod fsck;
mod index;
mod inner;
mod log;
pub mod migrate;
mod overlay;
mod pages;
mod plan;
mod read;
mod reader;
mod record;
mod recover;
mod rows;
mod scrub;
mod settled;
mod slots;
mod sums;
mod superblock;
pub mod synthetic;
mod used;
mod write;

pub use api::{
    ChunkState, ContentState, Install, InstallContent, Prepare, Prepared, Read, TargetSpace, Update, Which,
};
pub use class::CHUNK_MAX;
pub use engine::{Engine, Reservation};
pub use error::{EngineError, Result};
pub use fsck::{FsckReport, Piece, Problem, fsck, pieces};
pub use inner::{Counters, Durability, EngineConfig};
pub use recover::Recovery;
pub use scrub::FilesCheck;
pub use superblock::{FORMAT, Identity};
